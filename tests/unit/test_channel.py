"""The engine channel: what both ends do with good, truncated and foreign frames."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.channel import (
    MAX_FRAME_BYTES,
    VERSION,
    Down,
    Frames,
    Heartbeat,
    Hello,
    Progress,
    Release,
    Step,
    Up,
    encode,
)
from appliance.engine import link as link_module
from appliance.engine.link import Link
from appliance.errors import ChannelError
from appliance.supervisor import channel_server
from appliance.supervisor.channel_server import ChannelServer, Connection

HELLO = Hello(engine="e0", epoch=3, process="core", pid=7)
PROGRESS = Progress(stage="importing vLLM", fraction=0.25)


@given(st.lists(st.integers(min_value=1, max_value=40), max_size=60))
def test_frames_survive_any_fragmentation(cuts: list[int]) -> None:
    stream = encode(HELLO) + encode(PROGRESS)
    frames: Frames[Up] = Frames(Up)
    found = []
    position = 0
    for cut in [*cuts, len(stream)]:
        found += list(frames.feed(stream[position : position + cut]))
        position += cut
    assert found == [HELLO, PROGRESS]
    assert frames.pending == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not an engine channel"),
        (struct.pack(">HHI", 0x7064, 99, 4) + b"abcd", "version 99"),
        (struct.pack(">HHI", 0x7064, VERSION, MAX_FRAME_BYTES + 1), "over the limit"),
        (struct.pack(">HHI", 0x7064, VERSION, 3) + b"\xc1\xc1\xc1", "can't be read"),
        (encode(Release(lease="a", reason="released")), "can't be read"),  # the wrong direction
    ],
)
def test_a_foreign_frame_is_named(data: bytes, says: str) -> None:
    with pytest.raises(ChannelError, match=says):
        list(Frames[Up](Up).feed(data))


def test_an_oversized_message_is_refused_by_the_sender() -> None:
    with pytest.raises(ChannelError, match="over the limit"):
        encode(Progress(stage="x" * (MAX_FRAME_BYTES + 1), fraction=0.0))


class Ears:
    """What a channel server heard."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, object]] = asyncio.Queue()
        self.connections: list[Connection] = []

    def opened(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.events.put_nowait(("open", connection.hello))

    async def next(self) -> tuple[str, object]:
        async with asyncio.timeout(5):
            return await self.events.get()


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[Ears]:
    ears = Ears()
    server = ChannelServer(
        path,
        on_open=ears.opened,
        on_message=lambda _, message: ears.events.put_nowait(("message", message)),
        on_close=lambda connection: ears.events.put_nowait(("close", connection.hello)),
        on_error=lambda _, error: ears.events.put_nowait(("error", str(error))),
    )
    await server.start()
    try:
        yield ears
    finally:
        await server.stop()


async def test_a_process_says_hello_then_messages_then_leaves(tmp_path: Path) -> None:
    async with listening(tmp_path / "channel") as ears:
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "channel"))
        writer.write(encode(HELLO) + encode(PROGRESS))
        assert await ears.next() == ("open", HELLO)
        assert await ears.next() == ("message", PROGRESS)
        writer.close()
        assert await ears.next() == ("close", HELLO)


async def test_messages_before_hello_end_the_connection(tmp_path: Path) -> None:
    async with listening(tmp_path / "channel") as ears:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "channel"))
        writer.write(encode(PROGRESS))
        kind, text = await ears.next()
        assert kind == "error" and "Hello comes first" in str(text)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_a_truncated_frame_is_an_error_and_the_others_go_on(tmp_path: Path) -> None:
    async with listening(tmp_path / "channel") as ears:
        _, dying = await asyncio.open_unix_connection(str(tmp_path / "channel"))
        dying.write(encode(HELLO) + encode(PROGRESS)[:-3])
        assert await ears.next() == ("open", HELLO)
        dying.close()
        kind, text = await ears.next()
        assert kind == "error" and "inside a frame" in str(text)
        assert await ears.next() == ("close", HELLO)
        _, other = await asyncio.open_unix_connection(str(tmp_path / "channel"))
        other.write(encode(HELLO))
        assert await ears.next() == ("open", HELLO)
        other.close()


@pytest.mark.parametrize("said", [b"", encode(HELLO)[:5]], ids=["nothing", "half a word"])
async def test_whoever_says_no_hello_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(channel_server, "_HELLO_S", 0.1)
    async with listening(tmp_path / "channel") as ears:
        _, patient = await asyncio.open_unix_connection(str(tmp_path / "channel"))
        patient.write(encode(HELLO))
        assert await ears.next() == ("open", HELLO)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "channel"))
        writer.write(said)
        kind, text = await ears.next()
        assert kind == "error" and "no Hello" in str(text)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        patient.write(encode(PROGRESS))
        assert await ears.next() == ("message", PROGRESS)
        writer.close()
        patient.close()


async def test_the_engines_end_speaks_and_hears(tmp_path: Path) -> None:
    async with listening(tmp_path / "channel") as ears:
        link = await asyncio.to_thread(Link, str(tmp_path / "channel"), HELLO)
        assert await ears.next() == ("open", HELLO)
        ears.connections[0].send(Release(lease="early", reason="released"))
        heard: list[Down] = []
        both = threading.Event()
        link.send(PROGRESS)
        assert await ears.next() == ("message", PROGRESS)
        link.on_message(lambda message: (heard.append(message), both.set() if len(heard) == 2 else None))
        ears.connections[0].send(Release(lease="late", reason="cancelled"))
        assert await asyncio.to_thread(both.wait, 5)
        assert [message.lease for message in heard if isinstance(message, Release)] == ["early", "late"]


def step(end_ms: int, running: int = 1) -> Step:
    return Step(
        start_ns=0, end_ns=end_ms * 1_000_000, prompt_tokens=1, decode_tokens=1, context_tokens=1, running=running, waiting=0,
        fetching=0, kv_free=1, leased=0, preemptions=0, prefix_queries=0, prefix_hits=0,
    )  # fmt: skip


async def test_steps_are_held_for_a_moment_in_which_others_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.engine.link.BEAT_S", 60.0)
    async with listening(tmp_path / "channel") as ears:
        link = await asyncio.to_thread(Link, str(tmp_path / "channel"), HELLO)
        assert await ears.next() == ("open", HELLO)

        async def held() -> bool:
            await asyncio.sleep(0.05)
            return ears.events.empty()

        link.hold(lambda: step(0), 0, last=False)
        link.hold(lambda: step(20), 20_000_000, last=False)
        assert await held()
        link.hold(lambda: step(40), 40_000_000, last=False)
        assert [await ears.next() for _ in range(3)] == [("message", step(at_ms)) for at_ms in (0, 20, 40)]
        link.hold(lambda: step(50), 50_000_000, last=False)
        link.send(PROGRESS)
        assert [await ears.next() for _ in range(2)] == [("message", step(50)), ("message", PROGRESS)], "in order"
        link.hold(lambda: step(60, running=0), 60_000_000, last=True)
        assert await ears.next() == ("message", step(60, running=0)), "nothing follows"


async def test_a_step_that_none_follows_is_sent_with_the_next_beat(tmp_path: Path) -> None:
    async with listening(tmp_path / "channel") as ears:
        link = await asyncio.to_thread(Link, str(tmp_path / "channel"), HELLO)
        assert await ears.next() == ("open", HELLO)
        link.hold(lambda: step(0), 0, last=False)
        assert await ears.next() == ("message", step(0))


def test_a_supervisor_that_does_not_read_costs_steps_but_never_blocks(tmp_path: Path) -> None:
    path = str(tmp_path / "channel")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        link = Link(path, HELLO)
        for _ in range(40_000):
            link.send(step(0))
        assert link.dropped_steps > 0
        link.send(Progress(stage="not telemetry", fraction=1.0))
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            frames: Frames[Up] = Frames(Up)
            messages: list[Up] = []
            while not (messages and isinstance(messages[-1], Progress)):
                messages += list(frames.feed(connection.recv(1 << 20)))
        assert isinstance(messages[0], Hello)
        assert not any(isinstance(message, Heartbeat) for message in messages)


def test_nobody_listening_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="no supervisor listens"):
        Link(str(tmp_path / "nothing"), HELLO)


async def test_the_engines_end_is_told_that_the_supervisor_has_hung_up(tmp_path: Path) -> None:
    told = threading.Event()
    async with listening(tmp_path / "channel") as ears:
        await asyncio.to_thread(Link, str(tmp_path / "channel"), HELLO, told.set)
        assert await ears.next() == ("open", HELLO)
        assert not told.is_set()
        ears.connections[0].close()
        assert await asyncio.to_thread(told.wait, 5)


def test_a_life_that_the_supervisor_does_not_know_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[float] = []
    monkeypatch.setattr("time.sleep", done.append)
    monkeypatch.setattr("os._exit", done.append)
    link_module._forsaken()
    assert done == [link_module._FORSAKEN_S, link_module._FORSAKEN_CODE], (
        "its end by the supervisor, with its reason, comes first"
    )
