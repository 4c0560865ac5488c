"""What engines make of ``kv_transfer_params``: what the router and peers write is read, anything else is nothing, and nothing raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.channel import HandoffEnded, encode
from appliance.engine.kv.params import Offer, Ticket, Whole, prompt_digest, read, ticket_params

TICKET = Ticket(
    request="k",
    do_remote_prefill=True,
    engine="e0",
    epoch=1,
    slot=0,
    generation=7,
    tokens=300,
    prompt=prompt_digest(range(300)),
    blocks=((4, 0, 9), (2,)),
)


def test_what_is_written_is_read() -> None:
    assert read(ticket_params(TICKET)) == TICKET
    assert read({**ticket_params(TICKET), "remote_prefill_cached_tokens": 128}) == TICKET, "vLLM adds its own"
    assert read({"do_remote_decode": True, "request": "k", "consumers": 2, "ttl_s": 9.5}) == Offer(
        request="k", do_remote_decode=True, consumers=2, ttl_s=9.5
    )
    assert read({"request": "k"}) == Whole(request="k")


@pytest.mark.parametrize(
    "change",
    [
        *({"tokens": 0}, {"tokens": -1}, {"tokens": 2**64}, {"tokens": "3"}, {"slot": -1}, {"generation": 2**63}),
        *({"blocks": [[-1]]}, {"blocks": 5}, {"blocks": [[2**70]]}, {"epoch": None}, {"request": 5}),
    ],
)
def test_a_ticket_that_makes_no_sense_is_nothing(change: dict[str, Any]) -> None:
    assert read({**ticket_params(TICKET), **change}) is None


@pytest.mark.parametrize(
    "change", [{"consumers": 0}, {"consumers": -3}, {"ttl_s": 0}, {"ttl_s": "long"}, {"request": 1}]
)
def test_an_offer_that_makes_no_sense_is_nothing(change: dict[str, Any]) -> None:
    assert read({"do_remote_decode": True, "request": "k", "consumers": 1, "ttl_s": 1.0, **change}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    JSON | st.dictionaries(st.sampled_from([*ticket_params(TICKET), "do_remote_decode", "consumers", "ttl_s"]), JSON)
)
def test_whatever_comes_reading_never_fails_and_what_was_read_can_be_reported(params: Any) -> None:
    found = read(params)
    if isinstance(found, Ticket):
        encode(HandoffEnded(lease="k", producer="e0", ok=True, bytes=0, tokens=found.tokens, start_ns=0, end_ns=0))


def test_prompts_are_told_apart() -> None:
    assert prompt_digest([1, 2, 3]) == prompt_digest((1, 2, 3))
    assert len({prompt_digest(tokens) for tokens in ([1, 2, 3], [1, 2], [3, 2, 1], [])}) == 4
