"""What the page says of a snapshot: headline, map, waterfalls."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import msgspec
import pytest

from appliance.records import (
    EngineSnapshot,
    EngineState,
    LedgerSnapshot,
    Pair,
    QueueSnapshot,
    RequestCounts,
    Role,
    Verdict,
)
from web import contexts, flow, overview, request_rows, views, waterfall
from web.views import Asked

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

replace = msgspec.structs.replace


def card(engine: EngineSnapshot) -> flow.CardContext:
    return flow.card(engine, made.node((engine,), 0))


@pytest.mark.parametrize(
    ("state", "tone", "sentence"),
    [
        ("loading", "wait", "Loading: e0 10\u00a0% and e1 5\u00a0%."),
        ("empty", "ok", "Ready. Nothing has been asked yet."),
        ("idle", "ok", "Ready, and idle."),
        ("busy", "ok", "Serving 21 requests."),
        ("failed", "bad", "Not serving: e1 has failed."),
        ("broken", "warn", "Ready, and idle, but no KV gets from e0 to e2."),
        ("bottleneck", "bad", "Bottleneck: slow GPU on e1, for 12\u00a0s"),
        ("whole", "warn", "Serving 7 requests, but e1 is still starting (60\u00a0%)."),
    ],
)
def test_the_headline(state: str, tone: str, sentence: str) -> None:
    found = contexts.headline(made.STATES[state](0))
    assert (found.tone, found.sentence) == (tone, sentence)


def test_the_headline_counts_one_request_as_one() -> None:
    snapshot = replace(made.empty(0), queue=QueueSnapshot(in_flight=1))
    assert contexts.headline(snapshot).sentence == "Serving 1 request."


def test_a_load_of_unknown_progress_has_no_percent() -> None:
    engine = made.engine("e0", state=EngineState.STARTING, progress=None)
    snapshot = replace(made.loading(0), engines=(engine,))
    assert contexts.headline(snapshot).sentence == "Loading: e0."


def test_an_engine_that_has_failed_is_named_while_others_load() -> None:
    engines = (made.engine("e0", state=EngineState.STARTING, progress=0.1), made.engine("e1", state=EngineState.FAILED))
    found = contexts.strip(replace(made.loading(0), engines=engines))
    assert (found.tone, found.sentence) == ("bad", "Loading: e0 10\u00a0% and e1 has failed.")


@pytest.mark.parametrize(
    "state", [EngineState.SUSPECT, EngineState.HUNG, EngineState.BACKOFF, EngineState.FAILED, EngineState.STOPPED]
)
def test_an_engine_that_is_down_is_named_while_the_node_serves(state: EngineState) -> None:
    snapshot = replace(
        made.busy(0), engines=(made.engine("e0"), made.engine("e1", state=state, cause="Why, and what to do."))
    )
    found = contexts.headline(snapshot)
    assert found.tone == "warn"
    assert "but e1 " in found.sentence
    assert found.causes == ("e1: Why, and what to do.",)


def test_the_announcement_holds_no_numbers_that_move() -> None:
    said = {contexts.announcement(made.busy(tick)).text for tick in range(50)}
    assert said == {"The node serves requests."}
    assert contexts.announcement(made.failed(0)).text == "The node does not serve requests; e1 has failed."


def test_pairs_that_do_not_work_are_told_one_by_one() -> None:
    bad, good = flow.flow(made.broken(0)).handoff.tests
    assert (bad.name, bad.tone) == ("e0 to e2", "bad")
    assert bad.said.startswith("broken, not used: hand-off from e0: its memory can't be mapped")
    assert (good.name, good.tone, good.said) == ("e1 to e2", "ok", "works, seen 4\u00a0s ago")
    many = tuple(Pair(prefill="e0", decode=f"e{n}", ok=True, age_s=float(n)) for n in range(1, 8))
    doubt = Pair(prefill="e0", decode="e8", ok=False, age_s=1.0, error="once")
    new = Pair(prefill="e0", decode="e9", ok=None)
    found = flow.flow(replace(made.idle(0), pairs=(*many, doubt, new))).handoff.tests
    assert [(pair.name, pair.said) for pair in found] == [
        ("e0 to e8", "failed a test: once"),
        ("e0 to e9", "not tested yet"),
        ("7 pairs", "work, seen 7\u00a0s ago"),
    ]


def test_rates_are_of_all_engines_whatever_their_role() -> None:
    engines = (
        made.engine("e0", prompt_tokens_s=100.0, output_tokens_s=1.0),
        made.engine("e1", Role.DECODE, prompt_tokens_s=7.0, output_tokens_s=50.0),
    )
    snapshot = replace(made.empty(0), engines=engines)
    assert contexts.token_rates(snapshot) == (107.0, 51.0)
    assert (flow.flow(snapshot).prompts.label, flow.flow(snapshot).outputs.label) == ("107", "51.0")


@pytest.mark.parametrize(
    ("role", "prompt_s", "output_s", "units"),
    [
        (Role.PREFILL, 4000.0, 10.0, ["prompt"]),
        (Role.PREFILL, 4000.0, 900.0, ["prompt", "output"]),
        (Role.DECODE, 10.0, 900.0, ["output"]),
        (Role.DECODE, 400.0, 900.0, ["output", "prompt"]),
        (Role.DECODE, 400.0, 0.0, ["output", "prompt"]),
        (Role.DECODE, 0.0, 0.0, ["output"]),
        (Role.DECODE, None, None, ["output"]),
        (Role.BOTH, 0.0, 900.0, ["prompt", "output"]),
    ],
)
def test_an_engines_other_rate_is_shown_where_it_amounts_to_something(
    role: Role, prompt_s: float | None, output_s: float | None, units: list[str]
) -> None:
    found = card(made.engine("e0", role, prompt_tokens_s=prompt_s, output_tokens_s=output_s)).rates
    assert [rate.unit.split()[0] for rate in found] == units


def test_a_rate_that_nobody_measured_is_absent() -> None:
    assert contexts.token_rates(made.loading(0))[0] is None
    prompts = flow.flow(made.loading(0)).prompts
    assert prompts.label == "—"
    assert {ribbon.look for ribbon in prompts.ribbons} == {"empty"}


def test_the_map_sorts_engines_by_role() -> None:
    found = flow.flow(made.large(0))
    assert [engine.name for engine in found.prefill] == ["e0", "e1", "e2"]
    assert [engine.name for engine in found.decode] == ["e3"]
    assert found.split
    assert not flow.flow(made.whole(0)).split


def test_the_bottleneck_and_what_it_does_are_marked_on_the_map() -> None:
    found = flow.flow(made.bottleneck(0))
    assert [card.bottleneck for card in found.prefill] == [False, True, False]
    assert [ribbon.look for ribbon in found.prompts.ribbons] == ["flows", "held", "flows"]
    assert {ribbon.look for ribbon in found.outputs.ribbons} == {"flows"}
    assert (found.prefill[1].slow, found.prefill[1].hot) == ("steps × 1.9", "too hot")


def test_a_slow_link_is_marked_and_named() -> None:
    verdict = Verdict(state="bottleneck", summary="", since=0.0, link=("e1", "e3"), cause="handoff_link_slow")
    found = flow.flow(replace(made.large(0), verdict=verdict)).handoffs
    assert [ribbon.look for ribbon in found.ribbons] == ["flows", "held", "flows"]
    assert found.held == "e1 to e3"


def test_load_is_of_what_an_engine_could_do() -> None:
    assert card(made.engine("e0", busy=0.9)).load_percent == 90
    assert card(made.engine("e0", Role.DECODE, busy=1.0, room=4.0)).load_percent == 25
    assert card(made.engine("e0", Role.DECODE, busy=1.0)).load == "—"


def test_an_engine_says_its_hardware_and_kv() -> None:
    found = card(made.engine("e1", kv_usage=0.411))
    assert (found.hardware, found.kv, found.kv_percent) == ("cores 2–3", "41\u00a0%", 41)
    assert card(made.engine("e1", cores=(), gpus=("GPU-ab12-c", "GPU-ff-0"))).hardware == "2 GPUs"
    assert card(made.engine("e1", cores=())).hardware == "—"
    assert flow.flow(made.large(0)).decode[0].hardware == "GPUs 6–7"


def test_a_ready_engine_that_falls_silent_is_pointed_out() -> None:
    assert card(made.engine("e0", last_step_age_s=12.0)).trouble == "has said nothing for 12\u00a0s"
    assert card(made.engine("e0", last_step_age_s=1.0)).trouble is None


def test_leases_that_ended_badly_are_pointed_out() -> None:
    assert flow.flow(made.empty(0)).handoff.lost is None
    snapshot = replace(made.empty(0), ledger=LedgerSnapshot(expired=1, lost=2))
    assert flow.flow(snapshot).handoff.lost == "1 expired and 2 lost"


def test_a_waterfall_fills_the_scale_without_gaps() -> None:
    timeline = made.timeline(1, (10, 20, 30, 10, 10, 10, 10))
    row = request_rows.line(timeline, 0.1, 2.0)
    starts = [float(bar.x.rstrip("%")) for bar in row.bars]
    widths = [float(bar.width.rstrip("%")) for bar in row.bars]
    assert starts == [0, 10, 30, 60, 70, 80, 90]
    assert starts[-1] + widths[-1] == 100
    assert (row.mostly, row.ttft) == ("prefill 30\u00a0ms", "100\u00a0ms")


def test_the_scale_holds_the_longest_and_shows_the_target_if_it_is_on_it() -> None:
    recent = (made.timeline(2, (10, 10, 60)), made.timeline(1, (10, 10, 9000)))
    found = request_rows.rows(recent, made.idle(0), None)
    assert (found.scale, found.target_x) == ("10\u00a0s", "20.00%")
    short = request_rows.rows(recent[:1], made.idle(0), None)
    assert (short.scale, short.target_x) == ("100\u00a0ms", None)


@pytest.mark.parametrize(
    ("lengths", "scale"), [([], 0.1), ([0.0], 0.001), ([0.1], 0.1), ([0.11, 0.03], 0.2), ([99_999.0], 99_999.0)]
)
def test_scales_are_round(lengths: list[float], scale: float) -> None:
    assert waterfall.scale(lengths) == pytest.approx(scale)


def test_a_request_that_went_unusually_is_marked() -> None:
    base = made.timeline(1, (1, 1, 1))
    assert request_rows.line(base, 1, 2).marks == ()
    assert request_rows.line(replace(base, attempts=3, recomputed=True), 1, 2).marks == ("attempt 3", "recomputed")
    assert request_rows.line(replace(base, split=False, stream=False), 1, 2).marks == ("whole", "unstreamed")
    assert request_rows.line(replace(base, outcome="failed", status=502), 1, 2).outcome == "failed (502)"


def test_a_request_that_came_no_further_than_prefill_is_neither_split_nor_whole() -> None:
    prefilling = made.timeline(1, (4, 2, 9), split=False, decode_engine=None, outcome="running")
    assert (request_rows.line(prefilling, 1, 2).path, request_rows.line(prefilling, 1, 2).marks) == ("e0 → …", ())
    left = request_rows.line(replace(prefilling, outcome="cancelled"), 1, 2)
    assert (left.path, left.marks) == ("e0", ())


def test_two_requests_of_one_id_have_two_keys_that_stay() -> None:
    one, other = (replace(made.timeline(number, (1,)), id="same") for number in (1, 2))
    keys = [request_rows.line(timeline, scale_s, 2).key for timeline in (one, other) for scale_s in (1, 5)]
    assert (keys[0], keys[2]) == (keys[1], keys[3])
    assert keys[0] != keys[2]


def test_a_request_still_in_the_queue_has_no_engine_yet() -> None:
    waiting = made.timeline(
        1, (4,), prefill_engine=None, decode_engine=None, outcome="running", ttft_s=None, split=False
    )
    row = request_rows.line(waiting, 0.1, 2)
    assert (row.path, row.ttft, row.marks) == ("—", "> 4.0\u00a0ms", ())


def test_the_curl_is_one_command_whatever_the_model_is_called() -> None:
    command = overview.curl('it\'s "odd" $HOME', "http://localhost:8000")
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:3] == ["curl", "-N", "http://localhost:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == 'it\'s "odd" $HOME'


def test_sections_that_did_not_change_are_the_same_bytes() -> None:
    view = made.OVERVIEW.view(Asked())
    first, second = views.fragments(view, made.idle(0)), views.fragments(view, made.idle(2))
    assert [name for name in first if first[name] != second[name]] == ["sample"]


def test_a_tally_speaks_of_failures_only_where_there_are_some() -> None:
    snapshot = replace(made.idle(0), requests=RequestCounts(total=2, ok=2))
    assert contexts.headline(snapshot).detail == "2 requests answered since the start."
    assert "3 failed and 4 cancelled" in str(contexts.headline(made.idle(0)).detail)


def test_whole_is_no_mark_where_nothing_is_ever_split() -> None:
    whole = made.whole(0)
    assert "<em" not in request_rows.rows(whole.recent, whole, None).rows
    assert "<em" in request_rows.rows(whole.recent, made.idle(0), None).rows


def test_what_is_narrower_than_a_pixel_is_said_and_not_drawn() -> None:
    row = request_rows.line(made.timeline(1, (0.05, 2, 90)), 0.1, 2)
    assert [bar.stage for bar in row.bars] == ["prefill_wait", "prefill_compute"]
    assert row.spoken.startswith("queue 0.1\u00a0ms, ")


# ---- said in one place


def test_links_keep_what_else_was_asked_for_and_leave_out_what_says_nothing() -> None:
    asked = {"show": "slow", "engine": "", "limit": "200"}
    found = contexts.choices("Show", "/requests", asked, "show", [("all", ""), ("slow", "slow")], "#top")
    assert [(one.href, one.here) for one in found.choices] == [
        ("/requests?limit=200#top", False),
        ("/requests?show=slow&limit=200#top", True),
    ]


def test_steps_are_slow_beyond_noise_and_not_where_nothing_is_known() -> None:
    assert [contexts.slow(ratio) for ratio in (None, 0.4, 1.15, 1.16)] == [False, False, False, True]


def test_a_node_splits_requests_where_an_engine_does_only_one_thing() -> None:
    assert contexts.splits(made.idle(0))
    assert not contexts.splits(made.whole(0))
