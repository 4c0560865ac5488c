"""With speculative decoding a step gives a sequence several tokens: the recorder says how many."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from pair import Engine, Pair

from appliance.channel import CoreReady, Step
from appliance.demo import MODEL_DIR
from appliance.engine.recorder import Batch
from appliance.telemetry.series import Series

pytestmark = pytest.mark.asyncio(loop_scope="session")
DRAFTS, TOKENS = 4, 96
GUESSING = {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_min": 1, "prompt_lookup_max": 3}


class Speculating(Pair):
    """One engine that guesses what comes next by what it has read."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, MODEL_DIR)
        self.engines = {"e0": self.e0}

    def _arguments(self, engine: Engine) -> list[str]:
        return [*super()._arguments(engine), "--speculative-config", json.dumps(GUESSING)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine() -> AsyncIterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        running = Speculating(Path(name))
        await running.start()
        yield running.e0
        await running.stop()


async def test_steps_say_how_many_tokens_they_gave(engine: Engine) -> None:
    body = {"model": "m", "prompt": "one two three " * 12, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    answer = await engine.post("/v1/completions", body)
    assert answer["usage"]["completion_tokens"] == TOKENS
    await engine.idle_free_blocks()  # all has been said
    decoded = [step for step in engine.heard(Step) if step.decode_tokens]
    assert sum(step.given for step in decoded) == TOKENS - 1, "the first one comes with the prompt"
    assert {step.decoding for step in decoded} == {1}
    assert any(step.given > 1 for step in decoded), "some guesses were right"
    assert all(step.given <= step.decode_tokens <= 1 + DRAFTS for step in decoded)


async def test_and_none_of_them_has_waited_for_all_of_the_step(engine: Engine) -> None:
    decoded = [step for step in engine.heard(Step) if step.decode_tokens]
    series, last = Series(1), decoded[-1].end_ns
    for message in engine.messages:
        if isinstance(message, CoreReady | Step):
            series.add(message, message.end_ns if isinstance(message, Step) else last)
    lately = [step for step in decoded if step.end_ns > last - 2 * 10**9]
    found = series.load(last, 1.0).itl_s
    longest_s = max(step.end_ns - step.start_ns for step in lately) * 1e-9
    assert found is not None
    assert found < longest_s * len(lately) / sum(step.given for step in lately) * 1.5


# ---- one batch


def request(id: str, prompt: int, computed: int) -> Any:
    """As vLLM has it once it has scheduled a step."""
    return SimpleNamespace(request_id=id, num_prompt_tokens=prompt, num_computed_tokens=computed)


def output(id: str, *tokens: int) -> Any:
    return SimpleNamespace(request_id=id, new_token_ids=list(tokens))


@pytest.mark.parametrize("speculates", [False, True])
async def test_of_a_batch_prompts_and_what_decodes_are_told_apart(speculates: bool) -> None:
    batch = Batch(0, speculates)
    requests = [
        request("prompt", 100, 64),
        request("drafts", 10, 25),
        request("again", 10, 14),
    ]  # the last was preempted
    batch.count({"prompt": 64, "drafts": 5, "again": 14}, {one.request_id: one for one in requests})
    assert (batch.prompt_tokens, batch.decode_tokens, batch.sequences) == (74, 9, 2)
    assert batch.context_tokens == 64 + 25 + 14
    said = [output("prompt", 7), output("drafts", 1, 2, 3), output("again", 4)]
    assert batch.given({0: SimpleNamespace(outputs=said)}) == (4 if speculates else None)


async def test_a_batch_that_goes_on_is_what_counting_makes_of_it() -> None:
    """Those that begin, end, or compute more than a token are counted."""
    first = [request("a", 10, 14), request("b", 10, 30)]
    steps: list[dict[str, int]] = [{"a": 1, "b": 1}] * 3 + [{"a": 1, "b": 1, "c": 1}] * 3 + [{"b": 1, "c": 1}] * 2
    known, last, gone_on = {one.request_id: one for one in [*first, request("c", 8, 7)]}, Batch(0), []
    for scheduled in [*steps, {"b": 2, "c": 1}, {"b": 2, "c": 1}]:
        for name, tokens in scheduled.items():
            known[name].num_computed_tokens += tokens
        batch, counted = Batch(0), Batch(0)
        counted.count(scheduled, known)
        gone_on.append(batch.goes_on(last, scheduled))
        if not gone_on[-1]:
            batch.count(scheduled, known)
        assert all(getattr(batch, name) == getattr(counted, name) for name in Batch.__slots__)
        last = batch
    assert gone_on == [False, True, True, False, False, True, False, True, False, False]
    drafts = Batch(0, speculates=True)
    drafts.count({"a": 1}, known)
    assert not Batch(0, speculates=True).goes_on(drafts, {"a": 1}), "who knows how many of them were kept"
