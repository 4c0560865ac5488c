"""KV blocks of a simulated engine: none is lost, none is had twice, and what is found is what was put there."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from appliance.simulator.blocks import Blocks


def test_a_beginning_is_found_until_its_place_is_needed() -> None:
    blocks = Blocks(4)
    held = blocks.take(3)
    assert held is not None
    for block, digest in zip(held, (11, 12, 13), strict=True):
        blocks.fill(block, digest)
    blocks.give_back(held)
    assert blocks.free == 4
    assert blocks.cached((11, 12, 99)) == held[:2]
    taken = blocks.take(2)
    assert taken is not None
    assert held[2] in taken, "one that was blank, and the end of what nobody uses"
    assert blocks.cached((11, 12, 13)) == held[:2]
    assert blocks.take(3) is None


def test_what_is_shared_is_free_when_the_last_one_gives_it_back() -> None:
    blocks = Blocks(2)
    held = blocks.take(1)
    assert held is not None
    blocks.fill(held[0], 11)
    blocks.share(blocks.cached((11,)))
    blocks.give_back(held)
    assert blocks.free == 1
    blocks.give_back(held)
    assert blocks.free == 2


class AnyOrder(RuleBasedStateMachine):
    holdings = Bundle("holdings")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks(12)
        self.held: list[list[int]] = []
        self.number = 0

    @rule(target=holdings, beginning=st.integers(0, 3), length=st.integers(0, 5))
    def take(self, beginning: int, length: int) -> list[int]:
        digests = [beginning * 10 + place for place in range(length)]
        found = self.blocks.cached(digests)
        self.blocks.share(found)
        new = self.blocks.take(length - len(found))
        if new is None:
            self.blocks.give_back(found)
            return []
        holding = found + new
        for block, digest in zip(holding, digests, strict=True):
            self.blocks.fill(block, digest)
        self.held.append(holding)
        return holding

    @rule(holding=consumes(holdings))
    def give_back(self, holding: list[int]) -> None:
        if holding:
            self.held.remove(holding)
            self.blocks.give_back(holding)

    @rule()
    def lose_the_cache(self) -> None:
        self.blocks.lose_cache()
        assert all(self.blocks.cached((beginning * 10,)) == [] for beginning in range(4))

    @invariant()
    def none_is_lost(self) -> None:
        assert self.blocks.free + len({block for holding in self.held for block in holding}) == 12


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
