"""The times of one answer, and the figures of a run. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

_NS: Final = 1e-9


class Result(msgspec.Struct, kw_only=True):
    """One request. ``gaps_s`` are those between the tokens' arrivals, so there is one less than there are events."""

    ok: bool = False
    error: str | None = None
    tokens: int = 0  # by the server's count, or the events where it gives none
    ttft_s: float | None = None
    tpot_s: float | None = None  # mean time per token after the first
    total_s: float | None = None
    gaps_s: list[float] = []


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Of one run. Percentiles are of the good requests, nearest rank; None where there is nothing to take them of."""

    n: int
    errors: int
    first_error: str | None
    duration_s: float
    requests_s: float  # good ones per second
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    itl_p50_s: float | None
    itl_p99_s: float | None


def result(began_ns: int, arrivals_ns: Sequence[int], ended_ns: int, tokens: int, wanted: int) -> Result:
    """Times of one answer; pure. Too few tokens are an error."""
    if tokens != wanted or not arrivals_ns:
        return Result(tokens=tokens, error=f"{tokens} tokens in {len(arrivals_ns)} events, not {wanted}")
    spread_ns = arrivals_ns[-1] - arrivals_ns[0]
    return Result(
        ok=True,
        tokens=tokens,
        ttft_s=(arrivals_ns[0] - began_ns) * _NS,
        tpot_s=spread_ns * _NS / (tokens - 1) if tokens > 1 else None,
        total_s=(ended_ns - began_ns) * _NS,
        gaps_s=[(b - a) * _NS for a, b in itertools.pairwise(arrivals_ns)],
    )


def percentile(values: Iterable[float | None], share: float) -> float | None:
    """Nearest rank: the smallest value that at least ``share`` of them don't exceed."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]


def summarise(results: Sequence[Result], duration_s: float) -> Summary:
    """Fold the results of a run that took ``duration_s``; pure."""
    good = [one for one in results if one.ok]
    ttfts, tpots = [one.ttft_s for one in good], [one.tpot_s for one in good]
    gaps = [gap for one in good for gap in one.gaps_s]
    return Summary(
        n=len(results),
        errors=len(results) - len(good),
        first_error=next((one.error for one in results if not one.ok), None),
        duration_s=duration_s,
        requests_s=len(good) / duration_s if duration_s > 0 else 0.0,
        ttft_p50_s=percentile(ttfts, 0.5),
        ttft_p99_s=percentile(ttfts, 0.99),
        tpot_p50_s=percentile(tpots, 0.5),
        tpot_p99_s=percentile(tpots, 0.99),
        itl_p50_s=percentile(gaps, 0.5),
        itl_p99_s=percentile(gaps, 0.99),
    )
