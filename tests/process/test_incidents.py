"""The whole appliance over simulated engines: a GPU gets too hot, and what becomes of that as an incident, over a restart."""

from __future__ import annotations

import gzip
import json
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from simulated_node import MISBEHAVING, MODEL, command, node

SECRET = "xyzzy-17"
SCENARIO = f"""
layout = "2p1d"
compare = []
duration_s = 3600
[hardware]
gpus = 3
[model]
config = "{MODEL}"
[traffic]
rate = 6
prompt = {{ median = 6000, sigma = 0.2 }}
output = {{ median = 8, sigma = 0.1 }}
[slo]
ttft_s = 1.5
itl_s = 0.5
"""  # a healthy engine takes a quarter of a second for a prompt, and this machine may be busy with other things


def hooked(directory: Path) -> tuple[str, Path]:
    """A configuration whose command writes what it is told, and where."""
    told = directory / "told"
    hook = f"echo $PD_APPLIANCE_EVENT $PD_APPLIANCE_INCIDENT $PD_APPLIANCE_ENGINE $PD_APPLIANCE_CAUSE >> {told}"
    (directory / "c.toml").write_text(
        f"[incidents]\ncommand = {json.dumps(['/bin/sh', '-c', hook])}\n[server]\ngrace_s = 10\n"
    )
    return str(directory / "c.toml"), told


def events(told: Path) -> list[str]:
    return [line.split()[0] for line in told.read_text().splitlines()] if told.exists() else []


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_is_open_when_the_appliance_ends_is_closed_then_or_at_the_next_start(short: Path, end: int) -> None:
    """Engines die again and again; that is a bottleneck though nobody asks for anything."""
    config, told = hooked(short)
    arguments = ("--engine", "sim", "--model", str(MODEL), "--topology", "2b", "--config", config)
    with node(short, *arguments, program=MISBEHAVING, script="dies", end=end) as first:
        first.until(lambda: events(told) == ["opened"], 30)
        [incident] = first.incidents()
        assert (incident["state"], incident["cause"]) == ("open", "engine_crashed")
        assert "of old age" in json.dumps(incident["changes"]), "why it ended"
    assert events(told) == (["opened", "closed"] if end == signal.SIGTERM else ["opened"])
    with node(short, *arguments, program=MISBEHAVING) as second:
        second.until(lambda: events(told) == ["opened", "closed"], 20)
        [closed] = second.incidents()
    assert (closed["id"], closed["state"]) == (incident["id"], "closed")
    assert closed["ended"] == "open when the appliance ended"


def ask(url: str) -> bytes:
    """Somebody's request, under an id of their own."""
    body = json.dumps({"model": "llama-3.1-8b", "prompt": f"{SECRET} in a prompt", "max_tokens": 8, "user": SECRET})
    headers = {"content-type": "application/json", "x-request-id": SECRET, "user-agent": SECRET}
    request = urllib.request.Request(f"{url}/v1/completions", body.encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        found: bytes = answer.read()
        return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hot_gpu_is_an_incident_that_outlives_the_appliance(short: Path) -> None:
    (short / "scenario.toml").write_text(SCENARIO)
    hook = (
        f"echo $PD_APPLIANCE_EVENT $PD_APPLIANCE_INCIDENT $PD_APPLIANCE_ENGINE $PD_APPLIANCE_CAUSE >> {short / 'told'}"
    )
    (short / "c.toml").write_text(f"[incidents]\ncommand = {json.dumps(['/bin/sh', '-c', hook])}\n")
    told = short / "told"
    with node(short, "--scenario", str(short / "scenario.toml"), "--config", str(short / "c.toml")) as first:
        time.sleep(20)  # what such steps take must be known
        assert first.incidents() == [], "nothing is wrong yet"
        assert (
            command("sim", "fault", "e0", "--kind", "clocks", "--severity", "0.9", "--url", first.url).returncode == 0
        )
        first.until(told.exists, 120)
        said = ask(first.url)
        first.until(lambda: "straggler_gpu" in command("incidents", "--url", first.url).stdout, 60)
        assert command("sim", "mend", "e0", "--url", first.url).returncode == 0
        first.until(lambda: "closed" in told.read_text(), 90)
        [incident] = first.incidents()
    id = incident["id"]
    assert (incident["state"], incident["engine"], incident["cause"]) == ("closed", "e0", "prefill_straggler_gpu")
    assert incident["simulated"] and incident["late"] > 0 and incident["severity"] > 0.05
    assert "MHz" in json.dumps(incident["evidence"])
    opened, closed = told.read_text().splitlines()[:2]
    assert (opened.split()[:3], closed.split()) == (
        ["opened", id, "e0"],
        ["closed", id, "e0", "prefill_straggler_gpu"],
    )
    again = command("incidents", "--state-dir", str(short / "state"), "--json")
    assert [one["id"] for one in json.loads(again.stdout)] == [id], "without a node"
    with node(
        short,
        "--engine",
        "sim",
        "--model",
        str(MODEL),
        "--topology",
        "3b",
    ) as second:
        assert [one["id"] for one in second.incidents()] == [id], "still there"
        path = short / "a.pdi"
        assert command("incidents", "export", id, "-o", str(path), "--url", second.url).returncode == 0
    exported = gzip.decompress(path.read_bytes()).decode()
    assert '"id":"client-' in exported, "its timeline is there"
    assert SECRET not in exported, f"and nothing of what was asked, or by whom: {said}"
    done = command("incidents", "replay", str(path))
    assert (done.returncode, "says what it said then" in done.stdout) == (0, True), done.stdout
    assert f"{incident['cause']} of e0" in done.stdout
