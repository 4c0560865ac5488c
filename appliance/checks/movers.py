"""The way of KV from engine to engine, proved: a process for each engine, which brings the others' bytes over and looks at them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from appliance.checks.line import Line, bad, ok, warn
from appliance.supervisor.specs import EngineSpec, environment

_MODULE: Final = "appliance.engine.kv.prove"
_BYTES: Final = 32 << 20  # that each has
_START_S: Final = 60.0  # torch is imported
_PULL_S: Final = 20.0
_SLOW: Final = 0.5  # of what a plain copy comes to


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What a mover says: ``engine.kv.prove.Moved``."""

    peer: str
    bytes_s: float | None = None
    limit_bytes_s: float | None = None
    seconds: float | None = None
    device_bytes_s: float | None = None
    disturbed: float | None = None
    transfers: int = 0
    staged: bool = False
    error: str | None = None


class Mover:
    """One of the processes."""

    def __init__(
        self, spec: EngineSpec, directory: Path, transport: str, inherited: dict[str, str], size: int = _BYTES
    ) -> None:
        self.name, self.role = spec.name, spec.role
        self.engine = spec.name.partition(".")[0]
        """Of whose ranks it may be one: e0.1 is of e0."""
        temporary = directory / f"{spec.name}.tmp"
        temporary.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, spec.name, str(directory), transport, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(spec, temporary, inherited),
        )

    def ready(self) -> str | None:
        """Why it can't share its memory; None if it can."""
        return self._answer(_START_S).error

    def pull(self, peer: str, pieces: int | None = None) -> Moved:
        return self._ask(f"pull {peer}" if pieces is None else f"pull {peer} {pieces}", peer)

    def disturb(self, peer: str, pieces: int) -> Moved:
        return self._ask(f"disturb {peer} {pieces}", peer)

    def _ask(self, what: str, peer: str) -> Moved:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
        except OSError:
            return Moved(peer=peer, error=self._last_words())
        return self._answer(_PULL_S)

    def _answer(self, timeout_s: float) -> Moved:
        """One line; a mover that says nothing in time is ended."""
        timer = _Ender(self._process, timeout_s)
        with timer:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
        if not line:
            return Moved(
                peer=self.name, error=f"nothing came within {timeout_s:.0f} s" if timer.over else self._last_words()
            )
        return msgspec.json.decode(line, type=Moved)

    def _last_words(self) -> str:
        _, said = self._process.communicate()
        lines = [line for line in said.splitlines() if line.strip()]
        return f"its process ended: {lines[-1] if lines else f'exit code {self._process.returncode}'}"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def pairs(movers: Sequence[Mover]) -> Iterator[tuple[Mover, Mover]]:
    """From whom, and to whom, KV is handed over. Engines that do both have no hand-off, but may get other roles: both ways are proved."""
    for producer in movers:
        for consumer in movers:
            if producer.engine != consumer.engine and producer.role.prefills and consumer.role.decodes:
                yield producer, consumer


def prove(specs: Sequence[EngineSpec], directory: Path, transport: str, inherited: dict[str, str]) -> Iterator[Line]:
    """A line for each pair of engines."""
    movers: list[Mover] = []
    try:
        movers += [Mover(spec, directory, transport, inherited) for spec in specs]
        dumb = {mover.name: why for mover in movers if (why := mover.ready()) is not None}
        for name, why in dumb.items():
            yield bad(f"KV of {name}", f"can't be shared ({transport}): {why}", "see above, and docs/reliability.md")
        for producer, consumer in pairs(movers):
            if not {producer.name, consumer.name} & set(dumb):
                yield _line(producer, consumer, consumer.pull(producer.name), transport)
    finally:
        for mover in movers:
            mover.end()


def _line(producer: Mover, consumer: Mover, moved: Moved, transport: str) -> Line:
    what = f"KV {producer.name} → {consumer.name}"
    if moved.error is not None or not moved.bytes_s or not moved.limit_bytes_s:
        return bad(
            what,
            f"does not arrive by {transport}: {moved.error}",
            "prompts would be computed twice; a layout without a hand-off (--topology 2b) does without it",
        )
    share = moved.bytes_s / moved.limit_bytes_s
    way = f"{transport} by way of the host's memory" if moved.staged else transport
    said = f"{way}, {moved.bytes_s / 1e9:.1f} GB/s, every byte right; {_held_against(share)}"
    made = (
        ok(what, said)
        if share >= _SLOW and not moved.staged
        else warn(
            what,
            said,
            "the GPUs can't read each other's memory (nvidia-smi topo -p2p r): engines on others, or a layout without a hand-off"
            if moved.staged
            else "something else takes the memory's bandwidth, or the engines are on other NUMA nodes than their memory",
        )
    )
    return msgspec.structs.replace(made, bytes_s=moved.bytes_s, limit_bytes_s=moved.limit_bytes_s)


def _held_against(share: float) -> str:
    """A plain copy is one thread's, and transports may do better."""
    return f"{share:.0%} of what a plain copy comes to here" if share <= 1 else "no slower than a plain copy here"


class _Ender:
    """Ends a process that takes too long, which ends the wait for what it says."""

    def __init__(self, process: subprocess.Popen[str], timeout_s: float) -> None:
        self.over = False
        self._process = process
        self._timer = threading.Timer(timeout_s, self._end)

    def _end(self) -> None:
        self.over = True
        self._process.kill()

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
