"""What one life of an engine has reported lately, and the rates that follow from it. Pure but for its memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.channel import LONG_STEP_TOKENS, CoreReady, Heartbeat, Step, StepBegan, Up
from appliance.costs.fitted import StepModel
from appliance.records import CalibrationSnapshot
from appliance.telemetry.calibration import SLOW, Made
from appliance.telemetry.compared import LATELY_NS, WELL, Compared
from appliance.telemetry.steps import Steps

WINDOW_NS: Final = 5 * 1_000_000_000
_MOST_STEPS: Final = 20_000
_MOST_ROOM: Final = 4.0
_FULL: Final = 0.6  # of KV, in the mean: it goes up and down, and where it runs out everybody waits
_FADES: Final = 0.98  # from step to step
_MOST_BEGUN: Final = 4  # with asynchronous scheduling there are two
_DOUBTED_NS: Final = 120 * 1_000_000_000
_LATE_S: Final = 1.0  # at least, and
_OVERDUE: Final = 2.0  # times what it should take, until a step under way is late: others of its size may have waited


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Over the window; all 0 for an engine that is up and idle."""

    prompt_tokens_s: float
    output_tokens_s: float
    steps_s: float
    step_ms: float | None  # None without a step in the window
    prefix_hit_rate: float | None  # None without a question to the cache in the window


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Over the last ``LATELY_NS``; see ``records.EngineSnapshot``."""

    busy: float
    slowdown: float | None
    usual_since: float | None
    step_prompt_tokens: float | None
    step_decode_tokens: float | None
    itl_s: float | None
    itl_late: float | None
    room: float | None
    fuller: float | None


class _Made(msgspec.Struct):
    """A step with tokens. ``gap_ns``: since the one before that had decode tokens, where this has some."""

    heard_ns: int
    step: Step
    expected_s: float | None
    gap_ns: int | None


class Series:
    """One life."""

    def __init__(self, epoch: int, model: StepModel | None = None) -> None:
        self.epoch = epoch
        self.core: CoreReady | None = None
        self.last: Step | Heartbeat | None = None
        self.last_step: Step | None = None
        self.steps = Steps()
        self.calibration: list[Made] = []
        self.calibrating = False
        self.calibrated: CalibrationSnapshot | None = None
        self._model = model or StepModel()
        self._made: deque[_Made] = deque()
        self._prompt_tokens = self._output_tokens = self._busy_ns = 0  # sums of these
        self._before: Step | None = None  # the last one before the window
        self._began: deque[StepBegan] = deque(
            maxlen=_MOST_BEGUN
        )  # long ones: the first is under way, others come after it
        self._decoded_ns: int | None = None
        self._like = Compared()  # steps like those that were seen before, with what is expected
        self._unlike = Compared()  # others, with the most that they may take
        self._doubted_ns: int | None = None  # since when what is unlike all before takes longer than any error explains
        self._usually_took_s = self._usually_should_s = 0.0  # the same, over the last steps however long ago these were

    def add(self, message: Up, now_ns: int) -> None:
        """Steps without tokens are no steps: an engine that only waits for KV makes many."""
        if isinstance(message, CoreReady):
            self.core = message
        elif isinstance(message, StepBegan):
            self._began.append(message)
        elif isinstance(message, Step):
            self.last = self.last_step = message
            while self._began and self._began[0].at_ns <= message.start_ns:  # else it was scheduled meanwhile
                self._began.popleft()
            if message.prompt_tokens or message.decode_tokens:
                self._add_step(message, now_ns)
        elif isinstance(message, Heartbeat):
            self.last = message
            self._began.clear()
            if not message.running:  # else somebody still waits for the next token
                self._decoded_ns = None

    def last_sign_ns(self) -> int | None:
        if self.last is None:
            return None
        return self.last.end_ns if isinstance(self.last, Step) else self.last.at_ns

    def rates(self, now_ns: int) -> Rates:
        self._forget(now_ns)
        count, seconds = len(self._made), WINDOW_NS * 1e-9
        return Rates(
            prompt_tokens_s=self._prompt_tokens / seconds,
            output_tokens_s=self._output_tokens / seconds,
            steps_s=count / seconds,
            step_ms=self._busy_ns * 1e-6 / count if count else None,
            prefix_hit_rate=_hit_rate(self._before, self._made[-1].step) if count else None,
        )

    def load(self, now_ns: int, itl_target_s: float) -> Load:
        """How busy it was lately, how slow, and with what."""
        self._forget(now_ns)
        since_ns = now_ns - LATELY_NS
        made = list(itertools.takewhile(lambda one: one.step.end_ns > since_ns, reversed(self._made)))[::-1]
        prompts = [one.step.prompt_tokens for one in made if one.step.prompt_tokens]
        decodes = [one.step.decode_tokens for one in made if one.step.decode_tokens]
        waits = [(one.gap_ns * one.step.decoding, one.step.given) for one in made if one.gap_ns is not None]
        tokens = sum(given for _, given in waits)
        late = sum(given for waited_ns, given in waits if waited_ns > given * itl_target_s * 1e9)
        itl_s = sum(waited_ns for waited_ns, _ in waits) / tokens * 1e-9 if tokens else None
        return Load(
            busy=_busy([one.step for one in made], since_ns, now_ns, self._under_way_ns()),
            slowdown=self.slowdown(now_ns),
            usual_since=self._model.established,
            step_prompt_tokens=sum(prompts) / len(prompts) if prompts else None,
            step_decode_tokens=sum(decodes) / len(decodes) if decodes else None,
            itl_s=itl_s,
            itl_late=late / tokens if tokens else None,
            room=self._room(made, itl_s, itl_target_s),
            fuller=self._fuller(made),
        )

    def _fuller(self, made: Sequence[_Made]) -> float | None:
        """What steps of the whole token budget do, of what such of half of it do; by what steps like the latest take."""
        steps = [one.step for one in made if one.step.prompt_tokens]
        if not steps or self.core is None:
            return None
        prompts = sum(step.prompt_tokens for step in steps)
        context = sum(step.context_tokens for step in steps) / prompts
        budget = self.core.max_batched_tokens
        whole, half = (self._model.estimate([(part, (context - 1) * part)], 0, 0) for part in (budget, budget / 2))
        return 2 * half[0] / whole[0] if whole and half else None

    def _room(self, made: Sequence[_Made], itl_s: float | None, target_s: float) -> float | None:
        """How many times what it decodes now it could decode in time, by what steps of other sizes take and KV holds; see ``_fits``."""
        decoded = [one.step for one in made if one.step.decode_tokens]
        if not decoded or itl_s is None:
            return None
        batch = [sum(figure) / len(decoded) for figure in zip(*map(_batch, decoded), strict=True)]
        now_s = self._estimate_s(*batch)
        if now_s is None:
            return None

        def itl_at(times: float) -> float:
            times = max(times, 1 / batch[1])  # of a single sequence at least
            return itl_s * (self._estimate_s(*(times * figure for figure in batch)) or now_s) / now_s

        return _fits(itl_at, itl_s, target_s, self._holds(decoded))

    def _holds(self, decoded: Sequence[Step]) -> float:
        """How many times as large a batch KV has room for."""
        blocks = self.core.kv_blocks if self.core is not None else 0
        used = 1 - sum(step.kv_free for step in decoded) / len(decoded) / blocks if blocks else 0.0
        return max(1.0, min(_MOST_ROOM, _FULL / used)) if used > 0 else _MOST_ROOM

    def _estimate_s(
        self, prompt_tokens: float, decode_tokens: float, context_tokens: float, attended: float = 0.0
    ) -> float | None:
        """Of a batch of any size; its prompts are taken together."""
        before = max(0.0, attended / prompt_tokens - prompt_tokens / 2) if prompt_tokens else 0.0
        chunks = [(prompt_tokens, before)] if prompt_tokens else []
        found = self._model.estimate(chunks, decode_tokens, max(0.0, context_tokens - prompt_tokens - before))
        return found[0] if found is not None else None

    def slowdown(self, now_ns: int | None = None) -> float | None:
        """What the latest steps took, of what such steps take. None where too few of them were seen before, unless those that were not took
        longer than any error of an estimate can explain: then, how many times as long at least.

        ``now_ns``: with one that is under way, once it should have been over for long.
        """
        taken_s, should_s = self._overdue(now_ns) if now_ns is not None else (0.0, 0.0)
        if self._like.known or should_s:
            return (self._like.took_s + taken_s) / (self._like.should_s + should_s)
        slower = self._unlike.known and not self._unlike.is_well
        return self._unlike.took_s / self._unlike.should_s if slower else None

    def _overdue(self, now_ns: int) -> tuple[float, float]:
        """Of the step under way: for how long it is, and how long it should take; 0 where nobody knows, or it may still be in time."""
        began_ns = self._under_way_ns()
        if began_ns is None:
            return 0.0, 0.0
        taken_s = (now_ns - began_ns) * 1e-9
        should_s = self._estimate_s(*_batch(self._began[0]))
        late = should_s is not None and taken_s >= max(_LATE_S, _OVERDUE * should_s)
        return (taken_s, should_s or 0.0) if late else (0.0, 0.0)

    def _under_way_ns(self) -> int | None:
        """Since when a long step is. Where it was scheduled before the last one was over, it began when that was."""
        if not self._began:
            return None
        at_ns = self._began[0].at_ns
        return max(at_ns, self.last_step.end_ns) if self.last_step else at_ns

    @property
    def slow_from_the_start(self) -> bool:
        """By its calibration, against its like."""
        return self.calibrated is not None and (self.calibrated.against_like or 1.0) > SLOW

    def teach(self) -> None:
        """Tell the model of the calibration once more: it has forgotten all."""
        for one in self.calibration:
            self._learn(one.step, one.seconds)

    def _add_step(self, step: Step, now_ns: int) -> None:
        batch = _batch(step)
        seconds = (step.end_ns - step.start_ns) * 1e-9
        expected_s = self._model.expected_s(*batch)
        gap_ns = None
        if step.decode_tokens:
            # Whoever decodes now has had its last token in the step before.
            gap_ns = step.end_ns - (step.start_ns if self._decoded_ns is None else self._decoded_ns)
        self._decoded_ns = step.end_ns
        self._made.append(_Made(now_ns, step, expected_s, gap_ns))
        self._count(step, 1)
        self.steps.add(step, seconds, expected_s)
        if self.calibrating:
            self.calibration.append(Made(step, None if self._model.young else expected_s))
        if expected_s is not None:
            self._like.add(now_ns, seconds, expected_s)
            self._usually_took_s = _FADES * self._usually_took_s + seconds
            self._usually_should_s = _FADES * self._usually_should_s + expected_s
        elif (most_s := self._model.at_most_s(*batch)) is not None:
            self._unlike.add(now_ns, seconds, most_s)
        self._forget(now_ns)
        if seconds > 0 and self._may_teach(now_ns):
            self._learn(step, seconds)

    def _learn(self, step: Step, seconds: float) -> None:
        self._model.learn(step.prompt_tokens, step.decode_tokens, step.context_tokens, seconds, step.attended)

    def _may_teach(self, now_ns: int) -> bool:
        """A fault must not be learnt as what is normal. (None makes steps quicker than they should be: what is quick is learnt.)"""
        if self._model.young:
            return not self.slow_from_the_start
        if self._usually_took_s > WELL * self._usually_should_s or not self._like.is_well:
            return False
        if self._like.known or self._unlike.is_well:
            self._doubted_ns = None
            return True
        self._doubted_ns = now_ns if self._doubted_ns is None else self._doubted_ns
        return now_ns - self._doubted_ns > _DOUBTED_NS  # if it goes on, it is the estimate that is wrong

    def _count(self, step: Step, sign: int) -> None:
        """It comes into the window, or with sign −1 leaves it."""
        self._prompt_tokens += sign * step.prompt_tokens
        self._output_tokens += sign * step.given
        self._busy_ns += sign * (step.end_ns - step.start_ns)

    def _forget(self, now_ns: int) -> None:
        while self._made and (now_ns - self._made[0].heard_ns > WINDOW_NS or len(self._made) > _MOST_STEPS):
            self._before = self._made.popleft().step
            self._count(self._before, -1)
        self._like.forget(now_ns)
        self._unlike.forget(now_ns)


def _batch(step: Step | StepBegan) -> tuple[int, int, int, int]:
    return step.prompt_tokens, step.decode_tokens, step.context_tokens, step.attended


def _fits(itl_at: Callable[[float], float], itl_s: float, target_s: float, most: float) -> float:
    """The largest rate, in times of the present one, at which tokens are in time, of batches at most ``most`` times as large as now.

    ``itl_at``: of a batch so many times as large as now. A batch is as large as the rate times how long a request takes, so a batch that is
    k times as large and whose steps take m times as long means k / m times the rate.
    """
    if itl_at(0.0) > target_s:
        return 0.0
    low, high = 0.0, most
    for _ in range(12):  # halvings
        middle = (low + high) / 2
        low, high = (middle, high) if itl_at(middle) <= target_s else (low, middle)
    return low * itl_s / max(itl_at(low), 1e-9)


def _busy(steps: Sequence[Step], since_ns: int, now_ns: int, began_ns: int | None) -> float:
    """Share of the time in steps. Of those under way only long ones are told, from ``began_ns`` on; where none is, another one may be:
    until that should be over, only what lies before it counts.
    """
    made_ns = sum(step.end_ns - max(step.start_ns, since_ns) for step in steps)
    if began_ns is not None:
        return min(1.0, (made_ns + now_ns - max(began_ns, since_ns)) / (now_ns - since_ns))
    if not steps:
        return 0.0
    last = steps[-1]
    short_ns = [step.end_ns - step.start_ns for step in steps[-5:] if step.prompt_tokens < LONG_STEP_TOKENS]
    under_way = now_ns - last.end_ns < 1.5 * max(short_ns, default=0)
    return min(1.0, made_ns / max(1, (last.end_ns if under_way else now_ns) - since_ns))


def _hit_rate(before: Step | None, last: Step) -> float | None:
    """Steps carry totals since the engine's start, which were 0 then."""
    queries = last.prefix_queries - (before.prefix_queries if before else 0)
    return (last.prefix_hits - (before.prefix_hits if before else 0)) / queries if queries > 0 else None
