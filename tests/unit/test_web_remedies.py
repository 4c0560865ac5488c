"""What the page says of what was done."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.records import Order, OrderKind, Remedy, RemedyState
from web import remedies

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

NOW = made.busy(0)


def remedy(age_s: float, **more: object) -> Remedy:
    order = Order(kind=OrderKind.WEIGHT, engine="e1", weight=0.5)
    defaults: dict[str, object] = {"order": order, "sentence": "e1's weight in routing: 1 → 0.5", "undo": order}
    return Remedy(id="r1", time=NOW.time - age_s, by="page", **{**defaults, **more})  # type: ignore[arg-type]


def test_one_that_settles_says_so_and_can_be_taken_back() -> None:
    [found] = remedies.remedies([remedy(12.0, expected="47% of that time less (estimated)")], NOW).remedies
    assert (found.tone, found.undo) == ("wait", "r1")
    assert found.state == "done 12\u00a0s ago; what it brings is not known yet"
    assert found.expected == "47% of that time less (estimated)"


def test_what_it_brought_is_told() -> None:
    settled = remedy(60.0, state=RemedyState.SETTLED, brought="first tokens later than 2 s: 43% → 2%")
    [found] = remedies.remedies([settled], NOW).remedies
    assert found.state == "brought: first tokens later than 2 s: 43% → 2%"


def test_one_that_does_not_hold_any_more_or_has_no_way_back_offers_none() -> None:
    undone, final = remedy(60.0, state=RemedyState.UNDONE), remedy(60.0, undo=None)
    assert [one.undo for one in remedies.remedies([undone, final], NOW).remedies] == [None, None]


def test_only_the_newest_of_the_last_half_hour() -> None:
    assert len(remedies.remedies([remedy(float(age)) for age in range(5)], NOW).remedies) == 3
    assert remedies.remedies([remedy(1801.0)], NOW).remedies == ()
