"""Requests whose answer has begun in the last seconds: how long that took, and where the time went."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from appliance.records import BRIEF_S, LATELY_S, STAGES, Lately, Stage, is_clients_own

if TYPE_CHECKING:
    from appliance.telemetry.timeline import Trace

_NS: Final = 1e-9
_WINDOW_NS: Final = int(LATELY_S * 1e9)
_BRIEF_NS: Final = int(BRIEF_S * 1e9)
_LONG: Final = 8  # times the usual prompt
_LONG_KEPT: Final = 64
_FEW_ARE_LONG: Final = 0.9  # of prompts are not
_ENOUGH: Final = 20  # prompts, to say which length is usual
_KEPT: Final = 300  # of them, the newest: enough for a mean
_MOST_ENDED: Final = 3000  # they are counted: a thousand per second


class OfEngine(msgspec.Struct, kw_only=True):
    """What requests' times tell of one engine; see ``records.EngineSnapshot``."""

    api_delay_s: float | None = None
    intake_s: float | None = None
    long_prompt_tokens: int | None = None


class Begun:
    """Told of each, in order of time."""

    def __init__(self) -> None:
        self._traces: deque[tuple[int, Trace]] = deque(maxlen=_KEPT)
        self._prompts: deque[int] = deque(maxlen=_KEPT)
        self._usual: int | None = None  # tokens of a prompt, median
        self._long: deque[Trace] = deque(maxlen=_LONG_KEPT)
        self._ended: deque[tuple[int, Trace]] = deque(maxlen=_MOST_ENDED)

    def scheduled(self, trace: Trace) -> None:
        """An engine has begun with a prompt."""
        if trace.prompt_tokens and self._usual and trace.prompt_tokens >= _LONG * self._usual:
            self._long.append(trace)

    def add(self, trace: Trace, now_ns: int) -> None:
        self._traces.append((now_ns, trace))
        if trace.prompt_tokens:
            self._prompts.append(trace.prompt_tokens)

    def ended(self, trace: Trace, now_ns: int) -> None:
        """Who left, and who was refused for what he had asked, says nothing of the node."""
        if trace.outcome != "cancelled" and not is_clients_own(trace.status):
            self._ended.append((now_ns, trace))

    def lately(self, now_ns: int, ttft_target_s: float, itl_target_s: float = math.inf) -> Lately:
        """Means, and the shares that came late and that met both targets."""
        traces = self._recent(now_ns)
        ended = _within(self._ended, now_ns)
        met = [(trace, _good(trace, ttft_target_s, itl_target_s)) for trace in ended]
        brief = [good for trace, good in met if (trace.total_ns or 0) <= _BRIEF_NS]
        answers = Lately(
            first_tokens=0,
            ended=len(ended),
            good=sum(good for _, good in met) / len(met) if met else None,
            brief=len(brief),
            brief_missed=1 - sum(brief) / len(brief) if brief else None,
        )
        ttfts = [trace.ttft_ns * _NS for trace in traces if trace.ttft_ns is not None]
        if not ttfts:
            return answers
        prompts = [trace.prompt_tokens for trace in traces if trace.prompt_tokens]
        if len(self._prompts) >= _ENOUGH:
            ordered = sorted(self._prompts)
            middle, large = ordered[len(ordered) // 2], ordered[int(_FEW_ARE_LONG * len(ordered))]
            self._usual = middle if large < _LONG * middle else None  # where many are long, none is unusual
        late = [trace for trace in traces if (trace.ttft_ns or 0) * _NS > ttft_target_s and trace not in self._long]
        waited_ns = sum(end - begin for begin, end in map(_wait, late))
        behind_ns = sum(self._behind_ns(trace, now_ns) for trace in late)
        long = [trace.prompt_tokens for trace in self._long if trace.prompt_tokens]
        sums: dict[str, float] = {}
        for trace in traces:
            for stage in trace.stages(now_ns):
                sums[stage.name] = sums.get(stage.name, 0.0) + stage.duration_s
        return msgspec.structs.replace(
            answers,
            first_tokens=len(traces),
            ttft_late=sum(ttft > ttft_target_s for ttft in ttfts) / len(ttfts),
            ttft_s=sum(ttfts) / len(ttfts),
            stages=tuple(Stage(name, sums[name] / len(traces)) for name in STAGES if name in sums),
            prompt_tokens=sum(prompts) / len(prompts) if prompts else None,
            behind_long=behind_ns / waited_ns if waited_ns else None,
            long_tokens=sum(long) / len(long) if long else None,
        )

    def _behind_ns(self, trace: Trace, now_ns: int) -> int:
        """Of its wait, while the engine that it waited for computed a prompt many times as long as is usual."""
        begin, end = _wait(trace)
        engine = trace.prefill_engine or trace.decode_engine
        spells = [_prefill(one, now_ns) for one in self._long if engine == (one.prefill_engine or one.decode_engine)]
        return min(end - begin, sum(max(0, min(end, until) - max(begin, since)) for since, until in spells))

    def of_engines(self, now_ns: int) -> dict[str, OfEngine]:
        """By name, of those of which there is something to tell."""
        found: dict[str, OfEngine] = {}
        for engine, delay_s in self.api_delays(now_ns).items():
            found.setdefault(engine, OfEngine()).api_delay_s = delay_s
        for engine, intake_s in self.api_intakes(now_ns).items():
            found.setdefault(engine, OfEngine()).intake_s = intake_s
        for engine, tokens in self.long_prompts(now_ns).items():
            found.setdefault(engine, OfEngine()).long_prompt_tokens = tokens
        return found

    def long_prompts(self, now_ns: int) -> dict[str, int]:
        """By engine, tokens of the longest prompt that it computed, of those many times as long as is usual."""
        found: dict[str, int] = {}
        for trace in self._long:
            engine = trace.prefill_engine or trace.decode_engine
            if engine and trace.prompt_tokens and now_ns - _prefill(trace, now_ns)[1] <= _WINDOW_NS:
                found[engine] = max(found.get(engine, 0), trace.prompt_tokens)
        return found

    def api_delays(self, now_ns: int) -> dict[str, float]:
        """By engine, mean seconds in its API process: from a first token, or from a prompt's KV, to the answer that tells of it."""
        found: dict[str, list[float]] = {}
        for trace in self._recent(now_ns):
            marks = trace.marks
            if trace.stream and trace.decode_engine and marks.made is not None and marks.first_token is not None:
                found.setdefault(trace.decode_engine, []).append(max(0, marks.first_token - marks.made) * _NS)
            if trace.split and trace.prefill_engine and marks.kept is not None and marks.prefilled is not None:
                found.setdefault(trace.prefill_engine, []).append(max(0, marks.prefilled - marks.kept) * _NS)
        return {engine: sum(delays) / len(delays) for engine, delays in found.items()}

    def api_intakes(self, now_ns: int) -> dict[str, float]:
        """By engine, mean seconds from when a decode leg was sent until its engine did something about it."""
        found: dict[str, list[float]] = {}
        for trace in self._recent(now_ns):
            marks = trace.marks
            heard = marks.decode_scheduled if marks.pull_began is None else marks.pull_began
            if trace.decode_engine and marks.decode_sent is not None and heard is not None:
                found.setdefault(trace.decode_engine, []).append(max(0, heard - marks.decode_sent) * _NS)
        return {engine: sum(times) / len(times) for engine, times in found.items()}

    def _recent(self, now_ns: int) -> list[Trace]:
        return _within(self._traces, now_ns)


def _within(traces: deque[tuple[int, Trace]], now_ns: int) -> list[Trace]:
    """Those of the last seconds; the others are forgotten."""
    while traces and now_ns - traces[0][0] > _WINDOW_NS:
        traces.popleft()
    return [trace for _, trace in traces]


def _good(trace: Trace, ttft_target_s: float, itl_target_s: float) -> bool:
    """Answered, the first token in time, and those after it, in the mean; of an answer in one piece nobody sees these."""
    if trace.outcome != "ok" or trace.ttft_ns is None or trace.ttft_ns * _NS > ttft_target_s:
        return False
    after = trace.output_chunks - 1
    if not trace.stream or after < 1 or trace.total_ns is None:
        return True
    return (trace.total_ns - trace.ttft_ns) * _NS <= itl_target_s * after


def _wait(trace: Trace) -> tuple[int, int]:
    """From its arrival until an engine began with it."""
    marks = trace.marks
    return marks.arrived, marks.arrived if marks.scheduled is None else max(marks.arrived, marks.scheduled)


def _prefill(trace: Trace, now_ns: int) -> tuple[int, int]:
    """While an engine computed its prompt; of one that was given up before that was done, until it was."""
    marks = trace.marks
    until = now_ns if trace.total_ns is None else marks.arrived + trace.total_ns
    begun = until if marks.scheduled is None else marks.scheduled
    done = marks.kept or marks.made or marks.first_token or until
    return begun, max(begun, done)
