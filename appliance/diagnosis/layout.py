"""Another layout of the same engines would do, by what is predicted of the traffic. Pure; the planner has worked it out."""

from __future__ import annotations

from typing import Final

from appliance.diagnosis.finding import Finding
from appliance.diagnosis.signs import Signs
from appliance.records import Action, Better, Evidence, Order, OrderKind
from appliance.remedies.catalogue import advise

_MOST: Final = 0.5  # of the time to the first token
_RISES: Final = 0.10  # points of the requests that meet both targets: less is not worth a change


def not_worth_it(signs: Signs) -> Finding | None:
    """Engines that all do both would serve this traffic better than engines that share the work."""
    better = _better(signs)
    if better is None or not better.aggregated or better.good_rises < _RISES:
        return None
    stage = "decode" if _is_of_decoding(signs) else "prefill"
    pool = signs.decode if stage == "decode" else signs.prefill
    return Finding(
        cause="disaggregation_not_worth_it",
        stage=stage,
        sentence=f"For this traffic, {better.layout} would do better than {signs.now.topology}: splitting costs more than it brings.",
        confidence=0.7,
        engines=tuple(engine.name for engine in pool),
        evidence=(
            Evidence(
                measured=better.good_rises,
                expected=0.0,
                unit="of requests",
                sentence=f"{better.good_rises:.0%} more of the requests would meet the targets as {better.layout} (predicted).",
            ),
        ),
        action=_to(better),
        gain=better.good_rises,
    )


def _is_of_decoding(signs: Signs) -> bool:
    """What is late: tokens, answers though not their beginning, or first tokens that waited elsewhere than for their prefill."""
    return signs.itl_late > signs.ttft_late or signs.is_of_pace or signs.waits_after_prefill > _MOST


def change(signs: Signs, stage: str | None = None) -> Action | None:
    """To the layout that is predicted to be clearly better, if there is one; where a stage lacks something, none with fewer engines for it.

    What is predicted knows nothing of what a stage lacks now: of KV that has filled up, say.
    """
    better = _better(signs)
    if better is None or stage in better.fewer:
        return None
    return _to(better)


def _to(better: Better) -> Action:
    return advise(
        f"Change the layout to {better.layout}: it is predicted to leave engines {better.load_falls:.0%} less loaded.",
        Order(kind=OrderKind.TOPOLOGY, topology=better.layout),
    )


def _better(signs: Signs) -> Better | None:
    """What was predicted before the layout was changed to it is of no use any more."""
    better = signs.now.better
    return None if better is None or better.layout == signs.now.topology else better
