"""The scheduler half: what it reports of a hand-off that never was one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the CPU engine is not installed")

from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import RequestStatus

from appliance.channel import HandoffEnded
from appliance.engine.kv.params import Ticket, prompt_digest, ticket_params
from appliance.engine.kv.pulls import Transfer, Transfers
from appliance.engine.kv.scheduler import SchedulerHalf

PROMPT = list(range(20))


class Link:
    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, message: object) -> None:
        self.sent.append(message)


def made(tmp_path: Path) -> tuple[SchedulerHalf, Link]:
    link: Any = Link()
    half = SchedulerHalf(
        engine="e1",
        epoch=1,
        link=link,
        table=tmp_path / "leases",
        group_tokens=(16,),
        inline_bytes=1,
        block_bytes=(64,),
    )
    return half, link


def decoding(prompt: list[int]) -> Any:
    """A decode leg as vLLM shows it, with the ticket for ``PROMPT``."""
    ticket = Ticket(
        request="k",
        do_remote_prefill=True,
        engine="e0",
        epoch=1,
        slot=0,
        generation=1,
        tokens=len(PROMPT),
        prompt=prompt_digest(PROMPT),
        blocks=((1, 2),),
    )
    return SimpleNamespace(
        request_id="r",
        kv_transfer_params=ticket_params(ticket),
        prompt_token_ids=prompt,
        status=RequestStatus.FINISHED_ABORTED,
    )


def test_a_client_that_leaves_before_its_pull_is_no_failed_hand_off(tmp_path: Path) -> None:
    half, link = made(tmp_path)
    request = decoding(PROMPT)
    half.arrived(request)
    assert half.matched_tokens(request, 0) == len(PROMPT)
    half.finished(request, ([],))
    assert link.sent == []
    assert half.matched_tokens(request, 0) == 0, "its ticket is forgotten"


def test_the_kv_of_another_prompt_is_one(tmp_path: Path) -> None:
    half, link = made(tmp_path)
    half.arrived(decoding([7] * len(PROMPT)))
    [told] = link.sent
    assert isinstance(told, HandoffEnded)
    assert (told.lease, told.ok, told.error) == ("k", False, "the prompt is not the one that was prefilled")


class Blocks:
    def get_block_ids(self) -> tuple[list[int], ...]:
        return ([5, 6],)


@pytest.mark.parametrize("error", [None, "the lease ended"])
def test_ranks_that_are_done_in_different_steps_make_one_hand_off(tmp_path: Path, error: str | None) -> None:
    """vLLM says that a load is over when the last rank has said so; what the others said came in earlier steps."""
    half, link = made(tmp_path)
    half.arrived(decoding(PROMPT))
    blocks: Any = Blocks()
    half.allocated(decoding(PROMPT), blocks, len(PROMPT))
    assert half.fetching == 1
    first = Transfer(bytes=100, copies=1, start_ns=10, end_ns=30, error=error)
    second = Transfer(bytes=100, copies=2, start_ns=20, end_ns=25)
    half.transferred(KVConnectorOutput(kv_connector_worker_meta=Transfers({"r": first})))
    assert link.sent == []
    failed = {"r"} if error else set()
    half.transferred(
        KVConnectorOutput(
            finished_recving={"r"}, failed_recving=failed, kv_connector_worker_meta=Transfers({"r": second})
        )
    )
    [told] = link.sent
    assert isinstance(told, HandoffEnded)
    assert (told.bytes, told.copies, told.start_ns, told.end_ns) == (200, 3, 10, 30)
    assert (told.ok, told.error) == (error is None, error)
    assert half.fetching == 0
