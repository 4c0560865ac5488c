"""Scenarios, traffic, and the command that runs them."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance import presets
from appliance.channel import Step
from appliance.cli import app
from appliance.cli.simulate import plot
from appliance.errors import ConfigError
from appliance.simulator.report import Meter, Result, run
from appliance.simulator.scenario import load, plans
from appliance.simulator.traffic import FITTED, Lengths, Traffic, arrivals

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
MOONCAKE = '{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 7]}'
EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"
HERE = Path(".")


def made(traffic: Traffic, duration_s: float = 1000.0, seed: int = 1) -> list[tuple[float, int, int]]:
    return [(at_s, one.prompt_tokens, one.output_tokens) for at_s, one in arrivals(traffic, seed, duration_s, 16, HERE)]


def test_traffic_has_its_rate_and_is_the_same_for_the_same_seed() -> None:
    traffic = Traffic(rate=5.0)
    times = [at_s for at_s, *_ in made(traffic)]
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times == sorted(times)
    assert made(traffic) == made(traffic)
    assert made(traffic) != made(traffic, seed=2)


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 3.0])
def test_gaps_are_as_bursty_as_is_asked_for(burstiness: float) -> None:
    times = [at_s for at_s, *_ in made(Traffic(rate=10, burstiness=burstiness), 2000)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert statistics.pstdev(gaps) / statistics.mean(gaps) == pytest.approx(burstiness, rel=0.1)


def test_a_swing_is_more_by_day_than_by_night() -> None:
    times = [at_s for at_s, *_ in made(Traffic(rate=10, swing=0.8, period_s=1000.0))]
    day = sum(1 for at_s in times if at_s < 500)
    assert day / (len(times) - day) == pytest.approx((1 + 0.8 * 2 / 3.14159) / (1 - 0.8 * 2 / 3.14159), rel=0.15)


@pytest.mark.parametrize(
    ("kind", "prompt", "output"),
    [("azure-conversation", 760, 151), ("azure-code", 1095, 16), ("mooncake-conversation", 6227, 208)],
)
def test_fitted_lengths_have_their_medians(kind: str, prompt: float, output: float) -> None:
    rows = made(Traffic(rate=20, kind=kind, burstiness=1.0))
    assert statistics.median(row[1] for row in rows) == pytest.approx(prompt, rel=0.1)
    assert statistics.median(row[2] for row in rows) == pytest.approx(output, rel=0.1)
    assert set(FITTED) == {"azure-conversation", "azure-code", "mooncake-conversation"}


def test_lengths_keep_to_their_bounds() -> None:
    chance = random.Random(1)
    drawn = [Lengths(median=100, sigma=2.0, least=10, most=500).draw(chance) for _ in range(2000)]
    assert (min(drawn), max(drawn)) == (10, 500)


def test_a_conversations_turns_begin_with_all_that_was_said_before() -> None:
    traffic = Traffic(rate=0.2, turns=4, prompt=Lengths(median=160), output=Lengths(median=32), pause_s=1.0)
    by_conversation: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for _, one in arrivals(traffic, 1, 500, 16, HERE):
        by_conversation.setdefault(one.digests[0] >> 32, []).append((one.prompt_tokens, one.digests))
    whole = [turns for turns in by_conversation.values() if len(turns) == 4]
    assert whole
    for turns in whole:
        assert [tokens for tokens, _ in turns] == [160, 352, 544, 736]
        assert turns[3][1][: len(turns[2][1])] == turns[2][1]


def test_conversations_come_at_their_rate_from_the_beginning_and_are_others_for_another_seed() -> None:
    traffic = Traffic(rate=8, turns=5, pause_s=8.0, prompt=Lengths(median=160), output=Lengths(median=32))
    rows = list(arrivals(traffic, 1, 300, 16, HERE))
    assert sum(at_s < 60 for at_s, _ in rows) == pytest.approx(480, rel=0.15)
    other = {digest for _, one in arrivals(traffic, 2, 300, 16, HERE) for digest in one.digests[:1]}
    assert not other & {digest for _, one in rows for digest in one.digests[:1]}


def test_each_answers_first_token_counts(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    model = presets.directory("gpt-oss-120b")
    path.write_text(
        f'duration_s = 40\nwarmup_s = 5\ntraffic = {{ rate = 10, output = {{ median = 1 }} }}\n[model]\nconfig = "{model}"\n'
    )
    assert run(load(path), "1b@tp4").output_tokens_s == pytest.approx(10, rel=0.2)


def test_engines_of_unequal_size_hand_over_through_the_links_of_the_smaller_one() -> None:
    layouts = ("1p1d@tp2", "1p1d@tp4", "1p1d@tp2:tp4", "1p1d@tp4:tp2")
    found = {layout: plans(load(EXAMPLES / "gpt-oss-120b-8xh100.toml"), layout) for layout in layouts}
    rates = {layout: made[0].link_bytes_s for layout, made in found.items()}
    assert rates["1p1d@tp2:tp4"] == rates["1p1d@tp4:tp2"] == rates["1p1d@tp2"]
    assert rates["1p1d@tp4"] == pytest.approx(2 * rates["1p1d@tp2"])
    assert [plan.tensor_parallel for plan in found["1p1d@tp2:tp4"]] == [2, 4]
    assert [plan.first_gpu for plan in found["1p1d@tp2:tp4"]] == [0, 2]


def test_traces_of_both_forms_are_replayed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:48.6805900,396,109\n"
    )
    rows = list(arrivals(Traffic(trace="a.csv", speed=2.0), 1, 100, 16, tmp_path))
    assert [(at_s, one.prompt_tokens, one.output_tokens) for at_s, one in rows] == [(0.0, 374, 44), (1.0, 396, 109)]
    (tmp_path / "b.jsonl").write_text(
        '{"timestamp": 500, "input_length": 700, "output_length": 5, "hash_ids": [0, 7]}\n'
        '{"timestamp": 900, "input_length": 600, "output_length": 5, "hash_ids": [0, 8]}\n'
    )
    (_, first), (at_s, second) = arrivals(Traffic(trace="b.jsonl"), 1, 100, 16, tmp_path)
    assert at_s == pytest.approx(0.4)
    assert len(first.digests) == 700 // 16
    assert first.digests[:32] == second.digests[:32]
    assert not set(first.digests[32:]) & set(second.digests)


def test_traces_as_other_programs_write_them_are_read_and_come_in_order_of_time(tmp_path: Path) -> None:
    at = "2023-11-16 18:15:4{}.6,374,44\r\n"
    (tmp_path / "A.CSV").write_bytes(b"\xef\xbb\xbf" + (AZURE + at.format(8) + at.format(1)).encode())
    assert [at_s for at_s, _ in arrivals(Traffic(trace="A.CSV"), 1, 100, 16, tmp_path)] == [0.0, 7.0]
    assert len(list(arrivals(Traffic(trace="A.CSV"), 1, 7, 16, tmp_path))) == 1, (
        "what comes after the end does not count"
    )
    (tmp_path / "b.jsonl").write_text('{"timestamp": 0, "input_length": 7, "output_length": 5}\n\n')
    [(_, asked)] = arrivals(Traffic(trace="b.jsonl"), 1, 100, 16, tmp_path)
    assert (asked.prompt_tokens, asked.digests) == (7, ())


def test_lengths_that_are_given_win_over_those_of_a_kind() -> None:
    rows = made(Traffic(rate=20, kind="azure-code", burstiness=1.0, output=Lengths(median=9)), 20)
    assert {output for *_, output in rows} == {9}
    assert len({prompt for _, prompt, _ in rows}) > 100


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("no.csv", None, "can't be read"),
        ("a.csv", "time,tokens\n1,2\n", "line 2: .* missing required field `TIMESTAMP`"),
        ("a.csv", f"{AZURE}2023-11-16 18:15:46.68,3,4\n2023-11-16 18:15:47,x,4\n", "line 3: Expected `int`"),
        ("a.csv", f"{AZURE}2023-11-16 18:15:46.68,-3,4\n", "line 2: Expected `int` >= 0"),
        ("a.csv", f"{AZURE}2023-11-16 18:15:46.68,99999999999,4\n", "line 2: Expected `int` <= 10000000"),
        ("a.csv", AZURE, "has no requests"),
        ("a.csv", "\0\0", "has no requests|line 2|no text"),
        ("a.txt", AZURE, "neither .csv"),
        ("a.jsonl", "", "has no requests"),
        ("a.jsonl", '{"timestamp": 1}\n', "line 1: .* missing required field `input_length`"),
        ("a.jsonl", "rubbish\n", "line 1: JSON is malformed"),
        ("a.jsonl", '{"timestamp": NaN, "input_length": 1, "output_length": 1, "hash_ids": []}\n', "line 1"),
        ("a.jsonl", f'{MOONCAKE}\n{{"a": {"[" * 100_000}\n', "line 2"),
    ],
)
def test_a_trace_that_is_none_says_which_line_and_why(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        list(arrivals(Traffic(trace=name), 1, 100, 16, tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[model", "not valid TOML"),
        ("", "model is missing"),
        ("[model]", "model.config is missing"),
        (
            '[model]\nconfig = "x"\n[traffic]\nspeeed = 1',
            "traffic.speeed: there is no such setting; there are rate, .*speed",
        ),
        ('[model]\nconfig = "x"\nlayout = 3', "model.layout: there is no such setting; there are config, name"),
        (
            '[model]\nconfig = "x"\n[[faults]]\nengine = "e0"\nkind = "cpu"\nsince = 1',
            "faults.0..since: .*at_s, until_s",
        ),
        ('[model]\nconfig = "x"\n[traffic.prompt]\nmean = 1\nmedian = 2', "traffic.prompt.mean: .*median, sigma"),
        ('[model]\nconfig = "x"\n[engine.decode]\nslots = 1', "engine.decode.slots: .*max_batched_tokens, max_running"),
        ('[model]\nconfig = "x"\n[traffic]\nrate = "2"', "traffic.rate: expected a number, not text"),
        (
            '[model]\nconfig = "x"\n[traffic]\nburstiness = 1e-200',
            "traffic.burstiness: expected a number of at least 0.01",
        ),
        ('[model]\nconfig = "x"\n[traffic]\nprompt = { median = 9, sigma = 1e9 }', "traffic.prompt.sigma"),
        ('[model]\nconfig = "x"\n[traffic]\nturns = 1000000000', "traffic.turns"),
        ('[model]\nconfig = "x"\n[[faults]]\nengine = "e0"\nkind = "cpu"\nat_s = 1e300', "faults.0..at_s"),
        ('[model]\nconfig = "x"\n[traffic]\nrate = nan', "nan is no number"),
        ('[model]\nconfig = "x"\n[traffic]\nrate = inf', "inf is no number"),
        ('[model]\nconfig = "x"\n[traffic]\nclients = 0', "traffic.clients"),
        ('[model]\nconfig = "x"\n[traffic]\nburstiness = 0', "traffic.burstiness"),
        ('[model]\nconfig = "x"\n[traffic]\nprompt = { median = 0 }', "traffic.prompt.median"),
        ('[model]\nconfig = "x"\n[engine]\nmemory_fraction = 5', "engine.memory_fraction"),
        ('[model]\nconfig = "x"\n[engine.decode]\nmax_running = 0', "engine.decode.max_running"),
        ('duration_s = -5\n[model]\nconfig = "x"', "duration_s"),
    ],
)
def test_a_scenario_that_is_wrong_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load(path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("warmup_s = 0\nduration_s = 1e-12\n", "duration_s 1e-12 is not from 0.1"),
        ("traffic = { rate = 1e6 }\n", "about 3e.08 requests, and at most 3,000,000"),
        ("traffic = { turns = 3, pause_s = 1e300 }\n", "requests, and at most 3,000,000"),
        ("traffic = { prompt = { median = 100, most = 20 } }\n", "median 100 is not from least 1 to most 20"),
        ('traffic = { trace = "a.csv", kind = "azure-code" }\n', "leave kind, prompt, output and turns out"),
        ("duration_s = 20\n", "warmup_s 30 is not shorter than duration_s 20"),
        ('traffic = { kind = "foo" }\n', "traffic.kind 'foo' is not one"),
        ('traffic = { trace = "no.csv" }\n', "no.csv can't be read"),
        ('faults = [{ engine = "e9", kind = "clocks" }]\n', "there is no engine 'e9'"),
        ('faults = [{ engine = "e0", kind = "rust" }]\n', "fault kind 'rust' is not one"),
        ('faults = [{ engine = "e0", kind = "crash", until_s = 9 }]\n', "a crash ends by itself"),
        (
            'faults = [{ engine = "e0", kind = "clocks", at_s = 9, until_s = 5 }]\n',
            "until_s 5 of clocks on e0 is not after",
        ),
    ],
)
def test_what_can_not_be_played_is_refused_before_anything_is(tmp_path: Path, more: str, says: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(more + f'[model]\nconfig = "{presets.directory("gpt-oss-120b")}"\n')
    with pytest.raises(ConfigError, match=says):
        run(load(path), "1P1D" if "e9" in more else "1p1d")


def test_two_engines_on_one_gpu_say_half_of_what_they_would_on_two(tmp_path: Path) -> None:
    """Of one that both keep busy all the time."""

    def said(gpus: int) -> Result:
        path = tmp_path / f"{gpus}.toml"
        path.write_text(
            f'duration_s = 15\nwarmup_s = 5\nhardware = {{ gpus = {gpus} }}\n[model]\nconfig = "{presets.directory("qwen3-8b")}"\n'
            "[engine]\nmax_model_len = 4096\n[traffic]\nrate = 80\nprompt = { median = 1000, sigma = 0 }\n"
            "output = { median = 100, sigma = 0 }\n"
        )
        return run(load(path), "2b")

    one, two = said(1), said(2)
    assert (one.gpus, two.gpus) == (1, 2)
    assert one.output_tokens_s == pytest.approx(two.output_tokens_s / 2, rel=0.1)
    assert one.output_tokens_s_gpu == pytest.approx(two.output_tokens_s_gpu, rel=0.1)


def test_engines_share_gpus_only_two_by_two_and_only_small_ones() -> None:
    loaded = load(EXAMPLES / "gpt-oss-120b-8xh100.toml")
    with pytest.raises(ConfigError, match=r"needs 17 GPUs and hardware\.gpus is 8"):
        plans(loaded, "17b")
    with pytest.raises(ConfigError, match=r"needs 10 GPUs and hardware\.gpus is 8"):
        plans(loaded, "5b@tp2")


def test_a_layout_that_the_node_has_not_enough_gpus_for() -> None:
    with pytest.raises(ConfigError, match=r"needs 16 GPUs and hardware\.gpus is 8"):
        plans(load(EXAMPLES / "gpt-oss-120b-8xh100.toml"), "2b@tp8")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_runs_and_is_the_same_each_time(path: Path) -> None:
    loaded = load(path)
    short = type(loaded)(
        type(loaded.scenario)(**{**_fields(loaded.scenario), "duration_s": 20.0, "warmup_s": 5.0}), loaded.directory
    )
    results = [run(short, short.scenario.layout) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0].requests > 5
    assert results[0].ttft_p50_s is not None
    assert 0 < results[0].ttft_p50_s <= (results[0].ttft_p99_s or 0)


def _fields(scenario: object) -> dict[str, object]:
    return {name: getattr(scenario, name) for name in scenario.__struct_fields__}  # type: ignore[attr-defined]


def test_the_command_prints_a_table_that_says_simulated() -> None:
    path = str(EXAMPLES / "llama-3.3-70b-nvfp4-b200.toml")
    done = CliRunner().invoke(
        app, ["simulate", "--scenario", path, "--duration", "20", "--layout", "1p1d"], env={"COLUMNS": "160"}
    )
    assert done.exit_code == 0, done.output
    assert "SIMULATED" in done.output
    assert "1p1d" in done.output
    assert "TTFT p50 over time" in done.output


@pytest.mark.parametrize(("columns", "whole"), [("40", False), ("80", False), ("160", True), ("", True)])
def test_no_figure_is_cut_short_in_whatever_width(tmp_path: Path, columns: str, whole: bool) -> None:
    path = tmp_path / "s.toml"
    text = (EXAMPLES / "llama-3.3-70b-nvfp4-b200.toml").read_text()
    path.write_text(text.replace("title = ", 'title = "[/bold] x" #'))
    command = [
        sys.executable,
        "-m",
        "appliance",
        "simulate",
        "--scenario",
        str(path),
        "--duration",
        "20",
        "--layout",
        "1p1d",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {"COLUMNS": columns} if columns else {}
    environment["PYTHONIOENCODING"] = "ascii"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert "SIMULATED: [/bold] x" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("| 1p1d"))
    assert row.count(" ms |") + row.count(" s |") == (5 if whole else 4)
    assert "\u2026" not in done.stdout


def test_and_json() -> None:
    path = str(EXAMPLES / "llama-3.3-70b-nvfp4-b200.toml")
    command = [sys.executable, "-m", "appliance", "simulate", "--scenario", path, "--duration", "20"]
    done = subprocess.run([*command, "--json", "--seed", "3"], capture_output=True, text=True, timeout=60, check=True)
    body = json.loads(done.stdout)
    assert body["simulated"] is True
    assert [result["layout"] for result in body["results"]] == ["1p1d", "2b", "1b@tp2"]


def test_gaps_between_tokens_are_those_of_steps_and_not_of_idle_times() -> None:
    meter = Meter(0, 10_000_000_000)
    for start_ms, end_ms, prompt, decodes in (
        (0, 50, 100, 0),
        (50, 60, 0, 3),
        (60, 90, 100, 3),
        (5000, 5040, 100, 0),
        (5040, 5052, 0, 1),
    ):
        meter.message("e0", 1, step(start_ms, end_ms, prompt, decodes))
    assert meter.itl_s(3 / 7) == pytest.approx(0.010)
    assert meter.itl_s(4 / 7) == pytest.approx(0.012)
    assert meter.itl_s(1.0) == pytest.approx(0.030)
    assert meter.tokens == 7


def step(start_ms: int, end_ms: int, prompt_tokens: int, decode_tokens: int) -> Step:
    zero = dict.fromkeys(("context_tokens", "running", "waiting", "fetching", "kv_free", "leased", "preemptions"), 0)
    return Step(
        start_ns=start_ms * 1_000_000, end_ns=end_ms * 1_000_000, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens,
        prefix_queries=0, prefix_hits=0, **zero,
    )  # fmt: skip


def test_nothing_answered_is_no_picture() -> None:
    bare = dict.fromkeys(Result.__struct_fields__, 0)
    empty = Result(**{**bare, "layout": "1b", "busy": {}, "ttft_by_time": (None, None)})  # type: ignore[arg-type]
    assert "no request was answered" in plot(empty)
