"""Engines of vLLM on GPUs, with models of real shapes and weights of nothing: split against aggregated, token for token and in time.

With such weights in 16 bits two tokens are often nearly as likely, and another order of additions decides between them. So what is
compared is computed alike: a prompt of whole blocks and one token more, whose last token alone is computed, on the one side beside KV
that was handed over, on the other beside KV that was found in the prefix cache.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from appliance import demo, presets
from bench.figures import Summary
from bench.gpu_report import Finding, at_most
from bench.load import Plan, drive
from bench.servers import MODEL_NAME, Server, ServerError, Serving, appliance, introduced

SHAPES: Final = ("llama-3.1-8b", "gpt-oss-20b")
_CLASSES: Final = {"llama": "LlamaForCausalLM", "gpt_oss": "GptOssForCausalLM"}
_VOCABULARY: Final = 1536  # of the demo's tokenizer
_CONTEXT: Final = 8192
_START_S: Final = 900.0  # kernels are compiled, and graphs captured
_LENGTHS: Final = (257, 513, 1025, 2049, 4097)  # whole blocks, and one token more
_ANSWER: Final = 32
_TRIES: Final = 6  # until an engine is asked what it has computed before
_BACK_S: Final = 2.0  # for a killed producer's memory to be free again
_PLAN: Final = Plan(
    model=MODEL_NAME, requests=64, prompt_tokens=2000, output_tokens=64, concurrency=8, vocabulary=_VOCABULARY
)

Free = Callable[[], int]  # bytes of all GPUs together


def shaped(name: str, directory: Path) -> Path:
    """A model's directory: a preset's shape with the demo's vocabulary and tokenizer, and no weights."""
    found = presets.directory(name)
    assert found is not None
    config = json.loads((found / "config.json").read_text())
    config |= {"vocab_size": _VOCABULARY, "architectures": [_CLASSES[config["model_type"]]], "eos_token_id": 0}
    made = directory / name
    made.mkdir()
    (made / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo.MODEL_DIR / file, made)
    return made


def serving(layout: str) -> Serving:
    arguments = ("--load-format", "dummy", "--max-model-len", str(_CONTEXT))
    return Serving(layout=layout, arguments=arguments, start_s=_START_S)


async def findings(name: str, model: Path, directory: Path, gpus: int, free: Free) -> AsyncIterator[Finding]:
    """Of one shape: ``1p1d``, and engines that do both on as many GPUs."""
    answers: dict[str, list[str]] = {}
    times: dict[str, Summary] = {}
    for layout in ("1p1d", "2b" if gpus > 1 else "1b"):
        try:
            async with appliance(directory, model, len(answers), serving(layout)) as (server, start):
                yield Finding(
                    f"{name} {layout} starts", f"ready after {max(start.engines_ready_s.values()):.0f} s", True
                )
                answers[layout] = await answered(server, split=layout == "1p1d")
                times[layout], _ = await drive(server.target, _PLAN)
                if layout == "1p1d":
                    yield handed_over(name, await server.json("/api/requests?limit=100"))
                    yield await crash(name, server, free)
        except ServerError as error:
            yield Finding(f"{name} {layout} starts", str(error).strip().splitlines()[-1], False)
            return
    yield identical(name, *answers.values())
    for layout, summary in times.items():
        yield told(name, layout, summary)


# ---- token for token


def prompts() -> list[list[int]]:
    """The same at each call."""
    chance = random.Random(9)
    return [chance.choices(range(1, _VOCABULARY), k=length) for length in _LENGTHS]


async def answered(server: Server, *, split: bool) -> list[str]:
    """An answer to each prompt: from KV that was handed over, or from an engine's prefix cache."""
    return [await (_split if split else _again)(server, prompt) for prompt in prompts()]


async def _split(server: Server, prompt: list[int]) -> str:
    text, prefill, decode = await _ask(server, prompt)
    if prefill == decode:
        raise ServerError(f"a request was not split, but ran on {decode}")
    return text


async def _again(server: Server, prompt: list[int]) -> str:
    """Of the first engine that is asked a second time."""
    asked = set()
    for _ in range(_TRIES):
        text, _, engine = await _ask(server, prompt)
        if engine in asked:
            return text
        asked.add(engine)
    raise ServerError(f"no engine was asked twice in {_TRIES} tries")


async def _ask(server: Server, prompt: list[int]) -> tuple[str, str | None, str | None]:
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": _ANSWER, "temperature": 0.0, "ignore_eos": True}
    async with server.target.session.post(server.target.url("/v1/completions"), json=body) as answer:
        if answer.status != 200:
            raise ServerError(f"HTTP {answer.status}: {(await answer.text())[:200]}")
        text = (await answer.json())["choices"][0]["text"]
        return text, answer.headers.get("x-prefill-engine"), answer.headers.get("x-decode-engine")


def identical(name: str, split: Sequence[str], whole: Sequence[str]) -> Finding:
    same = sum(one == other for one, other in zip(split, whole, strict=True))
    what = f"{name}: answers beside KV that was handed over, against those beside KV from the prefix cache"
    return Finding(what, f"{same} of {len(whole)} identical ({_ANSWER} tokens each)", same == len(whole))


# ---- in time


def handed_over(name: str, requests: Sequence[dict[str, Any]]) -> Finding:
    """Of the requests' own timelines."""
    found = [
        (one["transfer_bytes"], stage["duration_s"])
        for one in requests
        if one.get("transfer_bytes")
        for stage in one["stages"]
        if stage["name"] == "transfer" and stage["duration_s"]
    ]
    again = sum(bool(one.get("recomputed")) for one in requests)
    if not found:
        return Finding(f"{name}: hand-offs", "none was timed", False)
    seconds = median(seconds for _, seconds in found)
    rate = median(size / seconds for size, seconds in found)
    said = f"{len(found)} of {median(size for size, _ in found) / 1e6:.0f} MB, {seconds * 1e3:.2f} ms, {rate / 1e9:.1f} GB/s (medians)"
    return Finding(f"{name}: hand-offs", f"{said}; {again} computed again", again == 0)


def told(name: str, layout: str, summary: Summary) -> Finding:
    """Which is the better one is for the figures to say."""
    plan = f"{_PLAN.prompt_tokens} + {_PLAN.output_tokens} tokens, {_PLAN.concurrency} at once"
    ttft = f"TTFT {_ms(summary.ttft_p50_s)} / {_ms(summary.ttft_p99_s)}"
    itl = f"ITL {_ms(summary.itl_p50_s)} / {_ms(summary.itl_p99_s)} (p50 / p99)"
    said = f"{ttft}, {itl}, {summary.requests_s:.2f} requests/s, {summary.errors} errors"
    return Finding(f"{name} {layout}, {plan}", said, False if summary.errors else None)


def _ms(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds * 1e3:.1f} ms"


# ---- a producer that dies


async def crash(name: str, server: Server, free: Free) -> Finding:
    """Its GPU memory is free again before it is started anew, and what is asked then is split again."""
    what = f"{name}: time until a killed prefill engine's memory is free again"
    victim = (await server.json("/api/node"))["engines"][0]
    before, began = free(), time.monotonic()
    os.kill(victim["pid"], signal.SIGKILL)
    back_s = None
    while back_s is None and time.monotonic() - began < 5 * _BACK_S:
        await asyncio.sleep(0.02)
        if free() - before > 1 << 30:
            back_s = time.monotonic() - began
    server.began = time.perf_counter()  # it has as long as at first
    await server.until(lambda: _is_back(server, victim))
    await _split(server, prompts()[0])
    return at_most(what, back_s, _BACK_S, " s")


async def _is_back(server: Server, victim: dict[str, Any]) -> bool:
    engines = (await server.json("/api/node"))["engines"]
    here = next(one for one in engines if one["name"] == victim["name"])
    return here["epoch"] > victim["epoch"] and here["state"] == "ready" and await introduced(server)
