"""Engines whose KV can't be handed over are refused when they start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the CPU engine is not installed")

from appliance.engine.kv.memory import refuse
from appliance.errors import HandoffError


def config(**sizes: int) -> Any:
    usual = {"pipeline_parallel_size": 1, "decode_context_parallel_size": 1, "prefill_context_parallel_size": 1}
    return SimpleNamespace(parallel_config=SimpleNamespace(**{**usual, **sizes}))


def test_ranks_are_no_reason() -> None:
    refuse(config(tensor_parallel_size=8))


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (
            "pipeline_parallel_size",
            "2 pipeline stages (--pipeline-parallel-size) can't be handed over: use tensor-parallel",
        ),
        ("decode_context_parallel_size", "--decode-context-parallel-size"),
        ("prefill_context_parallel_size", "--prefill-context-parallel-size"),
    ],
)
def test_other_kinds_of_parallelism(size: str, says: str) -> None:
    with pytest.raises(HandoffError) as caught:
        refuse(config(**{size: 2}))
    assert says in str(caught.value)
