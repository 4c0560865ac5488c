"""What is done with every route of vLLM's OpenAI server, and what every field of the split routes means for splitting.

``tests/contract/test_routes_table.py`` holds these tables against the vLLM that is installed: an upgrade that adds a
route or a field fails there until somebody has said here what it means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from appliance.errors import RequestError, cut


class Way(StrEnum):
    """What happens to a request on a route."""

    SPLIT = "split"  # prefill on one engine, decode on another, unless a field forbids it
    WHOLE = "whole"  # one engine, through the queue
    DIRECT = "direct"  # any ready engine, at once: costs no model step
    OURS = "ours"  # answered by the appliance itself; never reaches the router
    REFUSED = "refused"  # 404: not for clients


@dataclass(frozen=True)
class Field:
    """What a field of a split route's body means.

    ``reason`` is why the request isn't split where ``forbids`` is true of the field's JSON; a field without a reason
    never matters.
    """

    reason: str | None = None
    forbids: Callable[[msgspec.Raw], bool] = lambda _: False


@dataclass(frozen=True)
class Route:
    """One row. ``keyed``: vLLM takes ``kv_transfer_params`` there. ``one_token``: fields that limit the output."""

    method: str
    path: str
    way: Way
    reason: str = ""
    keyed: bool = False
    fields: dict[str, Field] | None = None
    one_token: tuple[str, ...] = ()


# ---- what forbids splitting, by the field's JSON


def _given(value: msgspec.Raw) -> bool:
    return bytes(value) != b"null"


def _on(value: msgspec.Raw) -> bool:
    return bytes(value) not in (b"null", b"false")


def _not_one_prompt(value: msgspec.Raw) -> bool:
    """True unless it is a string, a list of token ids, or a list with just one of either."""
    try:
        prompt = msgspec.json.decode(value)
    except (ValueError, RecursionError):
        return True  # vLLM will say what is wrong with it
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    return not (isinstance(prompt, str) or (isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)))


_count = msgspec.json.Decoder(int, strict=False)  # as vLLM reads it: "8" and 8.0 are 8


def _not_a_count(value: msgspec.Raw) -> bool:
    """True unless it is a whole number above 0, or null."""
    try:
        return _given(value) and _count.decode(value) < 1
    except (ValueError, RecursionError):
        return True


def _limit(name: str) -> Field:
    """What the prefill leg has a 1 in place of: of one that is none, vLLM would say so only when the prompt has been computed."""
    return Field(reason=f"{name} is not a whole number above 0", forbids=_not_a_count)


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message that is text, with the keys that text has.

    vLLM takes a part with ``image_url`` and ``uuid`` for an image even where its type is text: no other key may be there.
    """

    type: str | None = None
    text: msgspec.Raw = msgspec.Raw()
    input_text: msgspec.Raw = msgspec.Raw()
    output_text: msgspec.Raw = msgspec.Raw()
    refusal: msgspec.Raw = msgspec.Raw()
    thinking: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    content: str | list[str | _Part] | None = None


_messages = msgspec.json.Decoder(list[_Message])
TEXT_PARTS: Final = frozenset(_Part.__struct_fields__) - {"type"}


def _not_text(value: msgspec.Raw) -> bool:
    """True if a message has a part that isn't text alone, or one that we can't read."""
    try:
        messages = _messages.decode(value)
    except (ValueError, RecursionError):
        return True
    parts = (part for message in messages if isinstance(message.content, list) for part in message.content)
    return any(isinstance(part, _Part) and part.type not in TEXT_PARTS for part in parts)


# ---- fields

TRANSFER_KEYS: Final = frozenset({"kv_transfer_params", "ec_transfer_params", "kv_hints"})
"""With these a client could name another's KV. Refused in every body, in ``vllm_xargs`` too: vLLM merges these."""


def _never_matter(names: str) -> dict[str, Field]:
    return {name: Field() for name in names.split()}


_COMMON: Final = {
    **_never_matter(
        "model frequency_penalty logit_bias logprobs n presence_penalty response_format seed stop stream"
        " stream_options temperature top_p thinking_token_budget user top_k min_p repetition_penalty watermarking"
        " length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens"
        " spaces_between_special_tokens truncation_side logprob_token_ids allowed_token_ids bad_words"
        " add_special_tokens structured_outputs priority request_id session_id return_tokens_as_token_ids"
        " return_token_ids return_token_offsets mm_payload return_mm_kwargs cache_salt repetition_detection"
        " stream_interval"
    ),
    **_never_matter(" ".join(TRANSFER_KEYS)),  # refused before anything is looked at
    "max_tokens": _limit("max_tokens"),
    "vllm_xargs": Field(),  # its keys are looked at in every body
    "echo": Field(reason="echo needs the prompt where the answer is made", forbids=_on),
    "prompt_logprobs": Field(reason="prompt_logprobs needs the prompt where the answer is made", forbids=_given),
    "use_beam_search": Field(reason="beam search keeps no KV", forbids=_on),
    "truncate_prompt_tokens": Field(reason="truncation depends on max_tokens", forbids=_given),
    # How many prompt tokens to leave out of the experts that are returned, 0 by default: it asks for those of the others.
    "routed_experts_prompt_start": Field(reason="the prompt's experts are told where it is computed", forbids=_given),
}

COMPLETION_FIELDS: Final = {
    **_COMMON,
    "suffix": Field(),
    "prompt": Field(reason="several prompts in one request", forbids=_not_one_prompt),
    "prompt_embeds": Field(reason="prompt_embeds has no tokens to match", forbids=_given),
}

CHAT_FIELDS: Final = {
    **_COMMON,
    **_never_matter(
        "top_logprobs tools tool_choice reasoning_effort include_reasoning parallel_tool_calls"
        " add_generation_prompt continue_final_message documents chat_template chat_template_kwargs media_io_kwargs"
        " mm_processor_kwargs return_prompt_text"
    ),
    "max_completion_tokens": _limit("max_completion_tokens"),
    "messages": Field(reason="images, audio and video are not handed over yet", forbids=_not_text),
}

# ---- routes


def _refused(reason: str, *routes: str) -> tuple[Route, ...]:
    pairs = (route.split() for route in routes)
    return tuple(Route(method, path, Way.REFUSED, reason) for method, path in pairs)


ROUTES: Final = (
    Route(
        "POST",
        "/v1/chat/completions",
        Way.SPLIT,
        keyed=True,
        fields=CHAT_FIELDS,
        one_token=("max_tokens", "max_completion_tokens"),
    ),
    Route("POST", "/v1/completions", Way.SPLIT, keyed=True, fields=COMPLETION_FIELDS, one_token=("max_tokens",)),
    Route("POST", "/v1/responses", Way.WHOLE, "responses are not split yet", keyed=True),
    Route("POST", "/v1/messages", Way.WHOLE, "messages are not split yet", keyed=True),
    Route("POST", "/v1/chat/completions/batch", Way.WHOLE, "several prompts in one request"),
    Route("POST", "/v1/embeddings", Way.WHOLE, "embeddings have no decoding"),
    Route("GET", "/v1/models", Way.DIRECT),
    Route("POST", "/v1/messages/count_tokens", Way.DIRECT),
    Route("POST", "/tokenize", Way.DIRECT),
    Route("POST", "/detokenize", Way.DIRECT),
    Route("GET", "/health", Way.OURS),
    Route("GET", "/metrics", Way.OURS),
    *_refused(
        "stored responses live in one engine's memory and are not served",
        "GET /v1/responses/{response_id}",
        "POST /v1/responses/{response_id}/cancel",
    ),
    *_refused(
        "audio is not served",
        "POST /v1/audio/transcriptions",
        "POST /v1/audio/translations",
        "WS /v1/realtime",
    ),
    *_refused(
        "it is not part of the OpenAI API",
        "POST /classify",
        "POST /generative_scoring",
        "POST /invocations",
        "POST /pooling",
        "POST /rerank",
        "POST /score",
        "POST /v1/rerank",
        "POST /v1/score",
        "POST /v1/systemone",
        "POST /v2/embed",
        "POST /v2/rerank",
        "GET /docs",
        "GET /docs/oauth2-redirect",
        "GET /openapi.json",
        "GET /redoc",
        "MOUNT /static",
        "GET /load",
        "GET /ping",
        "POST /ping",
        "GET /tokenizer_info",
        "GET /version",
        "MOUNT /metrics",
    ),
    *_refused(
        "it takes or makes token ids and KV parameters, which pass between engines only",
        "POST /inference/v1/generate",
        "POST /inference/v1/abort_requests",
        "POST /v1/chat/completions/render",
        "POST /v1/chat/completions/derender",
        "POST /v1/completions/render",
        "POST /v1/completions/derender",
        "POST /v1/messages/render",
        "POST /v1/responses/render",
        "GET /kv_event_sources",
    ),
    *_refused(
        "it changes an engine behind the appliance's back",
        "POST /abort_requests",
        "POST /adapters",
        "DELETE /adapters/{adapter_name}",
        "POST /collective_rpc",
        "POST /fault_tolerance/apply",
        "GET /fault_tolerance/status",
        "POST /finish_weight_update",
        "GET /get_world_size",
        "POST /init_weight_transfer_engine",
        "GET /is_paused",
        "POST /is_scaling_elastic_ep",
        "GET /is_sleeping",
        "POST /pause",
        "POST /release_kv_cache_memory",
        "POST /reset_encoder_cache",
        "POST /reset_mm_cache",
        "POST /reset_prefix_cache",
        "POST /resume",
        "POST /scale_elastic_ep",
        "GET /server_info",
        "POST /shutdown_weight_transfer_engine",
        "POST /sleep",
        "POST /start_draft_weight_update",
        "POST /start_profile",
        "POST /start_weight_update",
        "POST /stop_profile",
        "POST /update_weight_version",
        "POST /update_weights",
        "POST /v1/load_lora_adapter",
        "POST /v1/unload_lora_adapter",
        "POST /wake_up",
        "POST /weight_checker",
        "GET /weight_info",
    ),
)

_EXACT: Final = {(route.method, route.path): route for route in ROUTES}


def find(method: str, path: str) -> Route:
    """The route to be served. Raises ``RequestError``: 404 if it is refused or unknown, 405 for a wrong method."""
    route = _EXACT.get((method, path))
    if route is None:
        route = next((row for row in ROUTES if row.method == method and _matches(row.path, path)), None)
    if route is not None and route.way not in (Way.REFUSED, Way.OURS):
        return route
    if route is None and any(row.path == path and row.way is not Way.REFUSED for row in ROUTES):
        raise RequestError(405, f"{method} is not allowed on {path}", code="method_not_allowed")
    reason = f": {route.reason}" if route is not None and route.reason else ""
    raise RequestError(404, f"{method} {cut(path)} is not served here{reason}", code="unknown_route")


def _matches(pattern: str, path: str) -> bool:
    ours, theirs = pattern.split("/"), path.split("/")
    return (
        "{" in pattern
        and len(ours) == len(theirs)
        and all(part.startswith("{") or part == actual for part, actual in zip(ours, theirs, strict=True))
    )
