"""KV between engines of several ranks, of models whose layers keep it in different ways, both ways.

One engine has one rank and the other two. What a split request answers is what the engine with one rank answers alone: with a
``cache_salt``, so that nothing of the hand-offs is in its prefix cache.

vLLM's reference kernels for a latent (MLA) on CPUs compute other numbers for a token that follows than for one of a prompt, and on two
ranks than on one, with nothing handed over. So its answers tell nothing, and its bytes are compared instead.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from kv_bytes import Memory, missing
from pair import Engine
from ranks import RankedPair

from appliance.channel import HandoffEnded, Release
from appliance.supervisor.forkserver import ForkServer
from bench.random_model import write

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
CHUNKED = ("--max-num-batched-tokens", "512")
MODELS: dict[str, tuple[str, ...]] = {
    "llama": CHUNKED,
    "mistral": CHUNKED,  # all layers slide
    "gemma3": CHUNKED,  # one KV head, on both ranks; six groups
    "gpt-oss": CHUNKED,  # two groups
    "deepseek": ("--attention-backend", "CPU_MLA", "--block-size", "16"),  # a latent, on both ranks
}
WAYS = [("e0", "e1"), ("e1", "e0")]
LENGTHS = (1, 16, 127, 128, 129, 300, 700, 1300)
_prompts = random.Random(11)


class Scene:
    """A pair, and what it was asked."""

    def __init__(self, pair: RankedPair, model: str) -> None:
        self.pair = pair
        self.model = model
        self.exact = model != "deepseek"
        self._keys = 0

    def key(self) -> str:
        self._keys += 1
        return f"k{self._keys}"

    async def split(
        self, body: dict[str, Any], prefill: str, decode: str, **lie: object
    ) -> tuple[dict[str, Any], HandoffEnded]:
        """The answer, and how its KV came. ``lie``: what the ticket says instead of the truth."""
        key, producer, consumer = self.key(), self.pair.engines[prefill], self.pair.engines[decode]
        ticket = await self.pair.prefill(key, body, on=producer)
        answer = await consumer.post("/v1/completions", {**body, "kv_transfer_params": {**ticket, **lie}})
        told = await consumer.until(HandoffEnded, lease=key)
        await self.release(key, producer)
        return answer, told

    async def release(self, key: str, producer: Engine) -> None:
        assert producer.core is not None
        producer.core.send(Release(lease=key, reason="released"))
        await self.pair.ended(key, on=producer)

    async def same(self, split: dict[str, Any], body: dict[str, Any], on: str = "e0") -> bool:
        whole = await self.pair.engines[on].post("/v1/completions", {**body, "cache_salt": "whole"})
        usage = ("prompt_tokens", "completion_tokens")
        return (split["choices"][0]["text"], [split["usage"][one] for one in usage]) == (
            whole["choices"][0]["text"],
            [whole["usage"][one] for one in usage],
        )


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=MODELS)
async def scene(request: pytest.FixtureRequest, forks: ForkServer) -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        model = write(Path(name) / "model", request.param)
        pair = RankedPair(Path(name), model, forks, (1, 2), MODELS[request.param])
        try:
            await pair.start()
            yield Scene(pair, request.param)
        finally:
            await pair.stop()


def tokens(count: int) -> list[int]:
    return [_prompts.randrange(256) for _ in range(count)]


def completion(prompt: list[int]) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize(("prefill", "decode"), WAYS, ids=["1to2", "2to1"])
async def test_prompts_of_many_lengths(scene: Scene, prefill: str, decode: str, at_once: int) -> None:
    if not scene.exact:
        pytest.skip("this model's kernels are not exact")
    gate = asyncio.Semaphore(at_once)
    bodies = [completion(tokens(length)) for length in LENGTHS]

    async def one(body: dict[str, Any]) -> tuple[dict[str, Any], HandoffEnded]:
        async with gate:
            return await scene.split(body, prefill, decode)

    found = await asyncio.gather(*(one(body) for body in bodies))
    wrong = [
        len(body["prompt"])
        for body, (answer, _) in zip(bodies, found, strict=True)
        if not await scene.same(answer, body)
    ]
    assert wrong == []
    for body, (_, told) in zip(bodies, found, strict=True):
        assert (told.ok, told.error, told.tokens) == (True, None, len(body["prompt"]))
        assert told.bytes > 0


@pytest.mark.parametrize(("prefill", "decode"), WAYS, ids=["1to2", "2to1"])
async def test_every_head_of_every_block_is_on_every_rank_that_has_it(scene: Scene, prefill: str, decode: str) -> None:
    """Byte for byte. (The last block is written on by the decode engine.)"""
    producer, consumer, body = scene.pair.engines[prefill], scene.pair.engines[decode], completion(tokens(690))
    key = scene.key()
    ticket = await scene.pair.prefill(key, body, on=producer)
    await consumer.post("/v1/completions", {**body, "kv_transfer_params": ticket})
    theirs, ours = Memory(producer), Memory(consumer)
    for number, group in enumerate(ours.ranks[0].layout.groups):
        whole = ticket["blocks"][number][: 690 // group.block_tokens]
        wanted = whole[-1:] if group.kind == "sliding_window" else whole  # what lies before the window is not asked for
        assert wanted and all(wanted)
        assert [one for block in wanted for one in missing(theirs, ours, number, block)] == []
    await scene.release(key, producer)


@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize(("prefill", "decode"), WAYS, ids=["1to2", "2to1"])
async def test_prefixes_that_either_side_has(scene: Scene, prefill: str, decode: str, at_once: int) -> None:
    """Four blocks of the longest kind. What the decode engine has is not brought over."""
    if not scene.exact:
        pytest.skip("this model's kernels are not exact, nor are its prefixes cached on CPUs")
    prefix = tokens(512)
    plain, _ = await scene.split(completion(tokens(600)), prefill, decode)
    _, alone = await scene.split(completion(tokens(600)), prefill, decode)
    for engine in (prefill, decode):
        await scene.pair.engines[engine].post("/v1/completions", completion([*prefix, *tokens(8)]))
        bodies = [completion([*prefix, *tokens(88)]) for _ in range(at_once)]
        found = await asyncio.gather(*(scene.split(body, prefill, decode) for body in bodies))
        for body, (answer, told) in zip(bodies, found, strict=True):
            assert told.ok, told.error
            assert await scene.same(answer, body)
    assert all(0 < told.bytes < alone.bytes for _, told in found)
    assert plain["usage"]["prompt_tokens"] == 600


@pytest.mark.parametrize(("prefill", "decode"), WAYS, ids=["1to2", "2to1"])
async def test_loads_that_fail_are_recomputed(scene: Scene, prefill: str, decode: str) -> None:
    """One alone, then some among others that don't."""
    for fails in ((True,), (True, False, False, True, False, True, True, False)):
        bodies = [completion(tokens(600)) for _ in fails]
        lies = [{"generation": 2**40} if failing else {} for failing in fails]
        found = await asyncio.gather(
            *(scene.split(body, prefill, decode, **lie) for body, lie in zip(bodies, lies, strict=True))
        )
        for body, failing, (answer, told) in zip(bodies, fails, found, strict=True):
            assert told.ok is not failing, told.error
            assert ("ended before the pull" in (told.error or "")) is failing
            alike = scene.exact or len(fails) == 1  # what was computed whole and alone is, whatever the kernels
            assert not alike or await scene.same(answer, body, on=decode)


async def test_a_load_that_fails_on_one_rank_fails_on_all(scene: Scene) -> None:
    """The other one has brought its heads over: half of a prompt's KV must not be decoded."""
    await scene.pair.part(scene.pair.e1, scene.pair.e0, ranks=(1,))
    bodies = [completion(tokens(length)) for length in (300, 600, 900)]
    found = await asyncio.gather(*(scene.split(body, "e0", "e1") for body in bodies))
    for body, (answer, told) in zip(bodies, found, strict=True):
        assert not told.ok
        assert "is not mapped" in (told.error or "")
        assert told.bytes > 0, "what the other rank has brought is counted"
        assert not scene.exact or await scene.same(answer, body)
    assert (await scene.pair.introduce(scene.pair.e1, scene.pair.e0)).error is None
    _, told = await scene.split(completion(tokens(300)), "e0", "e1")
    assert told.ok, told.error


async def test_afterwards_every_block_is_free(scene: Scene) -> None:
    for engine in scene.pair.engines.values():
        assert engine.ready is not None
        assert await engine.idle_free_blocks() == engine.ready.kv_blocks
