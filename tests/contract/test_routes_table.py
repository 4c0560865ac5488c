"""The routes table against the vLLM that is installed: nothing it serves, and no field it reads, goes unseen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from appliance.router.legs import _MOST_CONSUMERS
from appliance.router.routes import CHAT_FIELDS, ROUTES, TEXT_PARTS, TRANSFER_KEYS, Way

pytest.importorskip("vllm", reason="the CPU engine is not installed")

# What vLLM serves only where it is told to. The gates of Cohere's API need its SDK, which we don't install.
EVERYTHING_ON = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
FLAGS = ("--enable-scale-out", "--enable-fault-tolerance", "--enable-tokenizer-info-endpoint")
PROFILER = ("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/tmp"}')
GENERATING = ("generate", "transcription", "realtime", "render")
POOLING = ("embed", "classify", "token_embed", "token_classify")


def _served(flags: tuple[str, ...], tasks: tuple[str, ...], model: object = None) -> Iterator[tuple[str, str]]:
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: Any = FlexibleArgumentParser
    args = make_arg_parser(parser()).parse_args(["--model", "any", *flags])
    app: Any = build_app(args, tasks, model)  # type: ignore[arg-type]
    for route in app.routes:
        kind = {"APIWebSocketRoute": "WS", "Mount": "MOUNT"}.get(type(route).__name__)
        for method in [kind] if kind else route.methods - {"HEAD"}:
            yield method, route.path


@pytest.fixture(scope="module")
def served() -> set[tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in EVERYTHING_ON.items():
            patch.setenv(name, value)
        found = {*_served((*FLAGS, *PROFILER), GENERATING), *_served(("--enable-offline-docs",), ("generate",))}
        for task in POOLING:
            model = SimpleNamespace(
                get_pooling_task=lambda _, task=task: task,
                hf_config=SimpleNamespace(num_labels=1),
                is_cross_encoder=True,
                architecture="any",
                score_type="cross-encoder",
            )
            found.update(_served((), (task,), model))
    return found


def test_every_route_of_vllm_is_in_the_table(served: set[tuple[str, str]]) -> None:
    assert len(served) > 60
    assert served - {(route.method, route.path) for route in ROUTES} == set()


def test_the_table_has_no_route_that_vllm_does_not_serve(served: set[tuple[str, str]]) -> None:
    assert {(route.method, route.path) for route in ROUTES} - served == set()


def test_the_table_has_every_route_once() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.way is Way.SPLIT], ids=lambda route: route.path)
def test_every_field_of_the_split_routes_is_in_the_table(route: Any) -> None:
    read = _fields(_model(route.path))
    known = set(route.fields) - {"kv_hints"}  # not read by any route yet, and refused before it is
    assert read == known
    assert set(route.one_token) <= read


def test_parts_that_are_text_are_those_of_vllm() -> None:
    from vllm.renderers.chat_utils import MM_PARSER_MAP, TEXT_PART_TYPES

    assert TEXT_PARTS == TEXT_PART_TYPES <= set(MM_PARSER_MAP)


def test_no_key_by_which_vllm_finds_other_media_goes_unseen() -> None:
    from vllm.renderers.chat_utils import MM_PARSER_MAP, _parse_chat_message_content_mm_part

    for key in (*MM_PARSER_MAP.keys() - TEXT_PARTS, "uuid"):
        part = {"type": "text", "text": "a", key: "x"}
        assert _forbidden(part), key
    smuggled = {"type": "text", "text": "a", "uuid": "u", "image_url": "x"}
    assert _parse_chat_message_content_mm_part(smuggled)[0] == "image_url", "why no other key may be there"
    assert not _forbidden({"type": "text", "text": "a"})


def _forbidden(part: dict[str, str]) -> bool:
    messages = [{"role": "user", "content": [part]}]
    return CHAT_FIELDS["messages"].forbids(msgspec.Raw(msgspec.json.encode(messages)))


def test_n_is_bounded_as_in_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    monkeypatch.delenv("VLLM_MAX_N_SEQUENCES", raising=False)
    assert envs.VLLM_MAX_N_SEQUENCES == _MOST_CONSUMERS


def test_what_takes_our_key_reads_it() -> None:
    """``keyed`` routes are exactly the served ones whose body has ``kv_transfer_params``."""
    for route in (route for route in ROUTES if route.way in (Way.SPLIT, Way.WHOLE)):
        assert route.keyed == ("kv_transfer_params" in _fields(_model(route.path))), route.path


def test_bodies_have_no_other_way_to_name_kv() -> None:
    """A new parameter that smells of KV transfer must be looked at by a person."""
    harmless = {"cache_salt", "prompt_cache_key"}
    for route in ROUTES:
        if route.way in (Way.SPLIT, Way.WHOLE):
            suspicious = {name for name in _fields(_model(route.path)) if re.search("kv|transfer|cache", name)}
            assert suspicious - harmless <= TRANSFER_KEYS, route.path


def _fields(model: Any) -> set[str]:
    return set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}


def _model(path: str) -> Any:
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest

    return {
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/completions": CompletionRequest,
        "/v1/responses": ResponsesRequest,
        "/v1/messages": AnthropicMessagesRequest,
        "/v1/chat/completions/batch": BatchChatCompletionRequest,
        "/v1/embeddings": EmbeddingCompletionRequest,
    }[path]
