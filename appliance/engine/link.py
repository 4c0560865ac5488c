"""The engine's end of the engine channel: one connection per process, shared by all of our code in it.

Sending happens on the caller's thread and never blocks: what the socket does not take waits in a buffer, and steps and heartbeats are
dropped once that is full. While requests run, steps are held back for a moment, so that one write serves several. A thread of our own
reads what the supervisor says, and beats once a second. It touches none of vLLM's state: handlers that need the main loop leave their
work where it looks (see ``pulse.py``).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from appliance.channel import Down, Frames, Heartbeat, Hello, Message, Step, StepBegan, encode
from appliance.errors import ChannelError

BEAT_S: Final = 1.0
_TELEMETRY_LIMIT_BYTES: Final = 1 << 20  # steps are dropped beyond this; what leases depend on is not
_HELD_NS: Final = 30_000_000  # nobody looks at steps more often
_CONNECT_TIMEOUT_S: Final = 5.0
_FORSAKEN_S: Final = 10.0
_AT_ONCE: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_FORSAKEN_CODE: Final = 70  # EX_SOFTWARE of sysexits.h

Handler = Callable[[Down], None]


class Link:
    """A connection to the supervisor. Thread-safe."""

    def __init__(self, path: str, hello: Hello, on_end: Callable[[], None] = lambda: None) -> None:
        """Connect and say hello. Raises ``ChannelError`` if the supervisor does not listen at ``path``.

        ``on_end`` is called, on the link's thread, when the supervisor has closed the connection.
        """
        self._on_end = on_end
        self._socket = _connect(path)
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._steps: list[Callable[[], Step]] = []  # that are held back
        self._held_since_ns = 0
        self._handlers: list[Handler] = []
        self._beats: list[Callable[[], None]] = []
        self._held: list[Down] = []  # came before anybody listened
        self.dropped_steps = 0
        self.send(hello)
        threading.Thread(target=self._run, name="appliance-link", daemon=True).start()

    def on_message(self, handler: Handler) -> None:
        """Call ``handler`` with each message, on the link's thread. The first handler also gets those that came before it."""
        with self._lock:
            self._handlers.append(handler)
            held, self._held = self._held, []
        for message in held:
            handler(message)

    def on_beat(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once a second, on the link's thread."""
        self._beats.append(callback)

    def send(self, message: Message) -> None:
        """Send without blocking, in order. A step or heartbeat that finds the buffer full is dropped and counted."""
        frame = encode(message)
        with self._lock:
            self._let_go()
            self._put(frame, int(isinstance(message, Step | StepBegan | Heartbeat)))

    def hold(self, step: Callable[[], Step], end_ns: int, last: bool) -> None:
        """Send a step with those that follow it, before anything else is, and once steps have been held for ``_HELD_NS``.

        Args:
            step: makes it. That is done for several together, too, when Python's code for it is in the core's cache.
            end_ns: of the step.
            last: none follows.
        """
        with self._lock:
            if not self._steps:
                self._held_since_ns = end_ns
            self._steps.append(step)
            if last or end_ns - self._held_since_ns >= _HELD_NS:
                self._let_go()

    def _let_go(self) -> None:
        if self._steps:
            held, self._steps = self._steps, []
            self._put(b"".join([encode(step()) for step in held]), len(held))

    def _put(self, frames: bytes, telemetry: int) -> None:
        """``telemetry``: how many of them may be dropped."""
        if not self._pending:  # as always, unless the supervisor is slow
            self._pending += frames[self._write(frames) :]
        elif len(self._pending) > _TELEMETRY_LIMIT_BYTES and telemetry:
            self.dropped_steps += telemetry
        else:
            self._pending += frames
            self._flush()

    def _flush(self) -> None:
        del self._pending[: self._write(self._pending)]

    def _write(self, data: bytes | bytearray) -> int:
        """How much of it the socket took."""
        try:
            return self._socket.send(data, _AT_ONCE)
        except (BlockingIOError, ConnectionError):
            return 0

    def _run(self) -> None:
        """A fault ends the connection, and then the supervisor ends this engine: one that hears nothing would pin its leases."""
        try:
            self._listen()
        except Exception:
            traceback.print_exc()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        frames: Frames[Down] = Frames(Down)
        next_beat = time.monotonic() + BEAT_S
        while True:
            if self._readable(max(0.0, next_beat - time.monotonic())):
                data = self._receive()
                if not data:
                    return self._on_end()
                for message in frames.feed(data):
                    self._dispatch(message)
            if time.monotonic() >= next_beat:
                next_beat += BEAT_S
                self._beat()

    def _readable(self, timeout_s: float) -> bool:
        events = select.poll()
        events.register(self._socket, select.POLLIN | (select.POLLOUT if self._pending else 0))
        ready = events.poll(timeout_s * 1000)
        if any(event & select.POLLOUT for _, event in ready):
            with self._lock:
                self._flush()
        return any(event & ~select.POLLOUT for _, event in ready)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except ConnectionError:
            return b""

    def _dispatch(self, message: Down) -> None:
        with self._lock:
            if not self._handlers:
                self._held.append(message)
            handlers = list(self._handlers)
        for handler in handlers:
            handler(message)

    def _beat(self) -> None:
        with self._lock:
            self._let_go()
        for callback in self._beats:
            callback()


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(_CONNECT_TIMEOUT_S)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise ChannelError(f"no supervisor listens on the engine channel {path}: {error.strerror}") from error
    connection.settimeout(None)
    return connection


_link: tuple[int, Link] | None = None


def process_link(path: str, engine: str, epoch: int, process: str, rank: int = 0) -> Link:
    """This process's connection; the first caller names the process. A forked child makes its own."""
    global _link
    if _link is None or _link[0] != os.getpid():
        hello = Hello(engine=engine, epoch=epoch, process=process, pid=os.getpid(), rank=rank)
        _link = (os.getpid(), Link(path, hello, _forsaken))
    return _link[1]


def _forsaken() -> None:
    """The supervisor is gone, and the kernel is about to end this process; or it knows nothing of this life of an engine.

    That life then must not go on. It is given time, in which the supervisor ends it and knows why, where it has a reason.
    """
    time.sleep(_FORSAKEN_S)
    os._exit(_FORSAKEN_CODE)
