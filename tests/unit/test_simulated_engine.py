"""A simulated engine: what vLLM's scheduler would do, step by step, and nothing lost whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.channel import HandoffEnded, LeaseEnded, LeaseGranted, Scheduled, Step, Up
from appliance.costs.roofline import StepCost
from appliance.simulator.clock import VirtualClock
from appliance.simulator.engine import Engine
from appliance.simulator.fabric import Fabric
from appliance.simulator.leg import Ask, Offer, Outcome, Settings, Work
from appliance.simulator.physics import Physics, Speed

MS = 1_000_000


class Linear:
    """10 ms, and 1 ms for each token."""

    def step(self, work: Work, speed: Speed) -> StepCost:
        seconds = 0.010 + 0.001 * (work.prompt_tokens + work.decodes)
        return StepCost(0, 0, 0, 0, 0, 0, 0, 0, seconds, seconds)


class Bench:
    """Two engines, e0 and e1, with a link of 1 MB/s between them, and all that they say."""

    def __init__(self, **fields: Any) -> None:
        self.clock = VirtualClock()
        self.said: list[tuple[str, Up]] = []
        self.outcomes: list[Outcome] = []
        self.fabric = Fabric(self.clock, 1e6, self._refusal, lambda *_: None)
        fields = {
            "max_batched_tokens": 32,
            "max_running": 4,
            "kv_blocks": 20,
            "block_tokens": 4,
            "block_bytes": 1000,
            **fields,
        }
        self.engines: dict[str, Engine] = {}
        for name in ("e0", "e1"):
            physics = Physics(Linear(), name, noise=0.0)
            engine = Engine(
                name, Settings(**fields), self.clock, physics, self.fabric,
                lambda message, name=name: self.said.append((name, message)), self.outcomes.append,
            )  # fmt: skip
            self.engines[name] = engine

    def _refusal(self, offer: Offer) -> str | None:
        return (
            None
            if self.engines[offer.producer].holds(offer.lease)
            else f"{offer.producer} no longer holds {offer.lease}"
        )

    def submit(
        self, engine: str = "e0", key: str = "a", phase: str = "whole", prompt: int = 8, output: int = 3, **more: Any
    ) -> None:
        self.engines[engine].submit(Ask(key=key, phase=phase, prompt_tokens=prompt, output_tokens=output, **more))

    def run(self, ms: int = 100_000) -> None:
        self.clock.run(self.clock.now_ns + ms * MS)

    def of(self, kind: type[Any], engine: str = "e0") -> list[Any]:
        return [message for name, message in self.said if name == engine and isinstance(message, kind)]

    def steps(self, engine: str = "e0") -> list[tuple[int, int, float]]:
        """Prompt tokens, decodes, and duration in ms, of each."""
        return [(s.prompt_tokens, s.decode_tokens, (s.end_ns - s.start_ns) / MS) for s in self.of(Step, engine)]


def test_a_request_is_a_prefill_and_then_a_step_per_token() -> None:
    bench = Bench()
    bench.submit(prompt=8, output=3)
    bench.run()
    assert bench.steps() == [(8, 0, 18.0), (0, 1, 11.0), (0, 1, 11.0)]
    [outcome] = bench.outcomes
    assert outcome.first_token_ns is not None
    assert (outcome.ended_ns - outcome.first_token_ns) / MS == 22.0
    assert bench.engines["e0"].blocks.free == 20


def test_a_long_prompt_is_cut_by_the_budget_and_those_that_decode_come_first() -> None:
    bench = Bench()
    bench.submit(key="a", prompt=4, output=9)
    bench.run(10)
    bench.submit(key="b", prompt=40, output=1)
    bench.run()
    assert [step[:2] for step in bench.steps()][:3] == [(4, 0), (31, 1), (9, 1)]


def test_no_more_run_at_once_than_there_are_places() -> None:
    bench = Bench(max_running=2)
    for key in "abc":
        bench.submit(key=key, prompt=4, output=5)
    bench.run()
    assert max(step.running for step in bench.of(Step)) == 2
    assert len(bench.outcomes) == 3


def test_what_the_cache_has_is_not_computed_again() -> None:
    bench = Bench()
    digests = (1, 2, 3, 4)
    bench.submit(key="a", prompt=16, output=1, digests=digests)
    bench.run()
    bench.submit(key="b", prompt=16, output=1, digests=digests)
    bench.run()
    assert [step[0] for step in bench.steps()] == [16, 4], "the last block holds the token that is computed in any case"
    assert bench.of(Step)[-1].prefix_hits == 12


def test_where_blocks_run_out_the_last_one_is_preempted_and_computed_again() -> None:
    bench = Bench(kv_blocks=6)
    bench.submit(key="a", prompt=8, output=12)
    bench.submit(key="b", prompt=8, output=12)
    bench.run()
    assert {outcome.ask.key for outcome in bench.outcomes} == {"a", "b"}
    assert bench.of(Step)[-1].preemptions > 0
    assert [outcome.ask.key for outcome in bench.outcomes] == ["a", "b"]
    assert bench.engines["e0"].blocks.free == 6


def hand_over(bench: Bench, **more: Any) -> Offer:
    bench.submit("e0", "a", "prefill", prompt=16, output=1, **more)
    bench.run(30)
    offer = bench.outcomes.pop().offer
    assert offer is not None
    return offer


def test_kv_is_handed_over_and_its_blocks_go_back() -> None:
    bench = Bench()
    offer = hand_over(bench)
    assert (offer.tokens, len(offer.blocks), bench.engines["e0"].blocks.free) == (16, 4, 16)
    bench.submit("e1", "a", "decode", prompt=16, output=2, offer=offer)
    bench.run(200)
    [handoff] = bench.of(HandoffEnded, "e1")
    assert (handoff.ok, handoff.bytes) == (True, 4000)
    assert (handoff.end_ns - handoff.start_ns) / MS == 4.05, "4 kB at 1 MB/s, and what each costs whatever its size"
    assert bench.steps("e1") == [(1, 0, 11.0), (0, 1, 11.0)], (
        "the last token of the prompt is computed where it is decoded"
    )
    bench.engines["e0"].release("a", "released")
    assert bench.engines["e0"].blocks.free == bench.engines["e1"].blocks.free == 20
    assert [message.reason for message in bench.of(LeaseEnded)] == ["released"]


def test_a_lease_that_has_expired_is_computed_again() -> None:
    bench = Bench()
    offer = hand_over(bench, ttl_s=0.001)
    bench.run(50)
    assert [message.reason for message in bench.of(LeaseEnded)] == ["expired"]
    bench.submit("e1", "a", "decode", prompt=16, output=2, offer=offer)
    bench.run()
    [handoff] = bench.of(HandoffEnded, "e1")
    assert (handoff.ok, handoff.error) == (False, "e0 no longer holds a")
    assert bench.steps("e1")[0][0] == 16


def test_copies_go_over_a_link_one_after_the_other_and_one_that_is_cancelled_is_out_of_the_way() -> None:
    bench = Bench(max_running=8, kv_blocks=40)
    said: list[int] = []
    bench.fabric._copying = lambda producer, consumer, more, size: said.append(more)
    offers = []
    for key in "abc":
        bench.submit("e0", key, "prefill", prompt=16, output=1)
        bench.run(30)
        offers.append(bench.outcomes.pop().offer)
    for key, offer in zip("abc", offers, strict=True):
        bench.submit("e1", key, "decode", prompt=16, output=1, offer=offer)
    assert said == [1], "the others wait"
    bench.engines["e1"].abort("a")
    bench.engines["e1"].abort("c")
    bench.run(5)
    [first] = [one for one in bench.of(HandoffEnded, "e1") if one.ok]
    assert first.lease == "b"
    assert (first.end_ns - first.start_ns) / MS == 4.05
    assert sum(said) == 0


def test_a_lease_counts_its_consumers() -> None:
    bench = Bench()
    hand_over(bench, consumers=2)
    bench.engines["e0"].release("a", "released")
    assert bench.of(LeaseEnded) == []
    bench.engines["e0"].release("a", "released")
    assert len(bench.of(LeaseEnded)) == 1


def test_an_engine_that_dies_takes_everything_with_it_and_says_so() -> None:
    bench = Bench()
    offer = hand_over(bench)
    bench.submit("e0", "b", prompt=8, output=50)
    bench.run(25)
    bench.engines["e0"].die()
    assert [(outcome.ask.key, outcome.lost) for outcome in bench.outcomes] == [("b", True)]
    bench.submit("e1", "a", "decode", prompt=16, output=2, offer=offer)
    bench.run()
    assert not bench.of(HandoffEnded, "e1")[0].ok
    assert bench.outcomes[-1].ask.key == "a"
    bench.submit("e0", "c")
    assert bench.outcomes[-1].lost


@pytest.mark.parametrize("end", [Engine.hang, Engine.die])
def test_an_engine_that_does_nothing_any_more_says_nothing_of_its_lease_either(end: Callable[[Engine], None]) -> None:
    bench = Bench()
    hand_over(bench, ttl_s=0.5)
    engine, said = bench.engines["e0"], len(bench.said)
    end(engine)
    engine.release("a", "released")
    bench.run(2_000)
    assert [message for name, message in bench.said[said:] if name == "e0"] == []


@pytest.mark.parametrize("aborted", [False, True])
def test_an_engine_that_hangs_says_nothing_of_what_it_fetches(aborted: bool) -> None:
    bench = Bench()
    bench.submit("e1", "a", "decode", prompt=16, output=2, offer=hand_over(bench))
    bench.run(1)
    engine = bench.engines["e1"]
    assert engine._fetching
    engine.hang()
    if aborted:
        engine.abort("a")
    bench.run()
    assert bench.of(HandoffEnded, "e1") == []
    engine.die()
    assert [outcome.ask.phase for outcome in bench.outcomes if outcome.lost] == ([] if aborted else ["decode"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(0, 60)), max_size=12))
def test_many_that_decode_on_few_blocks_are_all_answered(legs: list[tuple[int, int, int]]) -> None:
    """One that is preempted must not stand in front of those that hold what it waits for."""
    bench = Bench(kv_blocks=12, max_running=8)
    offers: dict[str, Offer] = {}
    for number, (prompt, output, pause_ms) in enumerate(legs):
        key = f"r{number}"
        bench.submit("e0", key, "prefill", prompt=prompt, output=1, ttl_s=3600.0)
        bench.run(200)
        offers |= {one.ask.key: one.offer for one in bench.outcomes if one.offer is not None}
        if key in offers:
            bench.submit("e1", key, "decode", prompt=prompt, output=output, offer=offers[key])
            bench.engines["e0"].release(key, "cancelled")
        bench.run(pause_ms)
    bench.run(600_000)
    answered = [one.ask.key for one in bench.outcomes if one.ask.phase == "decode"]
    assert sorted(answered) == sorted(offers)
    assert bench.engines["e1"].blocks.free == 12


def test_two_that_decode_and_need_each_others_blocks_are_both_answered() -> None:
    bench = Bench(kv_blocks=10)
    offer = hand_over(bench)
    bench.submit("e1", "a", "whole", prompt=20, output=15)
    bench.run(60)
    bench.submit("e1", "b", "decode", prompt=16, output=3, offer=offer)
    bench.run()
    assert {outcome.ask.key for outcome in bench.outcomes} == {"a", "b"}


def test_blocks_that_are_there_again_wake_whoever_waits_for_them() -> None:
    bench = Bench()
    bench.engines["e0"].withhold(20)
    bench.submit(prompt=8, output=2)
    bench.run(1000)
    assert bench.outcomes == []
    bench.engines["e0"].withhold(0)
    bench.run(1000)
    assert len(bench.outcomes) == 1


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["whole", "prefill", "decode", "abort", "wait", "release"]),
        st.integers(1, 40),  # prompt tokens, ms, or which one
        st.integers(1, 30),  # output tokens
        st.integers(0, 3),  # beginning
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ACTS, st.integers(18, 40))
def test_whatever_happens_everybody_hears_once_and_every_block_goes_back(
    acts: list[tuple[str, int, int, int]], blocks: int
) -> None:
    bench = Bench(kv_blocks=blocks)
    asked, aborted = [], set()
    for number, (act, size, output, beginning) in enumerate(acts):
        key = f"r{number}"
        digests = tuple(beginning * 100 + place for place in range((size + output) // 4))
        if act == "wait":
            bench.run(size)
        elif act == "abort" and asked:
            victim = asked[size % len(asked)]
            if victim not in {outcome.ask.key for outcome in bench.outcomes}:
                aborted.add(victim)
            for engine in bench.engines.values():
                engine.abort(victim)
        elif act == "release" and asked:
            bench.engines["e0"].release(asked[size % len(asked)], "cancelled")
        elif act in ("whole", "prefill"):
            asked.append(key)
            bench.submit(
                "e0", key, act, prompt=size, output=1 if act == "prefill" else output, digests=digests, ttl_s=0.2
            )
        elif act == "decode":
            offers = [outcome.offer for outcome in bench.outcomes if outcome.offer is not None]
            if offers:
                offer = offers[size % len(offers)]
                asked.append(key)
                bench.submit("e1", key, "decode", prompt=offer.tokens, output=output, offer=offer)
    bench.run(3_600_000)
    heard = [outcome.ask.key for outcome in bench.outcomes]
    assert sorted(heard) == sorted(set(asked) - aborted)
    for name, engine in bench.engines.items():
        assert engine.blocks.free == blocks
        assert all(step.prompt_tokens + step.decode_tokens <= 32 for step in bench.of(Step, name))
    granted = {message.lease for message in bench.of(LeaseGranted)}
    assert sorted(message.lease for message in bench.of(LeaseEnded)) == sorted(granted)
    assert all(message.phase == "prefill" for message in bench.of(Scheduled))
