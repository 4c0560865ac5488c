"""Steps: what must hold of any of them."""

from __future__ import annotations

import random
import timeit
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance.costs.gpus import A100, B200, H100, H200
from appliance.costs.huggingface import read
from appliance.costs.roofline import IDLE, Batch, Bound, Efficiency, Roofline, _pairs, _window_pairs
from appliance.costs.shape import ModelShape

CONFIGS = Path(__file__).parent / "configs"
MODELS = (
    "llama-3.1-8b",
    "llama-3.3-70b-fp8",
    "gpt-oss-120b",
    "deepseek-v3",
    "qwen3-30b-a3b-nvfp4",
    "gemma-3-27b",
    "opt-13b",
)
SHAPES = {name: read(CONFIGS / name) for name in MODELS}
ROOFLINES = [Roofline(SHAPES[name], on, tp) for name in MODELS for on in (A100, H100, H200, B200) for tp in (1, 4)]

rooflines = some.sampled_from(ROOFLINES)
tokens = some.integers(1, 20_000)
befores = some.integers(0, 100_000)
sequences = some.integers(1, 1024)
lengths = some.integers(1, 100_000)


@some.composite
def batches(draw: some.DrawFn) -> Batch:
    chunks = draw(some.lists(some.tuples(tokens, befores), max_size=4))
    count = draw(some.integers(0 if chunks else 1, 1024))
    return Batch(chunks, count, count * draw(lengths))


@given(rooflines, batches())
def test_parts_add_up_and_none_is_negative(roofline: Roofline, batch: Batch) -> None:
    cost = roofline.step(batch)
    parts = (cost.linear_s, cost.mixing_s, cost.elementwise_s, cost.allreduce_s, cost.overhead_s)
    assert min(*parts, cost.weights_s, cost.matrix_s, cost.kv_s, cost.attention_s) >= 0
    assert cost.total_s == pytest.approx(sum(parts))
    assert isinstance(cost.bound, Bound)


@given(rooflines, batches())
def test_what_overlaps_takes_at_least_the_longer_and_at_most_both(roofline: Roofline, batch: Batch) -> None:
    cost, exact = roofline.step(batch), 1 - 1e-9
    assert cost.linear_s >= exact * max(cost.weights_s, cost.matrix_s)
    assert cost.mixing_s >= exact * max(cost.kv_s, cost.attention_s)
    assert exact * cost.linear_s <= cost.weights_s + cost.matrix_s
    assert exact * cost.mixing_s <= cost.kv_s + cost.attention_s


@given(rooflines, batches(), tokens, befores)
def test_more_work_takes_longer(roofline: Roofline, batch: Batch, new: int, before: int) -> None:
    base = roofline.step(batch).total_s
    assert roofline.step(Batch([*batch.chunks, (new, before)], batch.sequences, batch.decode_context)).total_s > base
    assert roofline.step(Batch(batch.chunks, batch.sequences + 1, batch.decode_context)).total_s > base
    assert roofline.step(Batch(batch.chunks, batch.sequences, batch.decode_context + 1000)).total_s >= base


@given(rooflines, tokens, befores)
def test_a_chunk_grows_with_its_tokens_and_with_what_was_before(roofline: Roofline, new: int, before: int) -> None:
    base = roofline.step(Batch([(new, before)])).total_s
    assert roofline.step(Batch([(new + 1, before)])).total_s > base
    assert roofline.step(Batch([(new, before + 1000)])).total_s >= base


@given(rooflines, tokens, tokens, befores)
def test_a_prompt_in_two_steps_takes_longer_than_in_one(
    roofline: Roofline, first: int, second: int, before: int
) -> None:
    whole = roofline.step(Batch([(first + second, before)])).total_s
    halves = [roofline.step(Batch([(first, before)])), roofline.step(Batch([(second, before + first)]))]
    assert whole < sum(half.total_s for half in halves)


@given(some.sampled_from(MODELS), batches())
def test_work_on_a_rank_falls_with_ranks_and_talk_rises(model: str, batch: Batch) -> None:
    one, four = (Roofline(SHAPES[model], H100, tp).step(batch) for tp in (1, 4))
    for part in ("weights_s", "matrix_s", "kv_s", "attention_s", "linear_s", "mixing_s", "elementwise_s"):
        assert getattr(four, part) <= getattr(one, part) * (1 + 1e-9)
    assert four.allreduce_s > one.allreduce_s == 0


@given(batches())
def test_a_better_gpu_is_no_slower(batch: Batch) -> None:
    times = [Roofline(SHAPES["llama-3.1-8b"], on).step(batch).total_s for on in (A100, H100, H200, B200)]
    assert times == sorted(times, reverse=True)


def test_no_work_costs_nothing() -> None:
    assert ROOFLINES[0].step(Batch()) is IDLE


@pytest.mark.parametrize(
    ("batch", "bound"),
    [
        (Batch((), 1, 1000), Bound.WEIGHTS),
        (Batch([(8192, 0)]), Bound.MATRIX),
        (Batch((), 64, 64 * 30_000), Bound.KV),
        (Batch([(2048, 200_000)]), Bound.ATTENTION),
    ],
)
def test_what_binds(batch: Batch, bound: Bound) -> None:
    assert Roofline(SHAPES["llama-3.1-8b"], H100).step(batch).bound is bound


def test_overhead_binds_a_small_model_on_many_gpus() -> None:
    assert Roofline(read(CONFIGS / "gpt-oss-120b"), B200, 8).step(Batch((), 1, 100)).bound is Bound.OVERHEAD


def test_the_knee_is_three_times_the_rooflines() -> None:
    """DIAGNOSIS: measured knees are about three times n*. That is what ``overlap`` says: 0.9 of the best rate is reached at 3.2 n*."""
    roofline = Roofline(SHAPES["llama-3.1-8b"], H100)
    small, large = (roofline.step(Batch([(n, 0)])) for n in (1000, 2000))
    star = large.weights_s / ((large.matrix_s - small.matrix_s) / 1000)
    knee = 3.2 * star
    assert knee / roofline.step(Batch([(knee, 0)])).linear_s == pytest.approx(
        0.9 * 1000 / (large.matrix_s - small.matrix_s), rel=0.02
    )


def test_experts_touched_are_those_that_random_routing_touches() -> None:
    roofline, rng = Roofline(SHAPES["gpt-oss-120b"], H100), random.Random(1)
    for count in (1, 8, 64):
        drawn = [len({e for _ in range(count) for e in rng.sample(range(128), 4)}) for _ in range(300)]
        assert roofline.experts_touched(count) == pytest.approx(sum(drawn) / 300, rel=0.03)
    assert roofline.experts_touched(1) == pytest.approx(4)
    assert roofline.experts_touched(1e6) == pytest.approx(128)
    assert Roofline(SHAPES["opt-13b"], H100).experts_touched(9) == 0


def test_few_tokens_read_few_experts() -> None:
    roofline = Roofline(SHAPES["gpt-oss-120b"], H100, 8)
    assert roofline.step(Batch((), 1, 1)).weights_s < 0.1 * roofline.step(Batch((), 4096, 4096)).weights_s


@given(some.integers(1, 60), some.integers(0, 60), some.integers(1, 60))
def test_pairs_are_those_that_a_mask_has(new: int, before: int, window: int) -> None:
    seen = [before + query for query in range(1, new + 1)]
    assert _pairs(new, before) == sum(seen)
    assert _window_pairs(new, before, window) == sum(min(one, window) for one in seen)


@given(batches())
def test_windows_save_attention(batch: Batch) -> None:
    shape = SHAPES["gpt-oss-120b"]
    wide = Roofline(_full(shape), H100).step(batch)
    assert Roofline(shape, H100).step(batch).mixing_s <= wide.mixing_s * (1 + 1e-9)


def _full(shape: ModelShape) -> ModelShape:
    fields = {name: getattr(shape, name) for name in shape.__struct_fields__}
    return ModelShape(**{**fields, "sliding_layers": 0, "window": 0})


def test_perfect_kernels_meet_the_roofline_itself() -> None:
    """Weights over bandwidth, to the letter, for one token of a dense model."""
    perfect = Efficiency(memory=1.0, matrix=1.0, attention=1.0, overlap=50.0, layer_s=0.0, step_s=0.0)
    shape = SHAPES["opt-13b"]
    cost = Roofline(shape, A100, efficiency=perfect).step(Batch((), 1, 0))
    assert cost.linear_s == pytest.approx(shape.weight_bytes() / A100.memory_bytes_s, rel=1e-3)


def test_a_step_takes_microseconds() -> None:
    """1 to 5 µs on the machine that it was written on; ten times as much is allowed for a busy one."""
    roofline, batch = Roofline(SHAPES["gpt-oss-120b"], H100, 4), Batch([(512, 0)] * 4, 64, 96_000)
    assert min(timeit.repeat(lambda: roofline.step(batch), number=1000, repeat=5)) / 1000 < 50e-6
