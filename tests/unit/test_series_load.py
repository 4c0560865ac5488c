"""How busy and how slow an engine was lately."""

from __future__ import annotations

import random

import msgspec
import pytest

from appliance.channel import CoreReady, Heartbeat, Step, StepBegan
from appliance.costs.fitted import StepModel
from appliance.telemetry.series import Series

MS = 1_000_000
S = 1000 * MS
READY = CoreReady(
    kv_blocks=1, block_tokens=16, max_model_len=1, max_batched_tokens=1, max_running=1, sockets=(), lease_table=""
)


def step(start_ns: int, end_ns: int, prompt: int = 0, decode: int = 8, context: int = 8000) -> Step:
    return Step(
        start_ns=start_ns, end_ns=end_ns, prompt_tokens=prompt, decode_tokens=decode, context_tokens=context, running=decode,
        waiting=0, fetching=0, kv_free=9, leased=0, preemptions=0, prefix_queries=0, prefix_hits=0,
    )  # fmt: skip


def given(start_ns: int, end_ns: int, sequences: int, computed: int, decoded: int) -> Step:
    """By speculative decoding: of what was computed, some was guessed rightly."""
    return msgspec.structs.replace(step(start_ns, end_ns, decode=computed), sequences=sequences, decoded=decoded)


def made(count: int, each_ns: int, series: Series | None = None, begin_ns: int = 0) -> tuple[Series, int]:
    """Steps one after the other; the series, and when the last one has ended. Batches vary a little, or nothing could be learnt."""
    series, now_ns = series or Series(1), begin_ns
    for number in range(count):
        extra = number % 3
        series.add(step(now_ns, now_ns + each_ns + extra * MS // 10, decode=8 + extra), now_ns + each_ns)
        now_ns += each_ns + extra * MS // 10
    return series, now_ns


def test_steps_one_after_the_other_are_busy_all_of_the_time_also_while_one_is_under_way() -> None:
    series, now_ns = made(400, 10 * MS)
    assert series.load(now_ns, 0.05).busy == pytest.approx(1.0)
    assert series.load(now_ns + 9 * MS, 0.05).busy == pytest.approx(1.0)
    assert series.load(now_ns + S, 0.05).busy == pytest.approx(0.5, abs=0.02)
    assert series.load(now_ns + 3 * S, 0.05).busy == 0.0


def test_a_slow_engine_is_slow_for_as_long_as_it_is_and_that_is_not_learnt() -> None:
    series, now_ns = made(3000, 10 * MS)
    assert series.slowdown() == pytest.approx(1.0, abs=0.02)
    for _ in range(3):
        series, now_ns = made(2000, 13 * MS, series, now_ns)
        assert series.slowdown() == pytest.approx(1.3, abs=0.03)
    series, now_ns = made(300, 10 * MS, series, now_ns)
    assert series.slowdown() == pytest.approx(1.0, abs=0.02)


def test_an_engine_that_makes_no_steps_is_not_slow() -> None:
    series, now_ns = made(3000, 10 * MS)
    series, now_ns = made(300, 16 * MS, series, now_ns)
    assert (series.load(now_ns, 0.05).slowdown or 0) > 1.5
    assert series.load(now_ns + 60 * S, 0.05).slowdown is None


def test_an_engine_that_is_so_slow_that_it_makes_few_steps_is_known_to_be() -> None:
    series, now_ns = made(3000, 10 * MS)
    series, now_ns = made(12, 200 * MS, series, now_ns + 3 * S)
    assert (series.load(now_ns, 0.05).slowdown or 0) == pytest.approx(20, rel=0.1)


def prefilling(series: Series, now_ns: int, steps: int = 400, before: int = 0) -> int:
    """Steps of 256 to 1,024 prompt tokens: 5 ms, and 0.1 for each. ``before``: tokens of every second prompt that are there already."""
    for number in range(steps):
        tokens = 256 << number % 3
        context = tokens + number % 2 * before
        series.add(StepBegan(at_ns=now_ns, prompt_tokens=tokens, context_tokens=context), now_ns)
        end_ns = now_ns + 5 * MS + tokens * MS // 10
        series.add(step(now_ns, end_ns, prompt=tokens, decode=0, context=context), end_ns)
        now_ns = end_ns
    return now_ns


def test_a_long_step_that_should_have_been_over_for_long_tells_before_it_is() -> None:
    series = Series(1)
    now_ns = prefilling(series, 0) + 3 * S
    series.add(StepBegan(at_ns=now_ns, prompt_tokens=2048, context_tokens=2048), now_ns)  # 0.2 s
    assert series.load(now_ns + S // 2, 0.05).slowdown is None, "it may have stumbled"
    load = series.load(now_ns + 2 * S, 0.05)
    assert load.busy == 1.0
    assert 5 < (load.slowdown or 0) < 12, "no step of that size has been seen"
    end_ns = now_ns + 3 * S
    series.add(step(now_ns, end_ns, prompt=2048, decode=0, context=2048), end_ns)
    assert series.load(end_ns + S, 0.05).busy == pytest.approx(0.5)


def test_one_that_was_scheduled_while_the_last_was_under_way_begins_when_that_is_over() -> None:
    series = Series(1)
    now_ns = prefilling(series, 0)
    series.add(StepBegan(at_ns=now_ns + 10 * MS, prompt_tokens=1024, context_tokens=1024), now_ns + 10 * MS)
    last = step(now_ns, now_ns + 4 * S, prompt=512, decode=0, context=512)
    series.add(last, last.end_ns)
    assert series._under_way_ns() == last.end_ns
    assert series.slowdown(last.end_ns + S // 2) == series.slowdown()
    series.add(step(last.end_ns, last.end_ns + S, prompt=1024, decode=0, context=1024), last.end_ns + S)
    assert series._under_way_ns() is None


def test_an_engine_that_says_that_it_has_nothing_to_do_is_in_no_step() -> None:
    """What it would have said of the last one may have been dropped."""
    series = Series(1)
    now_ns = prefilling(series, 0)
    series.add(StepBegan(at_ns=now_ns, prompt_tokens=1024, context_tokens=1024), now_ns)
    idle = Heartbeat(at_ns=now_ns + 5 * S, running=0, waiting=0, fetching=0, kv_free=9, leased=0)
    series.add(idle, idle.at_ns)
    load = series.load(idle.at_ns + S, 0.05)
    assert (load.busy, load.slowdown) == (0.0, None)


def test_one_step_that_stumbles_on_an_engine_that_does_little_is_no_slowness() -> None:
    series, now_ns = made(3000, 10 * MS)
    series, now_ns = made(5, 10 * MS, series, now_ns + 3 * S)
    series, now_ns = made(1, 1500 * MS, series, now_ns)
    assert series.load(now_ns, 0.05).slowdown is None


def mixed(series: Series, now_ns: int, times: float, steps: int) -> int:
    """Prompts while some decode, which nobody has seen together yet."""
    for number in range(steps):
        end_ns = now_ns + int(times * (46 + number % 3) * MS)
        series.add(step(now_ns, end_ns, prompt=400, decode=8, context=8000), end_ns)
        now_ns = end_ns
    return now_ns


@pytest.mark.parametrize(("times", "slow"), [(1.0, False), (5.0, True)])
def test_batches_unlike_those_seen_tell_only_of_an_engine_that_is_slower_than_any_error_explains(
    times: float, slow: bool
) -> None:
    model = StepModel()
    series = Series(1, model)
    now_ns = prefilling(series, 0, before=2000)
    series, now_ns = made(2000, 5 * MS, series, now_ns)
    now_ns = mixed(series, now_ns + 3 * S, times, 12)
    learnt = model.learnt
    slowdown = series.load(now_ns, 0.05).slowdown
    assert (slowdown is not None and 2 < slowdown < 5.5) if slow else slowdown is None or slowdown < 1.1
    mixed(series, now_ns, times, 5)
    assert (model.learnt == learnt) is slow, "a fault is not learnt as what is usual"


def test_what_goes_on_for_minutes_is_learnt_after_all() -> None:
    """Then it is the estimate that is wrong."""
    model = StepModel()
    series = Series(1, model)
    now_ns = prefilling(series, 0, before=2000)
    series, now_ns = made(2000, 5 * MS, series, now_ns)
    now_ns, learnt = mixed(series, now_ns + 3 * S, 5.0, 200), model.learnt
    now_ns = mixed(series, now_ns, 5.0, 200)
    assert model.learnt == learnt
    mixed(series, now_ns, 5.0, 200)
    assert model.learnt > learnt


def test_the_step_under_way_is_not_judged_by_the_one_that_is_scheduled_meanwhile() -> None:
    series = Series(1)
    now_ns = prefilling(series, 0) + 3 * S
    for at_ns, tokens in ((now_ns, 16384), (now_ns + 10 * MS, 256)):  # 1.6 s, and 0.03
        series.add(StepBegan(at_ns=at_ns, prompt_tokens=tokens, context_tokens=tokens), at_ns)
    assert series.load(now_ns + 3 * S // 2, 0.05).slowdown is None
    assert (series.load(now_ns + 6 * S, 0.05).slowdown or 0) > 2


def test_a_long_prompt_beside_many_that_decode_is_no_slow_engine() -> None:
    """What a chunk attends to is its own prompt, not what all others have."""

    def took_ns(prompt: int, before: int, context: int) -> int:
        return 8 * MS + int(prompt * 20_000 + prompt * (before + prompt / 2) * 0.08 + context * 40)

    series, now_ns, chance = Series(1), 0, random.Random(5)
    told = []
    for _ in range(40):
        for before in range(0, 65_536, 8192):  # of one long prompt; between its chunks, short ones
            chunks = [(chance.randrange(64, 2000), 0) for _ in range(20)] + [(2048, before)]
            for prompt, there in chunks:
                decodes = chance.randrange(40, 80)
                context = decodes * chance.randrange(1400, 1800) + prompt + there
                end_ns = now_ns + int(took_ns(prompt, there, context) * chance.gauss(1, 0.02))
                attended = prompt * (2 * there + prompt + 1) // 2
                one = msgspec.structs.replace(
                    step(now_ns, end_ns, prompt=prompt, decode=decodes, context=context), attended=attended
                )
                series.add(one, end_ns)
                now_ns = end_ns
                told.append(series.slowdown() or 1.0)
    assert max(told[2000:]) < 1.3


def test_tokens_are_late_whose_step_came_later_than_the_target() -> None:
    series, now_ns = made(90, 10 * MS)
    series, now_ns = made(10, 90 * MS, series, now_ns)
    load = series.load(now_ns, 0.05)
    assert load.itl_late == pytest.approx(0.1, abs=0.01)
    assert load.itl_s == pytest.approx(0.018, abs=0.001)


def test_what_more_an_engine_could_decode_in_time_is_foretold_by_what_steps_of_other_sizes_take() -> None:
    model = StepModel()
    for number in range(400):  # 10 ms, and a tenth of a millisecond for each sequence
        sequences = 1 + number % 200
        model.learn(0, sequences, sequences * 100, 0.010 + 0.0001 * sequences)
    series = Series(1, model)
    for number in range(100):
        begin_ns = number * 20 * MS
        series.add(step(begin_ns, begin_ns + 20 * MS, decode=100, context=10_000), begin_ns + 20 * MS)
    room = series.load(100 * 20 * MS, 0.030).room
    assert room is not None
    # Twice the batch takes 30 ms a step: that many at once, each for half as long again.
    assert room == pytest.approx(2 / 1.5, rel=0.1)
    assert series.load(100 * 20 * MS, 0.015).room == pytest.approx(0.5 / 0.75, rel=0.15)
    assert series.load(100 * 20 * MS, 0.005).room == 0.0, "not even a single one"


@pytest.mark.parametrize(("free", "times"), [(70, 2.0), (60, 1.5), (40, 1.0), (5, 1.0)])
def test_no_more_than_kv_holds_can_be_decoded_in_time(free: int, times: float) -> None:
    """Of 100 blocks. A batch k times as large takes k times the KV, and longer steps, so that the rate grows by less."""
    model = StepModel()
    for number in range(400):
        sequences = 1 + number % 200
        model.learn(0, sequences, sequences * 100, 0.010 + 0.0001 * sequences)
    series = Series(1, model)
    series.core = msgspec.structs.replace(READY, kv_blocks=100)
    for number in range(100):
        begin_ns = number * 20 * MS
        one = step(begin_ns, begin_ns + 20 * MS, decode=100, context=10_000)
        series.add(msgspec.structs.replace(one, kv_free=free), begin_ns + 20 * MS)
    room = series.load(100 * 20 * MS, 0.030).room
    assert room == pytest.approx(2 * times / (1 + times), rel=0.1)


def test_a_step_that_gives_several_tokens_to_each_makes_none_of_them_wait_for_all_of_it() -> None:
    series = Series(1)
    for number in range(20):  # 4 sequences, 60 ms a step, three tokens for each
        series.add(given(number * 60 * MS, (number + 1) * 60 * MS, 4, computed=16, decoded=12), (number + 1) * 60 * MS)
    load, rates = series.load(20 * 60 * MS, 0.050), series.rates(20 * 60 * MS)
    assert load.itl_s == pytest.approx(0.020)
    assert load.itl_late == 0.0
    assert rates.output_tokens_s == pytest.approx(20 * 12 / 5)
    assert load.step_decode_tokens == 16, "what is computed is what a step's time hangs on"
    assert series.load(20 * 60 * MS, 0.015).itl_late == 1.0


def test_what_a_preempted_sequence_computes_again_is_given_to_nobody() -> None:
    series = Series(1)
    again = msgspec.structs.replace(step(0, 30 * MS, decode=200), sequences=1)
    series.add(again, 30 * MS)
    assert series.rates(30 * MS).output_tokens_s == pytest.approx(1 / 5)


def test_rates_are_of_the_last_seconds_however_many_steps_there_were_before() -> None:
    series, now_ns = made(700, 10 * MS)
    series, now_ns = made(50, 20 * MS, series, now_ns)
    rates = series.rates(now_ns + 4 * S)
    assert rates.steps_s == pytest.approx(50 / 5)
    assert rates.output_tokens_s == pytest.approx(sum(8 + number % 3 for number in range(50)) / 5)
    assert rates.step_ms == pytest.approx(20.1, abs=0.01)
    assert series.rates(now_ns + 60 * S).steps_s == 0.0
