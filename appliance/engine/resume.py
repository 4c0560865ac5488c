"""Streams that go on on another engine: each output token is said as it is made, and a sequence can be made to begin with given ones.

The engine that takes a stream over gets the *original* request and is forced to repeat the tokens so far. So everything in vLLM that
hangs on them (detokenizer, stop strings, parsers, penalties, grammar, the seeded generator, usage) is as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from appliance.channel import OutputTokens
from appliance.engine.kv.params import Ticket, Whole, read

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.request import Request

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

    def begin(self, request: Request) -> None:
        params = read(request.kv_transfer_params)
        if isinstance(params, Ticket | Whole) and params.tee:
            self._known[request.request_id] = (params.request, sequence_of(request.request_id, params.tee))

    def take(self, outputs: Iterable[EngineCoreOutput], requests: dict[str, Request]) -> OutputTokens | None:
        """What a step has brought; None if nobody asked. ``requests`` are those that EngineCore still has."""
        if not self._known:
            return None
        items = [
            (*self._known[one.request_id], tuple(one.new_token_ids))
            for one in outputs
            if one.request_id in self._known and one.new_token_ids
        ]
        if len(self._known) > len(requests):  # some have ended
            self._known = {name: known for name, known in self._known.items() if name in requests}
        return OutputTokens(items=tuple(items)) if items else None


class ForcedTokens(AdapterLogitsProcessor):
    """vLLM's logits processor (``--logits-processors``) that lets a sequence only say what it has said before."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        tokens = (params.extra_args or {}).get(FORCED)
        return _Forced(tokens) if tokens else None


class _Forced:
    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def __call__(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(output_ids) < len(self._tokens):
            logits.fill_(float("-inf"))
            logits[self._tokens[len(output_ids)]] = 0.0
        return logits
