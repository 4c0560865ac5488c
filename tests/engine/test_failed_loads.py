"""Failed loads, forced: the peer is gone, the lease is over, the ticket lies. The answer is the same, and no block stays behind."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from pair import Pair

from appliance.channel import HandoffEnded, LeaseGranted, Release, Scheduled

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
_prompts = random.Random(7)


def completion(tokens: int) -> dict[str, Any]:
    """A fresh prompt, so that no prefix cache helps."""
    prompt = [_prompts.randrange(256) for _ in range(tokens)]
    return {"model": "m", "prompt": prompt, "max_tokens": 16, "temperature": 0}


async def release(pair: Pair, key: str) -> None:
    assert pair.e0.core is not None
    pair.e0.core.send(Release(lease=key, reason="released"))
    await pair.ended(key)


async def expect_recomputed(pair: Pair, key: str, body: dict[str, Any], ticket: dict[str, Any], says: str) -> None:
    split = await pair.decode(body, ticket)
    handoff = await pair.e1.until(HandoffEnded, lease=key)
    assert not handoff.ok
    assert says in (handoff.error or "")
    whole = await pair.e0.post("/v1/completions", body)
    assert split["choices"][0]["text"] == whole["choices"][0]["text"]
    assert all(split["usage"][count] == whole["usage"][count] for count in ("prompt_tokens", "completion_tokens"))


async def test_an_unknown_peer_is_recomputed(pair: Pair) -> None:
    """Runs first: e1 has not been introduced to e0 yet."""
    body = completion(700)
    ticket = await pair.prefill("unknown", body)
    await expect_recomputed(pair, "unknown", body, ticket, "is not mapped")
    await release(pair, "unknown")


async def test_peers_meet_and_hand_over(pair: Pair) -> None:
    assert (await pair.introduce(pair.e1, pair.e0)).error is None
    for tokens in (1, 127, 128, 129, 900, 3000):
        body = completion(tokens)
        ticket = await pair.prefill(f"well-{tokens}", body)
        split = await pair.decode(body, ticket)
        handoff = await pair.e1.until(HandoffEnded, lease=f"well-{tokens}")
        assert handoff.ok, handoff.error
        assert handoff.bytes > 0 and handoff.tokens == tokens
        whole = await pair.e0.post("/v1/completions", body)
        assert split["choices"][0]["text"] == whole["choices"][0]["text"]
        await release(pair, f"well-{tokens}")


async def test_an_expired_lease_is_recomputed(pair: Pair) -> None:
    body = completion(600)
    ticket = await pair.prefill("expired", body, ttl_s=0.05)
    assert (await pair.ended("expired")).reason == "expired"
    await expect_recomputed(pair, "expired", body, ticket, "ended before the pull")


async def test_a_cancelled_lease_is_recomputed(pair: Pair) -> None:
    body = completion(600)
    ticket = await pair.prefill("cancelled", body, consumers=5)
    assert pair.e0.core is not None
    pair.e0.core.send(Release(lease="cancelled", reason="cancelled"))
    assert (await pair.ended("cancelled")).reason == "cancelled"
    await expect_recomputed(pair, "cancelled", body, ticket, "ended before the pull")


@pytest.mark.parametrize(
    ("name", "lie", "says"),
    [
        ("life", {"epoch": 9}, "is not mapped"),
        ("generation", {"generation": 2**40}, "ended before the pull"),
        ("slot", {"slot": 10**6}, "ended before the pull"),
        ("beyond", {"blocks": [[10**6, 10**6 + 1, 10**6 + 2]]}, "beyond the peer's memory"),
        ("missing", {"blocks": [[0, 0, 0]]}, "did not keep"),
    ],
)
async def test_a_ticket_that_lies_is_recomputed(pair: Pair, name: str, lie: dict[str, Any], says: str) -> None:
    body = completion(300)
    ticket = await pair.prefill(name, body)
    await expect_recomputed(pair, name, body, {**ticket, **lie}, says)
    await release(pair, name)


async def test_the_kv_of_another_prompt_of_the_same_length_is_not_decoded(pair: Pair) -> None:
    """A chat template that asks for the time renders the two legs differently."""
    ticket = await pair.prefill("other", completion(300))
    await expect_recomputed(pair, "other", completion(300), ticket, "not the one that was prefilled")
    await release(pair, "other")


@pytest.mark.parametrize(
    "ticket",
    [
        {"do_remote_prefill": True},
        {"do_remote_prefill": True, "request": 7},
        {"do_remote_decode": True, "request": "x", "consumers": -1},
        {"do_remote_decode": "yes", "do_remote_prefill": [], "request": {}},
        {"anything": None},
    ],
)
async def test_malformed_parameters_do_no_harm(pair: Pair, ticket: dict[str, Any]) -> None:
    body = completion(40)
    split = await pair.decode(body, ticket)
    whole = await pair.e0.post("/v1/completions", body)
    assert split["choices"][0]["text"] == whole["choices"][0]["text"]


async def test_a_large_pull_runs_beside_the_loop(pair: Pair) -> None:
    """Above ``inline_bytes`` (2 MiB here) the copy is made on a thread, with the same outcome."""
    body = completion(3000)
    ticket = await pair.prefill("large", body)
    split = await pair.decode(body, ticket)
    handoff = await pair.e1.until(HandoffEnded, lease="large")
    assert handoff.ok and handoff.bytes > 2 << 20
    whole = await pair.e0.post("/v1/completions", body)
    assert split["choices"][0]["text"] == whole["choices"][0]["text"]
    await release(pair, "large")


async def test_a_seeded_prompt_longer_than_the_token_budget(pair: Pair) -> None:
    """Plain vLLM on the CPU ends its EngineCore on this one (``engine/mends.py``)."""
    body = {**completion(1500), "seed": 7, "temperature": 1.0}
    whole = await pair.e0.post("/v1/completions", body)
    ticket = await pair.prefill("seeded", body)
    split = await pair.decode(body, ticket)
    assert split["choices"][0]["text"] == whole["choices"][0]["text"]
    recomputed = await pair.decode(body, {**ticket, "generation": 2**40})  # in chunks, on e1
    assert recomputed["choices"][0]["text"] == whole["choices"][0]["text"]
    await release(pair, "seeded")


async def test_a_prefill_that_did_not_end_well_makes_no_lease(pair: Pair) -> None:
    """A client that leaves in mid-prefill must not pin anything."""
    body = completion(3000)
    granted = len(pair.e0.heard(LeaseGranted))
    leaving = asyncio.create_task(pair.prefill("left", body))
    await pair.e0.until(Scheduled, request="left")
    leaving.cancel()
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    await pair.e0.idle_free_blocks()
    assert len(pair.e0.heard(LeaseGranted)) == granted


async def test_an_idle_engine_holding_leases_does_not_spin(pair: Pair) -> None:
    from psutil import Process

    await pair.prefill("held", completion(500))
    assert pair.e0.process is not None
    leader = Process(pair.e0.process.pid)
    family = [leader, *leader.children(recursive=True)]

    def used_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in family)

    before = used_s()
    await asyncio.sleep(3.0)
    assert used_s() - before < 0.45, "15 % of a core while idle: a spinning loop takes 40 % and more"
    await release(pair, "held")


async def test_a_peer_that_was_closed_is_recomputed(pair: Pair) -> None:
    await pair.part(pair.e1, pair.e0)
    body = completion(500)
    ticket = await pair.prefill("closed", body)
    await expect_recomputed(pair, "closed", body, ticket, "is not mapped")
    await release(pair, "closed")
    assert (await pair.introduce(pair.e1, pair.e0)).error is None


async def test_a_refused_mapping_is_reported(pair: Pair) -> None:
    """The manifest is somebody else's: e1 asks e1 for the memory of e0."""
    assert pair.e1.ready is not None and pair.e1.core is not None
    await pair.part(pair.e1, pair.e0)
    true = pair.e0.ready
    assert true is not None
    index = pair.e0.messages.index(true)
    from msgspec.structs import replace

    pair.e0.messages[index] = replace(true, sockets=pair.e1.ready.sockets)
    try:
        answer = await pair.introduce(pair.e1, pair.e0)
    finally:
        pair.e0.messages[index] = true
    assert "e1 (life 1) answered for e0 (life 1)" in (answer.error or "")
    assert (await pair.introduce(pair.e1, pair.e0)).error is None


async def test_afterwards_every_block_is_free(pair: Pair) -> None:
    assert pair.e0.ready is not None and pair.e1.ready is not None
    assert await pair.e0.idle_free_blocks() == pair.e0.ready.kv_blocks
    assert await pair.e1.idle_free_blocks() == pair.e1.ready.kv_blocks
