"""What steps take on the engines of this machine, kept from one process to the next.

A process that knows it from the start finds slowness that is older than itself. One file for each kind of engine (``cli.kinds``): what a
step takes depends on the model, the hardware, the software and its arguments, and with anything else it is another kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from appliance.costs.fitted import FORM, KeptModel, StepModel
from appliance.records import EngineSnapshot, NodeSnapshot, Verdict
from appliance.telemetry.compared import WELL

VERSION: Final = 2  # of the file
_DIRECTORY: Final = "fits"
_EVERY_S: Final = 60.0
_NOISY: Final = 0.3  # around the line, relative: beyond it nobody can be called slow by it
_MOMENTS: Final = 0.25  # of the time
_WORTH: Final = 500  # steps learnt, for which a file is written again
_QUICK: Final = 0.95  # times what was usual first: if steps take less, they were slow then
_STRAGGLER: Final = "_straggler_"  # in the causes that name a slow engine
_log = logging.getLogger("pd-appliance")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A file."""

    version: int
    form: int
    kind: str
    saved: float  # Unix seconds
    model: KeptModel


class Fits:
    """Those of one node."""

    def __init__(
        self, state: Path, kinds: Mapping[str, str], unix_s: Callable[[], float] = time.time, *, experts: bool = False
    ) -> None:
        """``state``: the state directory. ``kinds``: by engine. ``experts``: the node's model is a mixture of them."""
        self._directory = state / _DIRECTORY
        self._kinds = kinds
        self._unix_s = unix_s
        self._experts = experts
        self._models: dict[str, StepModel] = {}
        self._saved: dict[str, int] = {}  # what each had learnt then
        self._looks: Counter[str] = Counter()  # since the last time, at engines of a kind that make steps
        self._slow: Counter[str] = Counter()  # of them, at slow ones
        self._named: set[str] = set()  # kinds of which one was called slow

    def model(self, kind: str) -> StepModel:
        """What is known of a kind; at first what was kept of it."""
        if kind not in self._models:
            self._models[kind] = self._load(kind)
            self._saved[kind] = self._models[kind].learnt
        return self._models[kind]

    def see(self, snapshot: NodeSnapshot) -> None:
        """A time in which an engine is slow is not one to be kept."""
        for engine in snapshot.engines:
            kind = self._kinds.get(engine.name, "")
            if engine.slowdown is not None:
                self._looks[kind] += 1
                self._slow[kind] += engine.slowdown > WELL
            if _is_named(engine, snapshot.verdict):
                self._named.add(kind)

    def save(self) -> None:
        """Those that have learnt something since, from engines that were well."""
        for kind, model in self._models.items():
            worth = model.learnt >= self._saved[kind] + _WORTH and not model.young and (model.noise or 0.0) <= _NOISY
            if worth and self._was_well(kind):
                self._establish(model)
                self._write(kind, model)
        self._looks.clear()
        self._slow.clear()
        self._named.clear()

    def _establish(self, model: StepModel) -> None:
        """Once, when it knows enough; and again where that turns out to have been slow."""
        if model.sure and (model.established is None or (model.drift or 1.0) < _QUICK):
            model.establish(self._unix_s())

    def _was_well(self, kind: str) -> bool:
        """But for moments: what they had for slow steps was not learnt anyhow."""
        return kind not in self._named and self._slow[kind] <= _MOMENTS * self._looks[kind]

    async def run(self, snapshots: AsyncIterator[NodeSnapshot]) -> None:
        """Until cancelled. What was learnt last is saved then."""
        due_s = time.monotonic() + _EVERY_S
        try:
            async for snapshot in snapshots:
                self.see(snapshot)
                if time.monotonic() >= due_s:
                    due_s = time.monotonic() + _EVERY_S
                    self.save()
        except Exception:  # nobody waits for what is kept
            _log.exception("what steps take is no longer kept")
        finally:
            self.save()

    def path(self, kind: str) -> Path:
        """Of a kind's file."""
        return self._directory / f"{hashlib.sha256(kind.encode()).hexdigest()[:24]}.json"

    def _load(self, kind: str) -> StepModel:
        path = self.path(kind)
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=Kept)
            if (kept.version, kept.form, kept.kind) != (VERSION, FORM, kind):
                raise ValueError("it is of another version, or of another kind of engine")
            return StepModel(kept.model, self._experts)
        except FileNotFoundError:
            return StepModel(experts=self._experts)
        except (OSError, ValueError) as error:  # msgspec's are ValueErrors
            _log.warning("what was kept of steps in %s is not used, and learnt anew: %s", path, error)
            return StepModel(experts=self._experts)

    def _write(self, kind: str, model: StepModel) -> None:
        """All of it or nothing."""
        kept = Kept(version=VERSION, form=FORM, kind=kind, saved=self._unix_s(), model=model.kept())
        path = self.path(kind)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(kept)))
            temporary.replace(path)
            self._saved[kind] = model.learnt
        except OSError as error:
            _log.warning("what steps take can't be kept in %s: %s", path, error)
            with contextlib.suppress(OSError):
                temporary.unlink()


def _is_named(engine: EngineSnapshot, verdict: Verdict | None) -> bool:
    """It is said to be slow."""
    return (
        verdict is not None
        and _STRAGGLER in (verdict.cause or "")
        and engine.name in (verdict.engine, *verdict.engines)
    )
