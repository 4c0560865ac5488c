"""What a simulated engine says of its legs, in the words of the engine channel. Pure."""

from __future__ import annotations

from appliance.channel import HandoffEnded, Scheduled
from appliance.simulator.leg import Ask


def scheduled(ask: Ask, now_ns: int) -> Scheduled:
    """For the first time."""
    phase = "decode" if ask.phase == "decode" else "prefill"
    return Scheduled(request=ask.key, phase=phase, at_ns=now_ns, prompt_tokens=ask.prompt_tokens)


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
