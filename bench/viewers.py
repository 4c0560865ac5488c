"""``make bench-viewers``: what the page costs the node that it shows, and the browser that shows it.

    python -m bench.viewers --viewers 50 --pairs 5

A real supervisor over eight simulated engines serves clients while nobody looks, and while many do, in turn; what viewers cost is told
pair by pair, so that what slows the whole machine for a while stays out of it. Viewers are live streams as browsers open them; some
read slowly. Then the system's Chromium says what each page weighs and when it is first painted, and how long its tasks are while a day
of history is looked through (``bench.charts``). All of it shares the machine's cores: engines, clients, viewers and the supervisor.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
from rich.console import Console

from bench import charts, first_paint
from bench.audience import SLOW_BYTES_S, Viewer, audience, stream_of
from bench.figures import percentile
from bench.first_paint import Visit
from bench.report import spread
from bench.streams import Client, Node, load

_SETTLE_S: Final = 2.0
_PROBE_S: Final = 0.02
_INCIDENT_S: Final = 60.0
_FAULTY: Final = "e7"
_FAULT: Final = {"kind": "ecc", "severity": 0.9}
_CPU_MOST, _RATIO_LEAST, _WEIGHT_MOST_BYTES, _PAINT_MOST_MS = 0.05, 0.98, 200_000, 300.0
_SAID = Console(stderr=True)


class Looking(StrEnum):
    """Who looks at what."""

    NOBODY = "nobody"
    OVERVIEW = "all at the overview"
    EVERYWHERE = "over all pages"


class Load(msgspec.Struct, frozen=True):
    """So many clients at once, each with one request after the other."""

    clients: int
    answer_tokens: int


LIGHT: Final = Load(8, 400)  # every figure on the page moves, and the supervisor has time
SHORT: Final = Load(8, 16)  # requests wait for their engines alone
HEAVY: Final = Load(64, 16)  # as many requests as this machine's cores can do, viewers among all else
PLAN: Final = (
    (LIGHT, (Looking.NOBODY, Looking.OVERVIEW, Looking.EVERYWHERE)),
    (SHORT, (Looking.NOBODY, Looking.EVERYWHERE)),
    (HEAVY, (Looking.NOBODY, Looking.EVERYWHERE)),
)


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Some seconds in which the same number of viewers looked. Times are as the viewers saw them."""

    load: Load
    looking: Looking
    pair: int
    supervisor_cpu: float  # of a core
    requests_s: float
    probes_ms: list[float]  # until /health was answered: how late the event loop is, as others see it
    viewer_bytes_s: list[float]  # of each that reads as fast as it can
    delays_ms: list[float]  # from a snapshot to its bytes at such a viewer
    slow_delays_ms: list[float]  # at a slow one
    failed: int  # requests that were not answered
    lost: list[str]  # viewers, and why


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. ``visits`` and ``tasks`` are empty where there is no browser."""

    viewers: int
    slow: int
    streams: list[str]
    windows: list[Window]
    visits: dict[str, list[Visit]] = {}
    tasks: list[charts.Row] = []


class Bench:
    """One node, and what is asked of it."""

    def __init__(self, node: Node, options: argparse.Namespace) -> None:
        self._node, self._options = node, options
        self._supervisor = psutil.Process(node.process.pid)
        self.pages: list[str] = []
        self.streams: list[str] = []

    async def prepare(self) -> None:
        """Something happens that is kept, so that every page has something to show."""
        async with load(self._node.port, HEAVY.clients, HEAVY.answer_tokens):
            incident = await self._incident()
        if incident is None:
            _SAID.print("no incident has come of the fault: the page of one is left out")
        engines = [f"/engines/{name}" for name in ("e0", _FAULTY)]
        self.pages = ["/", "/engines", *engines, "/requests", "/incidents", "/kv", "/plan", "/try"]
        self.pages += [f"/incidents/{incident}"] if incident else []

    async def _incident(self) -> str | None:
        fault = f"{self._node.url}/api/sim/engines/{_FAULTY}/fault"
        (await self._node.session.post(fault, json=_FAULT)).raise_for_status()
        deadline = time.monotonic() + _INCIDENT_S
        found: list[dict[str, Any]] = []
        while not found and time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            found = await self._json("/api/incidents?limit=1")
        (await self._node.session.delete(fault)).raise_for_status()
        return found[0]["id"] if found else None

    async def _json(self, path: str) -> Any:
        async with self._node.session.get(self._node.url + path) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def windows(self) -> list[Window]:
        """Every pair of them, in turn; which is first changes from one to the next."""
        found = []
        for of, looking in PLAN:
            async with load(self._node.port, of.clients, of.answer_tokens) as clients:
                await asyncio.sleep(_SETTLE_S)
                for pair in range(self._options.pairs):
                    for who in looking[:: -1 if pair % 2 else 1]:
                        _SAID.print(f"{of.clients} clients, pair {pair + 1} of {self._options.pairs}: {who}")
                        found.append(await self._window(of, who, pair, clients))
        return found

    async def _window(self, of: Load, looking: Looking, pair: int, clients: Sequence[Client]) -> Window:
        streams = await self._streams(looking)
        viewers = self._options.viewers if looking is not Looking.NOBODY else 0
        async with audience(self._node.port, streams, viewers, min(viewers, self._options.slow)) as there:
            await asyncio.sleep(_SETTLE_S)
            before = [viewer.bytes for viewer in there]
            for viewer in there:
                viewer.delays_s.clear()
            told = await self._watched(clients)
            grown = [viewer.bytes - bytes for viewer, bytes in zip(there, before, strict=True)]
        rates = [bytes / self._options.seconds for viewer, bytes in zip(there, grown, strict=True) if not viewer.slow]
        return Window(
            load=of,
            looking=looking,
            pair=pair,
            viewer_bytes_s=rates,
            delays_ms=_delays(there, slow=False),
            slow_delays_ms=_delays(there, slow=True),
            lost=[f"{viewer.address}: {viewer.lost}" for viewer in there if viewer.lost],
            **told,
        )

    async def _streams(self, looking: Looking) -> list[str]:
        """Also of a request that is new now: those of a minute ago may be forgotten."""
        if looking is Looking.NOBODY:
            return []
        pages = [f"/?last={range}" for range in ("5m", "1h", "24h")]
        if looking is Looking.EVERYWHERE:
            newest = (await self._json("/api/requests?limit=1"))[0]["id"]
            pages += [*self.pages, "/requests?show=slow", f"/requests/{newest}"]
        found = [await stream_of(self._node.session, self._node.url + page) for page in pages]
        self.streams = max(self.streams, found, key=len)
        return found

    async def _watched(self, clients: Sequence[Client]) -> dict[str, Any]:
        """What the supervisor takes and does meanwhile."""
        cpu_s, answers, began = _cpu_s(self._supervisor), sum(one.answers for one in clients), time.perf_counter()
        errors = sum(one.errors for one in clients)
        probes = await self._probed(began + self._options.seconds)
        lasted_s = time.perf_counter() - began
        return {
            "supervisor_cpu": (_cpu_s(self._supervisor) - cpu_s) / lasted_s,
            "requests_s": (sum(one.answers for one in clients) - answers) / lasted_s,
            "failed": sum(one.errors for one in clients) - errors,
            "probes_ms": probes,
        }

    async def _probed(self, until_s: float) -> list[float]:
        """The supervisor tells its delay at its ticks, before it renders what it tells: so it is asked all the time."""
        found = []
        while (began := time.perf_counter()) < until_s:
            async with self._node.session.get(f"{self._node.url}/health") as answer:
                await answer.read()
            found.append(1e3 * (time.perf_counter() - began))
            await asyncio.sleep(_PROBE_S)
        return found

    async def looked_at(self) -> dict[str, list[Visit]]:
        """By a browser, while there is some traffic."""
        async with load(self._node.port, LIGHT.clients, LIGHT.answer_tokens):
            await asyncio.sleep(_SETTLE_S)
            newest = (await self._json("/api/requests?limit=1"))[0]["id"]
            pages = [*self.pages, f"/requests/{newest}"]
            return await first_paint.visits(self._node.url, pages, self._options.visits)


def _cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def _delays(viewers: Iterable[Viewer], slow: bool) -> list[float]:
    return [1e3 * delay for viewer in viewers if viewer.slow is slow for delay in viewer.delays_s]


# ---- told


def markdown(report: Report) -> str:
    """For docs/page.md. Pure."""
    parts = [_costs(report)]
    if report.visits:
        parts.append(_pages(report.visits))
    if report.tasks:
        parts.append(charts.markdown(report.tasks))
    return "\n".join(parts)


def paired(
    windows: Sequence[Window], of: Load, looking: Looking, figure: Callable[[Window, Window], float]
) -> list[float]:
    """``figure`` of each window in which somebody looked and that of the same pair in which nobody did."""
    by_pair = {(one.looking, one.pair): one for one in windows if one.load == of}
    there = [one for one in windows if one.load == of and one.looking is looking]
    return [figure(one, by_pair[Looking.NOBODY, one.pair]) for one in there]


def _costs(report: Report) -> str:
    head = f"| {report.viewers} viewers, {report.slow} of them slow | measured | target |\n|---|---|---|\n"
    return head + "".join(f"| {what} | {said} | {target} |\n" for what, said, target in _rows(report))


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    for of, looking in PLAN:
        for who in looking[1:]:
            added = paired(report.windows, of, who, lambda one, without: one.supervisor_cpu - without.supervisor_cpu)
            said = f"CPU of the supervisor, {_load(of)}, viewers {who}"
            yield said, f"{_percent(added)} of a core", f"< {100 * _CPU_MOST:.0f} %"
        alone = [one.supervisor_cpu for one in report.windows if (one.load, one.looking) == (of, Looking.NOBODY)]
        yield f"the same while nobody looks, {_load(of)}", f"{_percent(alone)} of a core", ""
    for of in (SHORT, HEAVY):
        ratios = paired(
            report.windows, of, Looking.EVERYWHERE, lambda one, without: one.requests_s / without.requests_s
        )
        rates = [one.requests_s for one in report.windows if one.load == of]
        yield f"requests/s with over without ({_load(of)})", f"{spread(ratios, 1, 3)}", f"≥ {_RATIO_LEAST}"
        yield "requests/s", spread(rates), ""
    for who in Looking:
        probes = [one for window in _seen(report, who) for one in window.probes_ms]
        yield f"until /health is answered, p50 / p99 / most, viewers: {who}", _tail(probes, "ms"), ""
    for who in (Looking.OVERVIEW, Looking.EVERYWHERE):
        sent = [rate for one in _seen(report, who) for rate in one.viewer_bytes_s]
        yield f"sent to each viewer, {who}", f"{spread(sent, 1e-3)} kB/s", ""
    fast, slow = ([delay for one in report.windows for delay in delays(one)] for delays in (_fast, _slow))
    yield "from a snapshot to a viewer's socket, p50 / p99 / most", _tail(fast, "ms"), ""
    yield f"the same to one that reads {SLOW_BYTES_S / 1e3:.0f} kB/s", _tail([one / 1e3 for one in slow], "s"), ""
    yield "viewers that were lost, requests that failed", f"{_lost(report)}, {_failed(report)}", "0, 0"


def _load(of: Load) -> str:
    return f"{of.clients} clients, answers of {of.answer_tokens} tokens"


def _seen(report: Report, looking: Looking) -> list[Window]:
    return [one for one in report.windows if one.looking is looking]


def _fast(one: Window) -> list[float]:
    return one.delays_ms


def _slow(one: Window) -> list[float]:
    return one.slow_delays_ms


def _lost(report: Report) -> int:
    return sum(len(one.lost) for one in report.windows)


def _failed(report: Report) -> int:
    return sum(one.failed for one in report.windows)


def _percent(shares: Sequence[float]) -> str:
    return f"{spread(shares, 100)} %"


def _tail(values: Sequence[float], unit: str) -> str:
    if not values:
        return "—"
    return " / ".join(f"{percentile(values, share):.1f}" for share in (0.5, 0.99, 1.0)) + f" {unit}"


def _pages(visits: dict[str, list[Visit]]) -> str:
    lines = [
        "| page | files | transferred | uncompressed | first paint | with content |",
        "|---|---|---|---|---|---|",
        f"| target | | ≤ {_WEIGHT_MOST_BYTES / 1e3:.0f} kB | ≤ {_WEIGHT_MOST_BYTES / 1e3:.0f} kB | ≤ {_PAINT_MOST_MS:.0f} ms | |",
    ]
    for page, seen in visits.items():
        name = "/".join(part if number < 2 else "…" for number, part in enumerate(page.split("/")[1:], 1))
        weights = ([one.transferred_bytes for one in seen], [one.bytes for one in seen])
        kilobytes = " | ".join(f"{statistics.median(each) / 1e3:.0f} kB" for each in weights)
        paints = ([one.first_paint_ms for one in seen], [one.contentful_ms for one in seen])
        milliseconds = " | ".join(f"{spread(each, 1, 0)} ms" for each in paints)
        lines.append(f"| `/{name}` | {len(seen[0].parts)} | {kilobytes} | {milliseconds} |")
    return "\n".join(lines) + "\n"


async def run(options: argparse.Namespace) -> Report:
    """All but the charts, whose node is made up."""
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with Node(Path(name)) as node:
            bench = Bench(node, options)
            await bench.prepare()
            windows = await bench.windows()
            visits = {} if options.no_browser else await bench.looked_at()
    return Report(viewers=options.viewers, slow=options.slow, streams=bench.streams, windows=windows, visits=visits)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench.viewers", description="What the page costs.")
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--slow", type=int, default=5, help="viewers that read slowly, of these")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each window")
    parser.add_argument("--visits", type=int, default=7, help="of each page by the browser")
    parser.add_argument("--hours", type=float, default=24.0, help="of history to be looked through")
    parser.add_argument("--no-browser", action="store_true", help="leave out what needs Chromium")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    tasks = [] if options.no_browser else charts.measured(options.hours)
    report = msgspec.structs.replace(asyncio.run(run(options)), tasks=tasks)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    for lost in itertools.chain.from_iterable(one.lost for one in report.windows):
        _SAID.print(f"a viewer was lost: {lost}")
    sys.stdout.write(markdown(report))


if __name__ == "__main__":
    main()
