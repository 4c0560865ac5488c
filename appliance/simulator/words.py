"""What a simulated engine says of its legs, in the words of the engine channel. Pure."""

from __future__ import annotations

from appliance.channel import CoreReady, HandoffEnded, Heartbeat, Scheduled, Step
from appliance.simulator.leg import Ask, Settings, State, Work


def ready(settings: Settings, sockets: tuple[str, ...] = (), lease_table: str = "") -> CoreReady:
    """It is there."""
    return CoreReady(
        kv_blocks=settings.kv_blocks,
        block_tokens=settings.block_tokens,
        max_model_len=settings.max_model_len,
        max_batched_tokens=settings.max_batched_tokens,
        max_running=settings.max_running,
        sockets=sockets,
        lease_table=lease_table,
    )


def scheduled(ask: Ask, now_ns: int) -> Scheduled:
    """For the first time."""
    phase = "decode" if ask.phase == "decode" else "prefill"
    return Scheduled(request=ask.name, phase=phase, at_ns=now_ns, prompt_tokens=ask.prompt_tokens)


def step(state: State, start_ns: int, end_ns: int, work: Work) -> Step:
    """One is over."""
    return Step(
        start_ns=start_ns,
        end_ns=end_ns,
        prompt_tokens=work.prompt_tokens,
        decode_tokens=work.decodes,
        context_tokens=work.decode_context + work.prompt_context,
        attended=work.attended,
        running=state.running,
        waiting=state.waiting,
        fetching=state.fetching,
        kv_free=state.kv_free,
        leased=state.leased,
        preemptions=state.preemptions,
        prefix_queries=state.prefix_queries,
        prefix_hits=state.prefix_hits,
    )


def beat(state: State, now_ns: int) -> Heartbeat:
    """It turns, and has nothing to do."""
    return Heartbeat(
        at_ns=now_ns,
        running=state.running,
        waiting=state.waiting,
        fetching=state.fetching,
        kv_free=state.kv_free,
        leased=state.leased,
    )


def handed_over(ask: Ask, began_ns: int, now_ns: int, error: str | None, size_bytes: int) -> HandoffEnded:
    """A pull is over; with an ``error`` its tokens are computed again."""
    offer = ask.offer
    assert offer is not None, "only a decode leg pulls"
    return HandoffEnded(
        lease=offer.lease,
        producer=offer.producer,
        ok=error is None,
        bytes=size_bytes if error is None else 0,
        tokens=offer.tokens,
        start_ns=began_ns,
        end_ns=now_ns,
        copies=1 if size_bytes else 0,
        error=error,
    )
