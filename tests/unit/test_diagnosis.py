"""What holds a node back: of simulated nodes that something is done to, and of snapshots made by hand."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cli.diagnose import Look, text
from appliance.diagnosis.judge import judge
from appliance.diagnosis.verdicts import Diagnoser
from appliance.records import (
    Action,
    Better,
    EngineSnapshot,
    EngineState,
    GpuProcess,
    GpuSnapshot,
    HostReading,
    Lately,
    LinkSnapshot,
    NodeSnapshot,
    QueueSnapshot,
    RequestCounts,
    Role,
    Stage,
    SupervisorSnapshot,
    Throttled,
    Verdict,
)
from bench.diagnosis.cases import cases, healthy
from bench.diagnosis.play import play
from bench.diagnosis.score import score, wilson
from web import causes, contexts

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

replace = msgspec.structs.replace


@pytest.mark.parametrize("kind", ["crash", "cpu"])
def test_what_is_done_to_a_simulated_node_is_named(kind: str) -> None:
    case = next(case for case in cases(range(3)) if case.node == "llama 3p1d@tp2" and case.name == kind)
    found = score(play(case), play(case, injected=False))
    assert found.impactful
    assert (found.engine_right, found.cause_right) == (True, True)
    assert found.from_impact_s is not None
    assert found.from_impact_s < 10


def test_nothing_is_said_of_a_node_that_nothing_is_done_to() -> None:
    case = next(case for case in healthy(range(1)) if case.node == "llama 3p1d@tp2")
    assert {said.state for said in play(case, duration_s=60).said} == {"ok"}


def test_the_same_seed_makes_the_same_cases() -> None:
    assert cases(range(2)) == cases(range(2))
    assert cases(range(1)) != cases(range(1, 2))


def late(at_s: float, depth: int = 40, slowdown: float = 1.0, busy: float = 1.0) -> NodeSnapshot:
    """Two engines that are busy all of the time, and a queue that is too long."""
    prefill = made.engine("e0", busy=busy, slowdown=slowdown, waiting=3, max_running=64, token_budget=8192)
    decode = made.engine("e1", made.Role.DECODE, busy=0.9, slowdown=1.0, running=30, max_running=64)
    queue = QueueSnapshot(depth=depth, capacity=1024, oldest_s=5.0 if depth else None)
    return replace(made.node((prefill, decode), 0, queue=queue), time=at_s, uptime_s=at_s)


def test_what_was_seen_once_is_no_verdict_and_what_is_over_is_gone() -> None:
    diagnose = Diagnoser(0.95)
    assert diagnose(late(100.0)).state == "ok"
    assert diagnose(late(100.5)).state == "ok"
    said = diagnose(late(101.5))
    assert (said.state, said.cause, said.engine) == ("bottleneck", "prefill_saturated", "e0")
    assert diagnose(late(102.0, depth=0, busy=0.4)).state == "bottleneck"
    assert diagnose(late(103.5, depth=0, busy=0.4)).state == "bottleneck"
    assert diagnose(late(104.5, depth=0, busy=0.4)).state == "ok"


def test_what_is_still_there_is_said_for_longer_though_nobody_is_hurt_for_a_moment() -> None:
    diagnose = Diagnoser(0.95)
    for n in range(4):
        diagnose(late(100 + n / 2))
    assert diagnose(late(102.0, depth=0)).state == "bottleneck"
    assert diagnose(late(106.0, depth=0)).state == "bottleneck", "its engine is as busy as before"
    assert diagnose(late(108.5, depth=0)).state == "ok"


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


def test_an_engine_that_starts_is_named_where_the_others_can_not_do_without_it() -> None:
    snapshot = late(100.0)
    starts = made.engine("e2", state=EngineState.STARTING, stage="loading weights", progress=0.25, in_state_s=10.0)
    judgement = judge([replace(snapshot, engines=(*snapshot.engines, starts))], 0.95)
    assert (finding := judgement.finding) is not None
    assert (finding.cause, finding.engines, finding.stage) == ("engine_starting", ("e2",), "prefill")
    assert finding.sentence.startswith("e2 is still starting, and the others do not suffice without it. e0 prefills")
    assert [one.sentence for one in finding.evidence] == [
        "e2 has been starting for 10 s (loading weights), 25% of its start."
    ]
    assert finding.action.sentence == "Wait: by its progress, e2 is ready in about 30 s."
    assert judgement.next is not None
    assert judgement.next.cause == "prefill_saturated"


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"role": made.Role.DECODE}, "prefill_saturated"),  # it would not help
        ({"restarts": 1, "cause": "ended by SIGSEGV"}, "engine_crashed"),
        ({"restarts": 1, "cause": None, "progress": None}, "engine_starting"),  # somebody has told it to
    ],
)
def test_an_engine_that_starts_is_not_to_blame_for_what_it_would_not_mend(changed: dict[str, Any], cause: str) -> None:
    snapshot = late(100.0)
    starts = replace(made.engine("e2", state=EngineState.STARTING, progress=0.25), **changed)
    finding = judge([replace(snapshot, engines=(*snapshot.engines, starts))], 0.95).finding
    assert finding is not None
    assert finding.cause == cause


def test_nobody_is_ready_yet_and_requests_wait() -> None:
    starts = made.engine("e0", state=EngineState.STARTING, progress=0.0)
    queue = QueueSnapshot(depth=4, capacity=1024, oldest_s=5.0)
    finding = judge([made.node((starts,), 0, queue=queue)], 0.95).finding
    assert finding is not None
    assert (
        finding.sentence
        == "e0 is still starting, and the others do not suffice without it. 4 requests wait that nobody else can take."
    )
    assert finding.action.sentence == "Wait until e0 is ready; its log says how far it is."


def test_a_slow_engine_is_named_before_saturation_and_the_gpu_that_slows_it_is_evidence() -> None:
    hot = made.large(0).gpus[2]
    window = [replace(late(100 + n / 2, slowdown=1.5), gpus=(replace(hot, engine="e0"),)) for n in range(5)]
    finding = judge(window, 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("prefill_straggler_gpu", ("e0",))
    assert any("990 of 1,980 MHz" in one.sentence for one in finding.evidence)
    assert (finding.action.order, "no other engine can take" in finding.action.sentence) == (None, True)


def test_the_evidence_says_by_when_it_was_known_what_steps_take() -> None:
    snapshots = [late(at_s, slowdown=1.5) for at_s in (100.0, 101.5)]
    since = time.mktime((2026, 11, 2, 12, 0, 0, 0, 0, -1))
    dated = [
        replace(one, engines=tuple(replace(engine, usual_since=since) for engine in one.engines)) for one in snapshots
    ]
    sentences = [[one.sentence for one in judge(window, 0.95).finding.evidence] for window in (snapshots, dated)]
    assert sentences[0][0] == "Steps of e0 take 1.50 times as long as such steps do."
    assert sentences[1][0] == "Steps of e0 take 1.50 times as long as such steps do, as was learnt by 2026-11-02."


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


def window(
    slowdown: float = 1.2, host: HostReading | None = None, gpus: Sequence[GpuSnapshot] = ()
) -> list[NodeSnapshot]:
    """The late node, whose prefill engine is slow, with these readings."""
    found = []
    for n in range(5):
        snapshot = late(100 + n / 2, slowdown=slowdown)
        engines = (replace(snapshot.engines[0], host=host), *snapshot.engines[1:])
        found.append(replace(snapshot, engines=engines, gpus=tuple(gpus)))
    return found


def cause(snapshots: list[NodeSnapshot]) -> str:
    finding = judge(snapshots, 0.95).finding
    assert finding is not None
    return finding.cause


def said(snapshots: list[NodeSnapshot]) -> str:
    finding = judge(snapshots, 0.95).finding
    assert finding is not None
    return " ".join([finding.sentence, finding.action.sentence, *(one.sentence for one in finding.evidence)])


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
    assert "e0 computed a prompt of 3,600 tokens, of 4,000 that it is to compute." in said(computes(3600))
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


def test_an_engine_that_is_gone_takes_the_place_of_what_was_said_at_once() -> None:
    """Others must be seen for longer, as times go up and down."""

    def said_after_s(then: NodeSnapshot) -> float:
        diagnose = Diagnoser(0.95)
        for n in range(5):
            before = diagnose(late(100 + n / 2))
        assert before.cause == "prefill_saturated"
        for n in range(20):
            at_s = 102.5 + n / 2
            if diagnose(replace(then, time=at_s, uptime_s=at_s)).cause != "prefill_saturated":
                return at_s - 102.5
        raise AssertionError

    gone = late(0.0)
    hung = replace(gone.engines[0], state=EngineState.SUSPECT, last_step_age_s=2.0)
    assert said_after_s(replace(gone, engines=(hung, *gone.engines[1:]))) == 1.0
    ended = replace(gone.engines[0], state=EngineState.BACKOFF, cause="killed (SIGKILL)")
    assert said_after_s(replace(gone, engines=(ended, *gone.engines[1:]))) == 0.0, "it is certain"
    assert said_after_s(late(0.0, slowdown=1.6)) == 2.5


def test_an_engine_that_is_out_of_quota_is_starved_though_its_threads_wait_little() -> None:
    throttled = window(host=HostReading(core_delay=0.02, throttled=0.2))
    assert cause(throttled) == "prefill_straggler_cpu"
    assert "e0's control group had used up its CPU quota 20% of the time." in said(throttled)
    assert "CPUQuota=" in said(throttled)
    assert cause(window(host=HostReading(core_delay=0.02, throttled=0.03))) == "prefill_saturated"
    assert cause(window(slowdown=1.02, host=HostReading(throttled=0.2))) == "prefill_saturated", "it hurts nobody"


def test_waiting_for_a_core_is_told_with_what_goes_with_it() -> None:
    starved = said(window(host=HostReading(core_delay=0.4, throttled=0.0, pressure=0.6, cores=1)))
    assert "its main loop waits for a core 40% of the time" in starved
    assert "Something around e0 could run and had no core 60% of the time." in starved
    assert "e0's main loop may run on one core only." in starved
    assert "cores of their own" in starved
    assert "one core only" not in said(window(slowdown=1.5, host=HostReading(core_delay=0.0, cores=1)))


def gpu(index: int, engine: str, clock_mhz: float, *reasons: str, **readings: Any) -> GpuSnapshot:
    uuid = f"GPU-{index}"
    return GpuSnapshot(
        index=index, uuid=uuid, name="H100", engine=engine, clock_mhz=clock_mhz, clock_max_mhz=1980.0,
        clock_reasons=reasons, **readings,
    )  # fmt: skip


def test_a_power_limit_is_no_trouble_unless_a_gpu_is_worse_off_than_its_like() -> None:
    """GPUs at full work are held by it as a matter of course."""
    alike = [gpu(n, "e0", 1500.0, "sw_power_cap") for n in range(3)]
    assert cause(window(gpus=alike)) == "prefill_saturated"
    assert cause(window(gpus=[gpu(0, "e0", 1200.0, "sw_power_cap"), *alike[1:]])) == "prefill_straggler_gpu"
    idle = [gpu(0, "e0", 1500.0, "sw_power_cap"), gpu(1, "e0", 1980.0, "gpu_idle")]
    assert cause(window(gpus=idle)) == "prefill_saturated", "who does nothing has no power limit"
    decoding = [gpu(0, "e0", 1500.0, "sw_power_cap"), gpu(1, "e1", 1980.0), gpu(2, "e1", 1980.0)]
    assert cause(window(gpus=decoding)) == "prefill_saturated", "who decodes needs less power"


def test_clocks_that_were_down_between_two_looks_are_evidence() -> None:
    held = window()
    for n, one in enumerate(held):
        times = (
            Throttled(reason="hw_thermal_slowdown", total_s=50 + 0.2 * n),
            Throttled(reason="sw_power_cap", total_s=n),
        )
        held[n] = replace(one, gpus=(gpu(0, "e0", 1980.0, throttled=times),))
    assert cause(held) == "prefill_straggler_gpu"
    assert "GPU 0 was held down 40% of the time (hw thermal slowdown)." in said(held)
    clock = replace(held[1].gpus[0], clock_mhz=600.0)
    held[1] = replace(held[1], gpus=(clock,))
    assert "(hw thermal slowdown), at 600 of 1,980 MHz when seen lowest." in said(held), "it recovered since"
    still = [replace(one, gpus=held[0].gpus) for one in held]
    assert cause(still) == "prefill_saturated", "that was before"


def test_a_neighbour_that_works_is_evidence_and_one_that_is_only_there_is_not() -> None:
    def beside(busy: float | None) -> list[NodeSnapshot]:
        others = (GpuProcess(pid=4711, name="python3", memory_bytes=1 << 30, busy=busy),)
        return window(gpus=[gpu(0, "e0", 1980.0, others=others)])

    assert "GPU 0 also works for python3 (pid 4711), 30% of the time" in said(beside(0.3))
    assert cause(beside(0.3)) == "prefill_straggler_gpu"
    assert {cause(beside(busy)) for busy in (None, 0.01)} == {"prefill_saturated"}


def test_engines_that_share_a_gpu_share_its_trouble() -> None:
    shared = window(gpus=[gpu(0, "e9", 900.0, "hw_thermal_slowdown")])
    assert cause(shared) == "prefill_saturated", "of another engine"
    engines = [replace(one.engines[0], gpus=("GPU-0",)) for one in shared]
    both = [replace(one, engines=(engine, *one.engines[1:])) for one, engine in zip(shared, engines, strict=True)]
    assert cause(both) == "prefill_straggler_gpu"


def held_up(
    delay_s: float, slowdown: float = 1.0, ttft_s: float = 0.5, engine: int = 0, **changes: Any
) -> list[NodeSnapshot]:
    """The API process of an engine has little to do, and is so late with it."""
    lately = Lately(first_tokens=30, ttft_late=0.5, ttft_s=ttft_s, stages=(Stage("prefill_compute", ttft_s),))

    def of(snapshot: NodeSnapshot) -> NodeSnapshot:
        host = HostReading(api_busy=0.1)
        engines = list(snapshot.engines)
        engines[engine] = replace(engines[engine], api_delay_s=delay_s, host=host, slowdown=slowdown, pid=77, **changes)
        return replace(snapshot, lately=lately, engines=tuple(engines))

    return [of(one) for one in window()]


def test_an_api_process_that_is_not_let_run_is_named_though_it_is_not_busy() -> None:
    assert cause(held_up(0.2)) == "frontend_bound"
    assert "What goes to e0 and comes from it waits 200 ms in its API process, which runs only 10% of the time" in said(
        held_up(0.2)
    )
    assert "pid 77" in said(held_up(0.2))


def test_so_is_one_that_is_late_with_what_is_sent_to_its_engine() -> None:
    late = {"engine": -1, "intake_s": 0.2}
    assert cause(held_up(0.01, **late)) == "frontend_bound"
    assert "sent to it take 200 ms until the engine has them" in said(held_up(0.01, **late))
    for room in ({"waiting": 3}, {"fetching": 2}, {"kv_usage": 0.97}, {"role": Role.BOTH}):
        assert cause(held_up(0.01, **late | room)) != "frontend_bound", "they may wait for something else"


def test_a_small_delay_and_a_slow_engines_own_are_nothing_of_the_api_process() -> None:
    assert cause(held_up(0.04)) != "frontend_bound"
    assert cause(held_up(0.2, ttft_s=2.0)) != "frontend_bound"
    assert "straggler" in cause(held_up(0.2, slowdown=2.0))
    assert cause(held_up(0.01, engine=-1, intake_s=0.2, step_ms=90.0)) != "frontend_bound", (
        "they wait for the step under way"
    )


def test_an_api_process_that_is_busy_is_not_stopped() -> None:
    """One that has no core, as its engine has none, is late as well."""
    starved = HostReading(core_delay=0.2, api_busy=0.9, api_starved=0.8, cores=1)
    assert cause(hosted(starved, api_delay_s=0.2, slowdown=1.2)) == "prefill_straggler_cpu"


def hosted(host: HostReading, **changes: Any) -> list[NodeSnapshot]:
    """What e0's processes get of the CPUs."""
    return [replace(one, engines=(replace(one.engines[0], host=host, **changes), *one.engines[1:])) for one in window()]


def test_an_engine_whose_api_process_has_no_core_either_is_starved_and_not_bound_by_it() -> None:
    nobody = HostReading(core_delay=0.7, api_busy=0.9, api_starved=0.8, cores=1)
    busy = HostReading(core_delay=0.7, api_busy=0.9, api_starved=0.1, cores=4)
    assert cause(hosted(nobody, api_delay_s=0.2, slowdown=3.0)) == "prefill_straggler_cpu"
    assert cause(hosted(busy, api_delay_s=0.2, slowdown=3.0)) == "frontend_bound"


def test_an_api_process_on_the_one_core_of_its_engine_is_nobody_elses_neighbour() -> None:
    own = HostReading(core_delay=0.2, api_busy=0.25, api_starved=0.05, cores=1)
    assert cause(hosted(own, slowdown=1.25)) == "prefill_saturated"
    assert cause(hosted(replace(own, core_delay=0.5), slowdown=1.25)) == "prefill_straggler_cpu"
    assert cause(hosted(replace(own, cores=4), slowdown=1.25)) == "prefill_straggler_cpu"
    assert cause(hosted(replace(own, cores=4), slowdown=1.12)) == "prefill_saturated", "cores that are shared do that"


def test_a_decode_engine_that_first_tokens_wait_for_matters_though_those_after_them_are_in_time() -> None:
    def slow(after_s: float) -> list[NodeSnapshot]:
        stages = (Stage("prefill_compute", 0.3), Stage("decode_wait", after_s / 2), Stage("first_step", after_s / 2))
        lately = Lately(first_tokens=30, ttft_late=0.5, ttft_s=0.3 + after_s, stages=stages)
        engine = replace(
            made.engine("e1", made.Role.DECODE, busy=0.9, slowdown=2.0, running=3, max_running=64), itl_s=0.01
        )
        idle = made.engine("e0", busy=0.4, slowdown=1.0, waiting=0, max_running=64, token_budget=8192)
        queue = QueueSnapshot(depth=0, capacity=1024)
        return [
            replace(made.node((idle, engine), 0, queue=queue), time=at_s, uptime_s=at_s, lately=lately)
            for at_s in (100.0, 100.5, 101.0, 101.5)
        ]

    assert cause(slow(0.3)) == "decode_straggler_cpu"
    assert judge(slow(0.02), 0.95).finding is None


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (EngineState.SUSPECT, None, "engine_hung"),
        (EngineState.SUSPECT, "its EngineCore has ended, or has closed the engine channel", "engine_crashed"),
        (
            EngineState.SUSPECT,
            "its EngineCore gave no sign of life for 3.0 s (stopped)",
            "engine_hung",
        ),  # an earlier life
        (EngineState.HUNG, "its EngineCore gave no sign of life for 3.0 s (stopped)", "engine_hung"),
        (EngineState.BACKOFF, "its EngineCore gave no sign of life for 3.0 s (stopped)", "engine_hung"),
        (EngineState.BACKOFF, "killed (SIGKILL)", "engine_crashed"),
    ],
)
def test_what_has_ended_is_told_from_what_hangs(state: EngineState, reason: str | None, expected: str) -> None:
    gone = [
        replace(one, engines=(replace(one.engines[0], state=state, cause=reason), *one.engines[1:])) for one in window()
    ]
    assert cause(gone) == expected


def test_a_slow_engine_is_not_what_holds_back_more_than_it_could_do_at_its_best() -> None:
    """It computes 1,000 tokens/s and could do twice as many."""

    def asked(tokens_s: float) -> list[NodeSnapshot]:
        lately = Lately(first_tokens=30, ttft_late=0.5, ttft_s=1.0, prompt_tokens=100.0)
        slow = {"slowdown": 2.0, "prompt_tokens_s": 1000.0, "host": HostReading(core_delay=0.5)}
        return [
            replace(
                one,
                lately=lately,
                engines=(replace(one.engines[0], **slow), *one.engines[1:]),
                requests=RequestCounts(total=round(tokens_s / 100 * one.uptime_s)),
            )
            for one in window()
        ]

    assert cause(asked(1600)) == "prefill_straggler_cpu"
    assert cause(asked(3000)) == "prefill_saturated"


def supervised(cpu_share: float | None, loop_delay_ms: float | None) -> list[NodeSnapshot]:
    own = SupervisorSnapshot(cpu_share=cpu_share, loop_delay_ms=loop_delay_ms)
    return [replace(one, supervisor=own) for one in window()]


def test_a_supervisor_that_is_itself_the_bottleneck_is_named_and_no_engine_is() -> None:
    finding = judge(supervised(0.97, 40.0), 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.stage, finding.engines, finding.link) == ("frontend_bound", "frontend", (), None)
    assert (
        "The supervisor itself is late: its event loop runs 40 ms behind, for it needs 97% of a core."
        in finding.sentence
    )
    diagnose = Diagnoser(0.95)
    verdicts = [diagnose(replace(one, time=100.0 + n)) for n, one in enumerate(supervised(0.97, 40.0))]
    verdict = verdicts[-1]
    assert (verdict.cause, verdict.engine, verdict.engines) == ("frontend_bound", None, ())
    assert causes.words(verdict) == "busy supervisor"
    assert text(Look(verdict, b"", None)).startswith("BOTTLENECK the node: frontend_bound")


def test_a_supervisor_that_gets_no_core_is_told_apart_from_one_that_fills_it() -> None:
    assert "and does not get it" in said(supervised(0.3, 250.0))
    assert "a core of its own" in said(supervised(0.3, 250.0))
    for share, delay_ms in ((0.97, 2.0), (0.3, 30.0), (None, None)):
        assert cause(supervised(share, delay_ms)) != "frontend_bound"


def test_a_clock_that_is_set_back_makes_no_failures() -> None:
    diagnose = Diagnoser(0.95)
    diagnose(late(1000.0, depth=0))
    failed = replace(late(100.0, depth=0), requests=made.RequestCounts(total=9, failed=9))
    assert [diagnose(replace(failed, uptime_s=100 + n / 2)).state for n in range(12)] == ["ok"] * 12


def test_an_engine_that_is_gone_is_told_of_though_nobody_is_hurt() -> None:
    gone = made.engine("e1", state=EngineState.BACKOFF, cause="ended by SIGSEGV")
    finding = judge([made.node((made.engine("e0"), gone), 0)], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("engine_crashed", ("e1",))


def test_whoever_is_hurt_for_no_known_reason_is_told_that_nothing_tells() -> None:
    idle = replace(made.node((made.engine("e0"),), 0), queue=QueueSnapshot(depth=3, oldest_s=9.0))
    diagnose = Diagnoser(0.95)
    said = [diagnose(replace(idle, uptime_s=100 + n / 2)) for n in range(20)]
    assert said[2].state == "ok"
    assert (said[-1].state, said[-1].cause, said[-1].engine) == ("unknown", None, None)


FIGURE = st.none() | st.floats(0, 1e6)
ENGINES = st.lists(
    st.builds(
        EngineSnapshot,
        name=st.sampled_from(["e0", "e1", "e2"]),
        role=st.sampled_from(list(made.Role)),
        state=st.sampled_from(list(EngineState)),
        epoch=st.just(1),
        kv_usage=FIGURE,
        running=st.none() | st.integers(0, 1000),
        waiting=st.none() | st.integers(0, 1000),
        max_running=st.none() | st.integers(0, 512),
        busy=FIGURE,
        slowdown=FIGURE,
        itl_s=FIGURE,
        itl_late=FIGURE,
        output_tokens_s=FIGURE,
        prefix_hit_rate=FIGURE,
    ),
    max_size=3,
    unique_by=lambda engine: engine.name,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ENGINES, st.integers(0, 100), FIGURE), min_size=1, max_size=6))
def test_whatever_a_node_reads_there_is_a_verdict(window: list[tuple[list[EngineSnapshot], int, float | None]]) -> None:
    diagnose = Diagnoser(0.95)
    for number, (engines, depth, oldest_s) in enumerate(window):
        queue = QueueSnapshot(depth=depth, oldest_s=oldest_s)
        verdict = diagnose(replace(made.node(tuple(engines), 0, queue=queue), time=100.0 + 2 * number))
        assert verdict.state in ("ok", "bottleneck", "unknown")
        assert verdict.engine is None or verdict.engine in verdict.engines


def test_the_page_says_what_holds_it_back_and_marks_the_engine() -> None:
    parts = made.sections(made.bottleneck(0))
    assert "Bottleneck: slow GPU on e1" in parts["headline"]
    assert parts["flow"].count("held-mark") == 1
    assert "Bottleneck: slow GPU on e1." in parts["announcement"]
    assert made.sections(made.busy(0))["diagnosis"] == ""


def test_a_link_is_named_by_its_ends_and_the_unknown_as_such() -> None:
    link = Verdict(state="bottleneck", summary="Slow.", since=0, link=("e0", "e1"), cause="handoff_link_slow")
    assert causes.words(link) == "slow link from e0 to e1"
    crashed = replace(link, link=None, engine="e1", cause="engine_crashed")
    assert causes.words(crashed) == "e1 has ended"
    unknown = Verdict(state="unknown", summary="Nothing tells.", since=0)
    assert contexts.headline(replace(made.busy(0), verdict=unknown)).sentence.startswith("Something holds it back")


def test_the_terminal_says_the_same() -> None:
    said = text(Look(made.bottleneck(0).verdict, b"", None))
    assert said.startswith("BOTTLENECK e1: prefill_straggler_gpu (since ")
    assert ", 95% sure)" in said
    assert "What to do: Give e1 less of the work" in said


def test_an_interval_holds_its_share() -> None:
    low, high = wilson(86, 95)
    assert 0.82 < low < 86 / 95 < high < 0.96


def wait(at_s: float, first_tokens: int, share: float, slowdown: float | None = None, **more: object) -> NodeSnapshot:
    """A node of which so many first tokens have come lately, a share of them late."""
    lately = Lately(first_tokens=first_tokens, ttft_late=share, ttft_s=1.0)
    engines = (made.engine("e0", busy=1.0, waiting=2, slowdown=slowdown), made.engine("e1", made.Role.DECODE))
    queue = QueueSnapshot(depth=2, capacity=1024, oldest_s=0.5)
    return replace(made.node(engines, 0, queue=queue, lately=lately), time=at_s, uptime_s=at_s, **more)


def test_one_late_answer_of_few_tells_nothing_and_many_do() -> None:
    assert judge([wait(100.0, 1, 1.0)], 0.95).hurt is None
    assert judge([wait(97.0, 20, 0.05), wait(100.0, 20, 0.1)], 0.95).hurt is None, "chance would have it so"
    assert judge([wait(100.0, 40, 0.25)], 0.95).hurt is not None
    few = [wait(100.0 + 3 * n, 2, 1.0) for n in range(4)]
    assert judge(few, 0.95).hurt is not None, "all of eight within some seconds"


def test_fewer_tell_where_an_engine_is_plainly_slow_but_some_there_must_be() -> None:
    few, none = wait(100.0, 10, 0.3), wait(100.0, 20, 0.05)
    assert judge([few], 0.95).hurt is None
    slow = wait(100.0, 0, 0.0, slowdown=2.5).engines
    for_long = [*(wait(97.0 + n, 0, 0.0, slowdown=2.5) for n in range(3)), replace(few, engines=slow)]
    assert (found := judge(for_long, 0.95).finding) is not None
    assert (found.cause, found.engines) == ("prefill_straggler_cpu", ("e0",))
    assert judge(for_long[2:], 0.95).hurt is None, "one slow moment is none of an engine's doing"
    assert judge([*for_long[:3], replace(none, engines=slow)], 0.95).hurt is None, "nobody minds"


def test_those_who_wait_too_long_already_are_hurt_before_anything_comes() -> None:
    assert judge([wait(100.0, 20, 0.0, overdue=0)], 0.95).hurt is None
    assert judge([wait(100.0, 20, 0.0, overdue=2)], 0.95).hurt is None, "two tell nothing"
    assert judge([wait(100.0, 20, 0.0, overdue=10)], 0.95).hurt == "33% of the first tokens come later than 2 s"
    assert judge([wait(100.0, 0, 0.0, overdue=6)], 0.95).hurt is not None, "nothing comes at all"
    assert judge([wait(100.0, 20, 0.5, overdue=100)], 0.95).hurt is not None


def mixed(at_s: float, brief: int, missed: float, itl_s: float = 0.02) -> NodeSnapshot:
    """One engine that does both, and answers that ended."""
    good = 1 - missed if brief else None
    lately = Lately(first_tokens=20, ttft_late=0.0, ended=brief, good=good, brief=brief, brief_missed=missed)
    engine = made.engine("e0", made.Role.BOTH, itl_s=itl_s, output_tokens_s=500.0, running=9, busy=0.6)
    return replace(made.node((engine,), 0, lately=lately), time=at_s, uptime_s=at_s)


def test_answers_that_miss_their_targets_hurt_though_engines_are_in_time_on_average() -> None:
    assert judge([mixed(100.0, 40, 0.05)], 0.95).hurt is None
    assert judge([mixed(100.0, 40, 0.3)], 0.95).hurt == "30% of the answers miss their targets"
    assert judge([mixed(100.0, 60, 0.13)], 0.95).hurt is None, "chance would have it so"
    several = [mixed(91.0 + 3 * n, 60, 0.13) for n in range(4)]
    assert judge(several, 0.95).hurt == "13% of the answers miss their targets"


def test_answers_may_miss_the_pace_of_a_slow_engine_that_is_in_time_on_average() -> None:
    """Each has its own."""

    def scattered(itl_s: float, ttft_late: float = 0.0) -> list[NodeSnapshot]:
        lately = Lately(first_tokens=40, ttft_late=ttft_late, ended=40, brief=40, brief_missed=0.4)
        slow = {"slowdown": 2.0, "itl_s": itl_s, "output_tokens_s": 500.0, "running": 9, "busy": 0.9}
        engines = (made.engine("e0", busy=0.5), made.engine("e1", made.Role.DECODE, **slow))
        return [replace(made.node(engines, 0, lately=lately), time=100.0, uptime_s=100.0)]

    assert cause(scattered(0.044)) == "decode_straggler_cpu"
    assert judge(scattered(0.02), 0.95).finding is None, "it is far from the target"
    assert judge(scattered(0.044, ttft_late=0.4), 0.95).finding is None, "they miss the first token"


def test_a_burst_of_seconds_in_which_nothing_is_wrong_is_not_told_of() -> None:
    """Of a few requests some are late, but over ten seconds no more than may be. Much to do is no fault; a slow engine is one."""

    def burst(ttft_late: float, slowdown: float) -> str | None:
        def told(n: int) -> NodeSnapshot:
            lately = Lately(first_tokens=40, ttft_late=ttft_late if n == 20 else 0.0, ended=40, good=1.0)
            return replace(late(100 + n / 2, depth=0, slowdown=slowdown), lately=lately, overdue=0)

        finding = judge([told(n) for n in range(21)], 0.95).finding
        return finding and finding.cause

    assert burst(0.2, 1.0) is None, "a twentieth of those of ten seconds"
    assert burst(0.5, 1.0) == "prefill_saturated"
    assert burst(0.2, 1.6) == "prefill_straggler_cpu"


def test_a_burst_that_is_over_is_not_told_of() -> None:
    """Few requests come, so that those of half a minute are looked at; the latest were in time again."""

    def told(late_until: int) -> str | None:
        def one(n: int) -> NodeSnapshot:
            lately = Lately(first_tokens=4, ttft_late=1.0 if n <= late_until else 0.0)
            return replace(late(100 + n / 2, depth=0), lately=lately, overdue=0)

        return judge([one(n) for n in range(21)], 0.95).hurt

    assert (told(20) or "").startswith("100% of the first tokens come later than")
    assert told(14) is None


def test_an_outage_in_which_thousands_fail_is_still_judged() -> None:
    """A tail of so many would be beyond what floats can say."""
    assert judge([mixed(100.0, 3000, 0.9)], 0.95).hurt == "90% of the answers miss their targets"
    assert judge([wait(100.0, 0, 0.0, overdue=2000)], 0.95).hurt is not None


def test_a_pace_that_was_slow_and_is_not_any_more_hurts_nobody() -> None:
    slow = [mixed(90.0 + n, 0, 0.0, itl_s=0.12) for n in range(5)]
    assert judge(slow, 0.95).hurt is not None
    over = [mixed(95.0 + n, 0, 0.0, itl_s=0.02) for n in range(8)]
    assert judge(slow + over, 0.95).hurt is None


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


def test_an_engine_without_a_core_is_slow_though_nobody_has_seen_such_steps() -> None:
    """What waits for it makes batches larger than any before."""

    def said(core_delay: float) -> str:
        starved = made.engine(
            "e0", busy=1.0, slowdown=None, waiting=3, host=HostReading(core_delay=core_delay, throttled=0.0)
        )
        return cause([replace(late(100.0), engines=(starved, late(100.0).engines[1]))])

    assert said(0.8) == "prefill_straggler_cpu"
    assert said(0.1) == "prefill_saturated"


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


def test_a_gpu_that_is_held_down_is_named_though_nobody_knows_what_steps_should_take() -> None:
    hot = gpu(0, "e0", 990.0, "hw_thermal_slowdown")
    unknown = [
        replace(one, engines=(replace(one.engines[0], slowdown=None), one.engines[1])) for one in window(gpus=[hot])
    ]
    assert cause(unknown) == "prefill_straggler_gpu"
    assert "e0, which prefills, is slow, by what its GPU says: GPU 0 runs at 990 of 1,980 MHz" in said(unknown)
    assert "1.00 times" not in said(unknown)
    assert cause([replace(one, gpus=()) for one in unknown]) == "prefill_saturated"


def test_answers_are_on_both_sides_of_a_target_that_engines_are_at() -> None:
    def paced(itl_s: float) -> str | None:
        decode = made.engine("e1", made.Role.DECODE, itl_s=itl_s, output_tokens_s=500.0, running=9)
        return judge([made.node((made.engine("e0"), decode), 0)], 0.95).hurt

    assert paced(0.0485) is None
    assert paced(0.0495) == "100% of the tokens come 49.5 ms after each other, where 50 ms is the target"


def test_what_clients_ask_wrongly_is_no_failure_of_the_node() -> None:
    before = wait(95.0, 20, 0.0, requests=made.RequestCounts(total=100, ok=100))
    wrong = wait(100.0, 20, 0.0, requests=made.RequestCounts(total=120, ok=110, failed=10, refused=10))
    assert judge([before, wrong], 0.95).hurt is None
    broken = wait(100.0, 20, 0.0, requests=made.RequestCounts(total=120, ok=110, failed=10))
    assert judge([before, broken], 0.95).hurt == "50% of the requests fail"


def test_an_engine_that_rests_is_asked_back_where_it_is_missed() -> None:
    rests = made.engine("e2", state=EngineState.DRAINING, busy=0.0, waiting=0)
    snapshot = late(100.0)
    finding = judge([replace(snapshot, engines=(*snapshot.engines, rests))], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("prefill_saturated", ("e0",)), "and e0 is no skew of it"
    assert finding.action.call == "POST /api/engines/e2/resume"


def test_a_slow_engine_that_is_in_time_is_not_what_others_wait_for() -> None:
    snapshot = late(100.0)
    slow = replace(snapshot.engines[1], slowdown=1.6, itl_s=0.001, kv_usage=0.2, waiting=0, fetching=0)
    finding = judge([replace(snapshot, engines=(snapshot.engines[0], slow))], 0.95).finding
    assert finding is not None
    assert finding.cause == "prefill_saturated"


def test_all_engines_that_are_hot_at_once_are_no_excuse_for_each_other() -> None:
    hot = made.large(0).gpus[2]
    engines = [made.engine(f"e{n}", busy=1.0, slowdown=1.5, waiting=3) for n in (0, 2)]
    gpus = tuple(replace(hot, uuid=f"GPU-{one.name}", engine=one.name) for one in engines)
    snapshot = late(100.0)
    finding = judge([replace(snapshot, engines=(*engines, snapshot.engines[1]), gpus=gpus)], 0.95).finding
    assert finding is not None
    assert (finding.cause, set(finding.engines)) == ("prefill_straggler_gpu", {"e0", "e2"})


def test_a_trouble_that_comes_and_goes_is_said_all_the_same() -> None:
    diagnose = Diagnoser(0.95)
    said = [diagnose(late(100 + n / 2, depth=0 if n % 3 == 2 else 40)).state for n in range(24)]
    assert "bottleneck" in said
    assert "ok" not in said[said.index("bottleneck") :]


def test_an_engine_told_to_start_again_has_not_crashed() -> None:
    again = made.engine("e1", state=EngineState.STARTING, restarts=1, cause=None)
    assert judge([made.node((made.engine("e0"), again), 0)], 0.95).finding is None
    crashed = replace(again, cause="ended by SIGSEGV")
    assert (found := judge([made.node((made.engine("e0"), crashed), 0)], 0.95).finding) is not None
    assert found.cause == "engine_crashed"


BETTER = Better(layout="2b", load_falls=0.3, good_rises=0.4, rate_grows=0.5, aggregated=True)


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


def test_what_is_predicted_of_a_layout_waits_for_a_cause_that_can_be_seen() -> None:
    diagnose = Diagnoser(0.95)
    idle = replace(late(100.0, busy=0.5), better=BETTER)
    states = [diagnose(replace(idle, time=100 + n / 2, uptime_s=100 + n / 2)).state for n in range(9)]
    assert states == ["ok"] * 8 + ["bottleneck"]


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
