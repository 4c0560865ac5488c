"""What a node can do on this machine, and what is usual on it: measured once, before anything is done to it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from bench.diagnosis.goodput import Answer
from bench.diagnosis.real.cases import USUAL, Stream
from bench.diagnosis.real.traffic import Traffic, body
from bench.figures import percentile

_MEASURED_S: Final = 6.0
_USUAL_S: Final = 20.0
_PROMPTS_AT_ONCE: Final = 8  # as many as keep an engine busy all of the time
_ANSWERS_AT_ONCE: Final = 16
_BEGINS_S: Final = 2.0  # until that many are under way
_PROMPT: Final = 400
_ANSWER: Final = 100
TIMES: Final = 2.0  # what is usual, that the targets are
LEAST_TTFT_S: Final = 0.3
LEAST_ITL_S: Final = 0.02


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Of a layout: tokens per second that it computes and makes, where it is asked for nothing else; and its targets."""

    prompt_tokens_s: float
    output_tokens_s: float
    both: bool  # each engine does both
    ttft_s: float = 10.0
    itl_s: float = 1.0

    def rate(self, stream: Stream) -> float:
        """Requests per second that take that share of the busier role; of engines that do both, of all together."""
        prompts = stream.prompt_tokens / self.prompt_tokens_s
        answers = stream.output_tokens / self.output_tokens_s
        return stream.load / (prompts + answers if self.both else max(prompts, answers))


async def measure(traffic: Traffic, both: bool) -> Capacity:
    """Half a minute."""
    prompts = await _closed(traffic, _PROMPTS_AT_ONCE * (1 + both), _PROMPT, 1)
    answers = await _closed(traffic, _ANSWERS_AT_ONCE * (1 + both), 16, _ANSWER)
    rough = Capacity(
        prompt_tokens_s=prompts * _PROMPT / _MEASURED_S, output_tokens_s=answers * _ANSWER / _MEASURED_S, both=both
    )
    ttft_s, itl_s = targets(await _usual(traffic, rough))
    return msgspec.structs.replace(rough, ttft_s=ttft_s, itl_s=itl_s)


def targets(answers: Sequence[Answer]) -> tuple[float, float]:
    """Twice what 95 % of the usual ones keep, for the first token and for those after it."""
    ttft_s = percentile((one.ttft_s for one in answers), 0.95) or 0.0
    pace_s = percentile((one.pace_s for one in answers), 0.95) or 0.0
    return round(max(LEAST_TTFT_S, TIMES * ttft_s), 3), round(max(LEAST_ITL_S, TIMES * pace_s), 4)


async def _closed(traffic: Traffic, at_once: int, prompt_tokens: int, output_tokens: int) -> float:
    """Requests that were answered meanwhile."""
    chance, found = random.Random(f"capacity {prompt_tokens}"), 0
    from_s = time.monotonic() + _BEGINS_S
    until_s = from_s + _MEASURED_S

    async def client() -> None:
        nonlocal found
        while time.monotonic() < until_s:
            one = await traffic.ask(body(chance, prompt_tokens, output_tokens), time.monotonic())
            found += one.ok and from_s <= time.monotonic() <= until_s

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(client())
    return max(1, found)


async def _usual(traffic: Traffic, rough: Capacity) -> list[Answer]:
    heard: list[Answer] = []
    asking = asyncio.create_task(
        traffic.run(USUAL, rough.rate(USUAL), "usual", time.monotonic(), lambda _: None, heard.append)
    )
    try:
        await asyncio.sleep(_USUAL_S)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    return heard
