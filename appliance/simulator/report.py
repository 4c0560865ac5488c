"""What a simulated run comes to."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from appliance.channel import FirstToken, Step, Up
from appliance.simulator.clock import VirtualClock
from appliance.simulator.node import SimulatedNode
from appliance.simulator.request import Answered
from appliance.simulator.scenario import Loaded, check, config, misfortunes, plans
from appliance.simulator.traces import Arrival
from appliance.simulator.traffic import arrivals
from appliance.supervisor.topology import parse
from appliance.telemetry.timeline import percentile

_COLLECTED_AFTER: Final = 200_000  # objects
_GAP_NS: Final = 100_000  # gaps are counted in steps of so much


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One layout under one traffic. Simulated, all of it; None where there was nothing to measure."""

    layout: str
    gpus: int
    requests: int  # that came after the warm-up and are over
    failed: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    itl_p99_s: float | None
    output_tokens_s: float
    output_tokens_s_gpu: float
    good: float | None  # share that met both targets, of those that are over or have missed the first one already
    goodput_s: float  # of them, per second
    busy: dict[str, float]  # share of the time in which an engine made steps
    ttft_s: float | None  # means
    tpot_s: float | None
    unfinished: int  # still under way at the end
    ttft_by_time: tuple[float | None, ...]  # medians, of equal parts of the run


class Meter:
    """Collects what engines say and what clients get."""

    def __init__(self, begin_ns: int, end_ns: int) -> None:
        self.begin_ns, self.end_ns = begin_ns, end_ns
        self.answered: list[Answered] = []
        self.tokens = 0
        self.busy_ns: dict[str, int] = {}
        self._last_ns: dict[str, int] = {}
        self._gaps: dict[int, int] = {}  # tokens, by how many ``_GAP_NS`` after the one before they came

    def answer(self, answered: Answered) -> None:
        if answered.arrived_ns >= self.begin_ns:
            self.answered.append(answered)

    def message(self, engine: str, epoch: int, message: Up) -> None:
        if isinstance(message, FirstToken) and message.at_ns >= self.begin_ns:
            self.tokens += 1
        if not isinstance(message, Step) or message.end_ns < self.begin_ns:
            return
        self.busy_ns[engine] = self.busy_ns.get(engine, 0) + message.end_ns - max(message.start_ns, self.begin_ns)
        self.tokens += message.decode_tokens
        # Whoever decodes now has had its last token in the step before.
        since_ns = self._last_ns.get(engine, message.start_ns)
        self._last_ns[engine] = message.end_ns
        if message.decode_tokens:
            gap = (message.end_ns - since_ns) // _GAP_NS
            self._gaps[gap] = self._gaps.get(gap, 0) + message.decode_tokens

    def itl_s(self, share: float) -> float | None:
        """So many of the gaps are at most so long."""
        left = share * sum(self._gaps.values())
        for gap, count in sorted(self._gaps.items()):
            left -= count
            if left <= 0:
                return gap * _GAP_NS * 1e-9
        return None


def run(loaded: Loaded, layout: str, *, quiet: bool = False) -> Result:
    """Simulate a layout under the scenario's traffic. Raises ``ConfigError`` for what can't be."""
    check(loaded, layout)
    scenario, clock = loaded.scenario, VirtualClock()
    origin_ns = clock.now_ns
    end_ns = origin_ns + int(scenario.duration_s * 1e9)
    meter = Meter(origin_ns + int(scenario.warmup_s * 1e9), end_ns)
    engines = plans(loaded, layout, quiet=quiet)
    node = SimulatedNode(config(scenario), engines, clock, meter.answer)
    node.on_message = meter.message
    _misfortunes(loaded, layout, node)
    block_tokens = engines[0].settings.block_tokens
    feed(
        clock,
        node,
        list(arrivals(scenario.traffic, scenario.seed, scenario.duration_s, block_tokens, loaded.directory)),
    )
    with _seldom_collected():
        clock.run(end_ns)
    return _result(loaded, layout, meter, node)


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """A simulation makes many objects and hardly a cycle of them: looking for those costs a tenth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECTED_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def feed(clock: VirtualClock, node: SimulatedNode, all_of_them: Sequence[Arrival]) -> None:
    """Each arrival asks for the next one, so that the clock's heap stays small."""
    origin_ns, coming = clock.now_ns, iter(all_of_them)

    def next_one() -> None:
        arrival = next(coming, None)
        if arrival is not None:
            clock.at(origin_ns + int(arrival[0] * 1e9), lambda: come(arrival))

    def come(arrival: Arrival) -> None:
        node.ask(arrival[1])
        next_one()

    next_one()


def _misfortunes(loaded: Loaded, layout: str, node: SimulatedNode) -> None:
    """Those of the scenario's layout."""
    clock = node.clock
    for one in misfortunes(loaded, layout):
        clock.at(clock.now_ns + int(one.at_s * 1e9), partial(node.fault, one.engine, one.begins))
        if one.until_s is not None:
            clock.at(clock.now_ns + int(one.until_s * 1e9), partial(node.fault, one.engine, one.ends))


def _result(loaded: Loaded, layout: str, meter: Meter, node: SimulatedNode) -> Result:
    slo = loaded.scenario.slo
    gpus = min(sum(place.tensor_parallel for place in parse(layout).places), loaded.scenario.hardware.gpus)
    seconds = (meter.end_ns - meter.begin_ns) * 1e-9
    done = [one for one in meter.answered if one.error is None]
    ttfts = sorted(one.ttft_ns for one in done if one.ttft_ns is not None)
    tpots = sorted(one.tpot_ns for one in done if one.tpot_ns is not None)
    good = [one for one in done if (one.ttft_ns or 0) <= slo.ttft_s * 1e9 and (one.tpot_ns or 0) <= slo.itl_s * 1e9]
    judged = len(meter.answered) + node.overdue(meter.begin_ns, int(slo.ttft_s * 1e9))
    queue = node.queue.snapshot(node.clock.now_ns, in_flight=0)
    return Result(
        layout=layout,
        gpus=gpus,
        requests=len(meter.answered),
        failed=len(meter.answered) - len(done),
        ttft_p50_s=percentile(ttfts, 0.5),
        ttft_p99_s=percentile(ttfts, 0.99),
        tpot_p50_s=percentile(tpots, 0.5),
        tpot_p99_s=percentile(tpots, 0.99),
        itl_p99_s=meter.itl_s(0.99),
        output_tokens_s=meter.tokens / seconds,
        output_tokens_s_gpu=meter.tokens / seconds / gpus,
        good=len(good) / judged if judged else None,
        goodput_s=len(good) / seconds,
        busy={name: busy_ns / (meter.end_ns - meter.begin_ns) for name, busy_ns in sorted(meter.busy_ns.items())},
        ttft_s=_mean_s(ttfts),
        tpot_s=_mean_s(tpots),
        unfinished=queue.depth + node.under_way,
        ttft_by_time=_by_time(done, meter),
    )


def _mean_s(values_ns: Sequence[int]) -> float | None:
    return sum(values_ns) / len(values_ns) * 1e-9 if values_ns else None


def _by_time(done: Sequence[Answered], meter: Meter, parts: int = 60) -> tuple[float | None, ...]:
    bins: list[list[int]] = [[] for _ in range(parts)]
    for one in done:
        if one.ttft_ns is not None:
            place = (one.arrived_ns - meter.begin_ns) * parts // (meter.end_ns - meter.begin_ns)
            bins[min(place, parts - 1)].append(one.ttft_ns)
    return tuple(percentile(sorted(values), 0.5) for values in bins)
