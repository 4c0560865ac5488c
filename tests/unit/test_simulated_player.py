"""What a live scenario's clients send."""

from __future__ import annotations

from appliance.simulator.player import prompt
from appliance.simulator.request import Asked
from appliance.simulator.scenario import BLOCK_TOKENS
from appliance.simulator.text import VOCABULARY


def test_no_two_requests_begin_alike_but_those_that_share_a_prefix() -> None:
    asked = Asked(prompt_tokens=BLOCK_TOKENS, output_tokens=1)
    turns = [(turn << 32) + number for turn in range(3) for number in range(5000)]
    beginnings = {tuple(prompt(asked, number)) for number in turns}
    assert len(beginnings) == len(turns), "or engines would find in their prefix caches what nobody shares"
    shared = Asked(prompt_tokens=2 * BLOCK_TOKENS + 5, output_tokens=1, digests=(7, 8))
    one, other = prompt(shared, 1), prompt(shared, 2)
    assert one[: 2 * BLOCK_TOKENS] == other[: 2 * BLOCK_TOKENS]
    assert one[2 * BLOCK_TOKENS :] != other[2 * BLOCK_TOKENS :]


def test_prompts_are_as_long_as_asked_and_of_tokens_that_there_are() -> None:
    for tokens, digests in ((1, ()), (15, ()), (16, (1,)), (1000, (1, 2, 3)), (20, (1, 2, 3))):
        said = prompt(Asked(prompt_tokens=tokens, output_tokens=1, digests=digests), 3)
        assert len(said) == tokens
        assert all(0 <= token < VOCABULARY for token in said)
