"""What is done to a simulated node, and what a diagnosis should say of it. Seeded, and nothing of the diagnoser."""

from __future__ import annotations

import random
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
            rate=8,
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


_SEVERITIES: Final = {
    "clocks": (0.5, 0.9),
    "ecc": (0.3, 0.9),
    "cpu": (0.75, 0.97),
    "kv": (0.85, 0.98),
    "frontend": (0.96, 0.99),
    "link": (0.99, 0.9995),
    "cache": (0.8, 1.0),
}
_CAUSES: Final = {
    "hang": "engine_hung",
    "crash": "engine_crashed",
    "kv": "decode_kv_full",
    "frontend": "frontend_bound",
    "link": "handoff_link_slow",
    "cache": "cache_miss_storm",
}


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
    if kind.startswith("long"):
        return _surge(node, seed, kind, chance, prefill, decode)
    pools = {"clocks": prefill, "cache": prefill, "link": prefill, "ecc": decode, "kv": decode, "frontend": decode}
    engine = chance.choice(pools.get(kind, prefill + decode))
    low, high = _SEVERITIES.get(kind, (1.0, 1.0))
    peer = chance.choice(decode) if kind == "link" else None
    stages = ("prefill", "decode") if prefill == decode else ("prefill" if engine in prefill else "decode",)
    return Case(
        node=node,
        seed=seed,
        name=kind,
        engine=engine,
        fault=Fault(kind=kind, severity=round(chance.uniform(low, high), 4), peer=peer),
        causes=_causes(kind, stages),
        engines=(engine,) if peer is None else (engine, peer),
    )


def _causes(kind: str, stages: tuple[str, ...]) -> tuple[str, ...]:
    if kind in ("clocks", "ecc", "cpu"):
        return tuple(f"{stage}_straggler_{'cpu' if kind == 'cpu' else 'gpu'}" for stage in stages)
    return (_CAUSES[kind],)


def _surge(node: str, seed: int, kind: str, chance: random.Random, prefill: list[str], decode: list[str]) -> Case:
    rate = NODES[node].traffic.rate
    if kind == "long prompts":
        surge = Traffic(
            rate=rate * chance.uniform(0.5, 1.2), prompt=Lengths(median=5000, sigma=0.3), output=Lengths(median=8)
        )
        causes: tuple[str, ...] = ("prefill_saturated", "pool_imbalance")
        engines = prefill
    else:
        surge = Traffic(
            rate=rate * chance.uniform(0.6, 1.5), prompt=Lengths(median=64), output=Lengths(median=600, sigma=0.3)
        )
        causes = ("decode_saturated", "pool_imbalance", "decode_kv_full", "handoff_decode_admission")
        engines = decode
    return Case(node=node, seed=seed, name=kind, engine=None, surge=surge, causes=causes, engines=tuple(engines))
