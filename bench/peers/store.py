"""The results' directory: what is in it is not measured again. Files are written whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from bench.peers.contestants import Contestant
from bench.peers.loads import Load
from bench.peers.records import Measured, Setup, Started, Streamed, Try

T = TypeVar("T", bound=msgspec.Struct)
_VARIES: Final = "load average before"


class OtherResultsError(Exception):
    """The directory's results were not made in this way, or not on this machine."""


class Store:
    """One directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self, setup: Setup) -> Setup:
        """Claim it for such results; the setup that it has. Raises ``OtherResultsError``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "setup.json"
        if not path.exists():
            _write(path, setup)
            return setup
        there = msgspec.json.decode(path.read_bytes(), type=Setup)
        if _lasting(there) != _lasting(setup):
            raise OtherResultsError(
                f"{self.directory} has results of another scale or machine, or of other sources, which can't stand beside these: "
                "name another with --out"
            )
        return there

    def measured(self) -> list[Measured]:
        return list(self._all("load", Measured))

    def started(self) -> list[Started]:
        return list(self._all("start", Started))

    def streamed(self) -> list[Streamed]:
        return list(self._all("stream", Streamed))

    def tries(self) -> list[Try]:
        """Those that failed, also of earlier runs."""
        return list(self._all("try", Try))

    def has(self, contestant: Contestant, load: Load, repetition: int) -> bool:
        return self._load(contestant.key, load, repetition).exists()

    def has_start(self, contestant: Contestant, repetition: int) -> bool:
        return self._path("start", contestant.key, repetition).exists()

    def has_stream(self, contestant: Contestant, repetition: int) -> bool:
        return self._path("stream", contestant.key, repetition).exists()

    def keep(self, one: Measured | Started | Streamed | Try) -> None:
        match one:
            case Measured():
                _write(self._load(one.contestant, one.load, one.repetition), one)
            case Started():
                _write(self._path("start", one.contestant, one.repetition), one)
            case Streamed():
                _write(self._path("stream", one.contestant, one.repetition), one)
            case Try():
                before = len(list((self.directory / "runs").glob(f"try*.{one.contestant}.{one.repetition}.json")))
                _write(self._path(f"try{before}", one.contestant, one.repetition), one)

    def rates(self) -> dict[int, float]:
        """Once open loops have begun, they go on at the same rates."""
        path = self.directory / "rates.json"
        return msgspec.json.decode(path.read_bytes(), type=dict[int, float]) if path.exists() else {}

    def keep_rates(self, rates: dict[int, float]) -> None:
        """Rates that are there stay."""
        _write(self.directory / "rates.json", {**rates, **self.rates()})

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text, encoding="utf-8")

    def _load(self, contestant: str, load: Load, repetition: int) -> Path:
        return self._path(f"load-{load.key}", contestant, repetition)

    def _path(self, kind: str, contestant: str, repetition: int) -> Path:
        return self.directory / "runs" / f"{kind}.{contestant}.{repetition}.json"

    def _all(self, kind: str, type: type[T]) -> Iterator[T]:
        for path in sorted((self.directory / "runs").glob(f"{kind}*.json")):
            yield msgspec.json.decode(path.read_bytes(), type=type)


def _lasting(setup: Setup) -> Setup:
    machine = {name: value for name, value in setup.machine.items() if name != _VARIES}
    return msgspec.structs.replace(setup, machine=machine)


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
    scratch.replace(path)
