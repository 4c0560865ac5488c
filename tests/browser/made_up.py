"""What a node keeps besides its snapshots, made up: steps, logs, command lines, and older requests."""

from __future__ import annotations

import random
import sys

import msgspec
from page_states import NODES_WITHOUT_WORK, FakeNode, of_state, older

from appliance.records import KneeReading, Pieces, Role, StepReading, Timeline

_PROMPTS, _DECODES = 900, 500
_OLDER = 300


class FullNode(FakeNode):
    """A ``FakeNode`` with all of that."""

    def steps(self, engine: str, since: int, limit: int) -> list[StepReading] | None:
        snapshot = self.latest()
        found = next((one for one in snapshot.engines if one.name == engine), None)
        if found is None:
            return None
        if self.state in NODES_WITHOUT_WORK:
            return []
        hot = engine == "e1" and self.state == "bottleneck"
        return steps(found.role, snapshot.time, slow=1.9 if hot else 1.0)[-limit:]

    async def knee(self, engine: str) -> KneeReading | None:
        if not self.logs(engine):
            return None
        if self.state in NODES_WITHOUT_WORK or engine == "e1":
            return KneeReading(missing="no 5 steps of like size have been seen that prefill and hardly decode")
        return self.knees

    def logs(self, engine: str) -> list[str] | None:
        if engine not in {one.name for one in self.latest().engines}:
            return None
        usual = [
            f"INFO 11-26 10:{n // 60:02}:{n % 60:02} [loggers.py:271] Engine 000: Running: {n % 9} reqs"
            for n in range(400)
        ]
        return [
            f"--- life 1 of {engine} ---",
            *usual,
            "WARNING 11-26 10:07:01 [scheduler.py:88] Preempted 1 request",
            "ERROR 11-26 10:07:02 [core.py:12] <b>EngineCore</b> met an error",
            "Traceback (most recent call last):",
            "  ValueError: made up",
            "INFO 11-26 10:07:03 [core.py:14] it goes on",
        ]

    def command(self, engine: str) -> list[str] | None:
        if engine not in {one.name for one in self.latest().engines}:
            return None
        return [sys.executable, "-m", "appliance.engine.main", "--", "--model", "tiny stories", "--api-key", "…"]

    def timelines(self, limit: int) -> list[Timeline]:
        recent = self.latest().recent
        if self.state in NODES_WITHOUT_WORK or not recent:
            return list(recent[:limit])
        return [*recent, *(of_state(self.state, one) for one in older(recent[-1], _OLDER))][:limit]

    def timeline(self, request_id: str) -> Timeline | None:
        found = next((one for one in self.timelines(1000) if one.id == request_id), None)
        return None if found is None else msgspec.structs.replace(found, pieces=pieces(found))


def steps(role: Role, now: float, slow: float = 1.0) -> list[StepReading]:
    """Of an engine of that role; the last one ended a moment ago."""
    dice, found = random.Random(7), []
    for number in range(_PROMPTS + _DECODES):
        prompts = (number % 14 < 9) if role is not Role.DECODE else number % 90 == 0
        tokens = round(2 ** dice.uniform(4, 11)) if prompts else 0
        decodes = 0 if role is Role.PREFILL else dice.randint(1, 64)
        expected_s = (
            1 / (25_400 / (tokens + 170) - 0.8) if prompts else 0.006
        ) + 0.00004 * decodes  # as ``page_kept.KNEE``
        found.append(
            StepReading(
                number=number + 1,
                prompt_tokens=tokens,
                decode_tokens=decodes if not prompts or role is not Role.PREFILL else 0,
                context_tokens=tokens + 400 * decodes,
                seconds=slow * expected_s * dice.lognormvariate(0, 0.05),
                expected_s=None if number < 100 else expected_s,
                time=now - (_PROMPTS + _DECODES - number) * 0.09,
            )
        )
    return [one for one in found if one.prompt_tokens or one.decode_tokens]


def pieces(timeline: Timeline) -> Pieces | None:
    """One every 20 ms but for a pause."""
    if timeline.ttft_s is None or not timeline.stream:
        return None
    after, found = timeline.ttft_s, []
    for number in range(timeline.output_chunks):
        found.append(after)
        after += 0.3 if number == 40 else 0.0165
    return Pieces(every=1, after_s=tuple(found))
