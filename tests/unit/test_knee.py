"""The smallest batch that saturates an engine: against brute force where the truth is known, and silence where it can't be."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from appliance.costs.gpus import gpu
from appliance.costs.huggingface import read
from appliance.costs.knee import Curve, StepSeen, advice, find, missing, ttft_s
from appliance.costs.roofline import Batch, Roofline
from appliance.simulator.leg import Work
from appliance.simulator.physics import Physics, RooflineCost

ROOT = Path(__file__).parents[2]
MODELS = {
    "llama-70b on 2 h100": ("appliance/presets/llama-3.3-70b-fp8", "h100", 2),
    "gpt-oss on h100": ("appliance/presets/gpt-oss-120b", "h100", 1),
    "llama-8b on a100": ("tests/unit/configs/llama-3.1-8b", "a100", 1),
    "mixtral on 2 h100": ("tests/unit/configs/mixtral-8x7b", "h100", 2),
    "deepseek on 8 h200": ("tests/unit/configs/deepseek-v3", "h200", 8),
}
SIZES = [round(16 * 2 ** (place / 2)) for place in range(19)]


def roofline(name: str) -> Roofline:
    path, kind, tp = MODELS[name]
    return Roofline(read(ROOT / path), gpu(kind), tp)


def brute_force(seconds: Callable[[float], float], most: float = 8192) -> float:
    """The truth: every size tried, without noise."""
    sizes = [16 * 2 ** (place / 64) for place in range(64 * 10)]
    rates = {size: size / seconds(size) for size in sizes if size <= most}
    return min(size for size, rate in rates.items() if rate >= 0.9 * max(rates.values()))


def alone(name: str) -> Callable[[float], float]:
    line = roofline(name)
    return lambda tokens: line.step(Batch([(tokens, 0)])).total_s


class Engine:
    """Steps as a simulated engine makes them, noise, drift and stumbles included."""

    def __init__(self, name: str, seed: int) -> None:
        self.physics, self.now_ns = Physics(RooflineCost(roofline(name)), f"engine {seed}"), seed * 70_000_000_000

    def step(self, chunks: Sequence[tuple[int, int]], decodes: int = 0, context: int = 0) -> StepSeen:
        prompt, before = sum(new for new, _ in chunks), sum(before for _, before in chunks)
        work = Work(list(chunks), prompt, prompt + before, decodes, context)
        took_ns = self.physics.step_ns(work, self.now_ns)
        self.now_ns += took_ns
        return StepSeen(prompt, decodes, prompt + before + context, took_ns * 1e-9)


def sweep(name: str, seed: int, each: int = 20, most: int = 8192) -> list[StepSeen]:
    """As ``pd-appliance tune`` makes it: fresh prompts, sizes in random order."""
    engine, sizes = Engine(name, seed), [size for size in SIZES if size <= most] * each
    random.Random(seed).shuffle(sizes)
    return [engine.step([(size, 0)]) for size in sizes]


def traffic(name: str, seed: int, count: int = 1500, budget: int = 8192) -> list[StepSeen]:
    """Whatever comes: several prompts in a step, chunks of long ones, and steps that decode besides, many of them much."""
    engine, chance, found = Engine(name, seed), random.Random(seed), []
    for _ in range(count):
        left, chunks = budget, []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            new = min(left, max(8, round(chance.lognormvariate(6.5, 1.5))))
            if new > 0:
                chunks.append((new, chance.choice((0, 0, 0, 0, 1024, 4096))))
                left -= new
        decodes = chance.choice((0, 0, 0, 10, 60))
        found.append(engine.step(chunks, decodes, decodes * 900))
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_sweep_finds_what_brute_force_finds(name: str, seed: int) -> None:
    truth = brute_force(alone(name))
    knee = find(sweep(name, seed), random.Random(seed))
    assert knee is not None
    assert knee.tokens == pytest.approx(truth, rel=0.08)
    assert knee.low <= truth <= knee.high
    assert knee.high < 1.7 * knee.low, "an interval that says nothing is no interval"
    assert knee.tokens_s == pytest.approx(truth / alone(name)(truth), rel=0.03)


def test_the_bend_of_the_plain_line_is_far_from_it() -> None:
    """Why it is not max(a, b·n) that is fitted."""
    seconds = alone("llama-70b on 2 h100")
    bend = seconds(16) / (seconds(4096) / 4096)
    assert 0.9 * bend < 0.5 * brute_force(seconds)


@pytest.mark.parametrize("name", ["llama-70b on 2 h100", "gpt-oss on h100", "llama-8b on a100"])
def test_ordinary_traffic_finds_it_too(name: str) -> None:
    """Less exactly: prompts that share a step attend to less than one prompt of as many tokens."""
    knee = find(traffic(name, 3), random.Random(3))
    assert knee is not None
    assert knee.tokens == pytest.approx(brute_force(alone(name)), rel=0.2)


def test_outliers_are_outvoted() -> None:
    chance = random.Random(4)
    steps = sweep("llama-70b on 2 h100", 4)
    spoilt = [
        StepSeen(
            one.prompt_tokens,
            0,
            one.context_tokens,
            one.seconds * (chance.uniform(3, 50) if chance.random() < 0.1 else 1),
        )
        for one in steps
    ]
    knee = find(spoilt, random.Random(4))
    assert knee is not None
    assert knee.tokens == pytest.approx(brute_force(alone("llama-70b on 2 h100")), rel=0.1)


def test_steps_that_decode_say_nothing_of_prompts() -> None:
    steps = [StepSeen(size, size, 9_000_000, 1.0) for size in SIZES for _ in range(20)]
    assert find(steps, random.Random(1)) is None
    assert "hardly decode" in (missing(steps) or "")


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([], "no 3 steps of like size"),
        ([StepSeen(512, 0, 512, 0.01)] * 500, "only steps of 512 to 512 tokens have been seen: the largest"),
        (
            [StepSeen(n, 0, n, 0.01) for n in (16, 4096) for _ in range(9)],
            "16 to 4,096 tokens have been seen, in 2 sizes",
        ),
        (sweep("gpt-oss on h100", 1, most=1024), "still rises at 1,024 tokens"),
        ([StepSeen(n, 0, n, n * 1e-4) for n in SIZES for _ in range(9)], "saturate the engine already"),
    ],
)
def test_without_the_steps_that_it_takes_nothing_is_said(steps: list[StepSeen], says: str) -> None:
    assert find(steps, random.Random(1)) is None
    assert says in (missing(steps) or "")


def test_where_attention_grows_there_is_an_upper_limit() -> None:
    name, seconds = "llama-8b on a100", alone("llama-8b on a100")
    knee = find(sweep(name, 1), random.Random(1))
    assert knee is not None
    rates = {size: size / seconds(size) for size in range(256, 8193, 32)}
    limit = max(size for size, rate in rates.items() if rate >= 0.9 * max(rates.values()))
    assert knee.limit_tokens == pytest.approx(limit, rel=0.15)


def test_where_it_does_not_there_is_none_to_be_seen() -> None:
    knee = find([StepSeen(n, 0, n, max(0.02, n * 4e-5)) for n in SIZES for _ in range(9)], random.Random(1))
    assert knee is not None
    assert knee.limit_tokens is None
    assert knee.tokens == pytest.approx(450, rel=0.1)


def test_a_budget_is_to_be_changed_only_where_that_is_sure_to_bring_something() -> None:
    knee = find(sweep("llama-8b on a100", 1), random.Random(1))
    assert knee is not None
    small, right, large = advice(knee, 128), advice(knee, knee.tokens), advice(knee, 65_536)
    assert small is not None
    assert small.budget % 64 == 0
    assert knee.tokens <= small.budget < knee.tokens + 64
    assert 0.05 < small.gain < knee.tokens_s / knee.curve.rate(128) - 1
    assert right is None
    assert large is not None
    assert large.budget == small.budget
    assert advice(knee, knee.low - 1) is None, "so little that it can't be told from nothing"


# ---- what it would bring

LINE = Curve((0.02, 0.0, 0.04, 0.0, 0.0), (), 16, 16_384)  # 20 ms, and 40 µs for each token


@pytest.mark.parametrize("rate", [0.5, 4.0, 7.0])
def test_prompts_of_at_least_a_step_wait_as_in_distserves_formula(rate: float) -> None:
    busy = LINE.seconds(2048)
    assert ttft_s(LINE, 2048, 2048, rate) == pytest.approx(busy + rate * busy**2 / (2 * (1 - rate * busy)))
    two = 2 * LINE.seconds(1024)
    assert ttft_s(LINE, 1024, 2048, rate) == pytest.approx(two + rate * two**2 / (2 * (1 - rate * two)))


def test_more_than_can_be_done_has_no_mean() -> None:
    assert ttft_s(LINE, 2048, 2048, 1.01 / LINE.seconds(2048)) is None


def test_while_little_comes_the_budget_makes_no_difference_to_short_prompts() -> None:
    assert ttft_s(LINE, 512, 256, 0.1) == pytest.approx(ttft_s(LINE, 8192, 256, 0.1), rel=1e-3)
    assert ttft_s(LINE, 512, 256, 0.1) == pytest.approx(LINE.seconds(256), rel=0.01)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("budget", "prompt"), [(2048, 2048), (512, 2048), (2048, 256), (1024, 512)])
def test_it_is_what_a_queue_comes_to(budget: int, prompt: int, load: float) -> None:
    rate = load * LINE.rate(budget) / prompt
    predicted = ttft_s(LINE, budget, prompt, rate)
    assert predicted == pytest.approx(_played(budget, prompt, rate), rel=0.15)


def _played(budget: int, prompt: int, rate: float) -> float:
    """First come, first served, steps of whatever is there: the mean of 20,000 requests."""
    chance, now, waits = random.Random(1), 0.0, []
    waiting: list[list[float]] = []  # arrival, tokens left
    arrivals, next_at = 20_000, chance.expovariate(rate)
    while len(waits) < arrivals:
        while next_at <= now or not waiting:
            now = max(now, next_at) if not waiting else now
            waiting.append([next_at, float(prompt)])
            next_at += chance.expovariate(rate)
        left, tokens = float(budget), 0.0
        for one in waiting:
            take = min(left, one[1])
            one[1] -= take
            left -= take
            tokens += take
        now += LINE.seconds(tokens)
        waits += [now - one[0] for one in waiting if one[1] <= 0]
        waiting = [one for one in waiting if one[1] > 0]
    return sum(waits) / len(waits)
