"""The knee of an engine is found once for all who ask."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.channel import Step
from appliance.telemetry import knees as module
from appliance.telemetry.knees import FRESH_S, Knees
from appliance.telemetry.steps import Steps


def made(*tokens: int) -> Steps:
    steps = Steps()
    for one in tokens:
        add(steps, one)
    return steps


def add(steps: Steps, tokens: int) -> None:
    took_ns = int(1e9 * max(0.02, tokens * 4e-5))
    step = Step(
        start_ns=0, end_ns=took_ns, prompt_tokens=tokens, decode_tokens=0, context_tokens=tokens, running=1, waiting=0, fetching=0,
        kv_free=1, leased=0, preemptions=0, prefix_queries=0, prefix_hits=0,
    )  # fmt: skip
    steps.add(step, took_ns * 1e-9, None)


KNOWN = [size for size in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096) for _ in range(9)]


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.found = 0.0, 0
        self.knees = Knees(lambda: self.now)
        find = module.knee.find

        def counted(*arguments: Any) -> Any:
            self.found += 1
            return find(*arguments)

        monkeypatch.setattr(module.knee, "find", counted)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


async def test_all_who_ask_at_once_share_it_though_the_first_one_leaves(scene: Scene) -> None:
    steps = made(*KNOWN)
    first, *others = [asyncio.create_task(scene.knees.get("e0", 1, steps)) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    told = await asyncio.gather(*others)
    assert {one.tokens for one in told} == {told[0].tokens} != {None}
    assert scene.found == 1


async def test_it_is_found_again_only_for_other_steps_and_of_these_after_a_while(scene: Scene) -> None:
    steps = made(*KNOWN)
    await scene.knees.get("e0", 1, steps)
    scene.now = 10 * FRESH_S
    await scene.knees.get("e0", 1, steps)
    assert scene.found == 1, "nothing has changed"
    add(steps, 64)
    await scene.knees.get("e0", 1, steps)
    assert scene.found == 2
    add(steps, 64)
    scene.now += FRESH_S - 1
    await scene.knees.get("e0", 1, steps)
    assert scene.found == 2, "hardly anything has"
    scene.now += 2
    await scene.knees.get("e0", 1, steps)
    await scene.knees.get("e1", 1, steps)
    await scene.knees.get("e0", 2, steps)
    assert scene.found == 5, "another engine, or another life, has another one"


async def test_what_was_not_known_is_looked_for_as_soon_as_there_is_more(scene: Scene) -> None:
    steps = made()
    assert (await scene.knees.get("e0", 1, steps)).missing
    for tokens in KNOWN:
        add(steps, tokens)
    assert (await scene.knees.get("e0", 1, steps)).tokens is not None
