"""Plays all cases, on as many cores as there are. A module of its own: processes that are spawned can't find what is in ``__main__``."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.split.cases import cases
from bench.split.play import Played, play


def run(seeds: range, *, rates: bool) -> list[Played]:
    """In order of the seeds."""
    todo = cases(seeds)
    columns = TextColumn("cases"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    workers = len(os.sched_getaffinity(0))
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        return list(bar.track(pool.map(partial(play, rates=rates), todo), total=len(todo)))
