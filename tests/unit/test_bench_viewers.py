"""What the page costs: viewers against a server whose pace is known, and figures of made-up windows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web

from bench import audience as audience_module
from bench import charts
from bench.audience import Viewer, audience, stream_of
from bench.charts import row
from bench.first_paint import Part, Visit
from bench.viewers import HEAVY, LIGHT, Load, Looking, Report, Window, markdown, paired


class Page:
    """A page and its stream: a snapshot every hundredth of a second, each as old as it is told to be."""

    def __init__(self) -> None:
        self.old_s = 0.0
        self.filler = b""
        self.ends_after = 1_000_000
        self.sent = 0
        self.refuses = False

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text='<div hx-sse:connect="/live/engines?level=error&amp;find=a"></div>')

    async def bare(self, request: web.Request) -> web.Response:
        return web.Response(text="<p>Live updates are off.</p>")

    async def live(self, request: web.Request) -> web.StreamResponse:
        if self.refuses:
            return web.Response(status=503)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(self.ends_after):
            told = f'event: sample\ndata: {{"time": {time.time() - self.old_s!r}, "build": "x"}}\n\n'
            await answer.write(b"data: <p>" + self.filler + b"</p>\n\n" + told.encode())
            self.sent += 1
            await asyncio.sleep(0.01)
        return answer


@pytest.fixture
async def served() -> AsyncIterator[tuple[Page, int]]:
    page, app = Page(), web.Application()
    app.router.add_get("/page", page.page)
    app.router.add_get("/bare", page.bare)
    app.router.add_get("/live", page.live)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield page, runner.addresses[0][1]
    await runner.cleanup()


async def until(holds: object) -> None:
    async with asyncio.timeout(5):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_a_page_says_where_its_stream_is(served: tuple[Page, int]) -> None:
    url = f"http://127.0.0.1:{served[1]}"
    async with aiohttp.ClientSession() as session:
        assert await stream_of(session, f"{url}/page") == "/live/engines?level=error&find=a"
        with pytest.raises(RuntimeError, match="no live stream"):
            await stream_of(session, f"{url}/bare")
        with pytest.raises(aiohttp.ClientResponseError):
            await stream_of(session, f"{url}/none")


async def test_viewers_count_what_they_get_and_how_old_it_is(served: tuple[Page, int]) -> None:
    page, port = served
    page.old_s, page.filler = 3.0, b"x" * 5000
    async with audience(port, ["/live"], 3, 0) as viewers:
        assert all(viewer.delays_s for viewer in viewers), "each has seen a snapshot before anything is measured"
        await until(lambda: min(len(viewer.delays_s) for viewer in viewers) > 5)
    assert all(3.0 <= delay < 8.0 for viewer in viewers for delay in viewer.delays_s)
    assert all(viewer.bytes > 5000 * len(viewer.delays_s) for viewer in viewers)
    assert [viewer.lost for viewer in viewers] == [None] * 3


async def test_each_snapshot_counts_once_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience_module, "time", SimpleNamespace(time=lambda: 12.0))
    text = b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(
        b'data: <p>\n\nevent: sample\ndata: {"time": %d.5, "queue_depth": 1.5}\n\n' % number for number in range(5)
    )
    for size in (1, 7, 50, 97, 10_000):
        viewer = Viewer("/live", slow=False)
        for at in range(0, len(text), size):
            viewer._look(viewer._tail + text[at : at + size])
        assert viewer.delays_s == [11.5, 10.5, 9.5, 8.5, 7.5]


async def test_a_slow_one_reads_no_more_than_it_may_and_is_not_waited_for(
    served: tuple[Page, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, port = served
    page.filler = b"x" * 20_000  # 2 MB/s
    monkeypatch.setattr(audience_module, "SLOW_BYTES_S", 100_000.0)
    began = time.monotonic()
    async with audience(port, ["/live"], 2, 1) as (fast, slow):
        assert (fast.slow, slow.slow) == (False, True)
        await until(lambda: fast.bytes > 1_000_000)
        lasted_s = time.monotonic() - began
        assert 0 < slow.bytes < 100_000 * lasted_s + 300_000


async def test_one_that_is_turned_away_or_dropped_is_told_of(served: tuple[Page, int]) -> None:
    page, port = served
    page.ends_after = 3
    async with audience(port, ["/live"], 1, 0) as (viewer,):
        await until(lambda: viewer.closed.done())
    assert viewer.lost == "ended: by the server"
    page.refuses = True
    async with audience(port, ["/live"], 1, 0) as (viewer,):
        pass
    assert viewer.lost == "HTTP/1.1 503 Service Unavailable"


# ---- figures


def window(of: Load, looking: Looking, pair: int, cpu: float, requests_s: float, **more: object) -> Window:
    figures: dict[str, object] = {
        "probes_ms": [0.5, 1.0],
        "viewer_bytes_s": [] if looking is Looking.NOBODY else [40_000.0, 60_000.0],
        "delays_ms": [] if looking is Looking.NOBODY else [4.0, 9.0],
        "slow_delays_ms": [] if looking is Looking.NOBODY else [2500.0],
        "failed": 0,
        "lost": [],
    }
    return Window(load=of, looking=looking, pair=pair, supervisor_cpu=cpu, requests_s=requests_s, **{**figures, **more})  # type: ignore[arg-type]


WINDOWS = [
    window(LIGHT, Looking.NOBODY, 0, 0.10, 4.0),
    window(LIGHT, Looking.OVERVIEW, 0, 0.12, 4.0),
    window(LIGHT, Looking.EVERYWHERE, 0, 0.14, 4.0),
    window(HEAVY, Looking.NOBODY, 0, 0.50, 100.0),
    window(HEAVY, Looking.EVERYWHERE, 0, 0.54, 99.0),
    window(HEAVY, Looking.EVERYWHERE, 1, 0.65, 118.0),
    window(HEAVY, Looking.NOBODY, 1, 0.60, 120.0),  # the other way round
]


def test_what_viewers_cost_is_told_pair_by_pair() -> None:
    added = paired(WINDOWS, HEAVY, Looking.EVERYWHERE, lambda one, without: one.supervisor_cpu - without.supervisor_cpu)
    assert added == pytest.approx([0.04, 0.05])
    ratios = paired(WINDOWS, HEAVY, Looking.EVERYWHERE, lambda one, without: one.requests_s / without.requests_s)
    assert ratios == pytest.approx([0.99, 118 / 120])


def test_every_figure_has_its_spread_and_its_target_beside_it() -> None:
    lost = window(LIGHT, Looking.OVERVIEW, 1, 0.13, 4.0, lost=["/live: ended"], failed=2)
    report = Report(
        viewers=50, slow=5, streams=[], windows=[*WINDOWS, window(LIGHT, Looking.NOBODY, 1, 0.1, 4.0), lost]
    )
    text = markdown(report)
    assert (
        "| CPU of the supervisor, 64 clients, answers of 16 tokens, viewers over all pages | 4.5 (4.0–5.0) % of a core | < 5 % |"
        in text
    )
    assert "| requests/s with over without (64 clients, answers of 16 tokens) | 0.987 (0.983–0.990) | ≥ 0.98 |" in text
    assert "| sent to each viewer, over all pages | 50.0 (40.0–60.0) kB/s |" in text
    assert "| the same to one that reads 10 kB/s | 2.5 / 2.5 / 2.5 s |" in text
    assert "| viewers that were lost, requests that failed | 1, 2 | 0, 0 |" in text
    assert "| until /health is answered, p50 / p99 / most, viewers: nobody | 0.5 / 1.0 / 1.0 ms |" in text
    assert "first paint" not in text, "nothing is said of a browser that there was none of"


def test_a_page_weighs_all_its_files() -> None:
    def visit(paint_ms: float) -> Visit:
        parts = (
            Part(name="/", transferred_bytes=30_300, bytes=30_000),
            Part(name="/app.css", transferred_bytes=25_300, bytes=25_000),
        )
        return Visit(parts=parts, first_paint_ms=paint_ms, contentful_ms=paint_ms + 10)

    visits = {"/": [visit(90.0), visit(110.0), visit(100.0)], "/requests/chatcmpl-12": [visit(50.0)]}
    text = markdown(Report(viewers=50, slow=5, streams=[], windows=[], visits=visits))
    assert "| `/` | 2 | 56 kB | 55 kB | 100 (90–110) ms | 110 (100–120) ms |" in text
    assert "| `/requests/…` | 2 | 56 kB | 55 kB | 50 ms | 60 ms |" in text


# ---- the charts' tasks


def task(ms: float, cpu_ms: float | None, thread: int = 1, name: str = "RunTask") -> dict[str, object]:
    found: dict[str, object] = {"ph": "X", "name": name, "pid": 1, "tid": thread, "dur": ms * 1e3}
    return found if cpu_ms is None else {**found, "tdur": cpu_ms * 1e3}


MAIN = {"name": "thread_name", "pid": 1, "tid": 1, "ph": "M", "args": {"name": "CrRendererMain"}}


def test_the_longest_tasks_are_those_of_the_pages_own_thread() -> None:
    found = row("zoom", [MAIN, task(70, 20), task(10, 60), task(900, 900, thread=2), task(900, 900, name="Layout")])
    assert (found.tasks, found.longest_ms, found.longest_cpu_ms, found.over, found.over_cpu) == (2, 70, 60, 1, 1)


def test_a_trace_without_tasks_is_no_good_trace() -> None:
    with pytest.raises(RuntimeError, match="zoom: the browser's trace has no task"):
        row("zoom", [task(70, 20)])


def test_what_tasks_had_of_a_cpu_is_not_0_where_it_is_not_told() -> None:
    found = row("zoom", [MAIN, task(70, None)])
    assert found.longest_cpu_ms is None
    assert "| zoom | 1 | 70.0 ms | — | 1 | 0 |" in charts.markdown([found])
