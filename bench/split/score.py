"""How right the plans of played cases were. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from appliance.records import Plan, Predicted
from bench.diagnosis.score import wilson
from bench.split.play import Measured, Played, chosen

_AS_GOOD: Final = 0.05  # of the goodput of the best
_CALM: Final = 0.9  # of prefill: beyond it a mean of TTFT hangs on how long one looks
Of = Callable[[Played], tuple[Plan, ...]]
BY: Final[tuple[tuple[str, Of], ...]] = (
    ("by the cost model", lambda played: played.ahead),
    ("learnt from a node that runs", lambda played: played.live.layouts),
)


def right(played: Played, plans: Sequence[Plan]) -> bool:
    """The layout that would be taken is measured to be the best, or nearly as good."""
    taken = chosen(plans)
    goods = {one.layout: one.good for one in played.measured}
    return taken is not None and goods[taken] >= (1 - _AS_GOOD) * max(goods.values())


def farthest(played: Played, plans: Sequence[Plan]) -> float | None:
    """The highest rate of the layout that would be taken, of that of the layout which has the highest."""
    taken = chosen(plans)
    rates = {one.layout: one.most_rate_s for one in played.measured if one.most_rate_s is not None}
    return rates[taken] / max(rates.values()) if taken in rates and max(rates.values()) > 0 else None


def split_or_not(played: Played, plans: Sequence[Plan]) -> bool | None:
    """Whether to split is told rightly; None where both are as good."""
    rates = {one.layout: one.most_rate_s or one.good for one in played.measured}
    best_split = max(rate for layout, rate in rates.items() if "b" not in layout)
    best_whole = max(rate for layout, rate in rates.items() if "b" in layout)
    if abs(best_split - best_whole) <= _AS_GOOD * max(best_split, best_whole):
        return None
    found = {plan.layout: plan.predicted.most_rate_s for plan in plans if plan.predicted}
    if not found:
        return False
    return ("b" not in max(found, key=found.__getitem__)) == (best_split > best_whole)


def errors(
    all_played: Iterable[Played],
    of: Of,
    predicted: Callable[[Predicted], float | None],
    truth: Callable[[Measured], float | None],
) -> list[float]:
    """Relative; above 0 where too much is predicted."""
    found = []
    for played in all_played:
        plans = {plan.layout: plan.predicted for plan in of(played)}
        for one in played.measured:
            plan, true = plans.get(one.layout), truth(one)
            value = predicted(plan) if plan is not None else None
            if value is not None and true:
                found.append(value / true - 1)
    return found


def markdown(all_played: Sequence[Played]) -> str:
    """For docs/planner.md."""
    lines = [_line("", [name for name, _ in BY]), "|---" * (1 + len(BY)) + "|"]
    lines += [_line(what, [cell(all_played, of) for _, of in BY]) for what, cell in _ROWS]
    wrong = [one for one in all_played if not all(right(one, of(one)) for _, of in BY)]
    lines += ["", "Not the best:", ""] if wrong else []
    return "\n".join([*lines, *(_told(one) for one in wrong)]) + "\n"


def _line(what: str, cells: Sequence[str]) -> str:
    return f"| {what} | {' | '.join(cells)} |"


# ---- rows


def _rights(all_played: Sequence[Played], of: Of) -> str:
    return _share([right(one, of(one)) for one in all_played])


def _served(all_played: Sequence[Played], of: Of) -> str:
    return _rights([one for one in all_played if max(found.good for found in one.measured) >= one.share], of)


def _splits(all_played: Sequence[Played], of: Of) -> str:
    return _share([told for one in all_played if (told := split_or_not(one, of(one))) is not None])


def _farthest(all_played: Sequence[Played], of: Of) -> str:
    ordered = sorted(far for one in all_played if (far := farthest(one, of(one))) is not None)
    return f"{statistics.median(ordered):.0%}, {ordered[len(ordered) // 10]:.0%}" if ordered else "—"


def _rates(all_played: Sequence[Played], of: Of, whole: bool) -> str:
    def rate_s(one: Measured) -> float | None:
        return one.most_rate_s if ("b" in one.layout) == whole else None

    return _spread(errors(all_played, of, lambda plan: plan.most_rate_s, rate_s))


def _firsts(all_played: Sequence[Played], of: Of) -> str:
    def ttft_s(plan: Predicted) -> float | None:
        return plan.ttft_s if plan.prefill_load < _CALM else None

    return _spread(errors(all_played, of, ttft_s, lambda one: one.ttft_s))


def _others(all_played: Sequence[Played], of: Of) -> str:
    def itl_s(plan: Predicted) -> float | None:
        return plan.itl_s if plan.ttft_s is not None and plan.load < 1 else None

    return _spread(errors(all_played, of, itl_s, lambda one: one.itl_s))


_ROWS: Final = (
    ("the layout taken is the best, or within 5 % of its goodput", _rights),
    ("the same, of the traffics that any layout serves within the targets", _served),
    ("whether to split is told rightly, where that makes more than 5 %", _splits),
    ("highest rate of the layout taken, of the highest of all: median, a tenth of cases below", _farthest),
    ("highest rate of split layouts: error's median, half within, nine of ten within", partial(_rates, whole=False)),
    ("highest rate of aggregated layouts", partial(_rates, whole=True)),
    ("mean TTFT below 90 % prefill load", _firsts),
    ("mean time per token below a load of 1", _others),
)


def _share(rights: Sequence[bool]) -> str:
    low, high = wilson(sum(rights), len(rights))
    return f"{sum(rights)} of {len(rights)} ({low:.0%}–{high:.0%})"


def _spread(found: Sequence[float]) -> str:
    """The sign of the median tells whether too much is predicted."""
    if not found:
        return "—"
    ordered = sorted(map(abs, found))
    half, most = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.9))
    return f"{statistics.median(found):+.1%}, ±{half:.0%}, ±{most:.0%} (n = {len(ordered)})"


def _told(played: Played) -> str:
    taken = ", ".join(f"{name}: {chosen(of(played))}" for name, of in BY)
    goods = ", ".join(f"{one.layout} {one.good:.0%}" for one in played.measured)
    return f"- seed {played.seed}, {played.words}: {taken}; measured {goods}"
