"""What is done to a simulated node, and what a diagnosis should say of it. Seeded, and nothing of the diagnoser."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from appliance.config import SloConfig
from appliance.records import Order, OrderKind
from appliance.simulator.scenario import Engines, Hardware, Misfortune, Model, RoleSettings, Scenario
from appliance.simulator.traffic import Lengths, Traffic

ONSET_S: Final = 45.0
FAULT_S: Final = 40.0
AFTER_S: Final = 30.0
_STAYS_S: Final = FAULT_S + 25.0  # the second of two faults

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
    "gpt-oss 1p1d@tp4": Scenario(  # nobody to compare with
        layout="1p1d@tp4",
        hardware=Hardware(gpu="h100"),
        model=Model(config="gpt-oss-120b"),
        traffic=Traffic(rate=18, prompt=Lengths(median=1500, sigma=0.5), output=Lengths(median=250, sigma=0.5)),
        slo=SloConfig(ttft_s=1.0, itl_s=0.02),
    ),
    "llama 1p1d@tp4": Scenario(
        layout="1p1d@tp4",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        engine=Engines(max_model_len=131_072),
        traffic=Traffic(rate=6, prompt=Lengths(median=800, sigma=0.5), output=Lengths(median=150, sigma=0.5)),
        slo=SloConfig(ttft_s=1.0, itl_s=0.03),
    ),
}


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Physics other than usual. ``constants``: share by which each of the cost model's is off, up or down, by chance."""

    noise: float = 1.0
    constants: float = 0.0


USUAL: Final = World()


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What is right to say: one of the causes of one of the engines."""

    causes: tuple[str, ...]
    engines: tuple[str, ...]

    def is_said(self, engine: str | None, cause: str | None) -> bool:
        return engine in self.engines and cause in self.causes


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One injection. ``surge``: traffic on top of the node's own, while it lasts."""

    node: str
    seed: int
    name: str
    truths: tuple[Truth, ...] = ()
    faults: tuple[Misfortune, ...] = ()
    surge: Traffic | None = None
    engines: Engines | None = None  # settings from the beginning, other than the node's
    traffic: Traffic | None = None  # other than the node's
    world: World = USUAL
    orders: tuple[Order, ...] = ()  # given at the beginning

    @property
    def severity(self) -> float | None:
        return self.faults[0].severity if self.faults else None


_SEVERITIES: Final = {
    "clocks": (0.35, 0.8),
    "ecc": (0.3, 0.9),
    "cpu": (0.75, 0.97),
    "kv": (0.85, 0.98),
    "frontend": (0.96, 0.99),
    "link": (0.995, 0.9999),
    "cache": (0.8, 1.0),
    "skew": (0.5, 0.95),
}
_CAUSES: Final = {
    "hang": "engine_hung",
    "crash": "engine_crashed",
    "kv": "decode_kv_full",
    "frontend": "frontend_bound",
    "link": "handoff_link_slow",
    "cache": "cache_miss_storm",
    "skew": "routing_skew",
}
_FAULTS: Final = ("clocks", "ecc", "cpu", "kv", "frontend", "hang", "crash", "link", "cache", "skew")
_LOADS: Final = ("long prompts", "long answers", "few places", "small budget")
_BUDGETS: Final = {
    "gpt-oss 4p4d": (96, 128),
    "llama 3p1d@tp2": (80, 104),
    "llama 2p2d@tp2 chats": (64, 96),
    "gpt-oss 1p1d@tp4": (96, 128),
}
_PAIRS: Final = (("clocks", "ecc"), ("cpu", "kv"), ("frontend", "clocks"), ("crash", "ecc"))
_ONCE: Final = ("hang", "crash")  # and over when the engine is back


def cases(seeds: range, world: World = USUAL) -> list[Case]:
    """One of each kind for each node where it makes sense, for each seed."""
    return [
        _case(node, seed, kind, random.Random(f"{seed} {node} {kind}"), world)
        for seed in seeds
        for node in NODES
        for kind in _kinds(node)
    ]


def doubles(seeds: range, world: World = USUAL) -> list[Case]:
    """Two faults at once, of which the second stays for longer."""
    return [
        _double(node, seed, kinds, random.Random(f"{seed} {node} {kinds}"), world)
        for seed in seeds
        for node in ("gpt-oss 4p4d", "llama 3p1d@tp2")
        for kinds in _PAIRS
    ]


def healthy(seeds: range, world: World = USUAL) -> list[Case]:
    """Nothing is done; and what may look as if: bursts, a rate that goes up and down, an engine with more of the work, or with none."""
    return [
        Case(
            node=node,
            seed=seed,
            name=name,
            traffic=msgspec.structs.replace(NODES[node].traffic, rate=share * NODES[node].traffic.rate, **more),
            world=world,
            orders=_ORDERS.get(name, ()) if "1p1d" not in node else (),
        )
        for seed in seeds
        for node in NODES
        for name, share, more in _CALM
    ]


_CALM: Final[tuple[tuple[str, float, dict[str, float]], ...]] = (
    ("steady", 0.8, {}),
    ("bursts", 0.65, {"burstiness": 2.5}),
    ("ramps", 0.65, {"swing": 0.4, "period_s": 200.0}),
    ("little", 0.05, {}),
    ("uneven", 0.6, {}),  # the first engine is given half as much again as its like
    ("drained", 0.4, {}),  # the first engine takes nothing, where another one can do without it
)


_ORDERS: Final = {
    "uneven": (Order(kind=OrderKind.WEIGHT, engine="e0", weight=1.5),),
    "drained": (Order(kind=OrderKind.DRAIN, engine="e0"),),
}


def _kinds(node: str) -> tuple[str, ...]:
    if "4b" in node:
        return ("clocks", "ecc", "cpu", "frontend", "hang", "crash", "skew")
    if "chats" in node:
        return (*_FAULTS, *_LOADS)
    if node == "llama 1p1d@tp4":
        return ("cpu", "hang", "rare long prompts")
    if "1p1d" in node:
        return ("clocks", "ecc", "cpu", "kv", "frontend", "hang", "crash", "link", *_LOADS)
    if "3p1d" in node:
        return (*(kind for kind in _FAULTS if kind != "cache"), *_LOADS)
    return (*(kind for kind in _FAULTS if kind != "cache"), *_LOADS)


def _pools(node: str) -> tuple[list[str], list[str]]:
    layout = NODES[node].layout
    if "4b" in node:
        return [f"e{n}" for n in range(4)], [f"e{n}" for n in range(4)]
    prefill, decode = int(layout[0]), int(layout[2])
    return [f"e{n}" for n in range(prefill)], [f"e{prefill + n}" for n in range(decode)]


def _case(node: str, seed: int, kind: str, chance: random.Random, world: World) -> Case:
    if kind not in _FAULTS:
        return _load(node, seed, kind, chance, world)
    fault, truth = _fault(node, kind, chance)
    return Case(node=node, seed=seed, name=kind, faults=(fault,), truths=(truth,), world=world)


def _double(node: str, seed: int, kinds: tuple[str, str], chance: random.Random, world: World) -> Case:
    first, second = (_fault(node, kind, chance) for kind in kinds)
    stays = msgspec.structs.replace(second[0], until_s=None if kinds[1] in _ONCE else ONSET_S + _STAYS_S)
    return Case(
        node=node,
        seed=seed,
        name=" and ".join(kinds),
        faults=(first[0], stays),
        truths=(first[1], second[1]),
        world=world,
    )


def _fault(node: str, kind: str, chance: random.Random) -> tuple[Misfortune, Truth]:
    prefill, decode = _pools(node)
    # Where it hurts: prompts are bound by arithmetic, decoding by memory.
    pools = {"clocks": prefill, "cache": prefill, "link": prefill, "ecc": decode, "kv": decode, "frontend": decode}
    pool = pools.get(kind, prefill + decode)
    if kind == "skew":  # of one engine among several
        pool = next(pool for pool in (decode, prefill) if len(pool) > 1)
    engine = chance.choice(pool)
    low, high = _SEVERITIES.get(kind, (1.0, 1.0))
    peer = chance.choice(decode) if kind == "link" else None
    stages = ("prefill", "decode") if prefill == decode else ("prefill" if engine in prefill else "decode",)
    fault = Misfortune(
        engine=engine,
        kind=kind,
        severity=round(chance.uniform(low, high), 4),
        at_s=ONSET_S,
        until_s=None if kind in _ONCE else ONSET_S + FAULT_S,
        peer=peer,
    )
    return fault, Truth(causes=_causes(kind, stages), engines=(engine,) if peer is None else (engine, peer))


def _causes(kind: str, stages: tuple[str, ...]) -> tuple[str, ...]:
    if kind in ("clocks", "ecc", "cpu"):
        return tuple(f"{stage}_straggler_{'cpu' if kind == 'cpu' else 'gpu'}" for stage in stages)
    return (_CAUSES[kind],)


def _of_pair(node: str) -> tuple[str, ...]:
    """One engine for each role: where one of them has too much to do, both doing both is what would help."""
    return ("disaggregation_not_worth_it",) if "1p1d" in node else ()


def _load(node: str, seed: int, kind: str, chance: random.Random, world: World) -> Case:
    """Nothing is broken: too much of something is asked, or the settings do not fit it."""
    prefill, decode = _pools(node)
    rate = NODES[node].traffic.rate
    if kind == "small budget":  # from the beginning
        small = Engines(prefill=RoleSettings(max_batched_tokens=chance.choice(_BUDGETS[node])))
        truth = Truth(causes=("prefill_budget_small",), engines=tuple(prefill))
        return Case(node=node, seed=seed, name=kind, engines=small, truths=(truth,), world=world)
    if kind == "long prompts":
        surge = Traffic(
            rate=rate * chance.uniform(0.3, 1.0), prompt=Lengths(median=5000, sigma=0.3), output=Lengths(median=8)
        )
        truth = Truth(causes=("prefill_saturated", "pool_imbalance", *_of_pair(node)), engines=tuple(prefill))
        return Case(node=node, seed=seed, name=kind, surge=surge, truths=(truth,), world=world)
    if kind == "rare long prompts":  # few, and each of them many times as long as others
        surge = Traffic(
            rate=rate * chance.uniform(0.02, 0.035),
            prompt=Lengths(median=50_000, sigma=0.2, most=120_000),
            output=Lengths(median=8),
        )
        truth = Truth(causes=("long_prompt_blocking",), engines=tuple(prefill))
        return Case(node=node, seed=seed, name=kind, surge=surge, truths=(truth,), world=world)
    surge = Traffic(
        rate=rate * chance.uniform(0.4, 1.2), prompt=Lengths(median=64), output=Lengths(median=600, sigma=0.3)
    )
    causes: tuple[str, ...] = ("decode_saturated", "pool_imbalance", "decode_kv_full", "handoff_decode_admission")
    engines = None
    if kind == "few places":
        engines = Engines(decode=RoleSettings(max_batched_tokens=2048, max_running=chance.choice((24, 32, 40))))
        causes = ("handoff_decode_admission",)
    truth = Truth(causes=(*causes, *_of_pair(node)), engines=tuple(decode))
    return Case(node=node, seed=seed, name=kind, surge=surge, engines=engines, truths=(truth,), world=world)
