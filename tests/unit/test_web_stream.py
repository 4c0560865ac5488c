"""Live streams: one rendering for all, slow viewers skip to the newest, nobody leaves anything behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from web import stream as stream_module
from web.stream import Feed, LiveResponse, event


class Node:
    """A ``NodeView`` whose snapshots are plain numbers, pushed by the test."""

    def __init__(self) -> None:
        self.latest_number = 0
        self.readers = 0
        self._changed = asyncio.Event()

    def push(self, number: int) -> None:
        self.latest_number = number
        self._changed.set()

    async def updates(self) -> AsyncIterator[int]:
        self.readers += 1
        try:
            while True:
                self._changed.clear()
                yield self.latest_number
                await self._changed.wait()
        finally:
            self.readers -= 1


class Renderer:
    """Two parts: one that always changes, and one that changes with the tens."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, number: Any) -> dict[str, bytes]:
        self.calls += 1
        if number < 0:
            raise ValueError("can't be shown")
        return {"ones": b"[%d]" % number, "tens": b"<%d>" % (number // 10)}


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def made() -> tuple[Node, Renderer, Feed]:
    node, render = Node(), Renderer()
    return node, render, Feed(node, render)  # type: ignore[arg-type]


def test_an_event_prefixes_every_line() -> None:
    assert event("a\nb") == b"data: a\ndata: b\n\n"
    assert event("x", "sample") == b"event: sample\ndata: x\n\n"
    assert event("a\r\nb\rc\n\nd") == b"data: a\ndata: b\ndata: c\ndata: \ndata: d\n\n"


@pytest.mark.parametrize("character", "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e")
def test_what_only_python_takes_for_a_line_end_stays_in_its_line(character: str) -> None:
    assert event(f"a{character}b") == f"data: a{character}b\n\n".encode()


async def test_a_viewer_gets_everything_first_and_then_only_what_changes() -> None:
    node, _, feed = made()
    viewer = feed.follow()
    assert await anext(viewer) == b"[0]<0>"
    node.push(1)
    assert await anext(viewer) == b"[1]"
    node.push(11)
    assert await anext(viewer) == b"[11]<1>"
    await viewer.aclose()


async def test_each_snapshot_is_rendered_once_for_all_viewers() -> None:
    node, render, feed = made()
    viewers = [feed.follow() for _ in range(20)]
    for viewer in viewers:
        await anext(viewer)
    for number in range(1, 4):
        node.push(number)
        assert {await anext(viewer) for viewer in viewers} == {b"[%d]" % number}
    assert (render.calls, node.readers) == (4, 1)
    for viewer in viewers:
        await viewer.aclose()


async def test_a_slow_viewer_skips_to_the_newest_and_misses_no_part() -> None:
    node, _, feed = made()
    fast, slow = feed.follow(), feed.follow()
    await anext(fast)
    await anext(slow)
    for number in (9, 10, 13):
        node.push(number)
        await anext(fast)
    assert await anext(slow) == b"[13]<1>"
    await fast.aclose()
    await slow.aclose()


async def test_feeds_that_share_a_turn_do_not_render_without_a_pause() -> None:
    """A snapshot wakes them all; whoever else waits for the event loop, has it in between."""
    turn, seen = asyncio.Lock(), []
    nodes = [Node() for _ in range(5)]
    feeds = [Feed(node, lambda number: seen.append("rendered") or {"a": b"%d" % number}, turn) for node in nodes]  # type: ignore[arg-type, func-returns-value]
    viewers = [feed.follow() for feed in feeds]
    for viewer in viewers:
        await anext(viewer)
    seen.clear()

    async def other() -> None:
        while seen.count("rendered") < len(feeds):
            seen.append("other")
            await asyncio.sleep(0)

    for node in nodes:
        node.push(1)
    await asyncio.gather(other(), *(anext(viewer) for viewer in viewers))
    assert "".join(one[0] for one in seen).count("rr") == 0
    for viewer in viewers:
        await viewer.aclose()


async def test_nothing_is_read_while_nobody_looks() -> None:
    node, _, feed = made()
    assert node.readers == 0
    first, second = feed.follow(), feed.follow()
    await anext(first)
    await anext(second)
    await first.aclose()
    await settle()
    assert (node.readers, feed.viewers) == (1, 1)
    await second.aclose()
    await settle()
    assert (node.readers, feed.viewers) == (0, 0)
    assert len(asyncio.all_tasks()) == 1


async def test_a_viewer_who_comes_back_sees_nothing_old() -> None:
    node, _, feed = made()
    viewer = feed.follow()
    await anext(viewer)
    await viewer.aclose()
    node.push(77)
    viewer = feed.follow()
    assert await anext(viewer) == b"[77]<7>"
    await viewer.aclose()


async def test_closing_ends_all_streams_and_refuses_new_ones() -> None:
    node, _, feed = made()
    viewer = feed.follow()
    await anext(viewer)
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await anext(viewer)
    assert [part async for part in feed.follow()] == []
    await settle()
    assert node.readers == 0


async def test_a_rendering_that_fails_lets_the_viewers_go_and_the_next_one_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node, _, feed = made()
    viewer = feed.follow()
    await anext(viewer)
    node.push(-1)
    with pytest.raises(StopAsyncIteration):
        await anext(viewer)
    assert "can't be shown" in caplog.text
    node.push(5)
    again = feed.follow()
    assert await anext(again) == b"[5]<0>"
    await again.aclose()


async def test_a_quiet_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_KEEPALIVE_S", 0.01)
    _, _, feed = made()
    viewer = feed.follow()
    await anext(viewer)
    assert (await anext(viewer)).startswith(b":")
    await viewer.aclose()


async def _answer(feed: Feed, disconnect: asyncio.Event, send: Any) -> None:
    async def receive() -> dict[str, str]:
        await disconnect.wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.3"}, "headers": []}
    await LiveResponse(feed.follow())(scope, receive, send)  # type: ignore[arg-type]


async def test_a_viewer_who_leaves_is_forgotten_at_once() -> None:
    node, _, feed = made()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    gone = asyncio.Event()
    answering = asyncio.create_task(_answer(feed, gone, send))
    await settle()
    assert sent[1]["body"] == b"[0]<0>"
    gone.set()
    await asyncio.wait_for(answering, 1)
    await settle()
    assert (feed.viewers, node.readers) == (0, 0)


async def test_a_viewer_who_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_SEND_S", 0.01)
    _, _, feed = made()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await asyncio.wait_for(_answer(feed, asyncio.Event(), send), 1)
    assert feed.viewers == 0
