"""What the node can be told to do, and what came of it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from appliance.records.engine import Role


class OrderKind(StrEnum):
    """What the node can be told to do while it serves."""

    ROLE = "role"  # use an engine for something else
    WEIGHT = "weight"  # give an engine more or less of the work than its like
    DRAIN = "drain"  # take no new work on an engine
    RESUME = "resume"  # take work on it again
    RESTART = "restart"  # start an engine again once what it has begun is done; without an engine: one after the other
    TOPOLOGY = (
        "topology"  # give engines the roles of a layout; where it takes others than there are, engines end and begin
    )


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that the node is told to do: the same from the API, the command line and the page."""

    kind: OrderKind
    engine: str | None = None
    role: Role | None = None
    weight: float | None = None
    topology: str | None = None
    roles: dict[str, Role] | None = None  # of a topology: by engine, where it matters which one does what
    force: bool = False  # even if no engine takes requests then, or none of a role that one has now


class Moved(msgspec.Struct, frozen=True):
    """What a change of the topology does to engines besides their roles."""

    starts: tuple[str, ...] = ()  # that are new, or the same by name only
    ends: tuple[str, ...] = ()  # for good


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How requests fared over some seconds; shares are 0 to 1, None where there was nothing to judge by."""

    seconds: float
    requests: int = 0  # that came
    first_tokens: int = 0  # that were sent; about, as they are counted by the last seconds of each snapshot
    ttft_late: float | None = None  # share of first tokens that came later than the target
    itl_late: float | None = None  # share of the tokens after these
    ttft_s: float | None = None  # mean
    output_tokens_s: float | None = None
    queue: float | None = None  # requests, mean
    failed: int = 0  # requests; not those refused for what their clients had asked


class RemedyState(StrEnum):
    """What is known of what a remedy brings. Whether it still holds is another matter: ``Remedy.over``."""

    SETTLING = "settling"  # given; what it brings is not known yet
    SETTLED = "settled"  # ``brought`` says what it brought
    UNKNOWN = "unknown"  # what it brought will never be known, and ``brought`` says why


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """An order that was given, what it was to bring, and what it brought. ``time`` is in Unix seconds."""

    id: str
    time: float
    by: str  # api | cli | page
    order: Order
    sentence: str  # what was done
    restarts: tuple[str, ...] = ()  # engines that it starts, or starts again
    ends: tuple[str, ...] = ()  # engines that it ends for good
    verdict: str | None = None  # that stood then, in words; it need not be why the order was given
    expected: str | None = None  # in words, estimated
    state: RemedyState = RemedyState.SETTLING
    before: Condition | None = None
    after: Condition | None = None
    brought: str | None = None  # in words
    beside: tuple[str, ...] = ()  # what else happened until then, so that it may not be this order's doing; in words
    undo: Order | None = None  # the way back; None where there is none
    over: str | None = None  # why it does not hold any more, in words; None while it does
