"""Streams that go on on another engine: each output token is said as it is made, and a sequence can be made to begin with given ones.

The engine that takes a stream over gets the *original* request and is forced to repeat the tokens so far. So everything in vLLM that
hangs on them (detokenizer, stop strings, parsers, penalties, grammar, the seeded generator, usage) is as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SlotLogitsProcessor

from appliance.channel import OutputTokens
from appliance.engine.kv.params import Ticket, Whole, read

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.request import Request
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

FORCED: Final = "appliance_forced"  # in a request's extra_args, put there in EngineCore
_CHILD: Final = re.compile(r"(\d+)_")  # vLLM's ids of the sequences of a request with n > 1


def sequence_of(request_id: str, sequences: int) -> int:
    """Which of a request's sequences vLLM's request is."""
    found = _CHILD.match(request_id) if sequences > 1 else None
    return int(found[1]) if found else 0


def force(request: Request) -> None:
    """Give a sequence the tokens that it must begin with. Called when EngineCore gets to know it."""
    params = read(request.kv_transfer_params)
    if not isinstance(params, Ticket | Whole) or request.sampling_params is None:
        return
    number = sequence_of(request.request_id, params.tee)
    if number < len(params.forced):
        extra = request.sampling_params.extra_args or {}
        request.sampling_params.extra_args = {**extra, FORCED: list(params.forced[number])}


class Tee:
    """Says the output tokens of those requests whose router asked for it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, int]] = {}  # vLLM's id → the router's key, and which sequence

    @property
    def listens(self) -> bool:
        """Somebody has asked."""
        return bool(self._known)

    def begin(self, request: Request) -> None:
        params = read(request.kv_transfer_params)
        if isinstance(params, Ticket | Whole) and params.tee:
            self._known[request.request_id] = (params.request, sequence_of(request.request_id, params.tee))

    def take(self, outputs: Iterable[EngineCoreOutput], requests: dict[str, Request]) -> OutputTokens | None:
        """What a step has brought; None if that is nothing. ``requests`` are those that EngineCore still has."""
        items = [
            (*self._known[one.request_id], tuple(one.new_token_ids))
            for one in outputs
            if one.request_id in self._known and one.new_token_ids
        ]
        if len(self._known) > len(requests):  # some have ended
            self._known = {name: known for name, known in self._known.items() if name in requests}
        return OutputTokens(items=tuple(items)) if items else None


class ForcedTokens(AdapterLogitsProcessor, SlotLogitsProcessor):
    """vLLM's logits processor (``--logits-processors``) that lets a sequence only say what it has said before.

    It has both of vLLM's forms: the first model runner asks for a function of each request, the second keeps requests in slots and has
    all of them seen to at once. Which one there is is decided in the engine, by vLLM.
    """

    def __init__(self, vllm_config: VllmConfig, *rest: Any) -> None:
        """``rest``: device and whether memory is pinned, for the first; for the second, what it knows of its slots."""
        if len(rest) == 1:
            self._states: LogitsProcRequestState = rest[0]
            self._forced: dict[int, torch.Tensor] = {}  # by slot
        else:
            AdapterLogitsProcessor.__init__(self, vllm_config, *rest)

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        tokens = _forced(params)
        return _Forced(tokens) if tokens else None

    # ---- the second form

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Whoever had the slot before is forgotten."""
        self._forced.pop(req_idx, None)
        tokens = _forced(sampling_params)
        if tokens:
            self._forced[req_idx] = torch.tensor(tokens, device=self._states.device)
        return bool(tokens)

    def apply(self, logits: torch.Tensor, ctx: LogitsContext | None = None) -> torch.Tensor:
        if ctx is None:
            return AdapterLogitsProcessor.apply(self, logits)
        for place, slot in enumerate(ctx.idx_mapping_np.tolist()):
            if slot in self._forced and not self._is_over(slot, place, ctx, len(logits)):
                logits = self._only(slot, logits, ctx)
        return logits

    def _is_over(self, slot: int, place: int, ctx: LogitsContext, rows: int) -> bool:
        """It has said all that it must. With a row per request its length is known here; with drafts the GPU alone knows."""
        if rows != len(ctx.idx_mapping_np):
            return False
        said = int(ctx.seq_lens_upper_bound_np[place]) - int(self._states.prompt_len.np[slot])
        if said >= len(self._forced[slot]):
            del self._forced[slot]
            return True
        return False

    def _only(self, slot: int, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Nothing here waits for the GPU. Rows of a prompt that is not computed to its end yet are left alone."""
        tokens = self._forced[slot]
        said = (ctx.pos + 1 - int(self._states.prompt_len.np[slot])).long()
        rows = (ctx.expanded_idx_mapping == slot) & (said >= 0) & (said < len(tokens))
        token = tokens[said.clamp(0, len(tokens) - 1)].unsqueeze(1)
        return torch.where(rows.unsqueeze(1), torch.full_like(logits, float("-inf")).scatter_(1, token, 0.0), logits)


def _forced(params: SamplingParams) -> Sequence[int]:
    tokens: Sequence[int] = (params.extra_args or {}).get(FORCED) or ()
    return tokens


class _Forced:
    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def __call__(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(output_ids) < len(self._tokens):
            logits.fill_(float("-inf"))
            logits[self._tokens[len(output_ids)]] = 0.0
        return logits
