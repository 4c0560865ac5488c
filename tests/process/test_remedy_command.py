"""``pd-appliance remedy`` over a whole appliance with simulated engines, and over a restart of it."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from simulated_node import MODEL, Node, command, node

SCENARIO = f"""
layout = "4p4d"
compare = []
duration_s = 3600
[hardware]
gpus = 8
[model]
config = "{MODEL}"
[traffic]
rate = 6
prompt = {{ median = 1000, sigma = 0.2 }}
output = {{ median = 60, sigma = 0.1 }}
"""
SIM = ("--engine", "sim", "--model", str(MODEL))


def remedy(where: Node, *arguments: str) -> str:
    done = command("remedy", *arguments, "--url", where.url)
    return done.stdout if done.returncode == 0 else done.stderr


def listed(where: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(remedy(where, "list", "--json"))
    return found


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_done_is_still_told_after_a_restart_of_the_appliance(short: Path, end: int) -> None:
    with node(short, *SIM, "--topology", "2b", end=end) as first:
        said = remedy(first, "weight", "e1", "0.5")
        assert re.search(r"^r\S+ .* e1's weight in routing: 1 → 0.5  \[by cli\]$", said, re.MULTILINE)
        [weighted] = listed(first)
        remedy(first, "topology", "1p1d")
        assert "e0 is the only engine that prefills" in remedy(first, "drain", "e0")
        assert "takes no new work" in remedy(first, "drain", "e0", "--force")
        assert "e1 is the only engine that takes requests" in remedy(first, "drain", "e1")
        first.until(lambda: len(listed(first)) == 3, 5)
        if end == signal.SIGKILL:  # what was put is written at once, but not before it is put
            first.until(lambda: (short / "state" / "incidents.db-wal").stat().st_size > 0, 10)
    with node(short, *SIM, "--topology", "1p1d") as second:
        drained, topology, first_one = listed(second)
        assert first_one["id"] == weighted["id"]
        assert drained["state"] != "settling", "nobody looks on any more"
        assert "not known" in drained["brought"] or "nothing to compare" in drained["brought"], (
            "on a busy machine half a minute passes"
        )
        assert (topology["over"], drained["over"] is None) == (None, False), "one of them is what is configured now"
        assert "since then all weights are 1" in remedy(second, "undo", weighted["id"])
        assert "1p1d → 2b; nothing restarts" in remedy(second, "undo", topology["id"])


def test_a_way_back_that_is_refused_can_be_forced(short: Path) -> None:
    with node(short, *SIM, "--topology", "1p1d") as there:
        remedy(there, "role", "e0", "both")
        [first] = listed(there)
        remedy(there, "role", "e1", "prefill")
        assert "let another one decode first, or force it" in remedy(there, "undo", first["id"])
        assert "e0 prefills and decodes → prefills" in remedy(there, "undo", first["id"], "--force")


def asked(where: Node) -> dict[str, Any]:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{where.url}/api/node", timeout=30) as told:
        found: dict[str, Any] = json.loads(told.read())
        return found


def serves_as(where: Node, layout: str, sizes: list[int]) -> bool:
    """All engines of it are there, on so many GPUs each."""
    now = asked(where)
    ready = [len(engine["gpus"]) for engine in now["engines"] if engine["state"] == "ready"]
    return now["topology"] == layout and ready == sizes


@pytest.mark.timeout(300)
def test_gpus_are_regrouped_under_load_and_no_request_fails(short: Path) -> None:
    (short / "scenario.toml").write_text(SCENARIO)
    with node(short, "--scenario", str(short / "scenario.toml")) as there:
        there.until(lambda: asked(there)["requests"]["ok"] > 10, 60)
        said = remedy(there, "topology", "1p1d@tp4")
        assert "topology: 4p4d → 1p1d@tp4; e0, e1 start, e2, e3, e4, e5, e6, e7 end" in said
        there.until(lambda: serves_as(there, "1p1d@tp4", [4, 4]), 60)
        now, before = asked(there), asked(there)["requests"]["split"]
        assert [(gpu["index"], gpu["engine"]) for gpu in now["gpus"]] == [(n, f"e{n // 4}") for n in range(8)]
        there.until(lambda: asked(there)["requests"]["split"] > before + 5, 60)
        assert command("sim", "fault", "e1", "--kind", "clocks", "--url", there.url).returncode == 0
        assert command("sim", "fault", "e2", "--kind", "clocks", "--url", there.url).returncode != 0
        remedy(there, "undo", listed(there)[0]["id"])
        there.until(lambda: serves_as(there, "4p4d", [1] * 8), 90)
        back, change = listed(there)
        assert change["over"] == f"it was taken back by {back['id']}"
        now = asked(there)
        assert now["requests"]["failed"] == 0
        assert now["requests"]["ok"] > 30
        assert len(now["gpus"]) == 8
