"""What is kept of snapshots around an incident: all of them shortly before and after its beginning and its end, few in between. Pure.

Nothing of it has a prompt, an answer or a client's address, for snapshots have none. What an engine or a client has put into a timeline
in its own words is taken out besides: an error may quote a request, and an id may be a name.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from appliance.records import Lease, Leg, NodeSnapshot, Timeline

BEFORE_S: Final = 160.0  # the diagnoser looks back on 90 s, and the minute before the incident shall be judged rightly
AFTER_S: Final = 30.0
DENSE_S: Final = 130.0  # from its opening on, and until its end, all of them
_SPARSE: Final = (
    (DENSE_S, 5.0),
    (3600.0, 60.0),
    (86_400.0, 900.0),
)  # from which age on one snapshot in how many seconds will do
_CHUNK_S: Final = 10.0
_APART_S: Final = 0.25  # of a quicker tick not all are kept
_LEVEL: Final = 1  # of compression in memory; on disk, where frames are compressed together, zlib's own default
_OURS: Final = re.compile(r"[0-9a-f]{32}")
_OUR_LEASE: Final = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{16}\.\d+")
LEFT_OUT: Final = "(left out)"


class Frame(msgspec.Struct, frozen=True):
    """A snapshot as it is kept: MessagePack, compressed."""

    uptime_s: float
    data: bytes


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshots in a row, of one incident."""

    incident: str
    since_s: float  # uptimes
    until_s: float
    frames: tuple[Frame, ...]


class Thin(msgspec.Struct, frozen=True, kw_only=True):
    """Of what was kept between two uptimes, one snapshot per ``apart_s`` is enough."""

    incident: str
    since_s: float
    until_s: float
    apart_s: float


class _Recording:
    """Of one incident."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.written_s = float("-inf")  # everything until then has been given out
        self.until_s: float | None = None  # it ends then


class Recorder:
    """Is given each snapshot, and gives out what is to be kept."""

    def __init__(self, secret: bytes) -> None:
        """``secret``: makes ids of clients' own into others that nobody can guess them by."""
        self._secret = secret
        self._frames: deque[Frame] = deque()
        self._recordings: dict[str, _Recording] = {}

    def fold(self, snapshot: NodeSnapshot) -> None:
        """Remember it; one without a verdict, which the diagnoser has not seen, is none to remember."""
        now_s = snapshot.uptime_s
        if snapshot.verdict is None or (self._frames and now_s - self._frames[-1].uptime_s < _APART_S):
            return
        self._frames.append(Frame(now_s, packed(snapshot, self._secret)))
        while now_s - self._frames[0].uptime_s > BEFORE_S:
            self._frames.popleft()

    def begin(self, incident: str, now_s: float) -> None:
        """It is opened, or opened again."""
        recording = self._recordings.setdefault(incident, _Recording(now_s))
        recording.until_s = None

    def end(self, incident: str, now_s: float) -> None:
        """It is closed, and what follows shows that it is over."""
        if incident in self._recordings:
            self._recordings[incident].until_s = now_s + AFTER_S

    def due(self, now_s: float, *, everything: bool = False) -> tuple[list[Chunk], list[Thin]]:
        """What is to be written now, and what can be thinned. ``everything``: there will be no later."""
        chunks, thins = [], []
        for id, recording in list(self._recordings.items()):
            over = recording.until_s is not None and now_s >= recording.until_s + 2 * BEFORE_S  # it won't be reopened
            last = min(now_s, recording.until_s if recording.until_s is not None else now_s)
            if everything or last < now_s or last - recording.written_s >= _CHUNK_S:
                chunks += self._chunk(id, recording, last)
                thins += _thin(id, recording, last)
            if over:
                del self._recordings[id]
        return chunks, thins

    def _chunk(self, id: str, recording: _Recording, last_s: float) -> list[Chunk]:
        frames = tuple(one for one in self._frames if recording.written_s < one.uptime_s <= last_s)
        if not frames:
            return []
        recording.written_s = last_s
        return [Chunk(incident=id, since_s=frames[0].uptime_s, until_s=frames[-1].uptime_s, frames=frames)]


def _thin(id: str, recording: _Recording, now_s: float) -> list[Thin]:
    """The middle, the less the longer it lasts: one that nobody sees to may last for months."""
    until_s = now_s - DENSE_S
    since = [recording.began_s + age_s for age_s, _ in _SPARSE]
    return [
        Thin(incident=id, since_s=since_s, until_s=min(until_s, next_s), apart_s=apart_s)
        for since_s, next_s, (_, apart_s) in zip(since, [*since[1:], until_s], _SPARSE, strict=True)
        if until_s > since_s
    ]


# ---- bytes


def packed(snapshot: NodeSnapshot, secret: bytes) -> bytes:
    """As it is kept."""
    return zlib.compress(msgspec.msgpack.encode(bare(snapshot, secret)), _LEVEL)


def joined(frames: Sequence[Frame]) -> bytes:
    """Frames as they stand on disk: a row of snapshots, compressed together."""
    return zlib.compress(msgspec.msgpack.encode([msgspec.Raw(zlib.decompress(one.data)) for one in frames]))


def snapshots(data: bytes) -> list[dict[str, Any]]:
    """What ``joined`` has made, as plain tables. Raises ``ValueError`` for what is no such thing."""
    return [msgspec.msgpack.decode(one, type=dict[str, Any]) for one in raw(data)]


def raw(data: bytes) -> list[msgspec.Raw]:
    """The same, each as it was kept."""
    try:
        return msgspec.msgpack.decode(zlib.decompress(data), type=list[msgspec.Raw])
    except zlib.error as error:
        raise ValueError(str(error)) from error


def thinned(data: bytes, apart_s: float) -> bytes | None:
    """One snapshot per ``apart_s`` of them; None if none is left."""
    kept = list(_few(snapshots(data), apart_s))
    return zlib.compress(msgspec.msgpack.encode(kept)) if kept else None


def _few(row: list[dict[str, Any]], apart_s: float) -> Iterator[dict[str, Any]]:
    """The first of each stretch of that length. A stretch that a row begins in the middle of began in the row before."""
    tick_s = row[1]["uptime_s"] - row[0]["uptime_s"] if len(row) > 1 else _APART_S
    place = (row[0]["uptime_s"] - tick_s) // apart_s if row else 0
    for one in row:
        if one["uptime_s"] // apart_s != place:
            place = one["uptime_s"] // apart_s
            yield one


# ---- what is left out


def bare(snapshot: NodeSnapshot, secret: bytes) -> NodeSnapshot:
    """Without what anybody has put into timelines in words of their own."""
    leases = tuple(_bare_lease(one, secret) for one in snapshot.ledger.leases)
    recent = tuple(_bare(one, secret) for one in snapshot.recent)
    return replace(snapshot, recent=recent, ledger=replace(snapshot.ledger, leases=leases))


def _bare_lease(one: Lease, secret: bytes) -> Lease:
    """The router makes a lease's id of the request's."""
    id = one.id if _OUR_LEASE.fullmatch(one.id) else _id(one.id, secret)
    return replace(one, id=id, request=None if one.request is None else _id(one.request, secret))


def _bare(one: Timeline, secret: bytes) -> Timeline:
    return replace(one, id=_id(one.id, secret), error=_said(one.error), legs=tuple(_leg(leg) for leg in one.legs))


def _leg(leg: Leg) -> Leg:
    return leg if leg.error is None else replace(leg, error=LEFT_OUT)


def _said(error: str | None) -> str | None:
    return None if error is None else LEFT_OUT


def _id(id: str, secret: bytes) -> str:
    """One that we have made says nothing. A client's own may be a name: the same one becomes the same other one."""
    if _OURS.fullmatch(id):
        return id
    return f"client-{hashlib.blake2b(id.encode(), key=secret, digest_size=8).hexdigest()}"
