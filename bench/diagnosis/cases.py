"""What is done to a simulated node, and what a diagnosis should say of it. Seeded, and nothing of the diagnoser."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from appliance.records import Order, OrderKind
from appliance.simulator.scenario import Engines, Misfortune, RoleSettings
from appliance.simulator.traffic import Lengths, Traffic
from bench.diagnosis.nodes import NODES

ONSET_S: Final = 45.0
FAULT_S: Final = 40.0
AFTER_S: Final = 30.0
_STAYS_S: Final = FAULT_S + 25.0  # the second of two faults


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
    orders: tuple[Order, ...] = ()
    load: float = 1.0  # times the rates: what a node of another world can bear
    orders_at_s: float = 0.0  # from the beginning: they are how the node is, or else what is done to it

    @property
    def severity(self) -> float | None:
        return self.faults[0].severity if self.faults else None


Amounts = dict[str, tuple[float, float]]

_ANY: Final = (1.0, 1.0)
_AMOUNTS: Final[dict[str, Amounts]] = {
    "gpt-oss 4p4d": {
        "clocks": (0.07, 0.3),
        "ecc": (0.24, 0.45),
        "cpu": (0.06, 0.2),
        "kv": (0.22, 0.5),
        "frontend": (0.015, 0.03),
        "hang": _ANY,
        "crash": _ANY,
        "restart": _ANY,
        "skew": (0.04, 0.3),
        "link": (0.01, 0.02),
        "long prompts": (0.11, 0.15),
        "long answers": (0.1, 0.2),
        "few places": (0.005, 0.025),
        "small budget": (128, 224),
    },
    "llama 3p1d@tp2": {
        "clocks": (0.4, 0.72),
        "ecc": (0.62, 0.725),
        "cpu": (0.3, 0.46),
        "kv": (0.28, 0.38),
        "frontend": (0.03, 0.047),
        "hang": _ANY,
        "crash": _ANY,
        "restart": _ANY,
        "long prompts": (0.09, 0.14),
        "long answers": (0.47, 0.62),
        "few places": (0.05, 0.12),
        "small budget": (80, 160),
    },
    "llama 2p2d@tp2 chats": {
        "clocks": (0.07, 0.25),
        "ecc": (0.2, 0.5),
        "cpu": (0.04, 0.15),
        "kv": (0.03, 0.1),
        "frontend": (0.012, 0.018),
        "hang": _ANY,
        "crash": _ANY,
        "restart": _ANY,
        "caches": (0.4, 0.75),
        "few places": (0.1, 0.24),
        "small budget": (64, 128),
    },
    "llama 4b@tp2": {
        "clocks": (0.07, 0.3),
        "ecc": (0.15, 0.35),
        "cpu": (0.03, 0.1),
        "frontend": (0.01, 0.015),
        "hang": _ANY,
        "crash": _ANY,
        "restart": _ANY,
        "skew": (0.04, 0.3),
        "rare long prompts": (0.01, 0.04),
    },
    "gpt-oss 1p1d@tp4": {
        "clocks": (0.28, 0.36),
        "ecc": (0.34, 0.4),
        "cpu": (0.045, 0.065),
        "kv": (0.029, 0.036),
        "frontend": (0.1, 0.15),
        "restart": _ANY,
        "link": (0.01, 0.02),
        "long prompts": (0.31, 0.42),
        "small budget": (96, 160),
    },
    "llama 1p1d@tp4": {"cpu": (0.14, 0.2), "hang": _ANY, "rare long prompts": (0.01, 0.03)},
    "llama 1p1d@tp4 chats": {
        "clocks": (0.22, 0.32),
        "ecc": (0.28, 0.33),
        "frontend": (0.022, 0.03),
        "kv": (0.02, 0.03),
        "caches": (0.25, 0.5),
        "few places": (0.02, 0.1),
    },
    "llama 2p2d@tp2 pcie": {
        "clocks": (0.4, 0.7),
        "ecc": (0.18, 0.45),
        "kv": (0.02, 0.045),
        "link": (0.002, 0.012),
        "dead link": (0.001, 0.001),
        "restart": _ANY,
        "long prompts": (0.28, 0.4),
    },
    "gpt-oss 2p2d pcie": {
        "clocks": (0.4, 0.7),
        "ecc": (0.18, 0.4),
        "cpu": (0.03, 0.1),
        "kv": (0.04, 0.12),
        "frontend": (0.013, 0.022),
        "link": (0.007, 0.02),
        "dead link": (0.001, 0.001),
        "crash": _ANY,
        "long prompts": (0.15, 0.28),
        "long answers": (0.6, 0.9),
        "few places": (0.02, 0.1),
    },
}
"""What is done to which node, and how much of it, at least and at most: the share of its capacity that a fault leaves; times the node's own
rate that is asked besides; tokens of a step. (No long prompts where there are long conversations: caches find less of
them, too, and which of both it is can't be told from outside.) Chosen on tuning seeds, so that most of it costs some requests their targets
and not all."""
_ONLY_DECODE: Final = (
    "gpt-oss 4p4d",
)  # where prefill engines have so much time to spare that hardly anything of theirs hurts
_PLACES: Final = {
    "gpt-oss 4p4d": 64,
    "llama 3p1d@tp2": 44,
    "llama 2p2d@tp2 chats": 16,
    "llama 1p1d@tp4 chats": 14,
    "gpt-oss 2p2d pcie": 10,
}
"""That are just enough while nothing more is asked."""
_CAUSES: Final = {
    "hang": "engine_hung",
    "crash": "engine_crashed",
    "kv": "decode_kv_full",
    "frontend": "frontend_bound",
    "link": "handoff_link_slow",
    "caches": "cache_miss_storm",
    "skew": "routing_skew",
}
_FAULTS: Final = ("clocks", "ecc", "cpu", "kv", "frontend", "hang", "crash", "link", "dead link", "caches", "skew")
_PAIRS: Final = (("clocks", "ecc"), ("cpu", "kv"), ("frontend", "clocks"), ("crash", "ecc"))
_ONCE: Final = ("hang", "crash")  # and over when the engine is back


def cases(seeds: range, world: World = USUAL) -> list[Case]:
    """One of each kind for each node where it makes sense, for each seed."""
    return [
        _case(node, seed, kind, random.Random(f"{seed} {node} {kind}"), world)
        for seed in seeds
        for node in NODES
        for kind in _AMOUNTS[node]
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


def _pools(node: str) -> tuple[list[str], list[str]]:
    layout = NODES[node].layout
    if "4b" in node:
        return [f"e{n}" for n in range(4)], [f"e{n}" for n in range(4)]
    prefill, decode = int(layout[0]), int(layout[2])
    return [f"e{n}" for n in range(prefill)], [f"e{prefill + n}" for n in range(decode)]


def _case(node: str, seed: int, kind: str, chance: random.Random, world: World) -> Case:
    if kind == "restart":
        return _restart(node, seed, chance, world)
    if kind not in _FAULTS:
        return _load(node, seed, kind, chance, world)
    faults, truth = _fault(node, kind, chance)
    return Case(node=node, seed=seed, name=kind, faults=faults, truths=(truth,), world=world)


def _restart(node: str, seed: int, chance: random.Random, world: World) -> Case:
    """Somebody has an engine started again, in the middle of the day."""
    prefill, decode = _pools(node)
    engine = chance.choice(decode if node in _ONLY_DECODE else prefill + decode)
    truth = Truth(causes=("engine_starting",), engines=(engine,))
    order = Order(kind=OrderKind.RESTART, engine=engine)
    return Case(
        node=node, seed=seed, name="restart", truths=(truth,), orders=(order,), orders_at_s=ONSET_S, world=world
    )


def _double(node: str, seed: int, kinds: tuple[str, str], chance: random.Random, world: World) -> Case:
    first, second = (_fault(node, kind, chance) for kind in kinds)
    [first_fault], [second_fault] = first[0], second[0]
    stays = msgspec.structs.replace(second_fault, until_s=None if kinds[1] in _ONCE else ONSET_S + _STAYS_S)
    return Case(
        node=node,
        seed=seed,
        name=" and ".join(kinds),
        faults=(first_fault, stays),
        truths=(first[1], second[1]),
        world=world,
    )


def _fault(node: str, kind: str, chance: random.Random) -> tuple[tuple[Misfortune, ...], Truth]:
    prefill, decode = _pools(node)
    engines = tuple(prefill) if kind == "caches" else (_where(node, kind, chance),)
    stages = ("prefill", "decode") if prefill == decode else ("prefill" if engines[0] in prefill else "decode",)
    severity = round(1 - _amount(node, kind, chance), 4)
    faults = tuple(
        Misfortune(
            engine=engine,
            kind={"caches": "cache", "dead link": "link"}.get(kind, kind),
            severity=1.0 if kind in _ONCE else severity,
            at_s=ONSET_S,
            until_s=None if kind in _ONCE else ONSET_S + FAULT_S,
        )
        for engine in engines
    )
    return faults, Truth(causes=_causes(kind, stages), engines=engines)


def _where(node: str, kind: str, chance: random.Random) -> str:
    """Where it hurts: prompts are bound by arithmetic, decoding by memory."""
    prefill, decode = _pools(node)
    pools = {"clocks": prefill, "ecc": decode, "kv": decode, "frontend": decode, "dead link": decode}
    if kind == "skew":  # of one engine among several
        return chance.choice(decode)
    return chance.choice(pools.get(kind, decode if node in _ONLY_DECODE else prefill + decode))


def _amount(node: str, kind: str, chance: random.Random) -> float:
    """As often twice as much as half as much."""
    least, most = _AMOUNTS[node][kind]
    return float(least * (most / least) ** chance.random())


def _causes(kind: str, stages: tuple[str, ...]) -> tuple[str, ...]:
    if kind in ("clocks", "ecc", "cpu"):
        return tuple(f"{stage}_straggler_{'cpu' if kind == 'cpu' else 'gpu'}" for stage in stages)
    if kind == "dead link":  # that nothing gets over: what waits to be fetched fills the KV of those that hold it
        return "handoff_link_slow", "prefill_kv_pinned"
    return (_CAUSES[kind],)


def _of_pair(node: str) -> tuple[str, ...]:
    """One engine for each role: where one of them has too much to do, both doing both is what would help."""
    return ("disaggregation_not_worth_it",) if "1p1d" in node else ()


def _load(node: str, seed: int, kind: str, chance: random.Random, world: World) -> Case:
    """Nothing is broken: too much of something is asked, or the settings do not fit it."""
    prefill, decode = _pools(node)
    amount = _amount(node, kind, chance)
    if kind == "small budget":  # from the beginning
        small = Engines(prefill=RoleSettings(max_batched_tokens=round(amount)))
        truth = Truth(causes=("prefill_budget_small",), engines=tuple(prefill))
        return Case(node=node, seed=seed, name=kind, engines=small, truths=(truth,), world=world)
    rate = amount * NODES[node].traffic.rate
    if kind == "long prompts":
        surge = Traffic(rate=rate, prompt=Lengths(median=5000, sigma=0.3), output=Lengths(median=8))
        truth = Truth(causes=("prefill_saturated", "pool_imbalance", *_of_pair(node)), engines=tuple(prefill))
        return Case(node=node, seed=seed, name=kind, surge=surge, truths=(truth,), world=world)
    if kind == "rare long prompts":  # few, and each of them many times as long as others
        most = NODES[node].engine.max_model_len
        length = Lengths(median=0.4 * most if most > 100_000 else 0.75 * most, sigma=0.2, most=int(0.9 * most))
        surge = Traffic(rate=rate, prompt=length, output=Lengths(median=8))
        truth = Truth(causes=("long_prompt_blocking",), engines=tuple(prefill))
        return Case(node=node, seed=seed, name=kind, surge=surge, truths=(truth,), world=world)
    surge = Traffic(rate=rate, prompt=Lengths(median=64), output=Lengths(median=600, sigma=0.3))
    causes: tuple[str, ...] = ("decode_saturated", "pool_imbalance", "decode_kv_full", "handoff_decode_admission")
    engines = None
    if kind == "few places":
        engines = Engines(decode=RoleSettings(max_batched_tokens=2048, max_running=_PLACES[node]))
        causes = ("handoff_decode_admission",)
    truth = Truth(causes=(*causes, *_of_pair(node)), engines=tuple(decode))
    return Case(node=node, seed=seed, name=kind, surge=surge, engines=engines, truths=(truth,), world=world)
