"""What held one request up: which stage, against what, and because of what."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from appliance.diagnosis.because import Why, explain
from appliance.records import STAGES, Lately, Leg, Stage, Timeline, Verdict

_THEN = 1_700_000_000.0
_WELL_MS = (2.0, 8.0, 150.0, 10.0, 5.0, 5.0, 20.0)  # 200 ms in all


def request(number: int = 0, lengths_ms: tuple[float, ...] = _WELL_MS, **more: object) -> Timeline:
    """A streamed, split, answered request of a prompt of 1,000 tokens, at 20 ms per piece."""
    ttft_s = sum(lengths_ms) / 1e3
    fields: dict[str, object] = {
        "route": "/v1/completions",
        "arrived": _THEN + number * 0.1,
        "stream": True,
        "split": True,
        "status": 200,
        "outcome": "ok",
        "prefill_engine": f"e{number % 2}",
        "decode_engine": f"e{2 + number % 2}",
        "prompt_tokens": 1000,
        "output_chunks": 101,
        "transfer_bytes": 50_000_000,
        "ttft_s": ttft_s,
        "total_s": ttft_s + 2.0,
        **more,
    }
    stages = tuple(Stage(name, length / 1e3) for name, length in zip(STAGES, lengths_ms, strict=False))
    return Timeline(id=f"r{number}", stages=stages, **fields)  # type: ignore[arg-type]


OTHERS = [request(number) for number in range(1, 41)]


def verdict(cause: str, stage: str, *engines: str, since: float = _THEN - 5, **more: Any) -> Verdict:
    return Verdict(
        state="bottleneck", summary="It is so.", since=since, engine=engines[0] if engines else None,
        engines=engines, stage=stage, cause=cause, **more,
    )  # fmt: skip


def why(timeline: Timeline, others: list[Timeline] = OTHERS, **more: Any) -> Why:
    return explain(timeline, others, **{"now": _THEN + 60, "ttft_target_s": 0.5, "itl_target_s": 0.05, **more})


def clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def stage(name: str, took_ms: float) -> tuple[float, ...]:
    """As usual, but for one stage."""
    return tuple(took_ms if one == name else usual for one, usual in zip(STAGES, _WELL_MS, strict=True))


def test_a_request_like_the_others_was_held_up_by_nothing() -> None:
    found = why(request())
    assert found.held_by is None and found.held_s is None and found.also is None
    assert found.compared == 40
    assert found.sentence == (
        "Nothing held it up: its first token came after 200 ms (200 ms is usual, the target is 500 ms), "
        "and the others every 20 ms (target 50 ms)."
    )


def test_the_queue_of_a_saturated_node() -> None:
    found = why(
        request(0, stage("queue", 3100)), verdict=verdict("prefill_saturated", "prefill", "e0", "e1"), ttft_target_s=2.0
    )
    assert (found.held_by, found.fits) == ("queue", True)
    assert found.held_s == pytest.approx(3.098)
    assert found.sentence == (
        "It waited 3.1 s of the 3.3 s to its first token in the queue, where 2.0 ms is usual: "
        f"e0 and e1 were prefilling all of the time (prefill_saturated since {clock(_THEN - 5)})."
    )


def test_shares_sum_to_one_and_stages_to_the_first_token() -> None:
    found = why(request(0, stage("transfer", 900)))
    assert sum(part.share or 0.0 for part in found.parts) == pytest.approx(1.0)
    assert sum(part.duration_s for part in found.parts) == pytest.approx(found.first_s)
    assert [part.stage for part in found.parts] == list(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_can_be_what_held_it_up_and_is_named(name: str) -> None:
    found = why(request(0, stage(name, 5000)))
    assert found.held_by == name
    assert "5.0 s" in found.sentence
    assert "None" not in found.sentence


def test_where_all_are_late_the_longest_stage_is_it_and_it_was_so_for_others() -> None:
    late = stage("queue", 3000)
    found = why(request(0, late), [request(number, late) for number in range(1, 20)])
    assert found.held_by == "queue"
    assert "as others did then (3.0 s)" in found.sentence
    assert found.sentence.endswith("19 others waited there in that time.")


def test_of_an_unusual_request_the_stage_that_is_unlike_others_counts_not_the_longest() -> None:
    usual = stage("prefill_compute", 400)
    found = why(request(0, (302.0, *usual[1:])), [request(number, usual) for number in range(1, 20)])
    assert found.held_by == "queue"


@pytest.mark.parametrize(
    ("held", "given", "fits"),
    [
        ("queue", verdict("decode_kv_full", "decode", "e2"), True),  # queues end in the router's, wherever they begin
        ("prefill_compute", verdict("prefill_straggler_gpu", "prefill", "e0"), True),
        ("prefill_compute", verdict("prefill_straggler_gpu", "prefill", "e1"), False),  # it was on e0
        ("prefill_compute", verdict("decode_saturated", "decode", "e2"), False),
        ("transfer", verdict("handoff_link_slow", "handoff", "e2", "e0", link=("e0", "e2")), True),
        ("transfer", verdict("handoff_link_slow", "handoff", "e3", "e1", link=("e1", "e3")), False),
        ("first_step", verdict("frontend_bound", "frontend", "e2"), True),
        ("queue", verdict("prefill_saturated", "prefill", "e0", since=_THEN + 30), False),  # that came later
        (
            "queue",
            verdict("prefill_saturated", "prefill", "e0", since=_THEN + 13),
            True,
        ),  # soon after the first were hurt
        (
            "queue",
            verdict("prefill_saturated", "prefill", "e0", since=_THEN + 15),
            False,
        ),  # it had left the queue long before
    ],
)
def test_a_verdict_explains_what_it_is_about(held: str, given: Verdict, fits: bool) -> None:
    found = why(request(0, stage(held, 4000), total_s=40.0, output_chunks=2000), verdict=given)
    assert found.held_by == held
    assert found.fits is fits
    assert (f"({given.cause} since" in found.sentence) is fits


def test_a_cause_that_is_not_known_here_is_named_all_the_same() -> None:
    found = why(request(0, stage("queue", 4000)), verdict=verdict("bad_mood", "prefill", "e0"))
    assert "e0 held the node back (bad_mood since" in found.sentence


def test_a_slow_engine_is_told_by_what_others_took_for_as_much() -> None:
    """No verdict, and each prompt of e0 takes thrice as long: its requests are as usual only among themselves."""
    slow = stage("prefill_compute", 450)
    others = [request(n, slow if n % 2 == 0 else _WELL_MS) for n in range(1, 41)]
    found = why(request(0, slow), others, ttft_target_s=0.4)
    assert found.slower is not None and found.slower.engine == "e0"
    assert found.sentence.endswith("e0 took 3.0 times as long for as much as the others did then.")


def test_a_long_prompt_takes_long() -> None:
    found = why(request(0, stage("prefill_compute", 1800), prompt_tokens=12_000))
    assert found.held_by == "prefill_compute"
    assert found.sentence.endswith("its prompt of 12,000 tokens is 12.0 times the usual one.")


def test_what_held_up_all_that_came_at_once_is_told_as_such() -> None:
    burst = [request(number, stage("handoff_wait", 800)) for number in range(1, 11)]
    later = [msgspec.structs.replace(request(number), arrived=_THEN + 20 + number / 10) for number in range(11, 60)]
    found = why(request(0, stage("handoff_wait", 800)), burst + later)
    assert found.sentence.endswith("10 of the 10 others that came within 2 s of it were held up there, too.")


def test_a_slow_answer_is_held_up_by_decoding() -> None:
    found = why(request(0, total_s=8.2), verdict=verdict("decode_saturated", "decode", "e2"))
    assert found.held_by == "decode"
    assert found.held_s == pytest.approx(6.0)
    assert found.sentence.startswith(
        "e2 took 80 ms from one piece of its answer to the next (target 50 ms, 20 ms usual): e2 had more to decode"
    )


def test_what_cost_more_is_said_first_and_the_other_besides() -> None:
    found = why(request(0, stage("queue", 1000), total_s=9.2))
    assert (found.held_by, found.also) == ("decode", "queue")
    assert "Besides, it waited 1.0 s of the 1.2 s to its first token in the queue" in found.sentence
    found = why(request(0, stage("queue", 9000), total_s=9.198 + 6.0))
    assert (found.held_by, found.also) == ("queue", "decode")


def test_an_answer_in_one_piece_has_no_pace() -> None:
    found = why(request(0, stream=False, output_chunks=1, total_s=30.0))
    assert found.pace is None and found.held_by is None


def test_one_that_failed_says_where_and_why() -> None:
    found = why(
        request(0, (60_000.0,), split=False, outcome="failed", status=429, error="nobody had room for it.",
                prefill_engine=None, decode_engine=None, ttft_s=None, total_s=60.0, output_chunks=0, transfer_bytes=None)
    )  # fmt: skip
    assert found.sentence == (
        "It failed with 429 after 60.0 s, while it waited in the queue: nobody had room for it. "
        "2.0 ms is usual: 40 others waited there in that time."
    )


def test_one_whose_client_left() -> None:
    found = why(request(0, (2.0, 90.0), split=False, outcome="cancelled", status=None, decode_engine=None,
                        ttft_s=None, total_s=0.092, output_chunks=0))  # fmt: skip
    assert found.sentence == "Its client left after 92 ms, while it waited for e0 to begin with its prompt."


def test_one_that_still_runs_is_measured_until_now() -> None:
    running = request(0, stage("queue", 4.0)[:2], split=False, outcome="running", status=None, decode_engine=None,
                      ttft_s=None, total_s=None, output_chunks=0)  # fmt: skip
    found = why(running, now=_THEN + 0.012)
    assert found.elapsed_s == pytest.approx(0.012, abs=1e-6)
    assert found.sentence == "It has run for 12 ms; when it was asked about, it waited for e0 to begin with its prompt."


def test_tries_that_failed_explain_the_queue_that_they_count_as() -> None:
    legs = (Leg(kind="prefill", engine="e1", outcome="unreachable", duration_s=2.0, error="connection reset"),)
    found = why(
        request(0, stage("queue", 2100), attempts=2, legs=legs), verdict=verdict("prefill_saturated", "prefill", "e0")
    )
    assert found.sentence.endswith("that is the time of the tries before, which failed on e1.")
    assert found.notes == ("2 tries; the time of those that failed counts as queue.",)


def test_what_was_not_as_it_mostly_is() -> None:
    found = why(request(0, recomputed=True, continued=True, unsplit_reason="echo"))
    assert [note.split(";")[0] for note in found.notes] == [
        "Its engine was lost in mid-answer",
        "Its KV could not be had, and e2 computed the prompt again.",
        "It ran whole on one engine: echo.",
    ]


def test_rates_are_compared_with_hand_offs_of_their_size() -> None:
    large = [request(number, transfer_bytes=900_000_000) for number in range(1, 20)]
    found = why(request(0, transfer_bytes=50_000_000), [*large, request(50, transfer_bytes=60_000_000)])
    assert found.transfer is not None
    assert found.transfer.bytes_s == pytest.approx(1e10)
    assert found.transfer.usual_bytes_s == pytest.approx(1.2e10)


def test_what_is_usual_is_that_of_its_time() -> None:
    before = [request(number, stage("queue", 5000), arrived=_THEN - 600) for number in range(100, 200)]
    assert why(request(), [*before, *OTHERS]).compared == 40
    few = why(request(), [*before, *OTHERS[:3]])
    assert few.compared == 103, "where there are few of its time, all that are kept"


def test_where_no_other_is_kept_means_of_the_last_seconds_are_usual() -> None:
    lately = Lately(first_tokens=5, ttft_s=0.4, stages=(Stage("queue", 0.3), Stage("prefill_compute", 0.1)))
    found = why(request(0, stage("queue", 3000)), [], lately=lately)
    assert (found.compared, found.usual_first_s) == (0, 0.4)
    assert found.sentence.endswith("in the queue, where 300 ms is usual.")
    assert why(request(0, stage("queue", 3000)), lately=lately).usual_first_s == pytest.approx(0.2), "others are better"
    itself = msgspec.structs.replace(lately, first_tokens=1)
    assert why(request(0, stage("queue", 3000)), [], lately=itself).usual_first_s is None


def test_one_that_alone_ran_whole_is_compared_with_those_that_did_not() -> None:
    whole = request(0, stage("queue", 3000)[:3], split=False, decode_engine="e0", transfer_bytes=None)
    found = why(whole)
    assert found.compared == 40
    assert "where 2.0 ms is usual" in found.sentence
    alike = [request(number, _WELL_MS[:3], split=False) for number in range(50, 60)]
    assert why(whole, [*OTHERS, *alike]).compared == 10


def test_alone_it_is_compared_with_nothing() -> None:
    found = why(request(0, stage("queue", 3000)), [request(0, stage("queue", 3000))])
    assert (found.compared, found.usual_first_s) == (0, None)
    assert found.sentence == "It waited 3.0 s of the 3.2 s to its first token in the queue."
