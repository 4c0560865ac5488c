"""Which of a machine's layouts to take. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from appliance.planner.wanted import Placement, Wanted
from appliance.records import Role


def choose(found: Sequence[Placement], wanted: Wanted) -> tuple[Placement | None, str]:
    """That with the highest rate within the targets, and why. KV through the host's memory is taken only where there is nothing else."""
    feasible = [one for one in found if one.feasible]
    if not feasible:
        return None, "no layout is feasible: the reasons say what stands against each"
    if shared := next((one for one in feasible if one.shares), None):
        return _on_one(shared, [one for one in feasible if not one.shares], wanted)
    direct = [one for one in feasible if not one.staged]
    staged = len(feasible) - len(direct) if direct else 0
    feasible = direct or feasible
    known = [one for one in feasible if one.plan is not None and one.plan.predicted is not None]
    if not known:
        return (
            _plainest(feasible),
            "nothing can be predicted here: as few GPUs per engine as will do, and each engine does both",
        )
    return _fastest(known, wanted, _of_which(staged, unpredicted=len(known) < len(feasible)))


def _of_which(staged: int, *, unpredicted: bool) -> str:
    """Layouts that the one taken is the best of."""
    if staged:
        some = "1 split layout is" if staged == 1 else f"{staged} split layouts are"
        return (
            f"the highest of those that hand KV over from GPU to GPU or not at all: {some} "
            "left out because KV would go through the host's memory (--topology takes one)"
        )
    return "the highest of those that can be predicted" if unpredicted else "the highest of all"


def _on_one(shared: Placement, alone: Sequence[Placement], wanted: Wanted) -> tuple[Placement, str]:
    """Two engines that share the only GPU are taken unpredicted, if they have room for what is asked: that prefill and decode are apart is
    what a node is for.
    """
    needed = _needed(alone, wanted)
    if not alone or (shared.requests or 0.0) >= needed:
        return (
            shared,
            "prefill and decode share the one GPU that can be used, unpredicted; 1b would have one engine on all of it",
        )
    return alone[0], (
        f"two engines that share the one GPU would each have room for {shared.requests:.0f} requests, and about {needed:.0f} are to be "
        "decoded at once: one engine has all of it"
    )


def _needed(alone: Sequence[Placement], wanted: Wanted) -> float:
    """Requests that are decoded at once: as predicted for an engine on all of the GPU, else as many as tokens at the target's pace make."""
    plan = alone[0].plan if alone else None
    if plan is not None and plan.predicted is not None:
        return math.inf if plan.predicted.at_once is None else plan.predicted.at_once
    return wanted.demand.rate_s * wanted.answer * wanted.targets.itl_s


def _fastest(known: Sequence[Placement], wanted: Wanted, of_which: str) -> tuple[Placement, str]:
    """Of equals, the first."""
    best = max(known, key=lambda one: one.most_rate_s)
    if best.most_rate_s <= 0:
        best = max(known, key=lambda one: one.good)
        return best, "no layout meets the targets at any rate: the one with the most requests within them"
    enough = "more than" if best.most_rate_s > wanted.demand.rate_s else "less than"
    return best, (
        f"it meets the targets up to {best.most_rate_s:.3g} requests/s (predicted), {enough} the {wanted.demand.rate_s:g} that are asked "
        f"for, {of_which}"
    )


def _plainest(feasible: Sequence[Placement]) -> Placement:
    """Roles can be given to such engines while they serve."""
    return min(feasible, key=lambda one: (one.tensor_parallel, any(seat.role is not Role.BOTH for seat in one.seats)))
