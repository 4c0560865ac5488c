"""A whole simulated node: as the cost model says where it is quiet, the same each time, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from appliance.channel import Fault
from appliance.config import Config
from appliance.costs import closed, huggingface
from appliance.costs.gpus import gpu
from appliance.costs.roofline import Batch, Roofline
from appliance.records import Role
from appliance.simulator.clock import VirtualClock
from appliance.simulator.leg import Settings
from appliance.simulator.node import SimulatedNode
from appliance.simulator.plan import EnginePlan
from appliance.simulator.request import Answered, Asked

CONFIGS = Path(__file__).parent / "configs"
LLAMA = Roofline(huggingface.read(CONFIGS / "llama-3.1-8b"), gpu("h100"))
LINK_BYTES_S = 300e9


class House:
    """A closed loop: whoever is answered asks again."""

    def __init__(
        self, *roles: Role, asked: Asked, at_once: int, seed: int = 1, quiet: bool = True, **settings: int
    ) -> None:
        self.clock = VirtualClock()
        self.answers: list[Answered] = []
        self._asked = asked
        fields = Settings(**{"kv_blocks": 20_000, "max_batched_tokens": 8192, **settings})
        plans = [
            EnginePlan(
                name=f"e{number}",
                role=role,
                settings=fields,
                shape=LLAMA.shape,
                gpu="h100",
                first_gpu=number,
                link_bytes_s=LINK_BYTES_S,
                seed=seed,
                noise=0.0 if quiet else 1.0,
            )
            for number, role in enumerate(roles)
        ]
        self.node = SimulatedNode(Config(), plans, self.clock, self._answered)
        for number in range(at_once):  # one after the other, or all would be in step for ever
            self.clock.at(self.clock.now_ns + number * 53_000_000, lambda: self.node.ask(asked))

    def _answered(self, answered: Answered) -> None:
        self.answers.append(answered)
        if len(self.answers) < 100_000:
            self.node.ask(self._asked)

    def run(self, seconds: float) -> None:
        self.clock.run(self.clock.now_ns + int(seconds * 1e9))


def test_an_aggregated_engine_at_steady_state_is_what_the_closed_form_says() -> None:
    house = House(Role.BOTH, asked=Asked(prompt_tokens=1000, output_tokens=200), at_once=64)
    house.run(20)
    before = len(house.answers)
    house.run(60)
    measured = (len(house.answers) - before) * 200 / 60
    with_a_prompt, without = (
        LLAMA.step(Batch(chunks, 64, 64 * 1100)).total_s for chunks in ([(1000, 0)], [])
    )  # prompts come whole, one for each 200 tokens of 64 sequences
    mean_s = 64 / 200 * with_a_prompt + (1 - 64 / 200) * without
    assert measured == pytest.approx(64 / mean_s, rel=0.05)
    assert measured < closed.steady_output_tokens_s(LLAMA, 64, 1000, 200), "which spreads prompts evenly over steps"


def test_a_prefill_engine_that_is_kept_busy_is_what_the_closed_form_says() -> None:
    house = House(
        Role.PREFILL, Role.DECODE, asked=Asked(prompt_tokens=2048, output_tokens=2), at_once=40, max_batched_tokens=2048
    )
    house.run(10)
    before = len(house.answers)
    house.run(30)
    measured = (len(house.answers) - before) * 2048 / 30
    assert measured == pytest.approx(closed.prefill_tokens_s(LLAMA, 2048), rel=0.05)
    assert all(answer.split for answer in house.answers)


def test_a_decode_engine_alone_is_what_the_closed_form_says() -> None:
    house = House(Role.PREFILL, Role.DECODE, asked=Asked(prompt_tokens=500, output_tokens=1000), at_once=32)
    house.run(60)
    tpots = sorted(answer.tpot_ns for answer in house.answers if answer.tpot_ns is not None)
    assert tpots[len(tpots) // 2] * 1e-9 == pytest.approx(LLAMA.step(Batch((), 32, 32 * 1000)).total_s, rel=0.05)


def test_the_same_seed_gives_the_same_answers_and_another_one_others() -> None:
    def answers(seed: int) -> list[Answered]:
        house = House(
            Role.PREFILL,
            Role.DECODE,
            asked=Asked(prompt_tokens=700, output_tokens=50),
            at_once=9,
            seed=seed,
            quiet=False,
        )
        house.run(10)
        return house.answers

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_noise_is_there_and_has_no_bias_worth_speaking_of() -> None:
    def median_s(quiet: bool) -> float:
        house = House(Role.BOTH, asked=Asked(prompt_tokens=100, output_tokens=100), at_once=8, quiet=quiet)
        house.run(20)
        tpots = sorted(answer.tpot_ns for answer in house.answers if answer.tpot_ns is not None)
        return tpots[len(tpots) // 2] * 1e-9

    assert median_s(False) != median_s(True)
    assert median_s(False) == pytest.approx(median_s(True), rel=0.05)


def test_when_all_are_answered_nothing_is_held() -> None:
    house = House(Role.PREFILL, Role.PREFILL, Role.DECODE, asked=Asked(prompt_tokens=900, output_tokens=20), at_once=50)
    house.run(2)
    house._answered = house.answers.append  # type: ignore[method-assign]
    house.node._on_answer = house.answers.append
    house.run(200)
    node = house.node
    assert node.under_way == 0
    ledger = node.ledger.snapshot(house.clock.now_ns)
    assert ledger.leases == ()
    assert ledger.granted == ledger.released == len(house.answers)
    assert [node.engine(f"e{number}").blocks.free for number in range(3)] == [20_000] * 3
    assert [node.loads[f"e{number}"].legs for number in range(3)] == [0, 0, 0]
    assert msgspec.structs.asdict(node.queue.snapshot(0, 0))["depth"] == 0


def test_an_engine_that_dies_fails_its_requests_and_no_other() -> None:
    house = House(Role.BOTH, Role.BOTH, asked=Asked(prompt_tokens=900, output_tokens=500), at_once=10)
    house.run(1)
    house.node._on_answer = house.answers.append
    house.node.engine("e0").die()
    failed = [answer for answer in house.answers if answer.error is not None]
    assert len(failed) == 5
    assert {answer.error for answer in failed} == {"its engine was lost"}


def test_the_collector_says_of_it_what_it_would_say_of_a_real_node() -> None:
    house = House(Role.PREFILL, Role.DECODE, asked=Asked(prompt_tokens=500, output_tokens=1000), at_once=32)
    house.run(30)
    snapshot = house.node.snapshot()
    prefill, decode = snapshot.engines
    assert (snapshot.simulated, snapshot.ready, snapshot.topology) == (True, True, "1p1d")
    assert snapshot.uptime_s == pytest.approx(30)
    assert decode.running == 32
    step_s = LLAMA.step(Batch((), 32, 32 * 1000)).total_s
    assert decode.output_tokens_s == pytest.approx(32 / step_s, rel=0.1)
    assert (prefill.prompt_tokens_s or 0) > 100
    assert snapshot.requests.ok == snapshot.requests.split == len(house.answers)
    assert [gpu.engine for gpu in snapshot.gpus] == ["e0", "e1"]
    assert (snapshot.gpus[1].dram or 0) > 0.5 > (snapshot.gpus[0].dram or 0)


def test_an_engine_that_is_lost_leaves_nothing_held_for_what_it_was_to_decode() -> None:
    house = House(Role.PREFILL, Role.DECODE, asked=Asked(prompt_tokens=4000, output_tokens=500), at_once=20)
    house.run(3)
    house.node._on_answer = house.answers.append
    house.node.fault("e1", Fault(kind="crash", severity=1.0))
    house.run(20)
    assert any(answer.error for answer in house.answers)
    assert house.node.ledger.snapshot(house.clock.now_ns).leases == ()
