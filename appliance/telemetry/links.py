"""Hand-offs by link: how many lately, and how slow."""

from __future__ import annotations

from collections import deque
from typing import Final

from appliance.channel import CANARY, HandoffEnded
from appliance.costs.fitted import CopyModel
from appliance.records import LinkSnapshot

_WINDOW_NS: Final = 5 * 1_000_000_000
_WELL: Final = 1.3  # times what a copy takes: beyond it, nothing is learnt from it
_YOUNG: Final = 200


class Links:
    """Of one node, whose links are alike."""

    def __init__(self) -> None:
        self.model = CopyModel()
        self._recent: dict[tuple[str, str], deque[tuple[int, int, float, float | None]]] = {}

    def fold(self, consumer: str, message: HandoffEnded, now_ns: int) -> None:
        """One is over. Those that failed, or had nothing to copy, tell nothing of links."""
        seconds = (message.end_ns - message.start_ns) * 1e-9
        if not message.ok or not message.bytes or seconds <= 0 or message.lease.startswith(CANARY):
            return
        expected_s = self.model.expected_s(message.bytes)
        known = self._recent.setdefault((message.producer, consumer), deque())
        known.append((now_ns, message.bytes, seconds, expected_s))
        if expected_s is None or self.model.learnt < _YOUNG or seconds < _WELL * expected_s:
            self.model.learn(message.bytes, seconds)

    def snapshot(self, now_ns: int) -> tuple[LinkSnapshot, ...]:
        """Those over which something has come lately."""
        for known in self._recent.values():
            while known and now_ns - known[0][0] > _WINDOW_NS:
                known.popleft()
        return tuple(self._one(*link, known) for link, known in sorted(self._recent.items()) if known)

    def _one(self, producer: str, consumer: str, known: deque[tuple[int, int, float, float | None]]) -> LinkSnapshot:
        took_s = sum(seconds for _, _, seconds, _ in known)
        compared = [(seconds, expected_s) for _, _, seconds, expected_s in known if expected_s is not None]
        should_s = sum(expected_s for _, expected_s in compared)
        return LinkSnapshot(
            producer=producer,
            consumer=consumer,
            handoffs_s=len(known) / (_WINDOW_NS * 1e-9),
            bytes_s=sum(size for _, size, _, _ in known) / took_s,
            slowdown=sum(seconds for seconds, _ in compared) / should_s if should_s > 0 else None,
        )
