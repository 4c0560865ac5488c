"""Which engine is slow, gone, starting or bound, and by what."""

from __future__ import annotations

import time
from typing import Any

import pytest
from diagnosed import cause, gpu, late, made, replace, said, window

from appliance.cli.diagnose import Look, text
from appliance.diagnosis.judge import judge
from appliance.diagnosis.verdicts import Diagnoser
from appliance.records import (
    EngineState,
    GpuProcess,
    HostReading,
    Lately,
    NodeSnapshot,
    QueueSnapshot,
    RequestCounts,
    Role,
    Stage,
    SupervisorSnapshot,
    Throttled,
)
from web import causes


def test_an_engine_that_starts_is_named_where_the_others_can_not_do_without_it() -> None:
    snapshot = late(100.0)
    starts = made.engine("e2", state=EngineState.STARTING, stage="loading weights", progress=0.25, in_state_s=10.0)
    judgement = judge([replace(snapshot, engines=(*snapshot.engines, starts))], 0.95)
    assert (finding := judgement.finding) is not None
    assert (finding.cause, finding.engines, finding.stage) == ("engine_starting", ("e2",), "prefill")
    assert finding.sentence.startswith("e2 is still starting, and the others do not suffice without it. e0 prefills")
    assert [one.sentence for one in finding.evidence] == [
        "e2 has been starting for 10 s (loading weights); 25% of its start is done."
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


def asked(tokens_s: float, **of_the_engine: Any) -> str:
    """The cause, where so many prompt tokens are asked for of one engine that prefills, which computes 1,000 tokens/s."""
    lately = Lately(first_tokens=30, ttft_late=0.5, ttft_s=1.0, prompt_tokens=100.0)
    slow = {"prompt_tokens_s": 1000.0, "host": HostReading(core_delay=0.5), **of_the_engine}
    return cause(
        [
            replace(
                one,
                lately=lately,
                engines=(replace(one.engines[0], **slow), *one.engines[1:]),
                requests=RequestCounts(total=round(tokens_s / 100 * one.uptime_s)),
            )
            for one in window()
        ]
    )


def test_a_slow_engine_is_not_what_holds_back_more_than_it_could_do_at_its_best() -> None:
    """It could compute twice as many."""
    assert asked(1600, slowdown=2.0) == "prefill_straggler_cpu"
    assert asked(3000, slowdown=2.0) == "prefill_saturated"


@pytest.mark.parametrize("slowdown", [None, 1.1])
def test_an_engine_on_cores_is_at_least_as_slow_as_it_is_kept_from_them(slowdown: float | None) -> None:
    """A queue makes steps larger than any that were seen, so that what they should take is not known, or hardly."""
    assert asked(1600, slowdown=slowdown) == "prefill_straggler_cpu"
    assert asked(3000, slowdown=slowdown) == "prefill_saturated"
    on_a_gpu = "prefill_straggler_cpu" if slowdown is None else "prefill_saturated"
    assert asked(1600, slowdown=slowdown, gpus=("GPU-0",)) == on_a_gpu, "there steps go on meanwhile"


def test_how_slow_an_engine_is_is_said_by_its_cores_where_its_steps_do_not_tell() -> None:
    cores = "is slow, by what its cores say: its main loop waits for a core 50% of the time"
    assert cores in said(window(slowdown=1.1, host=HostReading(core_delay=0.5)))
    assert cores not in said(window(slowdown=2.5, host=HostReading(core_delay=0.5)))


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


def test_an_engine_that_is_gone_is_told_of_though_nobody_is_hurt() -> None:
    gone = made.engine("e1", state=EngineState.BACKOFF, cause="ended by SIGSEGV")
    finding = judge([made.node((made.engine("e0"), gone), 0)], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("engine_crashed", ("e1",))


def test_an_engine_without_a_core_is_slow_though_nobody_has_seen_such_steps() -> None:
    """What waits for it makes batches larger than any before."""

    def said(core_delay: float) -> str:
        starved = made.engine(
            "e0", busy=1.0, slowdown=None, waiting=3, host=HostReading(core_delay=core_delay, throttled=0.0)
        )
        return cause([replace(late(100.0), engines=(starved, late(100.0).engines[1]))])

    assert said(0.8) == "prefill_straggler_cpu"
    assert said(0.1) == "prefill_saturated"


def test_a_gpu_that_is_held_down_is_named_though_nobody_knows_what_steps_should_take() -> None:
    hot = gpu(0, "e0", 990.0, "hw_thermal_slowdown")
    unknown = [
        replace(one, engines=(replace(one.engines[0], slowdown=None), one.engines[1])) for one in window(gpus=[hot])
    ]
    assert cause(unknown) == "prefill_straggler_gpu"
    assert "e0, which prefills, is slow, by what its GPU says: GPU 0 runs at 990 of 1,980 MHz" in said(unknown)
    assert "1.00 times" not in said(unknown)
    assert cause([replace(one, gpus=()) for one in unknown]) == "prefill_saturated"


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


def test_an_engine_told_to_start_again_has_not_crashed() -> None:
    again = made.engine("e1", state=EngineState.STARTING, restarts=1, cause=None)
    assert judge([made.node((made.engine("e0"), again), 0)], 0.95).finding is None
    crashed = replace(again, cause="ended by SIGSEGV")
    assert (found := judge([made.node((made.engine("e0"), crashed), 0)], 0.95).finding) is not None
    assert found.cause == "engine_crashed"
