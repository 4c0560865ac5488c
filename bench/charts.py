"""``make bench-charts``: whether a day of history can be looked through without the page ever hanging.

    python -m bench.charts --hours 24

A made-up past (``tests/browser/page_history.py``) is opened in the system's Chromium, zoomed, moved through and zoomed out again. What is
told of the longest tasks is their wall time, which is what a person waits for, and the CPU time that they had, which is what is left of
it on a machine with nothing else to do. What shows nothing, or does not move, is an error: its tasks would be short.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from playwright.sync_api import Browser, Page

from bench.browsing import chromium, made_up, served

_LIMIT_MS: Final = 50.0
_APART_S: Final = 30.0
_SETTLE_MS: Final = 1500
_CATEGORIES: Final = ["toplevel", "disabled-by-default-devtools.timeline"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The main thread's tasks while something was done."""

    what: str
    tasks: int
    longest_ms: float
    longest_cpu_ms: float | None  # None where the browser does not tell what tasks had of a CPU
    over: int  # tasks of more than 50 ms, by the clock
    over_cpu: int  # by CPU time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--apart-s", type=float, default=_APART_S, help="between two snapshots of the past")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = measured(arguments.hours, arguments.apart_s)
    sys.stdout.write(msgspec.json.encode(rows).decode() + "\n" if arguments.json else markdown(rows))


def measured(hours: float, apart_s: float = _APART_S) -> list[Row]:
    """A past of so many hours, made up and looked through."""
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        return _measured(Path(name), hours, apart_s)


def _measured(directory: Path, hours: float, apart_s: float) -> list[Row]:
    past, states, demo = made_up("page_history"), made_up("page_states"), made_up("demo_server")
    now = time.time()
    states.NOON = now
    past.write(directory, now, hours, apart_s)
    history = past.history(directory, now, apart_s)
    site = demo.Demo(made_up("made_up").FullNode("large"), history, past.Marks(now))
    with served(site) as url, chromium() as browser:
        return _looked_through(browser, url)


def _looked_through(browser: Browser, url: str) -> list[Row]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    rows = [_row(browser, page, "open the last 24 h", lambda: _open(page, f"{url}/?last=24h"))]
    page.locator('[data-chart="kv"]').scroll_into_view_if_needed()
    stays = {
        "watch it go on, 5 s": lambda: page.wait_for_timeout(5000),
        "follow the pointer": lambda: _follow(page),
    }
    moves = {
        "zoom in by dragging, 5 times": lambda: _zoom(page),
        "zoom out by a double click, 5 times": lambda: _back(page),
        "scroll through the day, 60 steps": lambda: _scroll(page),
        "7 d, 24 h, 6 h, 1 h, 5 min": lambda: _ranges(page),
    }
    rows += [_row(browser, page, what, how) for what, how in stays.items()]
    for what, how in moves.items():
        before = page.url
        rows.append(_row(browser, page, what, how))
        if page.url == before:
            raise RuntimeError(f"{what}: the charts have not moved, nothing was measured")
    rows.append(_row(browser, page, "another theme, twice", lambda: _themes(page)))  # the button is on top of the page
    page.close()
    return rows


def _open(page: Page, address: str) -> None:
    page.goto(address, wait_until="load", timeout=120_000)
    page.locator("#charts canvas").nth(5).wait_for(timeout=60_000)
    if page.locator("#charts-none").is_visible():
        raise RuntimeError(f"the charts are empty: {page.locator('#charts-none').inner_text()}")


def _box(page: Page) -> dict[str, float]:
    box: Any = page.locator('[data-chart="itl"] .u-over').bounding_box()
    return dict(box)


def _follow(page: Page) -> None:
    box = _box(page)
    page.mouse.move(box["x"], box["y"] + 20)
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 40, steps=100)


def _zoom(page: Page) -> None:
    box = _box(page)
    for _ in range(5):
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 30)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 30, steps=10)
        page.mouse.up()
        page.wait_for_timeout(700)


def _back(page: Page) -> None:
    box = _box(page)
    for _ in range(5):
        page.mouse.dblclick(box["x"] + 100, box["y"] + 30)
        page.wait_for_timeout(700)


def _scroll(page: Page) -> None:
    box = _box(page)
    page.mouse.move(box["x"] + 200, box["y"] + 30)
    for step in range(60):
        page.mouse.wheel(-60 if step < 40 else 60, 0)
        page.wait_for_timeout(30)


def _ranges(page: Page) -> None:
    for name in ("7 d", "24 h", "6 h", "1 h", "5 min", "24 h"):
        page.get_by_role("button", name=name, exact=True).click()
        page.wait_for_timeout(700)


def _themes(page: Page) -> None:
    for _ in range(2):
        page.get_by_role("button", name="Theme").click()
        page.wait_for_timeout(700)


def _row(browser: Browser, page: Page, what: str, how: Callable[[], None]) -> Row:
    browser.start_tracing(page=page, categories=_CATEGORIES)
    how()
    page.wait_for_timeout(_SETTLE_MS)
    return row(what, json.loads(browser.stop_tracing())["traceEvents"])


def row(what: str, events: Sequence[dict[str, Any]]) -> Row:
    """Of a trace. Pure. Raises ``RuntimeError`` where it has no task: a trace that tells nothing is not a good one."""
    tasks = _tasks(events)
    if not tasks:
        raise RuntimeError(f"{what}: the browser's trace has no task of a page's main thread")
    wall = [one["dur"] / 1e3 for one in tasks]
    cpu = [one["tdur"] / 1e3 for one in tasks if "tdur" in one]
    return Row(
        what=what,
        tasks=len(tasks),
        longest_ms=max(wall),
        longest_cpu_ms=max(cpu, default=None),
        over=sum(one > _LIMIT_MS for one in wall),
        over_cpu=sum(one > _LIMIT_MS for one in cpu),
    )


def _tasks(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the renderer's main thread."""
    mains = {
        (one["pid"], one["tid"])
        for one in events
        if one.get("name") == "thread_name" and one["args"]["name"] == "CrRendererMain"
    }
    return [
        one for one in events if one.get("ph") == "X" and one["name"] == "RunTask" and (one["pid"], one["tid"]) in mains
    ]


def markdown(rows: Sequence[Row]) -> str:
    """For docs/page.md. Pure."""
    lines = [
        "| a day of history | tasks | longest | its CPU time | tasks of more than 50 ms | of CPU time |",
        "|---|---|---|---|---|---|",
        "| target | | ≤ 50 ms | | 0 | 0 |",
    ]
    for one in rows:
        cpu = "—" if one.longest_cpu_ms is None else f"{one.longest_cpu_ms:.1f} ms"
        lines.append(f"| {one.what} | {one.tasks} | {one.longest_ms:.1f} ms | {cpu} | {one.over} | {one.over_cpu} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
