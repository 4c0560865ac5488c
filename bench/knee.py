"""``make bench-knee``: the smallest batch that saturates an engine, estimated, against brute force.

    python -m bench.knee                                  # simulated: the truth is known from the cost model
    python -m bench.knee --url http://127.0.0.1:8000      # a node that runs: dense and slow brute force against ``pd-appliance tune``

Simulated engines' steps have noise, drift, stumbles and interference that the estimate knows nothing of. In the same table is the bend of
the textbook's max(a, b·n), from the same sweep, and what ordinary traffic of a scenario tells without any sweep, and when.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from appliance.channel import Step, Up
from appliance.cli import tune
from appliance.cli.ask import URL, ask
from appliance.costs import knee
from appliance.costs.gpus import gpu
from appliance.costs.huggingface import read
from appliance.costs.knee import Knee, StepSeen
from appliance.costs.roofline import Batch, Roofline
from appliance.simulator.clock import VirtualClock
from appliance.simulator.leg import Work
from appliance.simulator.node import SimulatedNode
from appliance.simulator.physics import Physics, RooflineCost
from appliance.simulator.scenario import BLOCK_TOKENS, Loaded, config, load, plans
from appliance.simulator.traces import Arrival
from appliance.simulator.traffic import arrivals
from appliance.telemetry.steps import Steps
from bench.servers import ROOT

_MODELS: Final = ROOT / "appliance" / "presets"
_CASES: Final = (
    ("llama-3.3-70b-fp8", "h100", 2),
    ("llama-3.3-70b-fp8", "h200", 1),
    ("llama-3.3-70b-fp8", "h200", 4),
    ("llama-3.3-70b-nvfp4", "b200", 1),
    ("gpt-oss-120b", "h100", 1),
    ("gpt-oss-120b", "h100", 4),
    ("gpt-oss-120b", "b200", 1),
)
_SIZES: Final = tuple(round(16 * 2 ** (place / 2)) for place in range(21))
_EACH: Final = 20
_LOOK_S: Final = 5.0  # of a scenario's time, between two tries
_LONGEST_S: Final = 300.0


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep of one engine."""

    truth: float
    found: Knee | None
    bend: float  # nine tenths of a/b of max(a, b·n)
    took_s: float  # of the engine's time

    @property
    def error(self) -> float | None:
        return None if self.found is None else self.found.tokens / self.truth - 1

    @property
    def covered(self) -> bool:
        return self.found is not None and self.found.low <= self.truth <= self.found.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help=f"of a node that runs, e.g. {URL}")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the sweep over a node")
    options = parser.parse_args()
    console = Console(width=150)
    if options.url:
        console.print(_of_node(options.url, options.seconds))
        return
    console.print(_of_sweeps(options.seeds))
    console.print(_of_traffic())


# ---- simulated, swept


def _of_sweeps(seeds: int) -> Table:
    table = Table(title=f"SIMULATED: sweeps of {len(_SIZES)} sizes, {_EACH} steps of each, {seeds} seeds")
    for head in (
        "model",
        "GPUs",
        "truth",
        "found, first seed",
        "95 %",
        "|error| p50",
        "worst",
        "in interval",
        "max(a, b·n)",
        "sweep",
    ):
        table.add_column(head, justify="left" if head == "model" else "right")
    errors: list[float] = []
    for name, kind, tp in _CASES:
        sweeps = [_sweep(Roofline(read(_MODELS / name), gpu(kind), tp), seed) for seed in range(seeds)]
        mine = [abs(one.error) for one in sweeps if one.error is not None]
        errors += mine
        first = sweeps[0].found
        table.add_row(
            name,
            f"{tp} × {kind}",
            f"{sweeps[0].truth:,.0f}",
            f"{first.tokens:,}" if first else "—",
            f"{first.low:,}–{first.high:,}" if first else "—",
            f"{statistics.median(mine):.1%}" if mine else "—",
            f"{max(mine):.1%}" if mine else "—",
            f"{sum(one.covered for one in sweeps)} of {len(sweeps)}",
            f"{statistics.median(one.bend / one.truth - 1 for one in sweeps):+.0%}",
            f"{statistics.median(one.took_s for one in sweeps):.0f} s",
        )
    table.caption = f"all: |error| p50 {statistics.median(errors):.1%}, worst {max(errors):.1%}, {len(errors)} sweeps"
    return table


def _sweep(line: Roofline, seed: int) -> Sweep:
    physics, chance = Physics(RooflineCost(line), f"sweep {seed}"), random.Random(seed)
    began_ns = now_ns = seed * 70_000_000_000
    sizes = list(_SIZES) * _EACH
    chance.shuffle(sizes)
    seen = []
    for size in sizes:
        took_ns = physics.step_ns(Work([(size, 0)], size, size), now_ns)
        now_ns += took_ns
        seen.append(StepSeen(size, 0, size, took_ns * 1e-9))
    return Sweep(
        truth=brute_force(lambda tokens: line.step(Batch([(tokens, 0)])).total_s, _SIZES[-1]),
        found=knee.find(seen, chance),
        bend=_bend(seen),
        took_s=(now_ns - began_ns) * 1e-9,
    )


def brute_force(seconds: Callable[[float], float], most: float) -> float:
    """Every size tried, a 64th of an octave apart, without noise."""
    rates, size = {}, float(_SIZES[0])
    while size <= most:
        rates[size] = size / seconds(size)
        size *= 2 ** (1 / 64)
    return min(size for size, rate in rates.items() if rate >= knee.SATURATED * max(rates.values()))


def _bend(seen: Sequence[StepSeen]) -> float:
    """Where max(a, b·n) has nine tenths of its rate, a and b by least squares on relative errors of medians."""
    sizes = sorted({step.prompt_tokens for step in seen})
    medians = {size: statistics.median(one.seconds for one in seen if one.prompt_tokens == size) for size in sizes}

    def fit(split: int) -> tuple[float, float, float]:
        flat, rising = sizes[:split], sizes[split:]
        a = sum(1 / medians[size] for size in flat) / sum(1 / medians[size] ** 2 for size in flat)
        b = sum(size / medians[size] for size in rising) / sum((size / medians[size]) ** 2 for size in rising)
        return sum((max(a, b * size) / medians[size] - 1) ** 2 for size in sizes), a, b

    _, a, b = min(fit(split) for split in range(1, len(sizes)))
    return knee.SATURATED * a / b


# ---- simulated, ordinary traffic


def _of_traffic() -> Table:
    table = Table(title="SIMULATED: what ordinary traffic tells, without a sweep; the first engine that prefills")
    for head in ("scenario", "truth", "found", "95 %", "error", "known after", "else"):
        table.add_column(head, justify="left" if head in ("scenario", "else") else "right")
    for path in sorted((ROOT / "examples" / "scenarios").glob("*.toml")):
        table.add_row(path.stem, *_watched(load(path)))
    table.caption = "truth: of single fresh prompts; prompts that share a step attend to less"
    return table


def _watched(loaded: Loaded) -> tuple[str, ...]:
    """A scenario played until its knee is known."""
    scenario, clock = loaded.scenario, VirtualClock()
    planned = plans(loaded, scenario.layout)
    first = next(plan for plan in planned if plan.role.prefills)
    node, steps, origin_ns = SimulatedNode(config(scenario), planned, clock, lambda _: None), Steps(), clock.now_ns

    def fold(engine: str, epoch: int, message: Up) -> None:
        if engine == first.name and isinstance(message, Step):
            steps.add(message, (message.end_ns - message.start_ns) * 1e-9, None)

    node.on_message = fold
    _feed(node, arrivals(scenario.traffic, scenario.seed, _LONGEST_S, BLOCK_TOKENS, loaded.directory))
    line = Roofline(first.shape, gpu(first.gpu), first.tensor_parallel)
    truth = brute_force(lambda tokens: line.step(Batch([(tokens, 0)])).total_s, first.settings.max_batched_tokens)
    for turn in range(1, int(_LONGEST_S / _LOOK_S) + 1):
        clock.run(origin_ns + int(turn * _LOOK_S * 1e9))
        found = knee.find(steps.of_all_sizes(), random.Random(1))
        if found is not None:
            told = (f"{found.tokens:,}", f"{found.low:,}–{found.high:,}", f"{found.tokens / truth - 1:+.1%}")
            return (f"{truth:,.0f}", *told, f"{turn * _LOOK_S:.0f} s", "")
    return (f"{truth:,.0f}", "—", "—", "—", "—", knee.missing(steps.of_all_sizes()) or "")


def _feed(node: SimulatedNode, coming: Iterator[Arrival]) -> None:
    """Each arrival asks for the next one."""
    clock, origin_ns = node.clock, node.clock.now_ns

    def next_one() -> None:
        arrival = next(coming, None)
        if arrival is not None:
            clock.at(origin_ns + int(arrival[0] * 1e9), partial(come, arrival))

    def come(arrival: Arrival) -> None:
        node.ask(arrival[1])
        next_one()

    next_one()


# ---- a node that runs


def _of_node(url: str, seconds: float) -> Table:
    """``tune`` first, then brute force: sizes an eighth of an octave apart, ten steps of each, medians of these, and of five neighbours."""
    tuned = tune.measured(url, seconds, None)
    node = ask(url, "GET", "api", "node")
    engines, budget = tune._engines(node)
    most, chance = max(size for size, _, _ in tuned.sizes), random.Random()
    sizes = sorted({min(most, round(16 * 2 ** (place / 8))) for place in range(8 * 14)})
    last = {engine.name: tune._number(url, engine.name) for engine in engines}
    began_s, seen = time.monotonic(), list[StepSeen]()
    for _ in range(10):
        for size in chance.sample(sizes, len(sizes)):
            tune._prompt(url, node["model"], size, chance)
        for engine in engines:
            seen += tune._told(url, engine.name, last)
    medians = [(size, size / took_s) for size, took_s, _ in tune._sizes(seen) if size in sizes]
    rates = {
        size: statistics.median(rate for _, rate in medians[max(0, place - 2) : place + 3])
        for place, (size, _) in enumerate(medians)
    }
    truth = min(size for size, rate in rates.items() if rate >= knee.SATURATED * max(rates.values()))
    table = Table(
        title=f"{'SIMULATED: ' if tuned.simulated else ''}{tuned.model}, up to {most:,} tokens per step (budget {budget:,})"
    )
    for head in ("brute force", "it took", "found", "95 %", "error", "it took"):
        table.add_column(head, justify="right")
    took = f"{time.monotonic() - began_s:.0f} s"
    if tuned.knee is None:
        table.add_row(f"{truth:,}", took, "—", tuned.missing or "", "—", f"{tuned.seconds:.0f} s")
        return table
    found = tuned.knee
    told = (f"{found.tokens:,}", f"{found.low:,}–{found.high:,}", f"{found.tokens / truth - 1:+.1%}")
    table.add_row(f"{truth:,}", took, *told, f"{tuned.seconds:.0f} s")
    return table


if __name__ == "__main__":
    main()
