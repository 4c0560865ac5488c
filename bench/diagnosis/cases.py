"""What is done to a simulated node, and what a diagnosis should say of it. Seeded, and nothing of the diagnoser."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import msgspec

from appliance.channel import Fault
from appliance.config import SloConfig
from appliance.simulator.scenario import Hardware, Model, Scenario
from appliance.simulator.traffic import Lengths, Traffic

ONSET_S: Final = 45.0
FAULT_S: Final = 40.0
AFTER_S: Final = 30.0

NODES: Final = {
    "gpt-oss 4p4d": Scenario(
        layout="4p4d",
        hardware=Hardware(gpu="h100"),
        model=Model(config="gpt-oss-120b"),
        traffic=Traffic(rate=45, kind="azure-conversation"),
        slo=SloConfig(ttft_s=1.0, itl_s=0.03),
    ),
    "llama 3p1d@tp2": Scenario(
        layout="3p1d@tp2",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        traffic=Traffic(rate=8.5, prompt=Lengths(median=3000, sigma=0.3), output=Lengths(median=150, sigma=0.4)),
        slo=SloConfig(ttft_s=2.0, itl_s=0.03),
    ),
    "llama 2p2d@tp2 chats": Scenario(
        layout="2p2d@tp2",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        traffic=Traffic(
            rate=10,
            turns=6,
            pause_s=3,
            prompt=Lengths(median=900, sigma=0.6),
            output=Lengths(median=120, sigma=0.5),
        ),
        slo=SloConfig(ttft_s=1.5, itl_s=0.03),
    ),
    "llama 4b@tp2": Scenario(
        layout="4b@tp2",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        traffic=Traffic(rate=7, prompt=Lengths(median=2000, sigma=0.5), output=Lengths(median=200, sigma=0.5)),
        slo=SloConfig(ttft_s=1.5, itl_s=0.06),
    ),
}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One injection. ``surge``: traffic on top of the node's own."""

    node: str
    seed: int
    name: str
    engine: str | None  # where it is; None: in the traffic
    fault: Fault | None = None
    surge: Traffic | None = None
    causes: tuple[str, ...]  # that are right
    engines: tuple[str, ...]  # of which one has to be named


Maker = Callable[[random.Random, str], Case]


def cases(seeds: range) -> list[Case]:
    """One of each kind for each node where it makes sense, for each seed."""
    found = []
    for seed in seeds:
        for node in NODES:
            for kind in _kinds(node):
                chance = random.Random(f"{seed} {node} {kind}")
                found.append(_case(node, seed, kind, chance))
    return found


def healthy(seeds: range) -> list[Case]:
    """Nothing is done."""
    return [
        Case(node=node, seed=seed, name="none", engine=None, causes=(), engines=()) for seed in seeds for node in NODES
    ]


def _kinds(node: str) -> tuple[str, ...]:
    common = ("clocks", "ecc", "cpu", "kv", "frontend", "hang", "crash", "long prompts", "long answers")
    if "4b" in node:
        return ("clocks", "ecc", "cpu", "frontend", "hang", "crash")
    if "chats" in node:
        return (*common, "cache", "link")
    return (*common, "link")


def _pools(node: str) -> tuple[list[str], list[str]]:
    layout = NODES[node].layout
    if "4b" in node:
        return [f"e{n}" for n in range(4)], [f"e{n}" for n in range(4)]
    prefill, decode = int(layout[0]), int(layout[2])
    return [f"e{n}" for n in range(prefill)], [f"e{prefill + n}" for n in range(decode)]


def _case(node: str, seed: int, kind: str, chance: random.Random) -> Case:
    prefill, decode = _pools(node)
    both = "4b" in node
    base = {"node": node, "seed": seed, "name": kind}
    severity = chance.uniform(0.3, 0.9)
    if kind in ("hang", "crash"):
        engine = chance.choice(prefill + decode)
        cause = "engine_hung" if kind == "hang" else "engine_crashed"
        return Case(**base, engine=engine, fault=Fault(kind=kind, severity=1.0), causes=(cause,), engines=(engine,))
    if kind in ("clocks", "ecc", "cpu"):
        engine = chance.choice(prefill if kind == "clocks" else decode if kind == "ecc" else prefill + decode)
        stage = "prefill" if engine in prefill else "decode"
        unit = "cpu" if kind == "cpu" else "gpu"
        severity = chance.uniform(0.6, 0.95) if kind == "cpu" else severity
        causes = tuple(f"{one}_straggler_{unit}" for one in (("prefill", "decode") if both else (stage,)))
        return Case(**base, engine=engine, fault=Fault(kind=kind, severity=severity), causes=causes, engines=(engine,))
    if kind == "kv":
        engine = chance.choice(decode)
        severity = chance.uniform(0.8, 0.97)
        return Case(
            **base,
            engine=engine,
            fault=Fault(kind=kind, severity=severity),
            causes=("decode_kv_full",),
            engines=(engine,),
        )
    if kind == "frontend":
        engine = chance.choice(decode)
        fault = Fault(kind=kind, severity=chance.uniform(0.95, 0.99))
        return Case(**base, engine=engine, fault=fault, causes=("frontend_bound",), engines=(engine,))
    if kind == "link":
        one, other = chance.choice(prefill), chance.choice(decode)
        fault = Fault(kind=kind, severity=chance.uniform(0.97, 0.999), peer=other)
        return Case(**base, engine=one, fault=fault, causes=("handoff_link_slow",), engines=(one, other))
    if kind == "cache":
        engine = chance.choice(prefill)
        fault = Fault(kind=kind, severity=chance.uniform(0.7, 1.0))
        return Case(**base, engine=engine, fault=fault, causes=("cache_miss_storm",), engines=(engine,))
    own = NODES[node].traffic
    if kind == "long prompts":
        surge = Traffic(
            rate=own.rate * chance.uniform(0.5, 1.2), prompt=Lengths(median=5000, sigma=0.3), output=Lengths(median=8)
        )
        return Case(
            **base, engine=None, surge=surge, causes=("prefill_saturated", "pool_imbalance"), engines=tuple(prefill)
        )
    surge = Traffic(
        rate=own.rate * chance.uniform(0.6, 1.5), prompt=Lengths(median=64), output=Lengths(median=600, sigma=0.3)
    )
    causes = ("decode_saturated", "pool_imbalance", "decode_kv_full", "handoff_decode_admission")
    return Case(**base, engine=None, surge=surge, causes=causes, engines=tuple(decode))
