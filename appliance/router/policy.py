"""Which engine a request goes to. Pure: a function of views and loads, and of nothing else.

Only READY engines are chosen. Among equals the one whose turn is longest ago comes first, so that equals take turns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Protocol

import msgspec

from appliance.records import EngineState, EngineView, Role


class Load(msgspec.Struct, frozen=True):
    """What the router has open on one engine."""

    legs: int = 0
    prompt_tokens: int = 0  # of these legs, not yet computed
    turn: int = 0  # grows with every leg that is given out; that of this engine's latest


IDLE: Final = Load()
_AHEAD: Final = 4
"""Legs beyond what an engine runs at once. When one ends, the next is there already: until the router has heard of the
end and sent another, the engine would make steps with a place empty."""
_WORDS: Final = {
    EngineState.DRAINING: "takes no new requests",
    EngineState.SUSPECT: "has not been heard of",
    EngineState.HUNG: "makes no progress",
    EngineState.BACKOFF: "has died and is started again",
    EngineState.FAILED: "has failed",
    EngineState.STOPPED: "is stopped",
}


class LoadTable(Protocol):
    def __getitem__(self, engine: str) -> Load:
        """An engine that nothing is known of is idle."""
        ...


class Choice(msgspec.Struct, frozen=True):
    """The engine for a request's first leg; the only leg, if there is a reason why it isn't split."""

    engine: EngineView
    unsplit_reason: str | None = None


def choose(
    views: Sequence[EngineView],
    loads: LoadTable,
    unsplit_reason: str | None = None,
    avoid: Collection[str] = (),
    prompt_tokens: int = 0,
) -> Choice | None:
    """Where to send a request now; None while every engine that could take it has its window full.

    Args:
        views: all engines of the node.
        unsplit_reason: why the request has to run whole, if it has to.
        avoid: engines that have failed this request; used only if there is no other.
        prompt_tokens: of the request.
    """
    ready = _ready(views, avoid)
    reason = unsplit_reason or _whole_reason(views, ready)
    if reason is None:
        roomy = [view for view in ready if view.role.decodes and _can_run(view, loads[view.name])]
        free = [view for view in ready if _can_split(view, roomy, loads[view.name])]
    else:
        candidates = [view for view in ready if view.role is Role.BOTH] if unsplit_reason else []
        free = [view for view in candidates or ready if _can_run_whole(view, loads[view.name])]
    if not free:
        return None
    if reason:
        return Choice(min(free, key=lambda view: _whole_order(view, loads[view.name])), reason)
    return Choice(min(free, key=lambda view: _prefill_order(view, loads[view.name], prompt_tokens)))


def choose_decode(
    views: Sequence[EngineView], loads: LoadTable, prefill: str, avoid: Collection[str] = ()
) -> EngineView | None:
    """Where to decode what ``prefill`` has computed: on an engine that has its memory mapped. None if there is none.

    One with room if possible, but a full one rather than none: the KV is there, and holds blocks until it is fetched.
    """
    ready = [view for view in views if view.state is EngineState.READY]
    found = [view for view in ready if view.role.decodes and view.name != prefill and prefill in view.peers]
    found = [view for view in found if view.name not in avoid] or found
    found = [view for view in found if _can_run(view, loads[view.name])] or found
    return min(found, key=lambda view: _whole_order(view, loads[view.name]), default=None)


def by_load(views: Sequence[EngineView], loads: LoadTable, avoid: Collection[str] = ()) -> list[EngineView]:
    """READY engines, the least loaded first."""
    return sorted(_ready(views, avoid), key=lambda view: _whole_order(view, loads[view.name]))


def none_ready(views: Sequence[EngineView]) -> str | None:
    """Why no request can be served now, in words; None if one can: any engine that is ready serves, if need be both legs."""
    if any(view.state is EngineState.READY for view in views):
        return None
    return "; ".join(map(_said, views)) or "there are no engines"


def one_may_be_back(views: Sequence[EngineView]) -> bool:
    """True where it will be known in seconds whether an engine is ready after all: until then requests wait."""
    return any(view.state is EngineState.SUSPECT for view in views)


def _said(view: EngineView) -> str:
    """``e0 is starting (loading weights, 60 %)``"""
    if view.state is EngineState.STARTING:
        progress = "" if view.progress is None else f", {view.progress * 100:.0f} %"
        return f"{view.name} is starting ({view.stage or 'its process'}{progress})"
    return f"{view.name} {_WORDS.get(view.state, view.state.value)}" + (f": {view.cause}" if view.cause else "")


def _ready(views: Sequence[EngineView], avoid: Collection[str]) -> list[EngineView]:
    ready = [view for view in views if view.state is EngineState.READY]
    return [view for view in ready if view.name not in avoid] or ready


def _has_decoder(prefill: EngineView, among: Sequence[EngineView]) -> bool:
    name = prefill.name
    return prefill.role.prefills and any(
        view.role.decodes and view is not prefill and name in view.peers for view in among
    )


def _whole_reason(views: Sequence[EngineView], ready: Sequence[EngineView]) -> str | None:
    """Why no request can be split now; None if one can."""
    if all(view.role is Role.BOTH for view in views):
        return "aggregated"
    if any(_has_decoder(view, ready) for view in ready):
        return None
    if not any(view.role.prefills for view in ready):
        return _missing("prefill", [view for view in views if view.role.prefills])
    if not any(view.role.decodes for view in ready):
        return _missing("decode", [view for view in views if view.role.decodes])
    if len(ready) == 1:
        return f"only {ready[0].name} is ready"
    errors = [error for view in ready for error in view.peer_errors]
    return "no two engines share their KV memory" + (f": {errors[0]}" if errors else " yet")


def _missing(kind: str, views: Sequence[EngineView]) -> str:
    failed = "has just failed this request"  # or it would be among those to choose from
    said = ", ".join(f"{v.name} {failed if v.state is EngineState.READY else 'is ' + v.state.value}" for v in views)
    return f"no {kind} engine is ready" + (f" ({said})" if said else "")


# ---- late binding: nothing waits in an engine that could still go to another, but no engine runs dry


def _can_split(view: EngineView, roomy: Sequence[EngineView], load: Load) -> bool:
    """What is prefilled now must find room to be decoded; else its KV would lie there and keep blocks from others."""
    return _can_prefill(view, load) and _has_decoder(view, roomy)


def _can_run_whole(view: EngineView, load: Load) -> bool:
    return _can_prefill(view, load) and _can_run(view, load)


def _can_prefill(view: EngineView, load: Load) -> bool:
    return load.prompt_tokens < max(1, view.max_batched_tokens)


def _can_run(view: EngineView, load: Load) -> bool:
    return load.legs < view.max_running + _AHEAD


# ---- the least work first, as it would be with this request; of an engine with half the weight each piece counts twice


def _prefill_order(view: EngineView, load: Load, prompt_tokens: int) -> tuple[float, float, int]:
    return (load.prompt_tokens + prompt_tokens) / view.weight, (load.legs + 1) / view.weight, load.turn


def _whole_order(view: EngineView, load: Load) -> tuple[float, float, int]:
    return (load.legs + 1) / view.weight, load.prompt_tokens / view.weight, load.turn
