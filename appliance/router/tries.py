"""Whether a request that has failed is tried again. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from appliance.router.failures import LegFailed

_DEADLY: Final = 2  # engines that a request may be lost with
_PROOF_NS: Final = (
    120 * 1_000_000_000
)  # worked on for so long, it has hardly ended its engine: longer than any hang goes unnoticed
_PROOFS: Final = 2  # so often: a request that ends engines slowly is none that may go on for ever


class Tries:
    """What has become of the attempts at one request."""

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._left = self._most
        self._began_ns = 0
        self._proofs = 0
        self._lost: dict[str, None] = {}  # engines that ended while they had this request, in order
        self.failed_on: set[str] = set()

    def begin(self, now_ns: int) -> None:
        """An attempt is sent to an engine."""
        self._left -= 1
        self._began_ns = now_ns

    @property
    def deadly(self) -> str | None:
        """Which engines this request may have been the end of, where that is too many for accident."""
        return " and ".join(self._lost) if len(self._lost) >= _DEADLY else None

    def again(self, failure: LegFailed, ready: Iterable[str], now_ns: int) -> bool:
        """After a failure: an engine that is gone may be back or be replaced; what a living one answers, it would answer again.

        Twice is no accident: a request that two engines did not survive is not given to a third. One that an engine has worked on for
        minutes begins anew, but not again and again.
        """
        if failure.final:
            return False
        if failure.lost and now_ns - self._began_ns >= _PROOF_NS and self._proofs < _PROOFS:
            self._proofs += 1
            self._lost.clear()
            self.failed_on.clear()
            self._left = self._most
        self.failed_on.add(failure.engine)
        if failure.lost:
            self._lost[failure.engine] = None
        if self._left <= 0 or self.deadly:
            return False
        return failure.answer is None or failure.lost or any(name not in self.failed_on for name in ready)
