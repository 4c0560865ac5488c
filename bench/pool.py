"""The requests of a chaos run: distinct ones of every kind, each with one right answer. The same for the same seed. Pure."""

from __future__ import annotations

import random
from typing import Any, Final

from bench.checker import Case
from bench.servers import MODEL_NAME

_SCHEMA: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": ["small", "large"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
_WEATHER: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
_COMPLETIONS: Final[dict[str, dict[str, Any]]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 5, "top_p": 0.95, "top_k": 40},
    "logprobs": {"logprobs": 2},
    "stop": {"stop": ["a", "\u00e9"], "min_tokens": 6},
    "n=2": {"n": 2, "temperature": 0.9, "seed": 11},
    "penalties": {"frequency_penalty": 0.4, "presence_penalty": 0.3, "repetition_penalty": 1.1},
}
_CHATS: Final[dict[str, dict[str, Any]]] = {
    "chat": {"ignore_eos": True},
    "chat logprobs": {"logprobs": True, "top_logprobs": 1},
    "chat schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": _SCHEMA}}},
    "chat tool": {"tools": [_WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "chat n=2": {"n": 2, "temperature": 0.8, "seed": 3},
}
_PROMPT_TOKENS: Final = (1, 20, 127, 128, 129, 300, 512, 700, 1100, 1600, 2000)
_OUTPUT_TOKENS: Final = (8, 16, 32, 64, 120, 200)
_LEAST_TOKENS: Final = 100  # for JSON to come to its end


def cases(seed: int, count: int) -> list[Case]:
    """``count`` requests: every kind in turn, two of three streamed."""
    rng = random.Random(f"pool {seed}")
    kinds = [*_COMPLETIONS, *_CHATS]
    return [_case(kinds[number % len(kinds)], number, rng) for number in range(count)]


def _case(kind: str, number: int, rng: random.Random) -> Case:
    length, output = rng.choice(_PROMPT_TOKENS), rng.choice(_OUTPUT_TOKENS)
    body: dict[str, Any] = {"model": MODEL_NAME, "max_tokens": output, "temperature": 0}
    turn, place = divmod(number, len(_COMPLETIONS | _CHATS))
    if (turn + place) % 3:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    name = f"{number} {kind}, {length}+{output}{' streamed' if 'stream' in body else ''}"
    if kind in _COMPLETIONS:
        prompt = [rng.randrange(256) for _ in range(length)]
        return Case(name=name, path="/v1/completions", body={**body, "prompt": prompt, **_COMPLETIONS[kind]})
    body |= _CHATS[kind]
    if kind in ("chat schema", "chat tool"):
        body["max_tokens"] = max(output, _LEAST_TOKENS)
    if kind == "chat tool" and "stream" not in body:  # vLLM's streams of it depend on how tokens are grouped
        body["tool_choice"] = "required"
    words = "".join(rng.choice("abcdefgh ") for _ in range(length))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": words}]
    return Case(name=name, path="/v1/chat/completions", body={**body, "messages": messages})
