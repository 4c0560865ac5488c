"""What an order brings: how requests fared before it was given, and how they fare once it has settled. Pure.

Lengths of time are measured by the node's uptime, which nobody sets back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.records import LATELY_S, Condition, EngineSnapshot, EngineState, NodeSnapshot, Verdict

BEFORE_S: Final = 10.0  # looked at, until the order is given
AFTER_S: Final = 10.0  # looked at, once it has settled
SETTLES_S: Final = 20.0  # from the order, or from when all that it starts is there, until that begins
GIVEN_UP_S: Final = 900.0  # for each engine that it starts, to be there
_DIFFERS: Final = 0.02  # of requests or tokens: less is no difference
_DEVIATIONS: Final = 2.0  # of what chance does to a share of so many requests: less is no difference, either
_QUEUE_DIFFERS: Final = 2.0  # requests
_TTFT_DIFFERS: Final = 0.25  # of the mean
_FEW: Final = 10  # first tokens, of which a mean says little
_TRAFFIC_DIFFERS: Final = 1.5  # times the requests per second
_MUCH: Final = 20  # requests, in which chance makes less than that
_GONE: Final = (EngineState.HUNG, EngineState.BACKOFF, EngineState.FAILED)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """``after`` None: it will never be known what it brought. ``brought`` is in words."""

    after: Condition | None = None
    brought: str
    beside: tuple[str, ...] = ()


class Trial:
    """One order that has been given, until it is known what it brought. Is told of each snapshot since."""

    def __init__(
        self,
        node: NodeSnapshot,
        before: Condition | None,
        starts: Sequence[str] = (),
        ends: Sequence[str] = (),
        unsettled: Sequence[str] = (),
    ) -> None:
        """``node``: as it was when the order was given. ``starts``: engines that it starts, or starts again; ``ends``: those that it ends
        for good. ``unsettled``: ids of orders that had not settled then.
        """
        self._before = before
        self._given_s = node.uptime_s
        self._starts, self._ends = frozenset(starts), frozenset(ends)
        self._epochs = {engine.name: engine.epoch for engine in node.engines}
        self._verdict = node.verdict
        self._done_s: float | None = node.uptime_s if not starts and not ends else None
        self._after: deque[NodeSnapshot] = deque()
        self._beside = dict.fromkeys(f"{id} had not settled yet" for id in unsettled)

    def given_too(self, id: str) -> None:
        """Another order was given meanwhile."""
        self._beside[f"{id} was given meanwhile"] = None

    def fold(self, now: NodeSnapshot) -> Outcome | None:
        """What it brought, once that can be told."""
        self._note(now)
        if missing := self._missing(now):
            self._done_s = None
            self._after.clear()
            limit_s = GIVEN_UP_S * max(1, len(self._starts) + len(self._ends))
            if self._has_failed(now) or now.uptime_s - self._given_s > limit_s:
                return Outcome(brought=f"not known: {'; '.join(missing)}", beside=tuple(self._beside))
            return None
        if self._done_s is None:
            self._done_s = now.uptime_s
        settled_s = self._done_s + SETTLES_S
        if now.uptime_s >= settled_s:
            self._after.append(now)
        return self._outcome(now) if now.uptime_s >= settled_s + AFTER_S else None

    def _missing(self, now: NodeSnapshot) -> list[str]:
        """What the order does that is not done yet."""
        there = {engine.name: engine for engine in now.engines}
        found = [self._why(name, there.get(name)) for name in sorted(self._starts)]
        found += [f"{name} did not end" if name in there else None for name in sorted(self._ends)]
        return [why for why in found if why]

    def _has_failed(self, now: NodeSnapshot) -> bool:
        """One that it starts was given up: the rest will not be done."""
        mine = [engine for engine in now.engines if engine.name in self._starts]
        return any(one.state is EngineState.FAILED and one.epoch > self._epochs.get(one.name, 0) for one in mine)

    def _why(self, name: str, engine: EngineSnapshot | None) -> str | None:
        """An engine is not what the order makes of it; None where it is."""
        if engine is None or engine.epoch <= self._epochs.get(name, 0):
            return f"{name} was not started"
        return None if engine.state is EngineState.READY else f"{name} did not become ready"

    def _note(self, now: NodeSnapshot) -> None:
        """What else happens, that may as well be why requests fare otherwise than before."""
        for engine in now.engines:
            if engine.name in self._starts | self._ends or engine.name not in self._epochs:
                continue
            if engine.state in _GONE or engine.epoch != self._epochs[engine.name]:
                self._beside[f"{engine.name} was gone for a while"] = None

    def _outcome(self, now: NodeSnapshot) -> Outcome:
        after = condition(tuple(self._after))
        if (said := _other_verdict(self._verdict, now.verdict)) is not None:
            self._beside[said] = None
        if (said := _other_traffic(self._before, after)) is not None:
            self._beside[said] = None
        brought_ = brought(self._before, after, now.slo_ttft_s, now.slo_itl_s)
        return Outcome(after=after, brought=brought_, beside=tuple(self._beside))


def condition(snapshots: Sequence[NodeSnapshot]) -> Condition | None:
    """Of snapshots, oldest first; None of fewer than two. Shares and means are those of requests and tokens, not of moments."""
    if len(snapshots) < 2:
        return None
    first, last = snapshots[0], snapshots[-1]
    seconds = last.uptime_s - first.uptime_s
    lately = [one.lately for one in snapshots if one.lately is not None and one.lately.first_tokens]
    counts = [one.first_tokens for one in lately]
    tokens = [(engine.itl_late, engine.output_tokens_s or 0.0) for one in snapshots for engine in one.engines]
    return Condition(
        seconds=seconds,
        requests=max(0, last.requests.total - first.requests.total),
        first_tokens=round(sum(counts) / len(snapshots) * seconds / LATELY_S),
        ttft_late=_mean([one.ttft_late for one in lately], counts),
        itl_late=_mean([late for late, _ in tokens], [rate for _, rate in tokens]),
        ttft_s=_mean([one.ttft_s for one in lately], counts),
        output_tokens_s=sum(rate for _, rate in tokens) / len(snapshots),
        queue=sum(one.queue.depth for one in snapshots) / len(snapshots),
        failed=max(0, last.requests.failed_here - first.requests.failed_here),
    )


def brought(before: Condition | None, after: Condition | None, slo_ttft_s: float, slo_itl_s: float) -> str:
    """In words: ``first tokens later than 2 s: 43% → 2%``; what has not changed is left out."""
    if before is None:
        return "nothing to compare with: the appliance had only just begun"
    if after is None or not _is_asked(after):
        return "nothing to compare: nobody asked for anything afterwards"
    if not _is_asked(before):
        return "nothing to compare with: nobody had asked for anything before"
    said = [
        _late_first_tokens(f"first tokens later than {slo_ttft_s:g} s", before, after),
        _share(f"tokens later than {slo_itl_s * 1e3:g} ms", before.itl_late, after.itl_late, _DIFFERS),
        _ttft(before, after),
        _queue(before.queue, after.queue),
        f"requests that failed: {before.failed} → {after.failed}" if before.failed or after.failed else None,
    ]
    return "; ".join(one for one in said if one) or "no difference that is larger than what comes and goes by itself"


def _late_first_tokens(what: str, before: Condition, after: Condition) -> str | None:
    """Of few requests, chance alone makes large differences."""
    numbers = (before.first_tokens, after.first_tokens)
    if not all(numbers) or before.ttft_late is None or after.ttft_late is None:
        return None
    both = (before.ttft_late * numbers[0] + after.ttft_late * numbers[1]) / sum(numbers)
    chance = math.sqrt(both * (1 - both) * sum(1 / number for number in numbers))
    return _share(what, before.ttft_late, after.ttft_late, max(_DIFFERS, _DEVIATIONS * chance))


def _share(what: str, before: float | None, after: float | None, differs: float) -> str | None:
    if before is None or after is None or abs(after - before) < differs:
        return None
    return f"{what}: {before:.0%} → {after:.0%}"


def _ttft(before: Condition, after: Condition) -> str | None:
    """What is within the target may become much quicker, or nearly late."""
    if not before.ttft_s or after.ttft_s is None or min(before.first_tokens, after.first_tokens) < _FEW:
        return None
    if abs(after.ttft_s - before.ttft_s) < _TTFT_DIFFERS * before.ttft_s:
        return None
    return f"time to first token, mean: {before.ttft_s:.2g} s → {after.ttft_s:.2g} s"


def _queue(before: float | None, after: float | None) -> str | None:
    if before is None or after is None or abs(after - before) < _QUEUE_DIFFERS:
        return None
    return f"requests in the queue: {before:.0f} → {after:.0f}"


def _other_verdict(before: Verdict | None, now: Verdict | None) -> str | None:
    """Something that holds the node back now, and did not before."""
    if now is None or now.state != "bottleneck":
        return None
    same = before is not None and (before.cause, before.engine, before.link) == (now.cause, now.engine, now.link)
    return None if same else f"afterwards it was said: {now.summary}"


def _other_traffic(before: Condition | None, after: Condition | None) -> str | None:
    """Many more requests, or many fewer."""
    if before is None or after is None or max(before.requests, after.requests) < _MUCH:
        return None
    if not (before.requests and after.requests and before.seconds > 0 and after.seconds > 0):
        return None
    times = after.requests / after.seconds / (before.requests / before.seconds)
    if 1 / _TRAFFIC_DIFFERS < times < _TRAFFIC_DIFFERS:
        return None
    return f"{times:.2g} times as many requests came afterwards"


def _is_asked(of: Condition) -> bool:
    return bool(of.requests or of.first_tokens or of.output_tokens_s or of.queue)


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None and weight]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
