"""The supervisor's mirror of all leases, and the only one who asks for their release."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

import msgspec

from appliance.channel import CANARY, Down, HandoffEnded, LeaseEnded, LeaseGranted, Release, Up
from appliance.records import HandoffSnapshot, Lease, LedgerSnapshot

_REMEMBERED: Final = 10_000  # keys without a lease, of each kind
_REMEMBERED_NS: Final = 120 * 1_000_000_000  # twice the default time to live of a lease
_WINDOW_NS: Final = 10 * 1_000_000_000
_ERROR_NS: Final = 300 * 1_000_000_000  # an error says how the node is only for a while

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
    asked: bool = False  # all that it takes to end it has been sent


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
        self._unwanted = _Recent()  # cancelled before they were granted
        self._pulled_early = _Recent()  # pulled before they were granted: the messages of two engines race
        self._past = _Recent()  # ended; what is said about them now is late
        self._counts = _Counts()
        self._handoffs = _Handoffs()

    def fold(self, engine: str, epoch: int, message: Up, now_ns: int) -> None:
        """Take what an engine reports."""
        match message:
            case LeaseGranted():
                self._granted(engine, epoch, message, now_ns)
            case LeaseEnded():
                self._ended(message, now_ns)
            case HandoffEnded():
                if not message.lease.startswith(CANARY):
                    self._handoffs.add(message, now_ns)
                self._pulled(message, now_ns)
            case _:
                pass

    def cancel(self, key: str, now_ns: int | None = None) -> None:
        """Nobody wants this key's KV any more. Idempotent; also before the lease is granted, and after it has ended."""
        held = self._held.get(key)
        if held is not None:
            self._cancel(held)
        elif key not in self._past:
            self._unwanted.add(key, time.monotonic_ns() if now_ns is None else now_ns)

    def lost(self, engine: str, epoch: int, now_ns: int | None = None) -> None:
        """A life of an engine is over, and its leases with it."""
        for key in [key for key, held in self._held.items() if (held.owner, held.epoch) == (engine, epoch)]:
            self._forget(key, time.monotonic_ns() if now_ns is None else now_ns)
            self._counts.lost += 1

    def held_by(self, engine: str) -> int:
        """Leases on an engine's blocks that are still to be ended."""
        return sum(held.owner == engine for held in self._held.values())

    def snapshot(self, now_ns: int) -> LedgerSnapshot:
        """The leases held now, and counts since the start: granted is the sum of the others and of those held."""
        leases = tuple(_lease(held, now_ns) for held in self._held.values())
        return LedgerSnapshot(leases=leases, **msgspec.structs.asdict(self._counts))

    def handoffs(self, now_ns: int) -> HandoffSnapshot:
        """Since the start; the rates are of the last 10 s."""
        return self._handoffs.snapshot(now_ns)

    def _granted(self, engine: str, epoch: int, message: LeaseGranted, now_ns: int) -> None:
        held = _Held(
            id=message.lease,
            owner=engine,
            epoch=epoch,
            blocks=message.blocks,
            tokens=message.tokens,
            consumers=max(0, message.consumers - self._pulled_early.take(message.lease)),
            granted_ns=now_ns,
            deadline_ns=message.at_ns + int(message.ttl_s * 1e9),
        )
        held.asked = held.consumers == 0
        self._held[held.id] = held
        self._counts.granted += 1
        if self._unwanted.take(held.id):
            self._cancel(held)

    def _cancel(self, held: _Held) -> None:
        if not held.asked:
            held.asked = True
            self._send(held.owner, Release(lease=held.id, reason="cancelled"))

    def _pulled(self, message: HandoffEnded, now_ns: int) -> None:
        """One consumer is done with a lease, well or not."""
        held = self._held.get(message.lease)
        if held is None:
            self._pulled_unknown(message, now_ns)
        elif not held.asked:
            held.consumers -= 1
            held.asked = held.consumers <= 0
            self._send(held.owner, Release(lease=held.id, reason="released"))

    def _pulled_unknown(self, message: HandoffEnded, now_ns: int) -> None:
        """The consumer's word came before the owner's: the owner is known to hold it, or nobody could have pulled."""
        if message.lease not in self._past:
            self._pulled_early.add(message.lease, now_ns)
            self._send(message.producer, Release(lease=message.lease, reason="released"))

    def _ended(self, message: LeaseEnded, now_ns: int) -> None:
        if message.lease not in self._held:
            return
        self._forget(message.lease, now_ns)
        if message.reason in ("released", "cancelled", "expired"):
            setattr(self._counts, message.reason, getattr(self._counts, message.reason) + 1)

    def _forget(self, key: str, now_ns: int) -> None:
        del self._held[key]
        self._past.add(key, now_ns)


class _Recent:
    """How often each key was added lately. Forgets the oldest beyond ``_REMEMBERED`` keys or ``_REMEMBERED_NS``."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[int, int]] = OrderedDict()  # times added, and when last

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str, now_ns: int) -> None:
        self._keys[key] = (self._keys.pop(key, (0, 0))[0] + 1, now_ns)
        while len(self._keys) > _REMEMBERED or self._oldest_ns() < now_ns - _REMEMBERED_NS:
            self._keys.popitem(last=False)

    def take(self, key: str) -> int:
        """How often it was added; it is forgotten then."""
        return self._keys.pop(key, (0, 0))[0]

    def _oldest_ns(self) -> int:
        return next(iter(self._keys.values()))[1]


class _Handoffs:
    """Counts of hand-offs, and the recent ones."""

    def __init__(self) -> None:
        self._count = self._failed = self._bytes = 0
        self._last_error: tuple[int, str] | None = None  # when, and what
        self._recent: deque[tuple[int, int, int]] = deque()  # (when, bytes, copying ns), of the window

    def add(self, message: HandoffEnded, now_ns: int) -> None:
        self._count += 1
        self._bytes += message.bytes
        if not message.ok:
            self._failed += 1
            self._last_error = (now_ns, message.error or "no reason given")
        self._recent.append((now_ns, message.bytes, message.end_ns - message.start_ns))
        self._drop_old(now_ns)

    def snapshot(self, now_ns: int) -> HandoffSnapshot:
        self._drop_old(now_ns)
        if self._last_error is not None and now_ns - self._last_error[0] > _ERROR_NS:
            self._last_error = None
        copying_ns = sum(ns for _, size, ns in self._recent if size)
        return HandoffSnapshot(
            count=self._count,
            failed=self._failed,
            bytes=self._bytes,
            recent_s=len(self._recent) / (_WINDOW_NS * 1e-9),
            recent_bytes_s=sum(size for _, size, _ in self._recent) / (copying_ns * 1e-9) if copying_ns else None,
            last_error=self._last_error[1] if self._last_error else None,
        )

    def _drop_old(self, now_ns: int) -> None:
        while self._recent and now_ns - self._recent[0][0] > _WINDOW_NS:
            self._recent.popleft()


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
