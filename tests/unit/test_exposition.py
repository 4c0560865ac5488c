"""Prometheus text: what a snapshot holds, and nothing that it does not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from appliance.records import (
    CalibrationSnapshot,
    EngineSnapshot,
    GpuProcess,
    GpuSnapshot,
    HandoffSnapshot,
    HostReading,
    IncidentTotals,
    NodeSnapshot,
    QueueSnapshot,
    Role,
    Throttled,
    Verdict,
)
from appliance.telemetry import exposition

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_kept as kept
import page_states as made

DOCS = Path(__file__).parents[2] / "docs"


def samples(snapshot: NodeSnapshot) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(exposition.render(snapshot).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def one(snapshot: NodeSnapshot, name: str, **labels: str) -> float | None:
    return samples(snapshot).get((f"pd_appliance_{name}", frozenset(labels.items())))


@pytest.mark.parametrize("state", made.STATES)
def test_every_state_can_be_parsed_back(state: str) -> None:
    assert samples(made.STATES[state](3))


def test_values_stand_where_they_belong() -> None:
    snapshot = made.busy(0)
    assert one(snapshot, "ready") == 1
    assert one(snapshot, "queue_depth") == 2
    assert one(snapshot, "engine_kv_usage_ratio", engine="e0") == 0.62
    assert one(snapshot, "engine_step_seconds", engine="e1") == pytest.approx(0.0142)
    assert one(snapshot, "engine_restarts_total", engine="e1") == 1
    assert one(snapshot, "requests_total", outcome="ok") == 609
    assert one(snapshot, "leases", engine="e0") == 3
    assert one(snapshot, "leases", engine="e1") == 0
    assert one(snapshot, "leases_ended_total", reason="expired") == 1
    assert one(snapshot, "handoff_bytes_total") == 1_094_400_000
    assert one(snapshot, "ttft_seconds", quantile="0.5") == pytest.approx(0.21)
    assert one(snapshot, "supervisor_loop_delay_seconds") == pytest.approx(0.0003)


def test_blocks_that_no_lease_accounts_for_are_told_and_none_of_an_engine_that_does_not_say() -> None:
    node = kept.leaking(0)
    assert one(node, "unexplained_blocks", engine="e1") == node.ledger.unexplained[0].blocks > 0
    assert one(node, "unexplained_blocks", engine="e0") == 0
    silent = replace(node, engines=tuple(replace(engine, leased_blocks=None) for engine in node.engines))
    assert one(silent, "unexplained_blocks", engine="e0") is None


def test_pairs_are_told_by_both_engines() -> None:
    snapshot = made.broken(0)
    assert one(snapshot, "pair_ok", prefill="e0", decode="e2") == 0
    assert one(snapshot, "pair_in_use", prefill="e0", decode="e2") == 0
    assert one(snapshot, "pair_ok", prefill="e1", decode="e2") == 1


def test_a_verdict_is_told_by_its_engines_its_link_and_its_cause() -> None:
    shared = Verdict(
        state="bottleneck", summary="", since=1000.0, engine="e0", engines=("e0", "e1"), stage="prefill",
        cause="prefill_saturated", confidence=0.9, expected_gain=0.3,
    )  # fmt: skip
    node = replace(made.busy(0), verdict=shared)
    for engine in ("e0", "e1"):
        assert one(node, "bottleneck", engine=engine, link="", stage="prefill", cause="prefill_saturated") == 1
    assert one(node, "verdict", pd_appliance_verdict="bottleneck") == 1
    assert one(node, "verdict", pd_appliance_verdict="ok") == 0
    assert one(node, "verdict_since_timestamp_seconds") == 1000
    assert (one(node, "bottleneck_confidence_ratio"), one(node, "bottleneck_expected_gain_ratio")) == (0.9, 0.3)
    link = Verdict(
        state="bottleneck", summary="", since=1.0, link=("e0", "e4"), stage="handoff", cause="handoff_link_slow"
    )
    slow = replace(node, verdict=link)
    assert one(slow, "bottleneck", engine="", link="e0-e4", stage="handoff", cause="handoff_link_slow") == 1
    assert one(slow, "bottleneck_confidence_ratio") is None


def test_while_nothing_holds_it_back_there_is_no_bottleneck() -> None:
    well = replace(made.busy(0), verdict=Verdict(state="ok", summary="", since=1.0))
    assert one(well, "verdict", pd_appliance_verdict="ok") == 1
    assert not [name for name, _ in samples(well) if "bottleneck" in name]
    nameless = replace(well, verdict=Verdict(state="unknown", summary="", since=1.0))
    assert one(nameless, "bottleneck", engine="", link="", stage="", cause="unknown") == 1


def test_incidents_are_counted_where_they_are_kept() -> None:
    totals = IncidentTotals(open=True, opened=3, closed={"decode_kv_full": 2}, untold=1, kept=False)
    families = text_string_to_metric_families(exposition.render(made.busy(0), totals).decode())
    found = {(s.name, s.labels.get("cause")): s.value for family in families for s in family.samples}
    assert found["pd_appliance_incident_open", None] == 1
    assert found["pd_appliance_incidents_opened_total", None] == 3
    assert found["pd_appliance_incidents_closed_total", "decode_kv_full"] == 2
    assert found["pd_appliance_incident_notices_failed_total", None] == 1
    assert found["pd_appliance_incidents_kept", None] == 0
    assert not [name for name, _ in samples(made.busy(0)) if "incident" in name]


@pytest.mark.parametrize("name", re.findall(r"`(pd_appliance_\w+)`", (DOCS / "metrics.md").read_text()))
def test_what_the_documents_name_is_there(name: str) -> None:
    verdict = Verdict(
        state="bottleneck", summary="", since=1.0, engine="e0", cause="x", confidence=0.9, expected_gain=0.1
    )
    node = made.bottleneck(3)
    engine = replace(node.engines[0], busy=0.5, slowdown=1.2, itl_late=0.1, leased_blocks=0)
    node = replace(node, verdict=verdict, engines=(engine, *node.engines[1:]))
    text = exposition.render(node, IncidentTotals(closed={"x": 1})).decode()
    assert re.search(rf"^{name}\b", text, re.MULTILINE), name


def test_state_and_role_are_one_of_all() -> None:
    found = samples(made.failed(0))
    states = {dict(labels)["pd_appliance_engine_state"]: value for (name, labels), value in found.items()
              if name == "pd_appliance_engine_state" and ("engine", "e1") in labels}  # fmt: skip
    assert states["failed"] == 1
    assert sum(states.values()) == 1
    assert one(made.failed(0), "engine_role", engine="e1", pd_appliance_engine_role="decode") == 1


def test_absent_is_left_out_and_zero_is_not() -> None:
    bare = EngineSnapshot(name="e0", role=Role.BOTH, state=made.EngineState.STARTING, epoch=1)
    snapshot = msgspec.structs.replace(
        made.empty(0), engines=(bare,), queue=QueueSnapshot(), handoffs=HandoffSnapshot()
    )
    text = exposition.render(snapshot).decode()
    for name in ("kv_usage_ratio", "requests_running", "prompt_tokens_per_second", "memory_bytes{", "preemptions"):
        assert f"engine_{name}" not in text, "a family without a sample must not be there at all"
    assert "ttft_seconds{" not in text
    assert "queue_oldest_seconds" not in text
    assert one(snapshot, "queue_depth") == 0
    assert one(snapshot, "engine_legs_in_flight", engine="e0") == 0


def test_labels_are_escaped() -> None:
    model = 'a"b\\c\nd'
    snapshot = msgspec.structs.replace(made.empty(0), model=model)
    labels = next(labels for name, labels in samples(snapshot) if name == "pd_appliance_info")
    assert dict(labels)["model"] == model


ELSEWHERE = {
    "name",
    "role",
    "state",
    "pid",
    "gpus",
    "cores",
    "stage",
    "cause",
    "restarting",
    "host",
    "calibration",
}  # labels, or told otherwise


@pytest.mark.parametrize("figure", sorted(set(EngineSnapshot.__struct_fields__) - ELSEWHERE))
def test_every_figure_of_an_engine_is_exposed(figure: str) -> None:
    """A new number in the record must come out here too, or be named as told otherwise."""
    value = ("one", "two", "three") if figure.startswith("peer") else 777
    engine = made.engine("e0")
    before, after = (
        samples(msgspec.structs.replace(made.empty(0), engines=(one,)))
        for one in (engine, msgspec.structs.replace(engine, **{figure: value}))
    )
    changed = {sample for sample in after if before.get(sample) != after[sample]}
    [(name, _)] = {(name, of) for name, of in changed if name != "pd_appliance_unexplained_blocks"}  # of whoever tells
    assert name.startswith("pd_appliance_engine_")
    assert after[name, frozenset({("engine", "e0")})] in (3, 777, pytest.approx(0.777))


@pytest.mark.parametrize("figure", HostReading.__struct_fields__)
def test_every_figure_of_a_host_is_exposed(figure: str) -> None:
    bare = made.engine("e0")
    full = msgspec.structs.replace(bare, host=HostReading(**{figure: 0.777}))
    before, after = (samples(msgspec.structs.replace(made.empty(0), engines=(one,))) for one in (bare, full))
    [(name, _)] = {sample for sample in after if before.get(sample) != after[sample]}
    assert after[name, frozenset({("engine", "e0")})] == 0.777


@pytest.mark.parametrize("figure", ["steps", "slowdown", "against_like"])
def test_every_figure_of_a_calibration_is_exposed(figure: str) -> None:
    bare = msgspec.structs.replace(made.engine("e0"), calibration=CalibrationSnapshot(steps=1))
    full = msgspec.structs.replace(bare, calibration=CalibrationSnapshot(**{"steps": 1, figure: 777}))
    before, after = (samples(msgspec.structs.replace(made.empty(0), engines=(one,))) for one in (bare, full))
    [(name, _)] = {sample for sample in after if before.get(sample) != after[sample]}
    assert after[name, frozenset({("engine", "e0")})] == 777


NOT_FIGURES = {"index", "uuid", "name", "engine", "clock_reasons", "throttled"}  # labels
SEVERAL = {"xids": (7, 7, 7), "others": tuple(GpuProcess(pid=pid) for pid in (1, 2, 3))}


@pytest.mark.parametrize("figure", sorted(set(GpuSnapshot.__struct_fields__) - NOT_FIGURES))
def test_every_figure_of_a_gpu_is_exposed(figure: str) -> None:
    bare = GpuSnapshot(index=0, uuid="GPU-1", name="H100", engine="e0")
    full = msgspec.structs.replace(bare, **{figure: SEVERAL.get(figure, 777)})
    before, after = (samples(msgspec.structs.replace(made.empty(0), gpus=(one,))) for one in (bare, full))
    [(name, labels)] = {sample for sample in after if before.get(sample) != after[sample]}
    assert name.startswith("pd_appliance_gpu_")
    assert labels == frozenset({("gpu", "GPU-1"), ("engine", "e0")})
    assert after[name, labels] in (3, 777, 777e6)


def test_why_a_clock_is_down_is_told() -> None:
    place = {"gpu": "GPU-sim2", "engine": "e1"}
    assert one(made.large(0), "gpu_clock_reason", **place, reason="hw_thermal_slowdown") == 1


def test_how_long_a_clock_was_down_is_told_by_reason() -> None:
    held = (Throttled(reason="sw_power_cap", total_s=12.5), Throttled(reason="hw_thermal_slowdown", total_s=0.0))
    gpu = GpuSnapshot(index=0, uuid="GPU-1", name="H100", throttled=held)
    snapshot = msgspec.structs.replace(made.empty(0), gpus=(gpu,))
    place = {"gpu": "GPU-1", "engine": ""}
    assert one(snapshot, "gpu_throttled_seconds_total", **place, reason="sw_power_cap") == 12.5
    assert one(snapshot, "gpu_throttled_seconds_total", **place, reason="hw_thermal_slowdown") == 0
    assert one(snapshot, "gpu_throttled_seconds_total", **place, reason="hw_power_brake") is None


def test_who_else_is_on_a_gpu_is_not_told_where_that_is_not_known() -> None:
    gpu = GpuSnapshot(index=0, uuid="GPU-1", name="H100")
    place = {"gpu": "GPU-1", "engine": ""}
    for others, said in ((None, None), ((), 0.0)):
        snapshot = msgspec.structs.replace(made.empty(0), gpus=(msgspec.structs.replace(gpu, others=others),))
        assert one(snapshot, "gpu_other_processes", **place) == said
