"""The engine channel: versioned msgpack frames over a Unix socket, one connection per engine process that holds our code.

A frame is a header of 8 bytes, ``magic u16 | version u16 | length u32`` (big-endian), and ``length`` bytes of msgpack: one message
of ``UP`` (engine to supervisor) or ``DOWN`` (supervisor to engine). The first frame up is ``Hello``. Anything else, a frame over
``MAX_FRAME_BYTES``, or another version ends the connection with a ``ChannelError`` that says which.

Times are ``CLOCK_MONOTONIC`` nanoseconds, which every process of a node shares.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from appliance.errors import ChannelError
from appliance.records import GpuSnapshot, HostReading

VERSION: Final = 7
LONG_STEP_TOKENS: Final = 128
"""A step with so many prompt tokens is announced (``StepBegan``), and compared with others of its kind only."""
CANARY: Final = "canary/"
"""Keys that begin so are of the router's own tests of a pair of engines: nobody's requests, and nobody's hand-offs.
(No client's id has a slash.)"""
MAX_FRAME_BYTES: Final = 4 << 20
_MAGIC: Final = 0x7064  # "pd"
_HEADER: Final = struct.Struct(">HHI")


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base of every message."""


# ---- up: engine → supervisor -------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, tag=True):
    """Who is calling. ``process`` is ``api``, ``core`` or ``worker``; ``rank`` counts workers."""

    engine: str
    epoch: int
    process: str
    pid: int
    rank: int = 0


class Progress(Message, frozen=True, kw_only=True, tag=True):
    """What a starting engine does now, in words; ``fraction`` is an estimate, 0 to 1."""

    stage: str
    fraction: float


class CoreReady(Message, frozen=True, kw_only=True, tag=True):
    """EngineCore is up. ``sockets`` has the path of each worker rank's KV socket, by rank."""

    kv_blocks: int
    block_tokens: int
    max_model_len: int
    max_batched_tokens: int
    max_running: int
    sockets: tuple[str, ...]
    lease_table: str


class StepBegan(Message, frozen=True, kw_only=True, tag=True):
    """A step with many prompt tokens has begun: it may take long, and that is no reason to think that the engine hangs."""

    at_ns: int
    prompt_tokens: int
    decode_tokens: int = 0
    context_tokens: int = 0
    attended: int = 0


class Step(Message, frozen=True, kw_only=True, tag=True):
    """One scheduler step. Token counts are of this step; ``running`` … ``preemptions`` are the state after it.

    A step computes a token for each sequence that decodes, and each is given one, unless ``sequences`` and ``decoded`` say otherwise: with
    speculative decoding it computes several, and gives as many as were guessed rightly; after a preemption it computes them again.
    """

    start_ns: int
    end_ns: int
    prompt_tokens: int
    decode_tokens: int
    context_tokens: int  # KV tokens read by the step's requests
    attended: int = 0  # by the step's prompt tokens: for each, how many of its own prompt there are up to it
    running: int
    waiting: int
    fetching: int
    kv_free: int  # blocks
    leased: int  # blocks pinned by leases alone or together with requests
    preemptions: int  # since the engine's start
    prefix_queries: int  # prompt tokens asked of the prefix cache since the start
    prefix_hits: int
    sequences: int | None = None  # that decode; None: ``decode_tokens``
    decoded: int | None = None  # tokens that these were given; None: one each
    dropped: int = 0  # steps not reported before this one, for want of room in the socket

    @property
    def decoding(self) -> int:
        """Sequences that decode."""
        return self.decode_tokens if self.sequences is None else self.sequences

    @property
    def given(self) -> int:
        """Output tokens of sequences that decode. (The first one of each comes with its prompt.)"""
        return self.decoding if self.decoded is None else self.decoded


class Heartbeat(Message, frozen=True, kw_only=True, tag=True):
    """Said by the main loop itself, once a second while it makes no steps."""

    at_ns: int
    running: int
    waiting: int
    fetching: int
    kv_free: int
    leased: int


class Scheduled(Message, frozen=True, kw_only=True, tag=True):
    """A request of the router's was scheduled for the first time. ``phase`` is ``prefill`` or ``decode``."""

    request: str  # the router's key
    phase: str
    at_ns: int
    prompt_tokens: int


class FirstToken(Message, frozen=True, kw_only=True, tag=True):
    """A request of the router's has its first output token. Not said of prefill legs, whose one token is nobody's."""

    request: str  # the router's key
    at_ns: int


class OutputTokens(Message, frozen=True, kw_only=True, tag=True):
    """Output tokens of one step, said before the API process hears of them: whoever has had a token has had it said here.

    ``items``: the router's key, which of the request's sequences, and its token ids.
    """

    items: tuple[tuple[str, int, tuple[int, ...]], ...]


class LeaseGranted(Message, frozen=True, kw_only=True, tag=True):
    """A prefill ended well and its KV is held. ``ttl_s`` is the time left."""

    lease: str
    blocks: int
    tokens: int
    consumers: int
    ttl_s: float
    at_ns: int


class LeaseEnded(Message, frozen=True, kw_only=True, tag=True):
    """The blocks went back. ``reason`` is ``released``, ``cancelled`` or ``expired``."""

    lease: str
    reason: str
    blocks: int
    at_ns: int


class HandoffEnded(Message, frozen=True, kw_only=True, tag=True):
    """A decode engine's pull is over (all ranks). ``ok`` False means that the KV is computed again there.

    ``bytes`` is 0 and ``start_ns == end_ns`` where the decode engine's prefix cache already had all of it.
    """

    lease: str
    producer: str
    ok: bool
    bytes: int
    tokens: int
    start_ns: int
    end_ns: int
    copies: int = 0  # runs that the bytes were copied in
    error: str | None = None


class PeerOpened(Message, frozen=True, kw_only=True, tag=True):
    """Answer to ``OpenPeer``. ``error`` says why the peer's KV can't be used; ``refused`` that it never can, in these two lives."""

    peer: str
    epoch: int
    rank: int
    error: str | None = None
    refused: bool = False


class PeerClosed(Message, frozen=True, kw_only=True, tag=True):
    """Answer to ``ClosePeer``: nothing of that life of the peer is mapped any more."""

    peer: str
    epoch: int
    rank: int


class Hardware(Message, frozen=True, kw_only=True, tag=True):
    """What is to be read of the hardware of a simulated engine. (Of real ones the supervisor asks the machine itself.)"""

    gpus: tuple[GpuSnapshot, ...]
    host: HostReading


Up = (
    Hello
    | Progress
    | CoreReady
    | StepBegan
    | Step
    | Heartbeat
    | Scheduled
    | FirstToken
    | OutputTokens
    | LeaseGranted
    | LeaseEnded
    | HandoffEnded
    | PeerOpened
    | PeerClosed
    | Hardware
)


# ---- down: supervisor → engine -----------------------------------------------------------------------------------------


class OpenPeer(Message, frozen=True, kw_only=True, tag=True):
    """Map this peer's KV memory. To every worker rank; answered by ``PeerOpened``."""

    peer: str
    epoch: int
    sockets: tuple[str, ...]
    lease_table: str


class ClosePeer(Message, frozen=True, kw_only=True, tag=True):
    """Unmap that life of the peer. To every worker rank; answered by ``PeerClosed``."""

    peer: str
    epoch: int


class Release(Message, frozen=True, kw_only=True, tag=True):
    """End a lease, or what one consumer wants of it. To EngineCore; answered by ``LeaseEnded`` if that ended it.

    ``reason`` is ``released`` (one consumer has its copy: the lease ends with the last one) or ``cancelled`` (ends at once).
    """

    lease: str
    reason: str


class Fault(Message, frozen=True, kw_only=True, tag=True):
    """To a simulated engine: something of it is worse from now on. ``severity``: the share of it that is lost; 0: it is whole again.

    ``kind`` is one of ``simulator.faults.KINDS``. ``peer``: the other end, where it is of a link.
    """

    kind: str
    severity: float
    peer: str | None = None


Down = OpenPeer | ClosePeer | Release | Fault


# ---- the supervisor and its fork server, over a socket pair of their own -------------------------------------------------


class Imported(Message, frozen=True, kw_only=True, tag=True):
    """The fork server has everything imported, and takes orders."""


class ForkOrder(Message, frozen=True, kw_only=True, tag=True):
    """Fork an engine. The descriptor of what it is to write to comes along. Answered by ``Forked``."""

    arguments: tuple[str, ...]  # of appliance.engine.main
    environment: dict[str, str]


class Forked(Message, frozen=True, kw_only=True, tag=True):
    """The engine is there; it is, or is about to be, the supervisor's child."""

    pid: int


ForkAnswer = Imported | Forked


# ---- frames ------------------------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


def encode(message: Message) -> bytes:
    """One frame. Raises ``ChannelError`` if it would be larger than ``MAX_FRAME_BYTES``."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ChannelError(f"a {type(message).__name__} of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _HEADER.pack(_MAGIC, VERSION, len(payload)) + payload


class Frames(Generic[T]):
    """Turns a byte stream into messages of one direction; keeps what is incomplete."""

    def __init__(self, messages: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(messages)
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[T]:
        """The messages that ``data`` completes. Raises ``ChannelError`` at the first byte that can't be right."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            end = _HEADER.size + self._length()
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield self._message(payload)

    def _length(self) -> int:
        magic, version, length = _HEADER.unpack_from(self._buffer)
        if magic != _MAGIC:
            raise ChannelError(f"not an engine channel: the frame begins with {bytes(self._buffer[:8])!r}")
        if version != VERSION:
            raise ChannelError(f"engine channel version {version} was received, version {VERSION} is spoken here")
        if length > MAX_FRAME_BYTES:
            raise ChannelError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
        return int(length)

    def _message(self, payload: bytes) -> T:
        try:
            return self._decoder.decode(payload)
        except msgspec.DecodeError as error:  # ValidationError is one
            raise ChannelError(f"an engine channel frame can't be read: {error}") from error
