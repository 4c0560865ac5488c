"""``pd-appliance top``: what is on the screen, in each condition of a node and at each size."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

from appliance.cli import glyphs
from appliance.cli.live.frame import frame, printable
from appliance.cli.live.hardware import handoffs
from appliance.cli.live.layout import Column, Section, fit, table
from appliance.cli.live.view import View, Watch
from appliance.records import EngineState, Lately, LinkSnapshot, NodeSnapshot, Role, Verdict
from web import diagnosis

URL = "http://127.0.0.1:8000"
SIZES = [(60, 5), (60, 16), (80, 24), (100, 30), (160, 50), (200, 70), (80, None), (20, 3), (60, 1)]


def well(tick: int) -> NodeSnapshot:
    said = Verdict(state="ok", summary="No bottleneck: requests are answered within their targets.", since=0.0)
    engines = tuple(
        msgspec.structs.replace(
            one,
            busy=0.5,
            slowdown=1.0,
            max_running=256,
            itl_s=0.0204 if one.role is Role.DECODE else None,
            itl_late=0.0,
        )
        for one in made.busy(tick).engines
    )
    lately = Lately(first_tokens=30, ttft_late=0.02, ttft_s=0.2 + tick % 10 / 100)
    return msgspec.structs.replace(made.busy(tick), verdict=said, engines=engines, lately=lately)


def unknown(tick: int) -> NodeSnapshot:
    snapshot = well(tick)
    summary = "Something holds the node back (12% of the first tokens come later than 2 s), and nothing that is measured tells what."
    return msgspec.structs.replace(snapshot, verdict=Verdict(state="unknown", summary=summary, since=snapshot.time - 8))


STATES: dict[str, Callable[[int], NodeSnapshot]] = {**made.STATES, "well": well, "unknown": unknown}


def watched(state: str, seconds: int = 60) -> Watch:
    watch = Watch(URL, 1.0)
    for second in range(seconds):
        watch.heard(STATES[state](2 * second), float(second))
    return watch


def view(state: str, seconds: int = 60) -> View:
    return watched(state, seconds).view(seconds - 1.0, 1_700_000_000.0 + seconds)


def shown(state: str, width: int = 80, height: int | None = 24, **more: object) -> list[str]:
    return [line.plain for line in frame(msgspec.structs.replace(view(state), **more), width, height)]


# ---- every condition at every size


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("state", sorted(STATES))
def test_all_fits_and_the_first_line_says_how_it_is(state: str, width: int, height: int | None) -> None:
    lines = frame(view(state), width, height, keys=True)
    assert 0 < len(lines) <= (height or 999)
    assert all(line.cell_len <= width for line in lines)
    assert not any("None" in line.plain or "nan" in line.plain.split() for line in lines)
    assert re.match(r"[●▲✕◔] (OK|BOTTLENECK|UNKNOWN|STARTING|NOT SERVING)", lines[0].plain), lines[0].plain


@pytest.mark.parametrize("state", sorted(STATES))
def test_more_room_never_shows_less(state: str) -> None:
    seen = view(state)
    found = [len(frame(seen, 100, height)) for height in range(1, 50, 3)]
    assert found == sorted(found)
    assert frame(seen, 100, 200) == frame(seen, 100)


# ---- the first lines


def test_a_bottleneck_is_said_first_with_what_to_do() -> None:
    lines = shown("bottleneck")
    assert lines[0] == "✕ BOTTLENECK e1: prefill_straggler_gpu, for 12 s, 95% sure"
    assert lines[1:7] == [
        "  e1 takes 1.9 times as long for its steps as it should: GPU 2 runs at 990 of",
        "  1,980 MHz (hw thermal slowdown) at 88 °C. 31% of the first tokens come later",
        "  than 2 s.",
        "  Do: Give e1 less of the work until that is mended, or drain it and see to its",
        "      cooling. Late times would get 47% shorter, estimated.",
        '      POST /api/engines/e1/weight {"weight": 0.53}',
    ]


def test_what_another_layout_would_bring_is_no_time() -> None:
    seen = view("bottleneck")
    assert seen.snapshot is not None and seen.snapshot.verdict is not None
    verdict = replace(seen.snapshot.verdict, cause="disaggregation_not_worth_it", expected_gain=0.12)
    said = " ".join(line.strip() for line in shown("bottleneck", snapshot=replace(seen.snapshot, verdict=verdict)))
    assert "12% more of the requests would meet the targets, predicted." in said
    assert "shorter" not in said
    assert diagnosis.diagnosis(replace(seen.snapshot, verdict=verdict)).gain is None, "nor does the page say so"


def test_evidence_that_the_summary_has_already_is_not_said_again() -> None:
    lines = shown("bottleneck", 160, 60)
    assert "  · Steps of e1 take 1.90 times as long as such steps do." in lines
    assert sum("990 of 1,980 MHz" in line for line in lines) == 1
    assert any(line.startswith("  Then: e0, e1 and e2 prefill") for line in lines)


def test_its_engine_and_its_gpus_are_marked_without_colour() -> None:
    lines = shown("bottleneck", 160, 60)
    assert [line.split()[1] for line in lines if line.startswith("▶")] == ["e1", "2", "3"]


def test_what_to_do_and_the_engine_outlast_everything_else() -> None:
    lines = shown("bottleneck", 80, 6)
    assert lines[1].startswith("  Do: Give e1 less of the work")
    assert any(line.startswith("▶ e1") for line in lines)
    assert shown("bottleneck", 80, 1) == ["✕ BOTTLENECK e1: prefill_straggler_gpu, for 12 s, 95% sure"]


def test_of_a_link_both_ends_are_named() -> None:
    snapshot = STATES["bottleneck"](0)
    assert snapshot.verdict is not None
    held = msgspec.structs.replace(snapshot.verdict, link=("e1", "e3"), engines=("e3", "e1"), cause="handoff_link_slow")
    watch = Watch(URL, 1.0)
    watch.heard(msgspec.structs.replace(snapshot, verdict=held), 0.0)
    lines = [line.plain for line in frame(watch.view(0.0, 0.0), 80, 24)]
    assert lines[0].startswith("✕ BOTTLENECK e1 to e3: handoff_link_slow, for ")
    assert [line.split()[1] for line in lines if line.startswith("▶ e")] == ["e1", "e3"]


@pytest.mark.parametrize(
    ("state", "first"),
    [
        ("well", "● OK No bottleneck: requests are answered within their targets."),
        ("unknown", "▲ UNKNOWN, for 8 s"),
        ("busy", "▲ UNKNOWN: this node does not say what holds it back."),
        ("loading", "◔ STARTING e0 95% (loading weights) and e1 48% (importing vLLM)."),
        ("failed", "✕ NOT SERVING: No engine decodes: e1 has failed."),
    ],
)
def test_other_conditions(state: str, first: str) -> None:
    assert shown(state)[0] == first


def test_why_an_engine_is_not_there_is_told_with_the_remedy() -> None:
    lines = shown("failed")
    assert "  e1: Killed by the kernel (SIGKILL), probably out of memory. Lower [engine]" in lines
    assert "      kv_cache_bytes, or use a smaller model." in lines


def test_a_pair_that_no_kv_gets_over() -> None:
    assert any(line.startswith("✕ e0 → e2 is broken and not used: hand-off from e0") for line in shown("broken"))


# ---- the node and its engines


def test_links_stand_still_but_those_that_are_slow() -> None:
    def drawn(*slowdowns: float) -> list[str]:
        ways = [("e1", "e2"), ("e0", "e3"), ("e0", "e2"), ("e1", "e3")]
        links = tuple(
            LinkSnapshot(producer=one, consumer=other, handoffs_s=1.0, slowdown=slowdown)
            for (one, other), slowdown in zip(ways, slowdowns, strict=True)
        )
        lines = handoffs(msgspec.structs.replace(well(1), links=links), 200).variants[0].lines
        return re.findall(r"e\d→e\d", "\n".join(line.plain for line in lines))

    assert drawn(1.0, 1.1, 0.9, 1.0) == drawn(1.1, 0.9, 1.0, 1.2) == ["e0→e2", "e0→e3", "e1→e2", "e1→e3"]
    assert drawn(1.0, 2.0, 1.0, 5.0) == ["e1→e3", "e0→e3", "e0→e2", "e1→e2"]


def test_an_engines_last_words_are_shown_and_not_obeyed() -> None:
    engine = made.engine("e0", state=EngineState.FAILED, cause="it said \x1b]0;pwned\x07 and ended")
    watch = Watch(URL, 1.0)
    watch.heard(msgspec.structs.replace(well(1), engines=(engine,)), 0.0)
    text = "\n".join(line.plain for line in frame(watch.view(0.0, time.time()), 120))
    assert "it said \N{REPLACEMENT CHARACTER}]0;pwned" in text
    assert "\x1b" not in text


def test_engines_in_a_wide_terminal() -> None:
    lines = shown("well", 160, 60)
    at = next(number for number, line in enumerate(lines) if line.startswith("  name"))
    assert [" ".join(line.split()) for line in lines[at : at + 3]] == [
        "name role state busy slow run wait KV prompt tok/s output tok/s ITL late step hits weight restarts",
        "e0 prefill ready █████····· 50% 1.0× 3/256 5 ██████▎··· 62% 3,060 11.0 — 0% 86 ms 27% 1 0",
        "e1 decode ready █████····· 50% 1.0× 14/256 0 ████▏····· 41% 14.0 618 20 ms 0% 14 ms — 1 1",
    ]


def test_columns_go_one_by_one_and_the_last_ones_stay() -> None:
    def columns(width: int) -> list[str]:
        return next(line for line in shown("well", width, 60) if line.startswith("  name")).split()

    counts = [len(columns(width)) for width in range(60, 90, 5)]
    assert counts == sorted(counts)
    assert {"name", "role", "state", "busy", "run", "wait", "KV"} <= set(columns(60))


def test_absent_is_a_dash_and_no_bar() -> None:
    line = next(line for line in shown("loading", 100) if line.startswith("  e0"))
    assert line.split() == ["e0", "prefill", "starting", "95%", *["—"] * 8]
    assert any("TTFT p50 — p99 —" in line for line in shown("loading"))


def test_states_other_than_ready_say_since_when() -> None:
    assert any(line.startswith("  e1   dec  failed 42 s") for line in shown("failed"))


def test_with_many_engines_those_that_matter_are_kept() -> None:
    down = made.engine("e15", state=EngineState.BACKOFF)
    engines = (*(made.engine(f"e{number}") for number in range(15)), down)
    watch = Watch(URL, 1.0)
    watch.heard(msgspec.structs.replace(well(0), engines=engines), 0.0)
    lines = [line.plain for line in frame(watch.view(0.0, 0.0), 80, 12)]
    rows = [line for line in lines if re.match(r"  e\d", line)]
    assert rows[-1].startswith("  e15  pre  backoff")
    assert f"  and {16 - len(rows)} engines more" in lines


def test_simulated_is_said() -> None:
    assert any("SIMULATED" in line for line in shown("large"))
    assert not any("SIMULATED" in line for line in shown("busy"))


def test_requests_per_second_take_two_looks() -> None:
    assert view("well", 1).requests_s is None
    watch = Watch(URL, 1.0)
    for second in range(30):
        snapshot = well(2 * second)
        counts = msgspec.structs.replace(snapshot.requests, total=100 + 7 * second)
        watch.heard(msgspec.structs.replace(snapshot, requests=counts), float(second))
    assert watch.view(29.0, 0.0).requests_s == pytest.approx(7.0)


# ---- GPUs


def test_with_little_height_gpus_that_are_well_become_one_line() -> None:
    lines = shown("bottleneck", 80, 24)
    gpus = [line for line in lines if re.match(r"[▶ ] \d  ", line)]
    assert gpus == [
        "▶ 2   e1       990/1,980 88 °C too hot",
        "  7   e3     1,980/1,980 61 °C 1 ECC, uncorrected; 812 ECC, corrected; Xid 94",
    ]
    assert re.fullmatch(r"  6 other GPUs: 1,980 MHz, 61 °C, \d+ W", lines[-1])


def test_a_node_without_gpus_has_no_table_of_them() -> None:
    assert not any("GPU" in line for line in shown("busy", 200, 70))


# ---- a node that does not answer


def test_a_node_that_is_lost_is_told_with_since_when_and_all_else_as_of_then() -> None:
    watch = watched("bottleneck")
    lost_at = 1_700_000_100.0
    watch.failed("Connection refused", lost_at)
    watch.failed("it takes too long", lost_at + 20)
    found = watch.view(59.0 + 42, lost_at + 42)
    lines = [line.plain for line in frame(found, 80, 30)]
    clock = time.strftime("%H:%M:%S", time.localtime(lost_at))
    assert " ".join(lines[:2]).replace("   ", " ") == (
        f"✕ NO ANSWER from {URL} since {clock} (42 s): it takes too long. It is asked again and again."
    )
    assert lines[2] == "  Before that: BOTTLENECK e1: prefill_straggler_gpu"
    assert any(re.match(r"as of \d\d:\d\d:\d\d, 42 s ago", line) for line in lines)


def test_it_comes_back_by_itself() -> None:
    watch = watched("well")
    watch.failed("Connection refused", 5.0)
    watch.heard(well(500), 80.0)
    assert watch.view(80.0, 0.0).error is None
    assert frame(watch.view(80.0, 0.0), 80, 24)[0].plain.startswith("● OK")


def test_one_that_has_never_answered_is_told_with_the_remedy() -> None:
    watch = Watch(URL, 1.0)
    assert frame(watch.view(0.0, 0.0), 80, 24)[0].plain == f"◔ ASKING {URL}"
    watch.failed("Connection refused", 0.0)
    assert "--url names another node" in " ".join(line.plain.strip() for line in frame(watch.view(1.0, 1.0), 80, 24))


def test_a_node_that_says_the_same_again_and_again_is_stale() -> None:
    watch = watched("well")
    same = well(2 * 59)
    for second in range(60, 72):
        watch.heard(same, float(second))
    assert frame(watch.view(63.0, 0.0), 80, 24)[0].plain.startswith("● OK"), "not yet"
    first = frame(watch.view(71.0, 0.0), 80, 24)[0].plain
    assert first == "▲ STALE: it answers, but has said nothing new for 12 s: all of this is as old."


def test_slow_looks_are_not_stale() -> None:
    watch = Watch(URL, 30.0)
    watch.heard(well(0), 0.0)
    assert not watch.view(40.0, 0.0).stale
    assert watch.view(91.0, 0.0).stale


def test_another_life_of_the_node_begins_with_no_history() -> None:
    watch = watched("well")
    young = msgspec.structs.replace(well(500), uptime_s=1.0)
    watch.heard(young, 100.0)
    assert len(watch.view(100.0, 0.0).samples) == 1


# ---- history and glyphs


def test_cells_stand_still_and_keep_their_highest() -> None:
    watch = Watch(URL, 1.0)
    for second in range(9):
        at = msgspec.structs.replace(well(0), time=900.0 + second, uptime_s=100.0 + second)
        depth = 50 if second == 1 else second
        watch.heard(msgspec.structs.replace(at, queue=msgspec.structs.replace(at.queue, depth=depth)), float(second))
    assert watch.view(9.0, 0.0).series(lambda sample: sample.queue, 5, 3.0) == [None, None, 50, 5, 8]


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(None, "    "), (0.0, "····"), (0.001, "▏···"), (0.5, "██··"), (0.98, "███▉"), (1.0, "████"), (1.7, "████")],
)
def test_bars(share: float | None, drawn: str) -> None:
    assert glyphs.bar(share, 4) == drawn


def test_sparks_tell_nothing_from_absent() -> None:
    assert glyphs.spark([None, 0.0, 1.0, 4.0, 8.0]) == " ▁▁▄█"
    assert glyphs.spark([0.0, 0.0]) == "▁▁"
    assert glyphs.spark([]) == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "—"), (0, "0"), (4.2, "4.2"), (98.4, "98"), (999.7, "1.0k"), (21_450, "21k"), (1.3e6, "1.3M")],
)
def test_rates_where_there_is_little_room(value: float | None, said: str) -> None:
    assert glyphs.short(value) == said


@pytest.mark.parametrize("state", sorted(STATES))
def test_terminals_without_unicode_get_ascii_of_the_same_length(state: str) -> None:
    lines = frame(view(state), 100, 40)
    found = printable(lines, "iso8859-1")
    assert [line.cell_len for line in found] == [line.cell_len for line in lines]
    assert all(line.plain.isascii() for line in found)
    assert not any("?" in line.plain for line in found), "each character has one that stands for it"
    assert printable(lines, "utf-8") is lines


# ---- what fits


def test_a_table_loses_what_ranks_highest() -> None:
    columns: list[Column[str]] = [
        Column("a", lambda row: row * 4), Column("b", lambda row: row * 4, rank=1), Column("c", lambda row: row * 4, rank=2),
    ]  # fmt: skip
    assert [line.plain for line in table(columns, ["x"], 16)] == ["   a     b     c", "xxxx  xxxx  xxxx"]
    assert [line.plain for line in table(columns, ["x"], 14)] == ["   a    b    c", "xxxx xxxx xxxx"], "first the gaps"
    assert [line.plain for line in table(columns, ["x"], 13)] == ["   a     b", "xxxx  xxxx"]
    assert [line.plain for line in table(columns, ["x"], 2)] == ["   a", "xxxx"]


def test_sections_shrink_before_they_go_and_empty_lines_before_both() -> None:
    from rich.text import Text

    def lines(letter: str, amount: int) -> list[Text]:
        return [Text(f"{letter}{number}") for number in range(amount)]

    sections = [Section.of((0, lines("a", 1))), Section.of((5, lines("b", 3)), (2, lines("b", 1)))]

    def found(height: int) -> list[str]:
        return [line.plain for line in fit(sections, height)]

    assert found(5) == ["a0", "", "b0", "b1", "b2"]
    assert found(4) == ["a0", "b0", "b1", "b2"]
    assert found(3) == ["a0", "b0"]
    assert found(1) == ["a0"]
