"""Who asked, and who was answered within the targets. Pure."""

from __future__ import annotations

import bisect
from typing import Final

import msgspec

_IMPACT_S: Final = 3.0
_FEW: Final = 3
_SHARE: Final = 0.1


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One request that is over. Times are seconds of the case; ``pace_s`` is the mean from one token to the next."""

    arrived_s: float
    ended_s: float
    ok: bool = True
    ttft_s: float | None = None
    pace_s: float | None = None


class Clients:
    """Those who ask, and what they think of the answers."""

    def __init__(self, ttft_s: float, itl_s: float, seconds: int) -> None:
        self._ttft_s, self._itl_s = ttft_s, itl_s
        self.good, self.asked, self.missed = [0] * (seconds + 1), [0] * (seconds + 1), [0] * (seconds + 1)
        self.hurt_s: list[float] = []
        self.bad_s: list[tuple[float, float]] = []  # from the target to a late first token; from there on, if slow

    def come(self, at_s: float) -> None:
        self.asked[min(int(at_s), len(self.asked) - 1)] += 1

    def answered(self, one: Answer) -> None:
        late = one.ok and (one.ttft_s or 0.0) > self._ttft_s
        slow = one.ok and (one.pace_s or 0.0) > self._itl_s
        if late:
            self.hurt_s.append(one.arrived_s + self._ttft_s)
            self.bad_s.append((one.arrived_s + self._ttft_s, one.arrived_s + (one.ttft_s or 0.0)))
        elif slow or not one.ok:
            self.hurt_s.append(one.ended_s)
        if slow:
            self.bad_s.append((one.arrived_s + (one.ttft_s or 0.0), one.ended_s))
        kept = self.missed if late or slow or not one.ok else self.good
        kept[min(int(one.arrived_s), len(kept) - 1)] += 1

    def impact_s(self, since_s: float) -> float | None:
        """When a tenth of those who had come lately was hurt; three at least."""
        hurt = sorted(self.hurt_s)
        for number, at_s in enumerate(hurt):
            recent = number + 1 - bisect.bisect_left(hurt, at_s - _IMPACT_S)
            came = sum(self.asked[max(0, int(at_s - _IMPACT_S)) : int(at_s) + 1])
            if at_s >= since_s and recent >= max(_FEW, _SHARE * came):
                return at_s
        return None

    def recovered_s(self, over_s: float) -> float:
        """From when on less than a tenth of those who came within a few seconds miss the targets, and no more wait or get tokens slowly."""
        found = over_s
        for second in range(int(over_s), len(self.asked)):
            lately = slice(max(0, second + 1 - int(_IMPACT_S)), second + 1)
            still = sum(since_s <= second + 1 < until_s for since_s, until_s in self.bad_s)
            if max(sum(self.missed[lately]), still) >= max(_FEW, _SHARE * sum(self.asked[lately])):
                found = second + 1.0
        return found
