"""Requests whose answer has begun in the last seconds: how long that took, and where the time went."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from appliance.records import LATELY_S, STAGES, Lately, Stage

if TYPE_CHECKING:
    from appliance.telemetry.timeline import Trace

_NS: Final = 1e-9
_WINDOW_NS: Final = int(LATELY_S * 1e9)
_KEPT: Final = 300  # of them, the newest: enough for a mean


class Begun:
    """Told of each, in order of time."""

    def __init__(self) -> None:
        self._traces: deque[tuple[int, Trace]] = deque(maxlen=_KEPT)

    def add(self, trace: Trace, now_ns: int) -> None:
        self._traces.append((now_ns, trace))

    def lately(self, now_ns: int, ttft_target_s: float) -> Lately:
        """Means, and the share that came late."""
        traces = self._recent(now_ns)
        ttfts = [trace.ttft_ns * _NS for trace in traces if trace.ttft_ns is not None]
        if not ttfts:
            return Lately(first_tokens=0)
        prompts = [trace.prompt_tokens for trace in traces if trace.prompt_tokens]
        sums: dict[str, float] = {}
        for trace in traces:
            for stage in trace.stages(now_ns):
                sums[stage.name] = sums.get(stage.name, 0.0) + stage.duration_s
        return Lately(
            first_tokens=len(traces),
            ttft_late=sum(ttft > ttft_target_s for ttft in ttfts) / len(ttfts),
            ttft_s=sum(ttfts) / len(ttfts),
            stages=tuple(Stage(name, sums[name] / len(traces)) for name in STAGES if name in sums),
            prompt_tokens=sum(prompts) / len(prompts) if prompts else None,
        )

    def api_delays(self, now_ns: int) -> dict[str, float]:
        """By the engine that answered: seconds from its first token to that token's bytes, mean."""
        found: dict[str, list[float]] = {}
        for trace in self._recent(now_ns):
            marks, engine = trace.marks, trace.decode_engine
            if trace.stream and engine and marks.made is not None and marks.first_token is not None:
                found.setdefault(engine, []).append(max(0, marks.first_token - marks.made) * _NS)
        return {engine: sum(delays) / len(delays) for engine, delays in found.items()}

    def _recent(self, now_ns: int) -> list[Trace]:
        while self._traces and now_ns - self._traces[0][0] > _WINDOW_NS:
            self._traces.popleft()
        return [trace for _, trace in self._traces]
