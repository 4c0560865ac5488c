"""What is done to a real node, from outside: to its processes, to their cores and quotas, and to what routing is told.

Each injection is an asynchronous context manager that undoes on the way out what it did; what is asked for besides is ``play.py``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from bench.clients import Clients
from bench.diagnosis.real import quota
from bench.diagnosis.real.cases import Case
from bench.faults import Ground, NotMade
from bench.servers import Server

_SPIN: Final = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    pass"
Injection = Callable[[Server, Case], AbstractAsyncContextManager[str]]


def injected(server: Server, case: Case) -> AbstractAsyncContextManager[str]:
    """Yields in words what was done. Raises ``NotMade`` where it can't be. A case of traffic alone does nothing here."""
    return _HOW.get(case.name, _nothing)(server, case)


@asynccontextmanager
async def _nothing(_: Server, case: Case) -> AsyncIterator[str]:
    yield f"asked {case.surge.load:.2f} of what it can do besides" if case.surge else "nothing"


@asynccontextmanager
async def _held(server: Server, case: Case) -> AsyncIterator[str]:
    """Stopped and let go, again and again."""
    process = await _process(server, case)
    share, period_s = case.severity or 0.0, case.period_s or 0.2
    cycle = asyncio.create_task(_cycle(process, share * period_s, (1 - share) * period_s))
    try:
        yield f"{process.pid} stopped {share:.0%} of every {period_s * 1e3:.0f} ms"
    finally:
        cycle.cancel()
        await asyncio.gather(cycle, return_exceptions=True)


async def _cycle(process: psutil.Process, stopped_s: float, going_s: float) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        while True:
            try:
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(stopped_s)
            finally:
                process.send_signal(signal.SIGCONT)
            await asyncio.sleep(going_s)


@asynccontextmanager
async def _signalled(server: Server, case: Case) -> AsyncIterator[str]:
    """For good. What is stopped is let go in the end, if it is still there."""
    process = await _process(server, case)
    number = signal.SIGKILL if "killed" in case.name else signal.SIGSTOP
    process.send_signal(number)
    try:
        yield f"{number.name} to {process.pid}"
    finally:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def _neighbours(server: Server, case: Case) -> AsyncIterator[str]:
    """Processes that spin on its cores. They end with this one, however it ends."""
    cores, count = await _cores(server, case.engine), round(case.severity or 1)
    command = (sys.executable, "-S", "-c", _SPIN, str(os.getpid()))
    spinning = [await asyncio.create_subprocess_exec(*command) for _ in range(count)]
    try:
        for one in spinning:
            os.sched_setaffinity(one.pid, cores)
        yield f"{count} processes spin on core {', '.join(map(str, sorted(cores)))}"
    finally:
        for one in spinning:
            with contextlib.suppress(ProcessLookupError):
                one.kill()
            await one.wait()


@asynccontextmanager
async def _quota(server: Server, case: Case) -> AsyncIterator[str]:
    process = await _process(server, case)
    try:
        with quota.limited(process.pid, case.severity or 0.3) as did:
            yield did
    except (OSError, quota.NoQuota) as error:
        raise NotMade(f"no CPU quota can be given here: {error}") from error


@asynccontextmanager
async def _one_core(server: Server, case: Case) -> AsyncIterator[str]:
    """All that one engine has goes to the core of the other."""
    other = next(name for name in case.setup.engines if name != case.engine)
    cores = await _cores(server, other)
    with _pinned(await _ground(server).family(case.engine), cores):
        yield f"{case.engine} moved to core {', '.join(map(str, sorted(cores)))}, which is that of {other}"


@contextlib.contextmanager
def _pinned(family: list[psutil.Process], cores: set[int]) -> Iterator[None]:
    before = {
        int(task): os.sched_getaffinity(int(task)) for one in family for task in os.listdir(f"/proc/{one.pid}/task")
    }
    try:
        for thread in before:
            _pin(thread, cores)
        yield
    finally:
        for thread, own in before.items():
            _pin(thread, own)


def _pin(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(thread, cores)


@asynccontextmanager
async def _weights(server: Server, case: Case) -> AsyncIterator[str]:
    """As an owner would by mistake."""
    await _weigh(server, case.engine, case.severity or 10.0)
    try:
        yield f"{case.engine} has the weight {case.severity:g}"
    finally:
        await _weigh(server, case.engine, 1.0)


async def _weigh(server: Server, engine: str, weight: float) -> None:
    url = server.target.url(f"/api/engines/{engine}/weight")
    async with server.target.session.post(url, json={"weight": weight}) as answer:
        if answer.status >= 300:
            raise NotMade(f"the weight of {engine} was not taken: {answer.status} {await answer.text()}")


async def _process(server: Server, case: Case) -> psutil.Process:
    kind = "API" if case.name.startswith("API") else "EngineCore"
    found = await _ground(server).process(case.engine, kind)
    if found is None:
        raise NotMade(f"{case.engine} has no {kind} process")
    return found


async def _cores(server: Server, engine: str) -> set[int]:
    view: dict[str, Any] = await _ground(server).engine(engine)
    return set(view["cores"])


def _ground(server: Server) -> Ground:
    return Ground(server, Path(), Clients(server.target.url("")), ())


_HOW: Final[dict[str, Injection]] = {
    "core held": _held,
    "API held": _held,
    "core stopped": _signalled,
    "API stopped": _signalled,
    "core killed": _signalled,
    "API killed": _signalled,
    "neighbours": _neighbours,
    "quota": _quota,
    "one core": _one_core,
    "weights": _weights,
}
