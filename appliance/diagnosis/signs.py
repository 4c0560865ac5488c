"""What a window of snapshots comes to: the few figures that causes are told by. Pure; ``readings.py`` makes them."""

from __future__ import annotations

from typing import Final

import msgspec

from appliance.records import EngineSnapshot, EngineState, NodeSnapshot

TREND_S: Final = 6.0  # in which a queue has to grow
AT: Final = 0.985  # of the target: where engines are on average, answers are on both sides of
_SERVING: Final = (EngineState.READY, EngineState.DRAINING, EngineState.SUSPECT)
_API_FULL: Final = 0.7
ALLOWED: Final = 0.02  # to be late, whatever is asked for
_AFTER: Final = ("handoff_wait", "transfer", "decode_wait", "first_step")


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, over the last moments."""

    now: EngineSnapshot
    busy: float  # 0 to 1
    slowdown: float  # 1.0 where it is not known
    slowdown_before: float  # mean over the last seconds; 1.0 where it is not known
    kv: float
    kv_most: float  # of the last half minute
    waiting: float
    running: float
    fetching: float
    gathers_s: float  # requests per second by which those in it become more, over the last seconds
    busy_before: float  # over the last half minute
    full: bool  # as many run as there are places
    preemptions_s: float
    itl_s: float  # mean; 0 where it decodes nothing
    itl_now_s: float  # over a shorter time
    longest_prompt: (
        float  # tokens, in the time over which its pace is told; 0 without one many times as long as is usual
    )
    hits: float | None  # of the prefix cache
    hits_before: float | None  # at its best
    found_s: float | None  # prompt tokens per second that it finds there
    found_before_s: float | None  # at its best
    gpu_trouble: str | None  # in words
    core_delay: float  # of the time, in which others had its core
    throttled: float  # its control group had used up its quota
    api_delay_s: float
    intake_s: (
        float  # from when a decode leg was sent until something was done about it; 0 where it may have waited for room
    )
    api_busy: float
    api_starved: float  # of the time; part of ``api_busy``
    room_now: float | None  # times what it decodes that it could decode in time, over the spell that its pace is of
    room: float | None  # the same, when it had least in the last half minute; None where it is not known
    outstanding: float  # prompt tokens
    prompt_tokens_s: float
    output_tokens_s: float

    @property
    def name(self) -> str:
        return self.now.name

    @property
    def prefills(self) -> bool:
        return self.now.role.prefills

    @property
    def decodes(self) -> bool:
        return self.now.role.decodes

    @property
    def serves(self) -> bool:
        return self.now.state in _SERVING

    @property
    def api_full(self) -> bool:
        """Its API process has something to do nearly all of the time."""
        return self.serves and self.api_busy >= _API_FULL

    @property
    def stage(self) -> str:
        """That it is first of all there for."""
        return "prefill" if self.prefills else "decode"

    @property
    def takes(self) -> bool:
        """New work."""
        return self.now.state is EngineState.READY


class Signs(msgspec.Struct, frozen=True, kw_only=True):
    """The node, over the last moments."""

    now: NodeSnapshot
    engines: tuple[Engine, ...]
    firsts: tuple[
        tuple[int, float], ...
    ]  # first tokens of ever more of the last seconds, and the share of them that was late
    ttft_late: float  # share of those of the last seconds, of more of these where there were few
    ttft_late_now: float  # of fewer: to see that it is over
    answers: tuple[tuple[int, float], ...]  # the same of brief answers that ended, and the share that missed a target
    missed: float  # share of the answers of the last seconds, of more where there were few
    missed_now: float  # of fewer: to see that it is over
    waits_too_long: bool  # the oldest in the queue is over the target already
    itl_late: float  # share of output tokens, of engines whose tokens take longer than the target in the mean: one gap is no pace
    itl_late_now: float  # over a shorter time: to see that it is over
    failing: float  # share of requests that failed, and not for what clients had asked
    failed: int
    ended_s: float  # requests per second, over the last seconds
    arrivals_s: float
    arrivals_before_s: float | None
    queue: float
    queue_growth_s: float  # per second
    stages: dict[str, float]  # mean seconds of the requests whose first token came lately
    behind_long: float  # of the time that late ones waited to be prefilled, the share behind a few very long prompts
    prompt_tokens: float | None  # of a request, mean
    prompt_tokens_before: float | None
    split: bool
    supervisor_busy: float  # of one core
    loop_delay_s: float  # of the supervisor's event loop

    def is_behind(self, engine: Engine) -> bool:
        """Its tokens come later than the target, or so little earlier that those of many answers do."""
        return engine.itl_s > limit_s(engine, self.now, AT)

    @property
    def is_of_pace(self) -> bool:
        """Answers miss their targets, and it is not their first tokens that do."""
        return self.missed > ALLOWED and self.missed > 2 * self.ttft_late

    @property
    def waits_after_prefill(self) -> float:
        """Share of the time to the first token, from when a prompt's KV is there until a decode engine has made a step."""
        return sum(self.stages.get(name, 0.0) for name in _AFTER) / (sum(self.stages.values()) or 1.0)

    @property
    def prefill(self) -> list[Engine]:
        """Those that prefill what comes."""
        return [engine for engine in self.engines if engine.prefills and engine.takes]

    @property
    def decode(self) -> list[Engine]:
        """Those that decode what comes."""
        return [engine for engine in self.engines if engine.decodes and engine.takes]

    @property
    def resting(self) -> list[Engine]:
        """Those that somebody has told to take no new work."""
        return [engine for engine in self.engines if engine.now.state is EngineState.DRAINING]


def limit_s(engine: Engine, now: NodeSnapshot, share: float) -> float:
    """Of its pace. Where prompts come between tokens it goes up and down by itself, and answers are nearer to each other than it is."""
    return (1.0 if engine.prefills and engine.decodes else share) * now.slo_itl_s
