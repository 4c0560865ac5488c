"""What models take of GPUs under vLLM, against start-up logs that others have published."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.costs import huggingface
from appliance.costs.memory import BLOCK_TOKENS, Memory

HERE = Path(__file__).parent
GIB = 1 << 30
ALL_GRAPHS = 512  # places from which on all sizes of batches have a CUDA graph


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """One start; GiB."""

    source: str
    model: str
    tp: int = 1
    budget: int | None = None
    places: int = 256
    weights: float | None = None
    activations: float | None = None
    others: float | None = None
    graphs: float | None = None
    kv: float | None = None
    kv_tokens: int | None = None


class Logs(msgspec.Struct, frozen=True):
    logs: tuple[Log, ...]


LOGS = msgspec.toml.decode((HERE / "memory_logs.toml").read_bytes(), type=Logs).logs


def memory(model: str) -> Memory:
    return Memory(huggingface.read(HERE / "configs" / model))


def name(log: Log) -> str:
    return f"{log.model} × {log.tp}, {log.source.partition(':')[0]}"


@pytest.mark.parametrize("log", [log for log in LOGS if log.weights], ids=name)
def test_weights_take_what_was_logged(log: Log) -> None:
    assert log.weights is not None
    taken = memory(log.model).weight_bytes(log.tp) / GIB
    assert 0.99 * log.weights <= taken <= (1.025 if "Triton" in log.source else 1.01) * log.weights


@pytest.mark.parametrize("log", [log for log in LOGS if log.budget], ids=name)
def test_steps_take_no_less_than_was_logged_and_hardly_more(log: Log) -> None:
    assert log.budget is not None
    assert log.activations is not None
    assert log.others is not None
    of = memory(log.model)
    taken = (of.working_bytes(log.tp, log.budget, log.places) - of._graphs_bytes(log.places)) / GIB
    assert 0.0 <= taken - (log.activations + log.others) <= 0.6


@pytest.mark.parametrize("log", [log for log in LOGS if log.graphs], ids=name)
def test_graphs_take_what_was_logged(log: Log) -> None:
    assert memory(log.model)._graphs_bytes(ALL_GRAPHS) / GIB == pytest.approx(log.graphs, rel=0.1)


@pytest.mark.parametrize("log", [log for log in LOGS if log.kv_tokens], ids=name)
def test_kv_holds_as_many_tokens_as_were_logged(log: Log) -> None:
    assert log.kv_tokens is not None
    assert memory(log.model).kv_bytes(log.kv_tokens, log.tp) / GIB == pytest.approx(log.kv, rel=0.005)


def test_only_kernels_for_mxfp4_pad_and_the_more_the_smaller_a_rank_s_part() -> None:
    padded, plain = memory("gpt-oss-120b"), memory("qwen3-30b-a3b")
    assert padded.weight_bytes(1) > 1.08 * padded.shape.weight_bytes(1)
    assert padded.weight_bytes(4) / padded.shape.weight_bytes(4) > padded.weight_bytes(1) / padded.shape.weight_bytes(1)
    assert plain.weight_bytes(2) == plain.shape.weight_bytes(2)


def test_a_smaller_budget_and_fewer_places_take_less() -> None:
    of = memory("llama-3.3-70b-fp8")
    assert of.working_bytes(1, 2048, 256) < of.working_bytes(1, 8192, 256) - GIB
    assert of.working_bytes(1, 2048, 8) < of.working_bytes(1, 2048, 256) - GIB
    assert of.working_bytes(2, 2048, 256) > of.working_bytes(1, 2048, 256), "ranks need what they meet over"


@given(
    st.sampled_from(["gpt-oss-120b", "gemma-3-27b", "llama-3.1-8b", "mistral-7b-v0.1", "deepseek-v3"]),
    st.integers(1, 200_000),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 4096, 16384]),
)
def test_kv_is_whole_blocks_and_never_less_than_its_tokens(model: str, tokens: int, tp: int, in_flight: int) -> None:
    of = memory(model)
    taken = of.kv_bytes(tokens, tp, in_flight)
    assert taken >= of.shape.kv_bytes(tokens, tp)
    assert taken <= of.kv_bytes(tokens + 1, tp, in_flight)
    assert taken >= of.kv_bytes(tokens, tp)
    assert taken % (BLOCK_TOKENS * of.shape.kv_bytes_per_layer(tp)) == 0


def test_what_is_in_flight_is_kept_by_layers_that_slide() -> None:
    of = memory("gemma-3-27b")
    assert of.kv_bytes(32_768, 1, 16_384) > 2 * of.kv_bytes(32_768, 1)
    full = memory("llama-3.1-8b")
    assert full.kv_bytes(32_768, 1, 16_384) == full.kv_bytes(32_768, 1) == 32_768 * full.shape.kv_bytes_per_token()
