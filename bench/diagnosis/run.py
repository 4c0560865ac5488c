"""Plays all cases, on as many cores as there are. A module of its own: processes that are spawned can't find what is in ``__main__``."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.diagnosis.cases import Case, cases, healthy
from bench.diagnosis.play import Played, play
from bench.diagnosis.report import Report
from bench.diagnosis.score import Scored, score

HEALTHY_S: Final = 600.0


def one(case: Case) -> Scored:
    """A case with its injection, and without."""
    return score(play(case), play(case, injected=False))


def quiet(case: Case) -> Played:
    """Ten minutes of a node that nothing is done to."""
    return play(case, duration_s=HEALTHY_S)


def run(seeds: range, quiet_runs: int) -> Report:
    """All cases of the seeds, on as many cores as there are."""
    todo, well = cases(seeds), healthy(range(seeds.start, seeds.start + quiet_runs))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    workers = len(os.sched_getaffinity(0))
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        rows = list(bar.track(pool.map(one, todo), total=len(todo), description="injections"))
        calm = list(bar.track(pool.map(quiet, well), total=len(well), description="healthy"))
    alarms = [
        f"{played.case.node}, seed {played.case.seed}, at {said.at_s:.0f} s: {said.summary}"
        for played in calm
        for said in played.said
        if said.state != "ok"
    ]
    return Report(
        seeds=f"{seeds.start} to {seeds.stop - 1}",
        scored=tuple(rows),
        healthy_hours=len(calm) * HEALTHY_S / 3600,
        alarms=tuple(alarms),
    )
