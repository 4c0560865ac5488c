"""``pd-appliance remedy`` over a whole appliance with simulated engines, and over a restart of it."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from test_incidents import MODEL, Node, command, node

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
        assert "is the only engine that takes requests" not in remedy(first, "drain", "e0")
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
