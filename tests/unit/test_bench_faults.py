"""Whether a fault was made is told by what it has done, not by having been tried."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import faults, impostors
from bench.checker import Ending, Heard
from bench.faults import Done, NotMade, apply
from bench.schedule import Planned


class Ground:
    """Of a node whose engines are just being started."""

    runtime = Path("/nowhere")
    cases = (None,)

    def __init__(self, family: list[psutil.Process] | None = None, ending: Ending = Ending.LEFT) -> None:
        self.clients = self
        self._family = family or []
        self._ending = ending

    async def engine(self, name: str) -> dict[str, Any]:
        return {"name": name, "pid": None, "epoch": 3}

    async def family(self, name: str) -> list[psutil.Process]:
        return self._family

    async def process(self, name: str, kind: str) -> psutil.Process | None:
        return self._family[0] if self._family else None

    def fork_server(self) -> None:
        return None

    async def ask(self, case: object, manner: object) -> Heard:
        return Heard(ending=self._ending)


async def done(kind: str, ground: Ground) -> Done:
    group, _, variant = kind.partition(": ")
    return await apply(ground, Planned(at_s=0, group=group, variant=variant, victim="e0"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind",
    [
        "kill: API",
        "stop: all 3 s",
        "stop: EngineCore 1 s",
        "oom: API data",
        "twin: leaves",
        "forkserver: kill",
        "fds: limit and a kill",
        "kv: garbage",
        "kv: callers",
        "channel: garbage",
    ],
)
async def test_without_a_victim_nothing_is_made(kind: str) -> None:
    found = await done(kind, Ground())
    assert not found.made and found.did


@pytest.fixture
def zombie() -> Iterator[psutil.Process]:
    child = subprocess.Popen(["true"])
    process = psutil.Process(child.pid)
    while process.status() != psutil.STATUS_ZOMBIE:
        pass
    yield process
    child.wait()


async def test_a_process_that_has_ended_can_not_be_hit(zombie: psutil.Process) -> None:
    for kind in ("kill: API", "stop: API", "oom: API data"):
        assert not (await done(kind, Ground([zombie]))).made, kind


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


async def test_a_living_one_is_hit(child: subprocess.Popen[bytes]) -> None:
    assert (await done("kill: API", Ground([psutil.Process(child.pid)]))).made
    assert child.wait(10) == -9


@pytest.mark.parametrize("asked", [0, 1])
async def test_an_impostor_whom_nobody_asks_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: int
) -> None:
    @asynccontextmanager
    async def in_place_of(*_: object) -> AsyncIterator[list[str]]:
        yield ["garbage"] * asked

    class Entering(Ground):
        runtime = tmp_path
        server: Any = None

        async def json(self, path: str) -> dict[str, Any]:
            return {"engines": [{"name": "e0"}, {"name": "e1"}]}

        async def post(self, path: str) -> int:
            return 202

    monkeypatch.setattr(impostors, "in_place_of", in_place_of)
    monkeypatch.setattr(faults, "_ENTERING_S", 0.0)
    monkeypatch.setattr(faults, "_SETTLES_S", 0.0)
    (tmp_path / "e0-1-0.kv").touch()
    ground = Entering()
    ground.server = ground
    assert (await done("kv: garbage", ground)).made is bool(asked)


async def test_a_crowd_that_nobody_lets_in_is_none() -> None:
    assert not (await done("clients: leave", Ground(ending=Ending.REFUSED))).made
    assert (await done("clients: leave", Ground())).made


@pytest.mark.parametrize(
    ("told", "made"),
    [
        ("a caller that says garbage: closed", True),
        ("a caller that says silence: left open", True),
        ("a caller that says garbage: refused (No such file or directory)", False),
        ("64 callers, 0 connections were closed", False),
        ("64 callers, 60 connections were closed", True),
    ],
)
async def test_nobody_is_disturbed_who_takes_no_call(monkeypatch: pytest.MonkeyPatch, told: str, made: bool) -> None:
    async def call(*_: object) -> str:
        return told

    monkeypatch.setattr(impostors, "call_channel", call)
    assert (await done("channel: garbage", Ground())).made is made


def test_a_remount_that_fails_makes_nothing_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faults, "may_mount", lambda: True)
    monkeypatch.setattr(faults, "_ran", lambda *command: "remount,bind,ro" not in command)
    with pytest.raises(NotMade, match="can still be written to"), faults.read_only(tmp_path):
        raise AssertionError("it is writable")


def test_a_mode_that_binds_nobody_makes_nothing_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faults, "may_mount", lambda: False)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # as good as that for root
    with pytest.raises(NotMade, match="can still be written to"), faults.read_only(tmp_path):
        raise AssertionError("it is writable")


def test_a_disk_that_is_not_ours_is_not_filled(tmp_path: Path) -> None:
    with pytest.raises(NotMade, match="not ours to fill"), faults.full(tmp_path):
        raise AssertionError("it is filled")
