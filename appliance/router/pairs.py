"""What is known of each pair of a prefill and a decode engine: whether KV gets from the one to the other. Pure.

That both are well does not prove it, and a pair that is broken costs its requests time without ever failing them: their prompts are
computed again. So pairs that nobody has used for a while are tested (``canary``), and one that fails twice is not used until it
passes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from appliance.records import EngineState, EngineView, Pair, Role

_FAILURES: Final = 2  # in a row, and a pair is not used
_LOST: Final = 8  # hand-offs of somebody's in a row, whatever the tests say
_TRIAL_NS: Final = 60_000_000_000  # until a pair that was taken out for these is tried again
_AGAIN_NS: Final = 2_000_000_000  # until one that failed is tested again


class PairKey(NamedTuple):
    """In these lives. An engine that was started again is another one."""

    prefill: str
    prefill_epoch: int
    decode: str
    decode_epoch: int


class _Known(msgspec.Struct):
    ok: bool | None = None
    seen_ns: int | None = None  # when it was last tested or used
    duration_s: float | None = None
    error: str | None = None
    failures: int = 0  # in a row
    doubted: bool = False  # a hand-off of somebody's has failed since

    lost: int = 0  # hand-offs of somebody's that failed in a row

    @property
    def broken(self) -> bool:
        return self.failures >= _FAILURES or self.lost >= _LOST


class Pairs:
    """All pairs there are now. Times are ``CLOCK_MONOTONIC`` nanoseconds."""

    def __init__(self, period_s: float) -> None:
        """``period_s``: a pair that has not been used for so long is due; 0: none ever is."""
        self._period_ns = int(period_s * 1e9)
        self._known: dict[PairKey, _Known] = {}

    def see(self, views: Sequence[EngineView]) -> None:
        """Which engines there are. What is known of a pair is kept for as long as both live, whatever state they are in."""
        epochs = {view.name: view.epoch for view in views}
        self._known = {
            key: known
            for key, known in self._known.items()
            if (epochs.get(key.prefill), epochs.get(key.decode)) == (key.prefill_epoch, key.decode_epoch)
        }
        for pair in _pairs(views):
            self._known.setdefault(_key(*pair), _Known())

    def due(self, views: Sequence[EngineView], now_ns: int, *, idle: bool) -> list[tuple[EngineView, EngineView]]:
        """Of the pairs seen those to be tested now. While there is work, only those in doubt: what works is seen by the work itself."""
        if not self._period_ns:
            return []
        known = ((pair, self._known.get(_key(*pair))) for pair in _pairs(views))
        return [pair for pair, what in known if what is not None and self._is_due(what, now_ns, idle)]

    def _is_due(self, known: _Known, now_ns: int, idle: bool) -> bool:
        if known.seen_ns is None:
            return idle or known.doubted
        if known.broken and not known.failures:  # its tests pass, and only time can tell
            return now_ns - known.seen_ns >= _TRIAL_NS
        if known.failures or known.doubted:
            return now_ns - known.seen_ns >= min(_AGAIN_NS, self._period_ns)
        return idle and now_ns - known.seen_ns >= self._period_ns

    def passed(self, prefill: EngineView, decode: EngineView, duration_s: float, now_ns: int) -> None:
        """A test has shown that it works. Where only large hand-offs fail it has not: then somebody's next one is the test."""
        lost = min(self._known.get(_key(prefill, decode), _Known()).lost, _LOST - 1)
        self._put(_key(prefill, decode), _Known(ok=True, seen_ns=now_ns, duration_s=duration_s, lost=lost))

    def failed(self, prefill: EngineView, decode: EngineView, error: str, now_ns: int) -> None:
        """A test has shown that it does not."""
        known = self._known.get(_key(prefill, decode), _Known())
        failed = _Known(ok=False, seen_ns=now_ns, error=error, failures=known.failures + 1, lost=known.lost)
        self._put(_key(prefill, decode), failed)

    def untold(self, prefill: EngineView, decode: EngineView, error: str, now_ns: int) -> None:
        """A test has shown nothing, and ``error`` is why. What was known before still holds."""
        known = self._known.get(_key(prefill, decode), _Known())
        self._put(_key(prefill, decode), msgspec.structs.replace(known, seen_ns=now_ns, error=error, doubted=False))

    def used(self, prefill: str, decode: str, error: str | None, now_ns: int) -> None:
        """A hand-off of somebody's has ended: one that went well is as good as a test, one that did not is a reason for a test."""
        for key, known in self._known.items():
            if (key.prefill, key.decode) == (prefill, decode):
                self._known[key] = _used(known, error, now_ns)
                return

    def without_broken(self, views: Sequence[EngineView]) -> Sequence[EngineView]:
        """The views as routing should see them: an engine does not know those whose KV does not get to it."""
        broken = [(key, known) for key, known in self._known.items() if known.broken]
        return [_without(view, broken) for view in views] if broken else views

    def snapshot(self, now_ns: int) -> tuple[Pair, ...]:
        """What is known."""
        return tuple(
            Pair(
                prefill=key.prefill,
                decode=key.decode,
                ok=known.ok,
                in_use=not known.broken,
                age_s=None if known.seen_ns is None else max(0, now_ns - known.seen_ns) * 1e-9,
                duration_s=known.duration_s,
                error=known.error,
            )
            for key, known in sorted(self._known.items())
        )

    def _put(self, key: PairKey, known: _Known) -> None:
        if key in self._known:  # else one of them has ended meanwhile
            self._known[key] = known


def _pairs(views: Sequence[EngineView]) -> list[tuple[EngineView, EngineView]]:
    """Those that requests are split over: an aggregated node has none."""
    if all(view.role is Role.BOTH for view in views):
        return []
    ready = [view for view in views if view.state is EngineState.READY]
    return [
        (prefill, decode)
        for prefill in ready
        for decode in ready
        if prefill.role.prefills and decode.role.decodes and prefill is not decode and prefill.name in decode.peers
    ]


def _used(known: _Known, error: str | None, now_ns: int) -> _Known:
    if error is None:
        return _Known(ok=True, seen_ns=now_ns, duration_s=known.duration_s)
    failed = msgspec.structs.replace(known, doubted=True, lost=known.lost + 1)
    if failed.broken and not known.broken:
        failed.ok, failed.seen_ns, failed.error = False, now_ns, error
    return failed


def _key(prefill: EngineView, decode: EngineView) -> PairKey:
    return PairKey(prefill.name, prefill.epoch, decode.name, decode.epoch)


def _without(view: EngineView, broken: Iterable[tuple[PairKey, _Known]]) -> EngineView:
    mine = [(key, known) for key, known in broken if (key.decode, key.decode_epoch) == (view.name, view.epoch)]
    if not mine:
        return view
    names = {key.prefill for key, _ in mine}
    errors = tuple(f"{key.prefill} to {key.decode}: {known.error}" for key, known in mine)
    peers = tuple(peer for peer in view.peers if peer not in names)
    return msgspec.structs.replace(view, peers=peers, peer_errors=view.peer_errors + errors)
