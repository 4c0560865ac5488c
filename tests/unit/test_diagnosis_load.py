"""Where there is much to do: prompts, KV, routing, caches, links, and layouts that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from diagnosed import BETTER, cause, gpu, late, made, replace, said, wait, window

from appliance.diagnosis.judge import judge
from appliance.records import (
    Action,
    EngineState,
    GpuSnapshot,
    HostReading,
    Lately,
    LinkSnapshot,
    NodeSnapshot,
    Order,
    OrderKind,
    QueueSnapshot,
    RequestCounts,
    Role,
    Stage,
)


def test_tokens_that_come_late_are_not_the_fault_of_engines_that_only_prefill() -> None:
    snapshot = late(100.0, depth=0)
    slow = replace(snapshot.engines[1], itl_s=0.06, output_tokens_s=500.0)
    both = replace(snapshot, engines=(snapshot.engines[0], slow))
    finding = judge([both], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("decode_saturated", ("e1",))
    late_too = replace(both, queue=late(100.0).queue)
    assert (first := judge([late_too], 0.95).finding) is not None
    assert first.cause == "prefill_saturated", "where prompts wait as well, it is what holds up both"


def test_an_engine_gets_less_of_the_work_where_others_can_take_it_and_has_it_not_already() -> None:
    slow, like = made.engine("e0", busy=1.0, slowdown=2.0, waiting=3), made.engine("e2", busy=0.9, slowdown=1.0)
    decode = made.engine("e1", made.Role.DECODE, busy=0.9, slowdown=1.0, running=30)

    def action(weight: float) -> Action | None:
        queue = QueueSnapshot(depth=40, capacity=1024, oldest_s=5.0)
        engines = (replace(slow, weight=weight), decode, like)
        finding = judge([replace(made.node(engines, 0, queue=queue), time=100.0, uptime_s=100.0)], 0.95).finding
        return finding.action if finding is not None else None

    assert (found := action(1.0)) is not None
    assert (found.call, found.order and found.order.weight) == ('POST /api/engines/e0/weight {"weight": 0.5}', 0.5)
    assert (again := action(0.5)) is not None
    assert (again.order, "as little of the work as it can do" in again.sentence) == (None, True)


def two_and_two(slowdown: float = 1.0, link: float = 1.0, its: float = 0.97, **like: Any) -> NodeSnapshot:
    """First tokens are late, and decoders have no room for more. e0 prefills so slowly, the link from it to e2 is so slow, and e1 is so."""
    decode = made.engine("e2", Role.DECODE, busy=0.9, slowdown=1.0, running=50, max_running=64, room=1.0, kv_usage=0.6)
    engines = (
        made.engine("e0", busy=its, slowdown=slowdown, waiting=2, token_budget=8192),
        made.engine("e1", **{"busy": 0.3, "slowdown": 1.0, "token_budget": 8192, **like}),
        decode,
        replace(decode, name="e3"),
    )
    links = (LinkSnapshot(producer="e0", consumer="e2", handoffs_s=2.0, bytes_s=1e9, slowdown=link),)
    stages = (Stage("handoff_wait", 0.5), Stage("transfer", 1.5), Stage("prefill", 0.5))
    lately = Lately(first_tokens=30, ttft_late=0.6, ttft_s=2.9, stages=stages)
    node = made.node(engines, 0, topology="2p2d", lately=lately, links=links)
    return replace(node, time=100.0, uptime_s=100.0)


def advised(snapshot: NodeSnapshot) -> Action:
    finding = judge([snapshot], 0.95).finding
    assert finding is not None
    return finding.action


@pytest.mark.parametrize(
    "like",
    [{"busy": 0.97}, {"busy": 0.5}, {"outstanding_prompt_tokens": 16_000}, {"kv_usage": 0.5}, {"its": 0.97}],
)  # fmt: skip
def test_an_engine_that_prefills_is_not_done_without_for_a_slow_link_unless_others_can_take_its_prompts(
    like: dict[str, Any],
) -> None:
    action = advised(two_and_two(link=4.0, its=0.35))
    assert action.order == Order(kind=OrderKind.DRAIN, engine="e0"), "e1 can do as much besides its own"
    action = advised(two_and_two(**{"link": 4.0, "its": 0.35, **like}))
    assert (action.order, "no room for the work of" in action.sentence) == (None, True)


def test_an_engine_that_hardly_prefills_any_more_gets_work_by_its_speed_where_others_can_not_take_all() -> None:
    assert advised(two_and_two(slowdown=8.0)).order == Order(kind=OrderKind.DRAIN, engine="e0")
    order = advised(two_and_two(slowdown=8.0, busy=0.97)).order
    assert order == Order(kind=OrderKind.WEIGHT, engine="e0", weight=0.12)


def test_a_slow_link_is_told_by_its_rate_beside_that_of_another() -> None:
    node = two_and_two(link=7.5)
    assert "is copied 7.5 times as slowly as over healthy links." in said([node])
    well = LinkSnapshot(producer="e1", consumer="e2", handoffs_s=2.0, bytes_s=300e9, slowdown=1.0)
    node = replace(node, links=(*node.links, well))
    assert "is copied at 1.0 GB/s, where another link has 300.0." in said([node])


def slow_decode(its: dict[str, Any] | None = None, **others: Any) -> NodeSnapshot:
    """e1 can do a fifth of its work in time; e2 could do three times what it does."""
    figures = {"busy": 0.9, "running": 20, "max_running": 64, "output_tokens_s": 400.0, "kv_usage": 0.3}
    slow = made.engine("e1", Role.DECODE, **{**figures, "slowdown": 4.0, "itl_s": 0.12, "room": 0.2, **(its or {})})
    like = made.engine("e2", Role.DECODE, **{**figures, "slowdown": 1.0, "itl_s": 0.03, "room": 3.0, **others})
    slow, like = (replace(one, waiting=0, fetching=0) for one in (slow, like))
    node = made.node((made.engine("e0", busy=0.3, slowdown=1.0), slow, like), 0, topology="1p2d")
    return replace(node, time=100.0, uptime_s=100.0)


@pytest.mark.parametrize(
    ("others", "weight"),
    [
        ({}, 0.11),
        ({"kv_usage": 0.7}, 0.75),
        ({"room": 1.3}, 0.54),
        ({"room": 1.9}, 0.11),
        ({"running": 10}, 0.33),
        ({"kv_usage": 0.78}, None),
        ({"room": 1.05}, None),
    ],
)
def test_engines_that_decode_take_over_only_what_leaves_them_room(others: dict[str, Any], weight: float | None) -> None:
    """In their KV, and before their target; of twice the work of one that has half as much it is half."""
    action = advised(slow_decode(**others))
    assert (action.order and action.order.weight) == weight, action.sentence
    assert ("no room for the work of e1" in action.sentence) == (weight is None)


def test_work_that_hardly_can_be_done_is_taken_off_only_where_all_of_it_can_be_taken_over() -> None:
    its = {"room": 0.05}
    assert advised(slow_decode(its)).order == Order(kind=OrderKind.DRAIN, engine="e1")
    order = advised(slow_decode(its, room=1.9)).order
    assert order == Order(kind=OrderKind.WEIGHT, engine="e1", weight=0.05)


def test_an_engine_that_still_has_what_it_had_before_it_got_less_is_waited_for() -> None:
    action = advised(slow_decode({"weight": 0.54}, running=25))
    assert (action.order, "works off what it has" in action.sentence) == (None, True)
    order = advised(slow_decode({"weight": 0.54, "running": 11})).order
    assert order is not None and order.weight == 0.08


def test_a_slow_engine_that_has_got_less_work_is_no_reason_to_give_others_less() -> None:
    node = slow_decode({"weight": 0.11, "itl_s": 0.03, "running": 2}, running=40)
    prefill = replace(node.engines[0], busy=1.0, waiting=3, token_budget=8192)
    queue = QueueSnapshot(depth=40, capacity=1024, oldest_s=5.0)
    lately = Lately(first_tokens=30, ttft_late=0.6, ttft_s=2.9, stages=(Stage("queue", 2.5),))
    node = replace(node, engines=(prefill, *node.engines[1:]), queue=queue, lately=lately)
    assert cause([node]) == "prefill_saturated"
    well = replace(node.engines[1], slowdown=1.0)
    assert cause([replace(node, engines=(prefill, well, node.engines[2]))]) == "routing_skew", "for no reason"


@pytest.mark.parametrize(
    ("others", "its", "order"),
    [
        ({}, {}, Order(kind=OrderKind.WEIGHT, engine="e0", weight=0.5)),
        ({"outstanding_prompt_tokens": 16_000}, {}, None),
        ({}, {"weight": 0.5}, None),
    ],
)
def test_an_engine_that_does_both_and_is_slow_to_prefill_gets_prompts_by_its_speed(
    others: dict[str, Any], its: dict[str, Any], order: Order | None
) -> None:
    figures = {"busy": 1.0, "running": 20, "max_running": 64, "output_tokens_s": 400.0, "kv_usage": 0.3, "itl_s": 0.02}
    slow = made.engine("e0", Role.BOTH, slowdown=2.0, room=1.5, token_budget=8192, **{**figures, **its})
    like = made.engine("e1", Role.BOTH, slowdown=1.0, room=2.0, token_budget=8192, **{**figures, **others})
    lately = Lately(first_tokens=30, ttft_late=0.6, ttft_s=2.9, stages=(Stage("prefill", 2.5),))
    node = replace(made.node((slow, like), 0, topology="2b", lately=lately), time=100.0, uptime_s=100.0)
    assert cause([node]).startswith("prefill_straggler")
    assert advised(node).order == order, advised(node).sentence


def test_the_only_engine_of_its_role_is_helped_by_one_of_the_other_that_can_be_spared() -> None:
    node = slow_decode({"slowdown": 1.0, "running": 0, "room": None, "itl_s": None, "busy": 0.1}, running=0, room=None)
    alone = replace(node.engines[0], busy=1.0, slowdown=3.0, waiting=3, token_budget=8192)
    queue = QueueSnapshot(depth=40, capacity=1024, oldest_s=5.0)
    node = replace(node, engines=(alone, *node.engines[1:]), queue=queue)
    assert advised(node).order == Order(kind=OrderKind.ROLE, engine="e1", role=Role.PREFILL)


def test_of_a_slow_link_only_one_end_is_done_without() -> None:
    node = two_and_two(link=4.0, its=0.35)
    resting = [replace(one, state=EngineState.DRAINING) if one.name == "e2" else one for one in node.engines]
    action = advised(replace(node, engines=tuple(resting)))
    assert (action.order, action.sentence) == (None, "See to the link: e2 gets no new work any more.")


def test_what_others_could_do_is_what_they_could_when_they_had_least_room() -> None:
    """Traffic comes and goes: e2 has had little to do, or little in its KV, until a moment ago."""

    def order(**before: Any) -> Order | None:
        long_ago = [replace(slow_decode(**before), time=80.0 + n, uptime_s=80.0 + n) for n in range(10)]
        lately = [replace(slow_decode(), time=90.0 + n, uptime_s=90.0 + n) for n in range(11)]
        finding = judge([*long_ago, *lately], 0.95).finding
        assert finding is not None
        return finding.action.order

    assert order() == Order(kind=OrderKind.WEIGHT, engine="e1", weight=0.11)
    assert order(room=1.05) is None
    assert order(kv_usage=0.78) is None


@pytest.mark.parametrize(
    ("others", "weight", "said_"),
    [
        ({"running": 60, "kv_usage": 0.4}, 0.33, "its KV holds fewer requests than e2 and e3 have."),
        ({"running": 20, "kv_usage": 0.4}, None, "Wait: what comes goes to e2 and e3, and e1 works off what it has."),
        ({"running": 60, "kv_usage": 0.7}, None, "Give decoding more KV"),
    ],
)
def test_where_the_kv_of_one_engine_is_full_others_that_have_room_get_more_of_the_work(
    others: dict[str, Any], weight: float | None, said_: str
) -> None:
    full = made.engine("e1", Role.DECODE, kv_usage=0.99, running=20, waiting=40, slowdown=1.0, max_running=256)
    like = [made.engine(name, Role.DECODE, slowdown=1.0, max_running=256, **others) for name in ("e2", "e3")]
    like = [replace(one, waiting=0, fetching=0) for one in like]
    node = made.node((made.engine("e0", busy=0.3, slowdown=1.0), full, *like), 0, topology="1p3d")
    lately = Lately(first_tokens=30, ttft_late=0.6, ttft_s=2.9, stages=(Stage("decode_wait", 2.5),))
    finding = judge([replace(node, time=100.0, uptime_s=100.0, lately=lately)], 0.95).finding
    assert finding is not None and finding.cause == "decode_kv_full"
    assert (finding.action.order and finding.action.order.weight) == weight, finding.action.sentence
    assert said_ in finding.action.sentence


def test_an_engine_that_rests_is_asked_back_unless_it_comes_by_itself_or_is_ill() -> None:
    hot = gpu(0, "e1", 600.0, "hw thermal slowdown")
    full = made.engine("e2", Role.DECODE, kv_usage=0.99, running=20, waiting=40, slowdown=1.0, max_running=256)
    resting = made.engine("e1", Role.DECODE, EngineState.DRAINING)
    lately = Lately(first_tokens=30, ttft_late=0.6, ttft_s=2.9, stages=(Stage("decode_wait", 2.5),))
    node = made.node((made.engine("e0", busy=0.3, slowdown=1.0), resting, full), 0, topology="1p2d", lately=lately)
    node = replace(node, time=100.0, uptime_s=100.0)
    assert advised(node).order == Order(kind=OrderKind.RESUME, engine="e1")
    back = replace(node, engines=(node.engines[0], replace(resting, restarting=True), full))
    assert advised(back).order is None
    ill = replace(node, engines=(node.engines[0], replace(resting, gpus=("GPU-0",)), full), gpus=(hot,))
    assert advised(ill).order is None


def test_a_layout_that_the_node_has_by_now_is_not_advised_nor_where_only_one_engine_lacks_kv() -> None:
    full = made.engine("e1", Role.DECODE, kv_usage=0.99, running=20, waiting=40, slowdown=1.0, max_running=256)
    lately = Lately(first_tokens=30, ttft_late=0.6, ttft_s=2.9, stages=(Stage("decode_wait", 2.5),))
    prefill = made.engine("e0", busy=0.3, slowdown=1.0)

    def order(topology: str, *decode: Any) -> Order | None:
        node = made.node((prefill, *decode), 0, topology=topology, lately=lately, better=BETTER)
        return advised(replace(node, time=100.0, uptime_s=100.0)).order

    other = replace(full, name="e2")
    assert order("1p2d", full, other) == Order(kind=OrderKind.TOPOLOGY, topology="2b")
    assert order("2b", full, other) is None
    assert order("1p2d", full, replace(other, kv_usage=0.75, waiting=0)) is None


def test_what_takes_no_new_work_is_not_told_to_take_none() -> None:
    node = two_and_two(slowdown=8.0)
    resting = replace(node.engines[0], state=EngineState.DRAINING)
    action = advised(replace(node, engines=(resting, *node.engines[1:])))
    assert (action.order, "e0 gets no new work any more" in action.sentence) == (None, True)


def test_where_others_have_no_room_for_a_slow_engines_work_one_of_the_other_role_helps_if_it_can_be_spared() -> None:
    """e0 prefills so slowly that e1 can't take what it should; e2 and e3 hardly decode anything."""
    node = two_and_two(slowdown=2.0, busy=0.97)
    idle = [replace(one, running=0, kv_usage=0.1, room=None) for one in node.engines[2:]]
    action = advised(replace(node, engines=(*node.engines[:2], *idle)))
    assert action.order == Order(kind=OrderKind.ROLE, engine="e2", role=Role.PREFILL)
    assert action.sentence.endswith(", and let e2 prefill instead of decode: e2 has little to do.")
    assert advised(node).order == Order(kind=OrderKind.WEIGHT, engine="e0", weight=0.5)


def test_only_an_engine_that_can_be_spared_gets_another_role() -> None:
    def action(running: int, room: float) -> Action | None:
        others = [
            made.engine(f"e{n}", made.Role.DECODE, busy=0.9, slowdown=1.0, running=running, max_running=64)
            for n in (1, 2)
        ]
        others = [replace(one, kv_usage=0.1, waiting=0, fetching=0, room=room) for one in others]
        prefill = made.engine("e0", busy=1.0, slowdown=1.0, waiting=3, token_budget=8192)
        queue = QueueSnapshot(depth=40, capacity=1024, oldest_s=5.0)
        finding = judge(
            [replace(made.node((prefill, *others), 0, queue=queue), time=100.0, uptime_s=100.0)], 0.95
        ).finding
        return finding.action if finding is not None else None

    assert (found := action(4, 3.0)) is not None
    assert found.call == 'POST /api/engines/e1/role {"role": "prefill"}'
    assert (busy := action(40, 3.0)) is not None
    assert (busy.order, "Send fewer requests" in busy.sentence) == (None, True)
    assert (late_already := action(4, 1.1)) is not None
    assert late_already.order is None, "the other one could not decode for both in time"


def behind(**of_the_first: Any) -> list[NodeSnapshot]:
    """Two engines that do both, of which the first decodes most and is late with its tokens; neither is near full."""
    engines = []
    for name, running, itl_s, changes in (("e0", 12, 0.08, of_the_first), ("e1", 2, 0.03, {})):
        engine = made.engine(name, Role.BOTH, busy=0.8, slowdown=1.0, running=running, max_running=256, waiting=0)
        figures = {"kv_usage": running / 100, "itl_s": itl_s, "output_tokens_s": running / itl_s, "fetching": 0}
        figures |= {"outstanding_prompt_tokens": 2000 if name == "e0" else 100}
        engines.append(replace(engine, **{**figures, **changes}))
    queue = QueueSnapshot(depth=0, capacity=1024, oldest_s=None)
    return [replace(made.node(tuple(engines), 0, queue=queue), time=at_s, uptime_s=at_s) for at_s in (100.0, 100.5)]


def test_many_short_prompts_before_an_engine_are_no_long_one() -> None:
    assert cause(behind()) != "long_prompt_blocking"
    one = behind(long_prompt_tokens=2000)
    assert cause(one) == "long_prompt_blocking"
    assert "of up to 2,000 tokens" in said(one)


def test_a_very_long_prompt_is_named_while_it_is_computed_and_not_when_those_behind_it_are_done() -> None:
    def computes(long_tokens: int, of_another: float = 0.3, tokens_s: float = 1000.0) -> list[NodeSnapshot]:
        found = []
        for at_s in (90.0, 100.0, 101.0):
            now = at_s >= 100
            first = made.engine("e0", busy=1.0 if now else 0.3, slowdown=1.0, waiting=0, token_budget=8192)
            figures = {"long_prompt_tokens": long_tokens if now else None, "outstanding_prompt_tokens": 4000}
            figures |= {"prompt_tokens_s": tokens_s}
            engines = (replace(first, **figures), made.engine("e2", busy=of_another), *late(at_s).engines[1:])
            found.append(replace(late(at_s, depth=20 if now else 0), engines=engines))
        return found

    assert cause(computes(3600)) == "long_prompt_blocking"
    assert "e0 computed a prompt of 3,600 tokens; it has 4,000 to compute." in said(computes(3600))
    assert cause(computes(1000)) != "long_prompt_blocking", "it is a small part of what there is to do"
    assert cause(computes(3600, tokens_s=20_000.0)) != "long_prompt_blocking", "it is computed in no time"
    assert cause(computes(3600, of_another=1.0)) == "prefill_saturated", "others are as busy without one"
    assert cause(window(slowdown=1.0)) == "prefill_saturated"


def test_an_engine_that_is_out_of_room_is_so_before_it_is_a_little_slow() -> None:
    """More come than it could finish, were it as quick as such engines are."""

    def full(comes_s: float, slowdown: float = 1.4) -> str:
        found = []
        for n in range(13):
            at_s = 100 + n / 2
            waiting = round(comes_s * n / 2)
            figures = {"kv_usage": 0.97, "waiting": waiting, "slowdown": slowdown, "running": 12, "preemptions": n}
            decode = made.engine("e1", Role.DECODE, busy=0.99, max_running=64, host=HostReading(core_delay=0.12))
            engines = (made.engine("e0", busy=0.5), replace(decode, **figures))
            lately = Lately(first_tokens=30, ttft_late=1.0, ttft_s=3.0)
            counts = RequestCounts(total=n * 8, ok=n)  # two per second
            node = made.node(engines, 0, lately=lately, requests=counts)
            found.append(replace(node, time=at_s, uptime_s=at_s))
        return cause(found)

    assert full(10.0) == "decode_kv_full"
    assert full(0.5) == "decode_straggler_cpu", "so many it would finish"
    assert full(10.0, slowdown=5.0) == "decode_straggler_cpu"


def test_routing_that_makes_an_engine_late_is_named_though_it_is_far_from_full() -> None:
    assert cause(behind(weight=8.0)) == "routing_skew"
    assert cause(behind()) == "decode_saturated", "nobody prefers it"
    as_much = {"running": 2, "kv_usage": 0.02, "outstanding_prompt_tokens": 100}
    assert cause(behind(weight=8.0, **as_much)) != "routing_skew", "it has no more than the other"


def pulls(fetching: int, handoffs_s: float, kv_usage: float = 0.3) -> str | None:
    """What is said of an engine that so many wait for, and to which so many come."""
    snapshot = wait(100.0, 20, 0.0, overdue=8)
    taker = made.engine("e1", made.Role.DECODE, fetching=fetching, kv_usage=kv_usage, max_running=64)
    links = (LinkSnapshot(producer="e0", consumer="e1", handoffs_s=handoffs_s),)
    finding = judge([replace(snapshot, engines=(made.engine("e0"), taker), links=links)], 0.95).finding
    return finding and finding.cause


def test_an_engine_to_which_hardly_anything_comes_has_links_that_stand_still() -> None:
    assert pulls(8, 0.2) == "handoff_link_slow"
    assert pulls(8, 0.0) == "handoff_link_slow"
    assert pulls(8, 4.0) is None, "each waits for two seconds"
    assert pulls(2, 0.0) is None
    assert pulls(8, 0.2, kv_usage=0.97) != "handoff_link_slow", "there is no room for it"


def test_an_engine_that_waits_for_room_has_more_work_than_it_has_taken() -> None:
    """Its KV can't be fuller than full, and that of the others comes near."""
    snapshot = late(100.0)
    heavy = made.engine("e1", made.Role.DECODE, running=60, waiting=90, kv_usage=0.98, max_running=256, weight=1.0)
    light = [replace(heavy, name=name, waiting=0, kv_usage=0.7, weight=0.2) for name in ("e2", "e3")]
    finding = judge([replace(snapshot, engines=(made.engine("e0"), heavy, *light))], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("routing_skew", ("e1",))


def favoured(weight: float, slowdown: float, throttled: float = 0.0) -> str:
    """What is said of one of two engines that do both, and that waits for a core while it has eight times the work of the other."""
    host = HostReading(core_delay=0.3, throttled=throttled, cores=1)
    most = made.engine(
        "e0", made.Role.BOTH, busy=1.0, slowdown=slowdown, waiting=4, weight=weight, host=host, max_running=64
    )
    least = made.engine("e1", made.Role.BOTH, busy=0.12, slowdown=1.0, max_running=64)
    return cause([replace(late(100.0), engines=(most, least))])


def test_an_engine_that_routing_favours_by_more_than_it_is_slow_is_not_slow() -> None:
    """Where it has one core with all that answers its clients, more work is what takes that from it."""
    assert favoured(8.0, 1.4) == "routing_skew"
    assert favoured(2.0, 1.4) == "routing_skew", "twice as much as the other is enough"
    assert favoured(1.0, 1.4) == "prefill_straggler_cpu"
    assert favoured(8.0, 12.0) == "prefill_straggler_cpu", "which is more than it has to do"
    assert favoured(8.0, 1.4, throttled=0.5) == "prefill_straggler_cpu", "which equal weights would not mend"


def hits(now: float, asked: float, slowdown: float = 1.0, gpus: Sequence[GpuSnapshot] = ()) -> str:
    """A prefix cache that has found four fifths of what it was asked, and what is said now."""
    window = []
    for second in range(30):
        over = second >= 25
        share, rate = (now, asked) if over else (0.8, 1000.0)
        prefill = made.engine("e0", busy=1.0, slowdown=slowdown, waiting=3, token_budget=8192, prefix_hit_rate=share,
                              prompt_tokens_s=rate * (1 - share))  # fmt: skip
        queue = QueueSnapshot(depth=40, capacity=1024, oldest_s=5.0 if over else None)
        counts = made.RequestCounts(total=10 * second, ok=10 * second)
        window.append(
            replace(made.node((prefill,), 0, queue=queue, requests=counts), uptime_s=100.0 + second, gpus=tuple(gpus))
        )
    return cause(window)


def test_a_cache_that_finds_as_much_as_before_has_lost_nothing() -> None:
    assert hits(0.4, 1000.0) == "cache_miss_storm"
    assert hits(0.4, 2000.0) == "prefill_saturated", "others ask, too, whose prompts nobody has seen yet"


def test_an_engine_whose_cache_misses_may_only_seem_slow() -> None:
    """It makes steps that nobody has seen."""
    assert hits(0.4, 1000.0, slowdown=1.6) == "cache_miss_storm"
    assert hits(0.7, 1000.0, slowdown=1.6).startswith("prefill_straggler")
    hot = gpu(0, "e0", 990.0, "hw_thermal_slowdown")
    assert hits(0.4, 1000.0, slowdown=1.6, gpus=[hot]) == "prefill_straggler_gpu", "which its GPU explains"


def test_an_engine_that_rests_is_asked_back_where_it_is_missed() -> None:
    rests = made.engine("e2", state=EngineState.DRAINING, busy=0.0, waiting=0)
    snapshot = late(100.0)
    finding = judge([replace(snapshot, engines=(*snapshot.engines, rests))], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("prefill_saturated", ("e0",)), "and e0 is no skew of it"
    assert finding.action.call == "POST /api/engines/e2/resume"


@pytest.mark.parametrize(
    ("lately", "engine"),
    [
        (Lately(first_tokens=40, ttft_late=0.5, stages=(Stage("prefill_wait", 2.0), Stage("decode_wait", 0.1))), "e0"),
        (Lately(first_tokens=40, ttft_late=0.5, stages=(Stage("prefill_wait", 0.1), Stage("handoff_wait", 2.0))), "e1"),
        (Lately(first_tokens=40, ttft_late=0.0, ended=40, good=0.5, brief=40, brief_missed=0.5), "e1"),
        (Lately(first_tokens=40, ttft_late=0.5, ended=40, good=0.5, brief=40, brief_missed=0.5), "e0"),
    ],
)
def test_what_splitting_costs_is_told_of_the_engines_that_make_answers_late(lately: Lately, engine: str) -> None:
    engines = (made.engine("e0", busy=0.5, waiting=0), made.engine("e1", Role.DECODE, busy=0.5, running=3))
    snapshot = replace(made.node(engines, 0, lately=lately), better=BETTER)
    assert (finding := judge([snapshot], 0.95).finding) is not None
    assert (finding.cause, finding.engines) == ("disaggregation_not_worth_it", (engine,))


@pytest.mark.parametrize(("fewer", "advised_to"), [(("decode",), None), (("prefill",), "1p3d"), ((), "1p3d")])
def test_no_layout_takes_engines_from_where_kv_is_full(fewer: tuple[str, ...], advised_to: str | None) -> None:
    decode = made.engine(
        "e1",
        Role.DECODE,
        busy=0.9,
        slowdown=1.0,
        running=30,
        max_running=64,
        kv_usage=0.98,
        waiting=9,
    )
    prefill = made.engine("e0", busy=0.5, slowdown=1.0, max_running=64, token_budget=8192)
    queue = QueueSnapshot(depth=40, capacity=1024, oldest_s=5.0)
    better = replace(BETTER, layout="1p3d", aggregated=False, fewer=fewer)
    node = made.node((prefill, decode, replace(decode, name="e2")), 0, queue=queue, better=better)
    finding = judge([replace(node, time=100.0, uptime_s=100.0)], 0.95).finding
    assert finding is not None
    assert finding.cause == "decode_kv_full"
    assert (finding.action.order and finding.action.order.topology) == advised_to


def test_a_layout_that_is_predicted_to_be_better_is_what_to_do() -> None:
    better = BETTER
    finding = judge([replace(late(100.0, busy=0.5), better=better)], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.action.call) == (
        "disaggregation_not_worth_it",
        'POST /api/topology {"topology": "2b"}',
    )
    full = judge([replace(late(100.0), better=better)], 0.95).finding
    assert full is not None
    assert full.cause == "prefill_saturated", (
        "where an engine has too much to do, that is the cause, and the layout is what to do"
    )
    assert full.action.call == 'POST /api/topology {"topology": "2b"}'
    split = replace(better, layout="2p1d", aggregated=False)
    finding = judge([replace(late(100.0), better=split)], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.action.call) == ("prefill_saturated", 'POST /api/topology {"topology": "2p1d"}')
    slow = judge([replace(late(100.0, slowdown=2.0), better=better)], 0.95).finding
    assert slow is not None
    assert slow.cause.startswith("prefill_straggler"), "what is broken comes first"
