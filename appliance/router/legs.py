"""A client's body, and the bodies of the legs made of it. Pure.

Only the outermost object is taken apart: every value travels on as the bytes that the client wrote. What is looked at
is what is sent, so no body can mean one thing here and another in vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.errors import RequestError
from appliance.router.routes import TRANSFER_KEYS, Route, Way

Body = dict[str, msgspec.Raw]
Tokens = Sequence[Sequence[int]]  # ids, by sequence

_PREFILL_DROPS: Final = (
    "stream",
    "stream_options",  # refused without stream
    "stream_interval",
    "min_tokens",  # refused where it exceeds max_tokens
    "logprobs",
    "top_logprobs",
    "logprob_token_ids",  # refused without logprobs
    "return_token_ids",
    "return_prompt_text",
)
_ONE: Final = msgspec.Raw(b"1")
_MOST_CONSUMERS: Final = 16_384  # vLLM's VLLM_MAX_N_SEQUENCES, unless its environment says otherwise
_BYTES_PER_TOKEN: Final = 4  # of JSON; an estimate until the engine has counted

_outer = msgspec.json.Decoder(Body)
_encode = msgspec.json.Encoder().encode


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a client's request asks of the router."""

    route: Route
    body: Body
    stream: bool
    consumers: int  # sequences that will each pull the prompt's KV
    prompt_tokens: int  # estimated
    unsplit_reason: str | None  # why it must run on one engine, if it must
    resumable: bool = False  # a stream that another engine can go on with


class Kept(msgspec.Struct, frozen=True):
    """What a prefill leg's answer says. ``kv_transfer_params`` stays the bytes that the engine wrote."""

    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def any(self) -> bool:
        """False where the engine could make no lease."""
        return bytes(self.kv_transfer_params) != b"null"


_kept = msgspec.json.Decoder(Kept)


def plan(route: Route, data: bytes) -> Plan:
    """Read a body. Raises ``RequestError`` 400 for what isn't a JSON object and for the appliance's own parameters."""
    body = _parse(data)
    _refuse(body)
    consumers = _consumers(body)
    reason = _unsplit_reason(route, body)
    if reason is None and consumers is None:
        reason = f"n is not a whole number from 1 to {_MOST_CONSUMERS:,}"  # vLLM says what is wrong with it
    stream = bytes(body.get("stream", b"")) == b"true"
    return Plan(
        route=route,
        body=body,
        stream=stream,
        consumers=consumers or 1,
        prompt_tokens=max(1, len(data) // _BYTES_PER_TOKEN),
        unsplit_reason=reason,
        resumable=stream and _answers_one_prompt(route, body),
    )


def prefill_body(plan: Plan, key: str, ttl_s: float) -> bytes:
    """One token, unstreamed, once, with the KV kept for all consumers."""
    body = {name: value for name, value in plan.body.items() if name not in _PREFILL_DROPS}
    body.update(dict.fromkeys(plan.route.one_token, _ONE))
    if "n" in body:
        body["n"] = _ONE
    offer = {"do_remote_decode": True, "request": key, "consumers": plan.consumers, "ttl_s": ttl_s}
    return _with_params(body, msgspec.Raw(_encode(offer)))


def decode_body(plan: Plan, kept: Kept, forced: Tokens = ()) -> bytes:
    """The client's body, and where its prompt's KV lies. ``forced``: what its sequences have to begin with."""
    if not plan.resumable:
        return _with_params(plan.body, kept.kv_transfer_params)
    params = {**_outer.decode(kept.kv_transfer_params), **_resumption(plan, forced)}
    return _with_params(plan.body, msgspec.Raw(_encode(params)))


def whole_body(plan: Plan, key: str, forced: Tokens = ()) -> bytes:
    """The client's body; with the key, for its timeline, where the route takes one."""
    if not plan.route.keyed:
        return _encode(plan.body)
    return _with_params(plan.body, msgspec.Raw(_encode({"request": key, **_resumption(plan, forced)})))


def _resumption(plan: Plan, forced: Tokens) -> dict[str, object]:
    """A stream's tokens are wanted one by one, so that another engine can be made to repeat them."""
    if not plan.resumable:
        return {}
    return {"tee": plan.consumers, **({"forced": forced} if any(forced) else {})}


def kept(answer: bytes) -> Kept:
    """What a prefill leg's answer says about its KV; an answer that can't be read says that nothing was kept."""
    try:
        return _kept.decode(answer)
    except (ValueError, RecursionError):
        return Kept()


def _with_params(body: Body, params: msgspec.Raw) -> bytes:
    return _encode({**body, "kv_transfer_params": params})


def _parse(data: bytes) -> Body:
    try:
        return _outer.decode(data)
    except msgspec.ValidationError:
        raise RequestError(400, "the body must be a JSON object", code="invalid_json") from None
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # DecodeError and UnicodeDecodeError are ones
        raise RequestError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None


def _refuse(body: Body) -> None:
    """The keys with which a client could name another one's KV."""
    for key in TRANSFER_KEYS & body.keys():
        if bytes(body[key]) != b"null":
            raise _own(key, key)
        del body[key]
    for key in TRANSFER_KEYS & _xargs(body):
        raise _own(key, f"vllm_xargs.{key}")


def _own(key: str, where: str) -> RequestError:
    return RequestError(400, f"{key} is not accepted from clients: the appliance sets it itself", param=where)


def _answers_one_prompt(route: Route, body: Body) -> bool:
    """Of several prompts nobody could tell whose tokens are whose; other routes' events have ids that can't be made again."""
    several = (route.fields or {}).get("prompt")
    return route.way is Way.SPLIT and not (several and "prompt" in body and several.forbids(body["prompt"]))


def _xargs(body: Body) -> set[str]:
    try:
        xargs = msgspec.json.decode(body.get("vllm_xargs", b"null"))
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"vllm_xargs can't be read: {error}", param="vllm_xargs") from None
    return set(xargs) if isinstance(xargs, dict) else set()


def _consumers(body: Body) -> int | None:
    """``n``; None if it isn't a whole number, or is one that vLLM doesn't take."""
    if "n" not in body or bytes(body["n"]) == b"null":
        return 1
    try:
        count = msgspec.json.decode(body["n"], type=int)
    except (ValueError, RecursionError):
        return None
    return count if 0 < count <= _MOST_CONSUMERS else None


def _unsplit_reason(route: Route, body: Body) -> str | None:
    if route.way is not Way.SPLIT:
        return route.reason
    fields = route.fields or {}
    for name, value in body.items():
        field = fields.get(name)
        if field is not None and field.reason is not None and field.forbids(value):
            return field.reason
    return None
