"""Streams that go on: vLLM's two forms of a logits processor, as its model runners load and call them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the CPU engine is not installed")

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as First
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.loader import (
    _load_v2_logitsprocs_by_fqcns,
    build_custom_logits_processors_params_validator,
)

from appliance.engine.resume import FORCED, ForcedTokens

NAME = "appliance.engine.resume:ForcedTokens"
VOCABULARY = 50


def forced(*tokens: int) -> SamplingParams:
    return SamplingParams(extra_args={FORCED: list(tokens)} if tokens else None)


def second(**prompts: int) -> ForcedTokens:
    """``prompts``: tokens of the prompt, by slot."""
    lengths = np.zeros(8, dtype=np.int32)
    for name, length in prompts.items():
        lengths[int(name[1:])] = length
    states: Any = SimpleNamespace(device=torch.device("cpu"), prompt_len=SimpleNamespace(np=lengths))
    config: Any = None
    return ForcedTokens(config, states)


def context(*requests: tuple[int, int], drafts: int = 0) -> LogitsContext:
    """(slot, tokens that are visible to the one that is sampled) each; with drafts, each request has so many rows more."""
    rows = [(slot, length + draft) for slot, length in requests for draft in range(drafts + 1)]
    slots = [slot for slot, _ in requests]
    return LogitsContext(
        expanded_idx_mapping=torch.tensor([slot for slot, _ in rows], dtype=torch.int32),
        idx_mapping=torch.tensor(slots, dtype=torch.int32),
        idx_mapping_np=np.array(slots, dtype=np.int32),
        expanded_local_pos=torch.tensor([draft for _ in requests for draft in range(drafts + 1)]),
        input_ids=torch.zeros(len(rows), dtype=torch.int32),
        pos=torch.tensor([length - 1 for _, length in rows]),
        seq_lens_upper_bound_np=np.array([length + drafts for _, length in requests]),
    )


def said(processor: ForcedTokens, ctx: LogitsContext) -> list[int]:
    """By each row, of logits that would all say 49."""
    logits = torch.arange(VOCABULARY, dtype=torch.float32).repeat(len(ctx.pos), 1)
    return processor.apply(logits, ctx).argmax(dim=1).tolist()


def test_both_model_runners_take_it() -> None:
    assert issubclass(ForcedTokens, First)
    assert _load_v2_logitsprocs_by_fqcns([NAME]) == [ForcedTokens]
    build_custom_logits_processors_params_validator([NAME])(forced(1, 2))


def test_the_first_form_still_is_one_of_each_request() -> None:
    config: Any = None
    processor = ForcedTokens(config, torch.device("cpu"), False)
    one = processor.new_req_logits_processor(forced(7, 8))
    assert [int(one(list(range(at)), torch.zeros(VOCABULARY)).argmax()) for at in range(2)] == [7, 8]
    assert one([7, 8], torch.arange(VOCABULARY)).argmax() == VOCABULARY - 1
    assert processor.new_req_logits_processor(forced()) is None


def test_in_slots_each_says_its_own_and_others_what_they_like() -> None:
    processor = second(s2=10, s5=3, s6=4)
    assert processor.add_request(2, forced(7, 8, 9))
    assert processor.add_request(5, forced(1))
    assert not processor.add_request(6, forced())
    assert said(processor, context((5, 3), (6, 4), (2, 10))) == [1, 49, 7]
    assert said(processor, context((2, 11), (5, 4))) == [8, 49], "rows come in another order at each step"
    assert said(processor, context((2, 12))) == [9]
    assert said(processor, context((2, 13))) == [49]


def test_a_prompt_in_chunks_is_left_alone_until_its_end() -> None:
    processor = second(s0=100)
    processor.add_request(0, forced(7))
    assert said(processor, context((0, 64))) == [49]
    assert said(processor, context((0, 100))) == [7]


def test_whoever_has_a_slot_next_has_nothing_of_the_one_before() -> None:
    processor = second(s1=5)
    processor.add_request(1, forced(7, 8, 9))
    processor.add_request(1, forced())
    assert said(processor, context((1, 5))) == [49]
    processor.add_request(1, forced(3))
    assert said(processor, context((1, 5))) == [3], "a request that was preempted begins anew"


def test_with_drafts_each_row_says_the_token_of_its_own_place() -> None:
    processor = second(s0=10, s1=10)
    processor.add_request(0, forced(7, 8))
    processor.add_request(1, forced())
    assert said(processor, context((0, 10), (1, 10), drafts=2)) == [7, 8, 49, 49, 49, 49]
    assert said(processor, context((0, 11), drafts=1)) == [8, 49]
