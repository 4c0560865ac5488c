"""Hand-offs by link: how many lately, and how slow."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from appliance.channel import CANARY, HandoffEnded
from appliance.costs.fitted import CopyModel
from appliance.records import LINKS_S, MOST_TIMES, LinkSnapshot

_WINDOW_NS: Final = int(LINKS_S * 1e9)
_WELL: Final = 1.3  # times what copies over a link take: beyond it, nothing is learnt from them
_YOUNG: Final = 200
_FADES: Final = 0.9  # from one copy over a link to the next
_LEAST: Final = 3  # copies, to say that a link is slow
_FEW: Final = 2  # that are enough where they took so long
_LONG_S: Final = 1.0
_LONGER: Final = 3  # times as long as it took, that a copy tells of its link


class _Copied(msgspec.Struct, frozen=True):
    heard_ns: int
    bytes: int
    seconds: float
    expected_s: float | None


class _Link:
    """From one engine to another."""

    def __init__(self) -> None:
        self.recent: deque[_Copied] = deque()
        self._took_s = self._should_s = 0.0  # of the last copies, however long ago these were

    def add(self, copied: _Copied) -> None:
        self.recent.append(copied)
        if copied.expected_s is not None:
            self._took_s = _FADES * self._took_s + min(copied.seconds, MOST_TIMES * copied.expected_s)
            self._should_s = _FADES * self._should_s + copied.expected_s

    @property
    def is_well(self) -> bool:
        """Then a model may learn from it. By the mean of several: from quick ones alone it would learn that copies are quick."""
        return self._took_s <= _WELL * self._should_s

    def forget(self, now_ns: int) -> None:
        """Of a link over which little comes the last that came tells for longer."""
        while self.recent and now_ns - self.recent[0].heard_ns > _WINDOW_NS + _LONGER * self.recent[0].seconds * 1e9:
            self.recent.popleft()

    def lately(self, now_ns: int) -> int:
        """Copies of the last seconds."""
        return sum(now_ns - one.heard_ns <= _WINDOW_NS for one in self.recent)

    def slowdown(self) -> float | None:
        """None where too little was copied to say."""
        compared = [one for one in self.recent if one.expected_s]
        should_s = sum(one.expected_s or 0.0 for one in compared)
        enough = _FEW if sum(one.seconds for one in compared) >= _LONG_S else _LEAST
        if len(compared) < enough or should_s <= 0:
            return None
        return sum(min(one.seconds, MOST_TIMES * (one.expected_s or 0.0)) for one in compared) / should_s


class Links:
    """Of one node, whose links are alike."""

    def __init__(self) -> None:
        self.model = CopyModel()
        self._links: dict[tuple[str, str], _Link] = {}

    def fold(self, consumer: str, message: HandoffEnded, now_ns: int) -> None:
        """One is over. Those that failed, or had nothing to copy, tell nothing of links."""
        seconds = (message.end_ns - message.start_ns) * 1e-9
        if not message.ok or not message.bytes or seconds <= 0 or message.lease.startswith(CANARY):
            return
        link = self._links.setdefault((message.producer, consumer), _Link())
        link.add(_Copied(now_ns, message.bytes, seconds, self.model.expected_s(message.bytes)))
        if link.is_well or self.model.learnt < _YOUNG:
            self.model.learn(message.bytes, seconds)

    def snapshot(self, now_ns: int) -> tuple[LinkSnapshot, ...]:
        """Those over which something has come lately."""
        for link in self._links.values():
            link.forget(now_ns)
        return tuple(_said(*ends, link, now_ns) for ends, link in sorted(self._links.items()) if link.recent)


def _said(producer: str, consumer: str, link: _Link, now_ns: int) -> LinkSnapshot:
    return LinkSnapshot(
        producer=producer,
        consumer=consumer,
        handoffs_s=link.lately(now_ns) / LINKS_S,
        bytes_s=sum(one.bytes for one in link.recent) / sum(one.seconds for one in link.recent),
        slowdown=link.slowdown(),
    )
