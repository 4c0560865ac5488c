"""Goes through all cases, node by node. What was played is kept, and not played again."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from appliance.incidents.bundle import ENDING
from bench.chaos import make_model
from bench.diagnosis.kept import judges, keep, read
from bench.diagnosis.real import quota
from bench.diagnosis.real.capacity import Capacity, measure
from bench.diagnosis.real.cases import SETUPS, Case, calm, cases
from bench.diagnosis.real.play import Node, Played, Unsettled, bare, started
from bench.diagnosis.real.report import Report, score
from bench.diagnosis.score import alarms
from bench.faults import NotMade
from bench.measure import machine, versions
from bench.servers import ServerError

_ROOMS: Final = ("appliance", "bench/diagnosis/real")
_TRIES: Final = 3  # at a node that does not become well again


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """``minutes``: of nodes that nothing is done to."""

    seeds: range
    minutes: float = 0.0
    only: tuple[str, ...] = ()


Job = tuple[str, Case, bool]
"""File, case, and whether something is done."""


async def run(wanted: Wanted, kept: Path) -> Report:
    """All of it. ``kept``: a directory that is there."""
    before = machine()
    jobs = list(_jobs(wanted))
    left_out = list(_impossible(jobs))
    todo = [job for job in jobs if job[1].name not in {name for name, _ in left_out}]
    with tempfile.TemporaryDirectory(prefix="pd-real-") as name:
        bench = _Bench(Path(name), kept, todo)
        await bench.run()
    played = [(job, found) for job in todo if (found := read(kept, job[0], Played)) is not None]
    injected = [found for (_, _, does), found in played if does]
    quiet = [found for (_, _, does), found in played if not does]
    return Report(
        seeds=f"{wanted.seeds.start} to {wanted.seeds.stop - 1}",
        machine=before,
        versions=versions(),
        capacities={SETUPS[found.case.node].layout: found.capacity for _, found in played},
        scored=tuple(score(one) for one in injected if one.made),
        left_out=(
            *(f"{name}: {why}" for name, why in left_out),
            *(f"{one.case.node}, {one.case.name}, seed {one.case.seed}: {one.did}" for one in injected if not one.made),
            *bench.given_up,
        ),
        healthy_hours=sum(one.end_s for one in quiet) / 3600,
        alarms=tuple(alarm for one in quiet for alarm in alarms(one)),
        did={str(one.case.seed): one.did for one in injected},
    )


def _jobs(wanted: Wanted) -> Iterator[Job]:
    digest = judges(_ROOMS)[:12]
    for case in cases(wanted.seeds, wanted.only):
        yield _name(case, digest), case, True
    for case in calm(wanted.minutes):
        yield _name(case, digest), case, False


def _name(case: Case, digest: str) -> str:
    """Of a file."""
    return f"{case.node}-{case.name}-{case.seed}-{digest}.json".replace(" ", "_").replace(",", "")


def _impossible(jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
    if any(case.name == "quota" for _, case, _ in jobs) and (why := quota.refused()) is not None:
        yield "quota", f"no CPU quota can be given on this machine: {why}"


class _Bench:
    """One run. Nodes are started in ``directory``, whose path must be short."""

    def __init__(self, directory: Path, kept: Path, jobs: Sequence[Job]) -> None:
        self._directory, self._kept = directory, kept
        self._all = len(jobs)
        self._todo = [job for job in jobs if not (kept / job[0]).is_file()]
        self._model = directory / "model"
        self._nodes = 0
        self.given_up: list[str] = []

    async def run(self) -> None:
        if self._todo:
            await make_model(self._model, "busy")
        for name in SETUPS:
            tries = 0
            while (jobs := [job for job in self._todo if job[1].node == name]) and tries < _TRIES:
                tries += 1
                try:
                    await self._of_node(name, jobs)
                except (Unsettled, ServerError) as error:
                    _say(f"{name}: {error}")
            self.given_up += [f"{name}, {case.name}, seed {case.seed}: the node was not well" for _, case, _ in jobs]

    async def _of_node(self, name: str, jobs: Sequence[Job]) -> None:
        capacity = await self._capacity(SETUPS[name].layout)
        _say(
            f"{name}: starting, for {len(jobs)} cases; TTFT within {capacity.ttft_s} s, {capacity.itl_s * 1e3:g} ms per token"
        )
        async with started(self._directory, self._model, self._number(), SETUPS[name], capacity) as node:
            await node.warm()
            for job in jobs:
                await self._one(node, capacity, job)

    async def _one(self, node: Node, capacity: Capacity, job: Job) -> None:
        file, case, does = job
        try:
            played = await (node.play(case) if does else node.watch(case))
        except NotMade as why:
            played = Played(
                case=case, capacity=capacity, did=str(why), made=False, end_s=0.0, said=(), good=(), asked=()
            )
        for number, bundle in enumerate(await node.incidents(), 1):
            (self._kept / f"{file.removesuffix('.json')}-{number}{ENDING}").write_bytes(bundle)
        keep(self._kept, file, played)
        self._todo.remove(job)
        _say(f"{self._all - len(self._todo)}/{self._all} {case.node}, {case.name} {case.seed}: {_told(played, does)}")

    async def _capacity(self, layout: str) -> Capacity:
        """Of this machine: measured once for a directory."""
        file = f"capacity-{layout}.json"
        found = read(self._kept, file, Capacity)
        if found is None:
            _say(f"{layout}: measuring what it can do, and what is usual")
            setup = next(setup for setup in SETUPS.values() if setup.layout == layout)
            async with bare(self._directory, self._model, self._number(), setup) as traffic:
                found = await measure(traffic, both=layout == "2b")
            keep(self._kept, file, found)
        return found

    def _number(self) -> int:
        self._nodes += 1
        return self._nodes


def _told(played: Played, does: bool) -> str:
    if not played.made:
        return f"not made: {played.did}"
    if not does:
        return f"{len(alarms(played))} verdicts in {played.end_s / 60:.0f} min"
    scored = score(played)
    right = "right" if scored.cause_right else "engine right" if scored.engine_right else "wrong"
    cost = f"{scored.lost:.0%} lost" + ("" if scored.impactful else ", not scored")
    return f"{played.did}; {cost}; said {scored.said} ({right})"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def until_told(wanted: Wanted, kept: Path) -> Report:
    """``run``, which ends in order at SIGTERM as at Ctrl-C. Raises ``KeyboardInterrupt`` and ``asyncio.CancelledError``."""

    async def whole() -> Report:
        task = asyncio.current_task()
        assert task is not None  # this is one
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await run(wanted, kept)

    return asyncio.run(whole())
