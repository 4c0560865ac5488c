"""``make bench-cost``: what telemetry and diagnosis take of a core, and what recording takes of an engine's steps.

    python -m bench.diagnosis_cost

Eight simulated engines serve under the virtual clock. All that they say goes as frames into a collector beside the simulation's own, with
the diagnoser, and every snapshot on to those who follow it in a supervisor. Each of these is timed by the process's CPU time, once the
diagnoser's window is full: while all is well, and while somebody is hurt, as then all causes are asked for. What engines pay is measured
by ``bench.recorder_cost``. Not in it: NVML, and the walk through the memory of engines' processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from appliance.channel import Fault, Frames, Step, Up, encode
from appliance.cli.forecast import Forecast
from appliance.config import Config
from appliance.costs.fitted import CopyModel, StepModel
from appliance.diagnosis.readings import WINDOW_S
from appliance.diagnosis.verdicts import Diagnoser
from appliance.incidents.keeper import Incidents
from appliance.records import EngineView, GpuSnapshot, HostReading, NodeSnapshot, Verdict
from appliance.simulator import words
from appliance.simulator.clock import VirtualClock
from appliance.simulator.node import SimulatedNode
from appliance.simulator.report import feed
from appliance.simulator.scenario import BLOCK_TOKENS, Loaded, config, plans
from appliance.simulator.traffic import arrivals
from appliance.telemetry.collector import Collector
from appliance.telemetry.host import Machine
from bench.diagnosis.nodes import NODES
from bench.diagnosis.play import MODELS, TICK_S
from bench.recorder_cost import Recorded

NODE: Final = NODES["gpt-oss 4p4d"]  # eight engines, with steps of a few milliseconds
MEASURED_S: Final = 40.0
SLOW: Final = Fault(kind="ecc", severity=0.9)
SLOW_ENGINE: Final = "e7"
BEFORE_S: Final = 15.0  # that it is slow before anything is measured
FOLDED, TICK, VERDICT = "steps, folded and learnt from", "snapshots", "verdicts"
INCIDENTS, PLANS = "incidents", "plans of other layouts"
TARGET: Final = 0.01  # of a core, for each engine


class Spent:
    """CPU seconds of this process, all threads, by what they went into. Counts while ``counts``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.counts = False

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """What is done within."""
        began_s, others_s = time.process_time(), sum(self.seconds.values())
        yield
        if self.counts:  # what was told of within is not told of twice
            spent_s = time.process_time() - began_s - (sum(self.seconds.values()) - others_s)
            self.seconds[what] = self.seconds.get(what, 0.0) + spent_s


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of a supervisor: shares of a core, for each engine."""

    parts: dict[str, float]
    steps_s: float  # of an engine
    verdict: str

    @property
    def whole(self) -> float:
        return sum(self.parts.values())


class Supervisor:
    """A simulated node, and a supervisor's collector beside it."""

    def __init__(self, hurt: bool, spent: Spent) -> None:
        self._clock, self._spent = VirtualClock(), spent
        self._origin_ns = self._clock.now_ns
        loaded = Loaded(NODE, MODELS)
        engines = plans(loaded, NODE.layout)
        self.config = config(NODE)
        self._node = SimulatedNode(self.config, engines, self._clock, lambda answered: None)
        self._node.on_message = self._hear
        self._said: list[tuple[str, int, bytes, int]] = []
        self._frames: Frames[Up] = Frames(Up)
        self._diagnoser = Diagnoser(NODE.slo.share)
        self.steps = 0
        self.collector = Collector(
            self.config,
            self._node,
            self._node,
            self._node.ledger,
            self._node.timelines,
            model_name="simulated",
            version="",
            hardware=_Hardware(self._node),
            kinds={plan.name: plan.kind for plan in engines},
            diagnose=self._diagnose,
            simulated=True,
            clock_ns=lambda: self._clock.now_ns,
            unix_s=lambda: self._clock.now_ns * 1e-9,
        )
        for plan in engines:  # which they said when nobody heard it
            self._hear(plan.name, self._node.views()[0].epoch, words.ready(plan.settings))
        seconds = WINDOW_S + MEASURED_S
        feed(self._clock, self._node, list(arrivals(NODE.traffic, 1, seconds, BLOCK_TOKENS, MODELS)))
        if hurt:
            at_ns = self._origin_ns + int((WINDOW_S - BEFORE_S) * 1e9)
            self._clock.at(at_ns, lambda: self._node.fault(SLOW_ENGINE, SLOW))

    def run(self) -> Iterator[NodeSnapshot]:
        """All ticks, of which the last ``MEASURED_S`` count."""
        for number in range(1, int((WINDOW_S + MEASURED_S) / TICK_S) + 1):
            self._clock.run(self._origin_ns + int(number * TICK_S * 1e9))
            self._spent.counts = number * TICK_S > WINDOW_S
            yield self._tick()

    def _tick(self) -> NodeSnapshot:
        said, self._said = self._said, []
        with self._spent.on(FOLDED):
            for engine, epoch, frame, now_ns in said:
                for message in self._frames.feed(frame):
                    self.collector.fold(engine, epoch, message, now_ns)
        with self._spent.on(TICK):
            return self.collector.diagnosed(self._clock.now_ns)

    def _diagnose(self, snapshot: NodeSnapshot) -> Verdict:
        with self._spent.on(VERDICT):
            return self._diagnoser(snapshot)

    def _hear(self, engine: str, epoch: int, message: Up) -> None:
        self._said.append((engine, epoch, encode(message), self._clock.now_ns))
        self.steps += self._spent.counts and isinstance(message, Step)


class _Hardware:
    """Simulated GPUs; of hosts it tells what is simulated too, once this machine's kernel was asked for the same of this process."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node, self._machine = node, Machine()

    def gpus(self) -> tuple[GpuSnapshot, ...]:
        return self._node.gpus()

    def host(self, view: EngineView) -> HostReading | None:
        self._machine.host(replace(view, pid=os.getppid(), core_pid=os.getpid()))
        return self._node.host(view)


class Replayed:
    """What was published, once more, for one who follows it: what is done between two snapshots is theirs."""

    def __init__(
        self, snapshots: Sequence[NodeSnapshot], learnt: tuple[StepModel, CopyModel], spent: Spent, what: str
    ) -> None:
        self._snapshots, self._learnt, self._spent, self._what = snapshots, learnt, spent, what
        self._over = asyncio.Event()

    def learnt(self, engine: str) -> tuple[StepModel, CopyModel]:
        """See ``Collector.learnt``."""
        return self._learnt

    async def updates(self) -> AsyncIterator[NodeSnapshot]:
        """See ``Collector.updates``; it ends."""
        for snapshot in self._snapshots:
            self._spent.counts = snapshot.uptime_s > WINDOW_S
            with self._spent.on(self._what):
                yield snapshot
        self._over.set()

    async def until_over(self, follower: Coroutine[Any, Any, None]) -> None:
        """Some would go on for ever."""
        task, over = asyncio.create_task(follower), asyncio.create_task(self._over.wait())
        await asyncio.wait((task, over), return_when=asyncio.FIRST_COMPLETED)
        for one in (task, over):
            one.cancel()
        await asyncio.gather(task, over, return_exceptions=True)


async def follow(
    config: Config, snapshots: Sequence[NodeSnapshot], learnt: tuple[StepModel, CopyModel], spent: Spent
) -> None:
    """Incidents, and plans."""
    incidents, plans = (Replayed(snapshots, learnt, spent, what) for what in (INCIDENTS, PLANS))
    with tempfile.TemporaryDirectory(prefix="pd-") as directory:
        await incidents.until_over(Incidents(config, Path(directory)).run(incidents.updates()))
    await plans.until_over(Forecast(plans, NODE.slo.share).run())


def supervisor(hurt: bool) -> Cost:
    """Play it."""
    spent = Spent()
    node = Supervisor(hurt, spent)
    snapshots = list(node.run())
    asyncio.run(follow(node.config, snapshots, node.collector.learnt(SLOW_ENGINE), spent))
    engines = len(snapshots[-1].engines)
    verdict = snapshots[-1].verdict
    return Cost(
        parts={what: seconds / MEASURED_S / engines for what, seconds in spent.seconds.items()},
        steps_s=node.steps / MEASURED_S / engines,
        verdict=verdict.state if verdict is not None else "",
    )


def recorder() -> Recorded:
    """In a process of its own."""
    command = [sys.executable, "-m", "bench.recorder_cost"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=900, cwd=Path(__file__).parents[1])
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Recorded)


def markdown(well: Cost, hurt: Cost, recorded: Recorded | None) -> str:
    """For docs/diagnosis.md."""
    lines = ["| of a core, for each engine | all is well | somebody is hurt |", "|---|---|---|"]
    lines += [f"| {what} | {well.parts[what]:.3%} | {hurt.parts[what]:.3%} |" for what in well.parts]
    lines += [f"| **all** (target {TARGET:.0%}) | {well.whole:.3%} | {hurt.whole:.3%} |", ""]
    lines += [f"{well.steps_s:.0f} and {hurt.steps_s:.0f} steps per second and engine; verdicts: {hurt.verdict}.", ""]
    if recorded is not None:
        lines.append(
            f"Recording takes {recorded.ours_us:.0f} µs of CPU time in a step of {recorded.sequences} sequences "
            f"({recorded.ours_us / recorded.step_us:.2%} of one on this CPU, "
            f"{recorded.ours_us / recorded.vllms_us:.0%} of what vLLM's own scheduler takes)."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench.diagnosis_cost", description="What telemetry and diagnosis cost.")
    parser.add_argument("--no-engine", action="store_true", help="leave out what recording takes of a real engine")
    options = parser.parse_args()
    logging.disable()  # of incidents
    sys.stdout.write(markdown(supervisor(hurt=False), supervisor(hurt=True), None if options.no_engine else recorder()))


if __name__ == "__main__":
    main()
