"""What follows from steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.costs import closed
from appliance.costs.formats import Format
from appliance.costs.gpus import A100, B200, H100, H200, Gpu
from appliance.costs.huggingface import read
from appliance.costs.roofline import Roofline

CONFIGS = Path(__file__).parent / "configs"
LLAMA = read(CONFIGS / "llama-3.1-8b")


@pytest.mark.parametrize(
    ("on", "stored", "expected"),
    [
        (A100, Format.BF16, 153),
        (H100, Format.BF16, 295),
        (H200, Format.BF16, 206),
        (H100, Format.FP8, 295),  # half the bytes, twice the rate
        (H100, Format.MXFP4, 78),  # widened: a quarter of the bytes, the same rate
        (B200, Format.NVFP4, 316),
    ],
)
def test_the_batch_that_saturates(on: Gpu, stored: Format, expected: int) -> None:
    assert closed.saturating_tokens(on, stored) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("model", "times"), [("llama-3.1-8b", 1), ("gpt-oss-120b", 32), ("deepseek-v3", 32), ("qwen3-30b-a3b", 16)]
)
def test_experts_are_saturated_by_as_many_more_as_there_are(model: str, times: int) -> None:
    shape = read(CONFIGS / model)
    assert closed.saturating_tokens(H100, shape=shape) == pytest.approx(times * closed.saturating_tokens(H100))


def test_a_hand_off_takes_its_bytes_over_the_link() -> None:
    total = closed.handoff_bytes(read(CONFIGS / "opt-66b"), 512, 4)
    assert total == 512 * 64 * 2 * 9216 * 2  # tokens, layers, keys and values, hidden, bytes
    seconds = closed.handoff_s(total, closed.nvlink(A100, tp=4))
    assert seconds == pytest.approx(50e-6 + total / (4 * 300e9 * 0.87))
    assert closed.handoff_s(total, closed.pcie(A100, tp=4)) > 9 * seconds
    assert closed.handoff_s(0, closed.nvlink(A100)) == 50e-6


def test_a_latent_kv_is_sent_by_every_rank() -> None:
    shape = read(CONFIGS / "deepseek-v3")
    assert closed.handoff_bytes(shape, 1000, 8) == 8 * closed.handoff_bytes(shape, 1000)


def test_prefill_is_faster_in_larger_chunks_until_attention_grows() -> None:
    roofline = Roofline(LLAMA, H100)
    rates = [closed.prefill_tokens_s(roofline, tokens) for tokens in (64, 256, 1024, 4096, 65_536)]
    assert rates[:4] == sorted(rates[:4])
    assert rates[4] < rates[3]
    assert closed.prefill_tokens_s(roofline, 1024, before=50_000) < rates[2]


def test_decoding_is_faster_with_more_sequences_and_slower_with_longer_ones() -> None:
    roofline = Roofline(LLAMA, H100)
    rates = [closed.decode_tokens_s(roofline, count, 1000) for count in (1, 8, 64, 512)]
    assert rates == sorted(rates)
    assert closed.decode_tokens_s(roofline, 64, 8000) < rates[2]


def test_prompts_cost_a_decoding_engine_steps() -> None:
    roofline = Roofline(LLAMA, H100)
    alone = closed.decode_tokens_s(roofline, 64, 1000 + 500)
    assert closed.steady_output_tokens_s(roofline, 64, 1000, 1000) < alone
    assert closed.steady_output_tokens_s(roofline, 64, 1, 1000) == pytest.approx(
        closed.decode_tokens_s(roofline, 64, 501), rel=0.01
    )


@pytest.mark.parametrize("prompts", [0.0, 0.25, 1.0, 2.5])
def test_all_tokens_of_new_prompts_are_computed(prompts: float) -> None:
    chunks = closed._chunks(prompts, 1000)
    assert sum(new for new, _ in chunks) == pytest.approx(1000 * prompts)
    assert all(new + before <= 1000 for new, before in chunks)
