"""``pd-appliance check``: the way of KV is proved by processes that move some."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.checks import movers
from appliance.checks.line import Line, Standing
from appliance.engine.kv import prove
from appliance.records import Role
from appliance.supervisor.specs import EngineSpec, cpu_environment

pytest.importorskip("torch", reason="the CPU engine is not installed")
ROOT = Path(__file__).parents[2]


def spec(name: str, role: Role, **environment: str) -> EngineSpec:
    return EngineSpec(
        name=name,
        role=role,
        cores=(0,),
        tensor_parallel=1,
        arguments=(),
        environment={**cpu_environment(1), "PYTHONPATH": str(ROOT), **environment},
    )


def proved(directory: Path, *specs: EngineSpec, transport: str = "shared_memory") -> list[Line]:
    return list(movers.prove(specs, directory, transport, dict(os.environ)))


def test_bytes_get_from_each_prefill_engine_to_each_decode_engine(short: Path) -> None:
    found = proved(short, spec("e0", Role.PREFILL), spec("e1", Role.PREFILL), spec("e2", Role.DECODE))
    assert [line.what for line in found] == ["KV e0 → e2", "KV e1 → e2"]
    for line in found:
        assert line.standing in (Standing.OK, Standing.WARN), line.said
        assert "every byte right" in line.said
        assert line.bytes_s
        assert line.limit_bytes_s


def test_engines_that_do_both_are_proved_both_ways(short: Path) -> None:
    found = proved(short, spec("e0", Role.BOTH), spec("e1", Role.BOTH))
    assert [line.what for line in found] == ["KV e0 → e1", "KV e1 → e0"]
    assert all("every byte right" in line.said for line in found)


def test_memory_that_can_not_be_shared_is_said_and_the_rest_goes_on(short: Path) -> None:
    found = proved(short, spec("e0", Role.PREFILL), spec("e1", Role.DECODE), transport="carrier_pigeon")
    assert [line.what for line in found] == ["KV of e0", "KV of e1"]
    assert all("unknown KV transport 'carrier_pigeon'" in line.said for line in found)


def test_a_mover_that_can_not_even_begin_is_told_with_its_last_words(short: Path) -> None:
    found = proved(
        short, spec("e0", Role.PREFILL, PYTHONPATH="/nowhere", PYTHONHOME="/nowhere"), spec("e1", Role.DECODE)
    )
    [line] = found
    assert (line.what, line.standing) == ("KV of e0", Standing.BAD)
    assert "its process ended: " in line.said


def test_wrong_bytes_are_found(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ends in this process; one believes that the other has other bytes than it has."""
    ends = [prove.Mover(name, short, "shared_memory", 16 << 20) for name in ("e0", "e1")]
    assert ends[1].pull("e0").error is None
    right = prove.pattern
    monkeypatch.setattr(prove, "pattern", lambda name, pieces: right(f"not {name}", pieces))
    assert "128 of 128 pieces arrived with other bytes" in str(ends[1].pull("e0").error)
    assert "no KV handshake with e9" in str(ends[1].pull("e9").error)


def check(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "appliance", "check", "--json", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    return found.returncode, json.loads(found.stdout)


def test_the_command_looks_at_everything_and_says_what_stands_against_serving(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, found = check("--port", port, "--state-dir", str(tmp_path), "--no-move")
    assert code == 1
    assert not found["ok"]
    assert [line["what"] for line in found["lines"] if line["standing"] == "bad"] == ["port"]
    assert all(line["remedy"] for line in found["lines"] if line["standing"] in ("bad", "warn"))
    code, found = check("--port", "0", "--state-dir", str(tmp_path), "--topology", "1b")
    assert (code, found["ok"]) == (0, True)
    assert found["lines"][-1]["said"] == "one engine hands nothing over"


def test_a_configuration_that_can_not_be_is_a_line(tmp_path: Path) -> None:
    code, found = check("--topology", "1p1d@tp3", "--state-dir", str(tmp_path))
    assert code == 1
    [against] = [line for line in found["lines"] if line["standing"] == "bad"]
    assert against["what"] == "engines"
    assert "3 ranks can't share" in against["said"]
    assert found["lines"][-1]["said"] == "not moved: there are no engines to move it between"
