"""The supervisor's mirror of all leases, and the only one who asks for their release."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

import msgspec

from appliance.channel import Down, HandoffEnded, LeaseEnded, LeaseGranted, Release, Up
from appliance.records import HandoffSnapshot, Lease, LedgerSnapshot

_REMEMBERED: Final = 10_000  # keys that were cancelled before their lease was granted
_WINDOW_NS: Final = 10 * 1_000_000_000

Send = Callable[[str, Down], bool]


class _Held(msgspec.Struct):
    """A lease as the supervisor knows it."""

    id: str
    owner: str
    epoch: int
    blocks: int
    tokens: int
    consumers: int  # pulls still to come
    granted_ns: int
    deadline_ns: int
    asked: bool = False  # to end at once; there is nothing more to ask


class _Counts(msgspec.Struct):
    granted: int = 0
    released: int = 0
    cancelled: int = 0
    expired: int = 0
    lost: int = 0


class Ledger:
    """Leases by key. Everything is told to it; it tells engines what to release."""

    def __init__(self, send: Send) -> None:
        """``send`` delivers a message to an engine's EngineCore; False if that is gone."""
        self._send = send
        self._held: dict[str, _Held] = {}
        self._early: OrderedDict[str, str] = OrderedDict()  # key → why it is not wanted any more
        self._counts = _Counts()
        self._handoffs = _Handoffs()

    def fold(self, engine: str, epoch: int, message: Up, now_ns: int) -> None:
        """Take what an engine reports."""
        match message:
            case LeaseGranted():
                self._granted(engine, epoch, message, now_ns)
            case LeaseEnded(lease=key, reason=reason):
                self._ended(key, reason)
            case HandoffEnded():
                self._handoffs.add(message, now_ns)
                self._pulled(message)
            case _:
                pass

    def cancel(self, key: str) -> None:
        """Nobody wants this key's KV any more. Idempotent; also before the lease is granted, and after it has ended."""
        held = self._held.get(key)
        if held is None:
            self._remember(key)
        elif not held.asked:
            held.asked = True
            self._send(held.owner, Release(lease=key, reason="cancelled"))

    def lost(self, engine: str, epoch: int) -> None:
        """A life of an engine is over, and its leases with it."""
        for key in [key for key, held in self._held.items() if (held.owner, held.epoch) == (engine, epoch)]:
            del self._held[key]
            self._counts.lost += 1

    def snapshot(self, now_ns: int) -> LedgerSnapshot:
        leases = tuple(_lease(held, now_ns) for held in self._held.values())
        return LedgerSnapshot(leases=leases, **msgspec.structs.asdict(self._counts))

    def handoffs(self, now_ns: int) -> HandoffSnapshot:
        return self._handoffs.snapshot(now_ns)

    def _granted(self, engine: str, epoch: int, message: LeaseGranted, now_ns: int) -> None:
        held = _Held(
            id=message.lease,
            owner=engine,
            epoch=epoch,
            blocks=message.blocks,
            tokens=message.tokens,
            consumers=message.consumers,
            granted_ns=now_ns,
            deadline_ns=message.at_ns + int(message.ttl_s * 1e9),
        )
        self._held[message.lease] = held
        self._counts.granted += 1
        if self._early.pop(message.lease, None) is not None:
            self.cancel(message.lease)

    def _ended(self, key: str, reason: str) -> None:
        if self._held.pop(key, None) is not None and reason in ("released", "cancelled", "expired"):
            setattr(self._counts, reason, getattr(self._counts, reason) + 1)

    def _pulled(self, message: HandoffEnded) -> None:
        """One consumer is done with a lease, well or not."""
        held = self._held.get(message.lease)
        if held is not None:
            held.consumers -= 1
            held.asked = held.asked or held.consumers <= 0
        self._send(held.owner if held else message.producer, Release(lease=message.lease, reason="released"))

    def _remember(self, key: str) -> None:
        self._early[key] = "cancelled"
        while len(self._early) > _REMEMBERED:
            self._early.popitem(last=False)


class _Handoffs:
    """Counts of hand-offs, and the recent ones."""

    def __init__(self) -> None:
        self._count = self._failed = self._bytes = 0
        self._last_error: str | None = None
        self._recent: deque[tuple[int, int, int]] = deque(maxlen=4096)  # (when, bytes, copying ns)

    def add(self, message: HandoffEnded, now_ns: int) -> None:
        self._count += 1
        self._bytes += message.bytes
        if not message.ok:
            self._failed += 1
            self._last_error = message.error
        self._recent.append((now_ns, message.bytes, message.end_ns - message.start_ns))

    def snapshot(self, now_ns: int) -> HandoffSnapshot:
        recent = [entry for entry in self._recent if now_ns - entry[0] <= _WINDOW_NS]
        copying_ns = sum(ns for _, size, ns in recent if size)
        return HandoffSnapshot(
            count=self._count,
            failed=self._failed,
            bytes=self._bytes,
            recent_s=len(recent) / (_WINDOW_NS * 1e-9),
            recent_bytes_s=sum(size for _, size, _ in recent) / (copying_ns * 1e-9) if copying_ns else None,
            last_error=self._last_error,
        )


def _lease(held: _Held, now_ns: int) -> Lease:
    return Lease(
        id=held.id,
        owner=held.owner,
        blocks=held.blocks,
        tokens=held.tokens,
        consumers=held.consumers,
        age_s=(now_ns - held.granted_ns) * 1e-9,
        remaining_s=(held.deadline_ns - now_ns) * 1e-9,
    )
