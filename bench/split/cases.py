"""Nodes and traffics of which a plan is asked. Seeded, and of no layout's liking: lengths, targets and rates are drawn."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from appliance.config import SloConfig
from appliance.costs import closed, huggingface
from appliance.costs.gpus import gpu
from appliance.costs.roofline import Batch, Roofline
from appliance.planner import split
from appliance.planner.node import Chunk, Engines, Estimate, Lengths, Settings, Targets
from appliance.records import Demand, Plan, Role
from appliance.simulator.leg import Settings as EngineSettings
from appliance.simulator.request import Asked
from appliance.simulator.scenario import BLOCK_TOKENS, Hardware, Loaded, Model, Scenario, plans
from appliance.simulator.traffic import Lengths as Drawn
from appliance.simulator.traffic import Traffic, arrivals
from appliance.telemetry.demand import quantiles

MODELS: Final = Path(__file__).parents[2] / "appliance" / "presets"
_NODES: Final = (  # model, GPU, GPUs, tensor-parallel size
    ("llama-3.3-70b-fp8", "h100", 8, 2),
    ("llama-3.3-70b-fp8", "h100", 8, 4),
    ("llama-3.3-70b-fp8", "h200", 4, 1),
    ("llama-3.3-70b-nvfp4", "b200", 4, 1),
    ("gpt-oss-120b", "h100", 4, 1),
    ("gpt-oss-120b", "h200", 2, 1),
    ("gpt-oss-120b", "h100", 8, 2),
)
_WARM_S: Final = 12.0
_REQUESTS: Final = 600  # of a run
_SECONDS: Final = (50.0, 120.0)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A node, a traffic and targets. ``engines``: of ``size`` GPUs each."""

    seed: int
    engines: int
    size: int
    scenario: Scenario

    @property
    def layouts(self) -> list[str]:
        """As the planner lists them."""
        tail = f"@tp{self.size}" if self.size > 1 else ""
        splits = [f"{prefill}p{self.engines - prefill}d{tail}" for prefill in range(1, self.engines)]
        return [*splits, f"{self.engines}b{tail}"]

    @property
    def words(self) -> str:
        traffic, slo = self.scenario.traffic, self.scenario.slo
        fit = traffic.fit()
        lengths = traffic.kind or f"{fit.prompt.median:.0f} in, {fit.output.median:.0f} out"
        return (
            f"{self.scenario.model.config}, {self.engines} × {self.size} {self.scenario.hardware.gpu}: {lengths}, "
            f"{traffic.rate:.2f}/s, {slo.ttft_s:.2f} s, {slo.itl_s * 1e3:.0f} ms"
        )

    def at(self, rate_s: float) -> Case:
        """The same, of so many requests per second, and for as long as these take."""
        traffic = msgspec.structs.replace(self.scenario.traffic, rate=rate_s)
        seconds = _WARM_S + min(max(_REQUESTS / rate_s, _SECONDS[0]), _SECONDS[1])
        changed = msgspec.structs.replace(self.scenario, traffic=traffic, duration_s=seconds, warmup_s=_WARM_S)
        return msgspec.structs.replace(self, scenario=changed)

    @property
    def loaded(self) -> Loaded:
        return Loaded(self.scenario, MODELS)


def cases(seeds: range) -> list[Case]:
    """One for each seed."""
    return [_case(seed) for seed in seeds]


def _case(seed: int) -> Case:
    chance = random.Random(f"split {seed}")
    model, name, gpus, size = _NODES[seed % len(_NODES)]
    traffic = _traffic(chance)
    scenario = Scenario(
        seed=seed,
        hardware=Hardware(gpu=name, gpus=gpus),
        model=Model(config=model),
        traffic=traffic,
        slo=SloConfig(ttft_s=1.0, itl_s=0.05),
    )
    case = Case(seed=seed, engines=gpus // size, size=size, scenario=scenario)
    node = Predictable(case)
    slo = SloConfig(
        ttft_s=round(max(0.15, node.prompt_s * chance.uniform(2, 12)), 2),
        itl_s=round(node.token_s * math.exp(chance.uniform(math.log(1.25), math.log(5))), 4),
    )
    case = msgspec.structs.replace(case, scenario=msgspec.structs.replace(scenario, slo=slo))
    return case.at(max(0.05, round(node.about_rate_s * chance.uniform(0.3, 1.1), 3)))


def _traffic(chance: random.Random) -> Traffic:
    """Now and then a published service's, else lognormal lengths."""
    kind = chance.choice(["", "", "", "azure-conversation"])
    prompt, output = math.exp(chance.uniform(math.log(150), math.log(6000))), math.exp(chance.uniform(2.5, 6.5))
    prompts = Drawn(median=round(prompt), sigma=chance.choice([0.0, 0.3, 0.8]), most=20_000)
    outputs = Drawn(median=round(output), sigma=chance.choice([0.0, 0.4, 0.8]), most=2_000)
    return Traffic(rate=1.0, kind=kind, prompt=prompts, output=outputs)


class Predictable:
    """A case as the planner sees it before there is a node: by the cost model, and with the traffic's lengths as they come."""

    def __init__(self, case: Case) -> None:
        self.case = case
        shape = huggingface.read(MODELS / case.scenario.model.config)
        self._gpu = gpu(case.scenario.hardware.gpu)
        self._shape, self._roofline = shape, Roofline(shape, self._gpu, case.size)
        self._link = closed.nvlink(self._gpu, case.size)

    @cached_property
    def _drawn(self) -> list[Asked]:
        traffic = msgspec.structs.replace(self.case.scenario.traffic, rate=10.0)
        return [asked for _, asked in arrivals(traffic, 10**6, 200.0, BLOCK_TOKENS, MODELS)]

    @property
    def _drawn_prompts(self) -> list[int]:
        return sorted(asked.prompt_tokens for asked in self._drawn)

    @property
    def _drawn_outputs(self) -> list[int]:
        return [asked.output_tokens for asked in self._drawn]

    @cached_property
    def demand(self) -> Demand:
        traffic = self.case.scenario.traffic
        return Demand(
            rate_s=traffic.rate,
            prompt_tokens=quantiles(self._drawn_prompts),
            output_tokens=quantiles(self._drawn_outputs),
            burstiness=traffic.fit().burstiness,
        )

    @property
    def targets(self) -> Targets:
        slo = self.case.scenario.slo
        return Targets(ttft_s=slo.ttft_s, itl_s=slo.itl_s, share=slo.share)

    def plans(self) -> tuple[Plan, ...]:
        return split.plans(self.demand, self.engines, self.targets)

    @property
    def engines(self) -> Engines:
        settings = {
            plan.role: plan.settings for layout in self.case.layouts for plan in plans(self.case.loaded, layout)
        }
        return Engines(
            count=self.case.engines,
            step=self._step,
            copy=self._copy,
            kv_tokens=settings[Role.BOTH].kv_blocks * settings[Role.BOTH].block_tokens,
            settings={role: _settings(found) for role, found in settings.items()},
            tensor_parallel=self.case.size,
        )

    @property
    def prompt_s(self) -> float:
        """That a long prompt takes."""
        return self._roofline.step(Batch([(self._drawn_prompts[int(0.95 * len(self._drawn_prompts))], 0)])).total_s

    @property
    def token_s(self) -> float:
        """That one sequence takes per token."""
        context = Lengths(self.demand).context
        return self._roofline.step(Batch((), 1, context)).total_s

    @property
    def about_rate_s(self) -> float:
        """That all engines would come to if each worked at one thing after the other: no planner's word."""
        prompt = statistics.fmean(self._drawn_prompts)
        output = statistics.fmean(self._drawn_outputs)
        prompt_s = self._roofline.step(Batch([(prompt, 0)])).total_s
        answer_s = output * self._roofline.step(Batch((), 48, 48 * (prompt + output / 2))).total_s / 48
        return self.case.engines / (prompt_s + answer_s)

    def _step(self, chunks: Sequence[Chunk], sequences: float, context: float) -> Estimate:
        return Estimate(self._roofline.step(Batch(chunks, sequences, context)).total_s)

    def _copy(self, tokens: float) -> Estimate:
        size = closed.handoff_bytes(self._shape, round(tokens), self.case.size)
        return Estimate(closed.handoff_s(size, self._link))


def _settings(found: EngineSettings) -> Settings:
    return Settings(token_budget=found.max_batched_tokens, places=found.max_running)
