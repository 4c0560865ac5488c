"""Plays all cases, on as many cores as there are. A module of its own: processes that are spawned can't find what is in ``__main__``.

What has been played is kept, if a directory is given, and not played again.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.diagnosis.cases import USUAL, Case, World, cases, doubles, healthy
from bench.diagnosis.kept import judges, keep, read
from bench.diagnosis.play import Played, play
from bench.diagnosis.report import Report
from bench.diagnosis.score import Scored, alarms, score, serves

_ROOMS: Final = (
    "appliance/diagnosis",
    "appliance/telemetry",
    "appliance/costs",
    "appliance/simulator",
    "bench/diagnosis",
)
_LOADS: Final = (0.85, 0.7)
HEALTHY_S: Final = 600.0
T = TypeVar("T")
Job = tuple[str, Callable[..., Any], tuple[Any, ...]]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """``healthy``: runs of ten minutes of each node. ``follow``: play each case once more, with somebody who does as advised."""

    seeds: range
    healthy: int = 0
    world: World = USUAL
    follow: bool = False
    only: tuple[str, ...] = ()  # kinds of injection; empty: all


def together(several: Sequence[Case], follow: bool) -> list[Scored]:
    """Cases of one node and seed: what would have been without is played once. In another world, with as much as the node can bear."""
    first, without = several[0], play(several[0], injected=False, watched=False)
    for load in _LOADS if first.world.constants else ():
        if serves(without):
            break
        first = msgspec.structs.replace(first, load=load)
        without = play(first, injected=False, watched=False)
    cases = [msgspec.structs.replace(case, load=first.load) for case in several]
    return [score(play(case), without, play(case, follow=True) if follow else None) for case in cases]


def quiet(case: Case) -> Played:
    """Ten minutes of a node that nothing is done to."""
    return play(case, duration_s=HEALTHY_S)


def run(wanted: Wanted, kept: Path | None = None) -> Report:
    """All cases of the seeds."""
    todo = [case for case in cases(wanted.seeds, wanted.world) if not wanted.only or case.name in wanted.only]
    pairs = [] if wanted.only else doubles(wanted.seeds, wanted.world)
    well = healthy(range(wanted.seeds.start, wanted.seeds.start + wanted.healthy), wanted.world)
    scored = _all("injections", [*_jobs(todo, wanted.follow)], kept, list[Scored])
    twos = _all("two at once", [*_jobs(pairs, False)], kept, list[Scored])
    calm = _all("healthy", [(_name("calm", case), quiet, (case,)) for case in well], kept, Played)
    return Report(
        seeds=f"{wanted.seeds.start} to {wanted.seeds.stop - 1}",
        world=wanted.world,
        scored=tuple(row for rows in scored for row in rows),
        doubles=tuple(row for rows in twos for row in rows),
        healthy_hours=len(calm) * HEALTHY_S / 3600,
        alarms=tuple(alarm for played in calm for alarm in alarms(played)),
    )


def _jobs(todo: Iterable[Case], follow: bool) -> Iterable[Job]:
    groups: dict[tuple[str, int], list[Case]] = defaultdict(list)
    for case in todo:
        groups[case.node, case.seed].append(case)
    for several in groups.values():
        kinds = "-".join(sorted({case.name for case in several}))
        yield _name(f"{kinds}{'-followed' if follow else ''}", several[0]), together, (several, follow)


def _name(kind: str, case: Case) -> str:
    """Of a file."""
    world = f"{case.world.noise:g}-{case.world.constants:g}"
    digest = hashlib.blake2b((kind + case.name + judges(_ROOMS)).encode(), digest_size=6).hexdigest()
    return f"{case.node}-{case.seed}-{world}-{digest}.json".replace(" ", "_")


def _all(title: str, jobs: Sequence[Job], kept: Path | None, kind: type[T]) -> list[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    found: dict[str, T] = {name: there for name, *_ in jobs if (there := read(kept, name, kind)) is not None}
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool,
    ):
        task = bar.add_task(title, total=len(jobs), completed=len(found))
        running = {pool.submit(do, *given): name for name, do, given in jobs if name not in found}
        for done in as_completed(running):
            found[running[done]] = done.result()
            keep(kept, running[done], done.result())
            bar.advance(task)
    return [found[name] for name, *_ in jobs]
