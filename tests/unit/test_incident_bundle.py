"""What is kept of snapshots, the file that is made of it, and its replay through the diagnoser."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from incident_scenes import NOON, OK, bottleneck, crowded, diagnosed, made, snapshot
from msgspec.structs import replace

from appliance.errors import IncidentError
from appliance.incidents import bundle
from appliance.incidents.bundle import read, write
from appliance.incidents.frames import (
    BEFORE_S,
    LEFT_OUT,
    Chunk,
    Recorder,
    Thin,
    _Recording,
    _thin,
    bare,
    joined,
    snapshots,
    thinned,
)
from appliance.incidents.replay import complete, replay
from appliance.records import Incident, Lease, LedgerSnapshot, Leg, NodeSnapshot

SECRET = b"s" * 16


class Recorded:
    """What a recorder gives out, as a store would keep it."""

    def __init__(self) -> None:
        self.recorder = Recorder(SECRET)
        self.chunks: list[Chunk] = []
        self.thins: list[Thin] = []

    def see(self, row: Sequence[NodeSnapshot], begin_s: float | None = None, end_s: float | None = None) -> None:
        for one in row:
            self.recorder.fold(one)
            if one.uptime_s == begin_s:
                self.recorder.begin("a", one.uptime_s)
            if one.uptime_s == end_s:
                self.recorder.end("a", one.uptime_s)
            chunks, thins = self.recorder.due(one.uptime_s)
            self.chunks += chunks
            self.thins += thins

    def stored(self) -> list[bytes]:
        """Thinned as it was told."""
        found = []
        for chunk in self.chunks:
            data: bytes | None = joined(chunk.frames)
            for thin in self.thins:
                if data and thin.since_s <= chunk.since_s and chunk.until_s <= thin.until_s:
                    data = thinned(data, thin.apart_s)
                    break
            found += [data] if data else []
        return found

    def uptimes(self) -> list[float]:
        return [one["uptime_s"] for data in self.stored() for one in snapshots(data)]


def row(from_s: float, to_s: float, tick_s: float = 0.5) -> list[NodeSnapshot]:
    return [snapshot(from_s + number * tick_s) for number in range(round((to_s - from_s) / tick_s))]


def test_all_is_kept_from_before_until_after() -> None:
    recorded = Recorded()
    recorded.see(row(0, 600), begin_s=300, end_s=360)
    times = recorded.uptimes()
    assert (times[0], times[-1]) == (300 - BEFORE_S, 390)
    assert len(times) == 2 * (390 - times[0]) + 1, "each once"


def test_the_middle_of_a_long_one_is_thinned_and_its_ends_are_not() -> None:
    recorded = Recorded()
    recorded.see(row(0, 8500), begin_s=200, end_s=8200)
    times = recorded.uptimes()
    gaps = {round(later - earlier, 1) for earlier, later in pairwise(times) if earlier < 300}
    assert gaps == {0.5}
    assert len([one for one in times if one >= 8200 - 95]) == 2 * 95 + 2 * 30 + 1, (
        "as much as the diagnoser looks back on"
    )
    assert 0.15 < len([one for one in times if 1000 <= one < 3000]) / 2000 < 0.3, "one in five seconds"
    assert 32 <= len([one for one in times if 5000 <= one < 7000]) <= 40, "one a minute"
    assert len(times) < 1700, "of 17,000"


def test_one_that_nobody_sees_to_for_a_month_stays_small() -> None:
    thins = _thin("a", _Recording(0.0), 30 * 86_400.0)
    kept = sum((one.until_s - one.since_s) / one.apart_s for one in thins)
    assert [one.apart_s for one in thins] == [5.0, 60.0, 900.0]
    assert all(one.until_s == other.since_s for one, other in pairwise(thins)), "without a gap"
    assert kept < 5000


def test_a_quick_tick_does_not_fill_the_memory_and_what_has_no_verdict_is_none_to_keep() -> None:
    recorded = Recorded()
    recorded.see(row(0, 300, tick_s=0.05))
    assert len(recorded.recorder._frames) <= BEFORE_S / 0.25 + 1
    recorded = Recorded()
    recorded.see([snapshot(1.0, None)])
    assert not recorded.recorder._frames


def test_one_that_is_opened_again_has_no_gap() -> None:
    recorded = Recorded()
    life = row(0, 400)
    recorded.see(life[:300], begin_s=100, end_s=110)
    recorded.recorder.begin("a", 150)
    recorded.see(life[300:], end_s=200)
    times = recorded.uptimes()
    assert times == [number / 2 for number in range(2 * 230 + 1)]


def test_the_end_of_the_appliance_keeps_what_there_is() -> None:
    recorded = Recorded()
    recorded.see(row(0, 104), begin_s=100)
    chunks, _ = recorded.recorder.due(103.5, everything=True)
    assert chunks[-1].until_s == 103.5


# ---- what is in it


def test_nothing_that_a_client_or_an_engine_has_put_into_words_is_kept() -> None:
    leg = Leg(kind="prefill", engine="e0", outcome="error", error="the prompt 'SECRET' is too long")
    spoken = made.timeline(1, (1, 2), error="the prompt 'SECRET' is too long", legs=(leg,))
    named = replace(made.timeline(2, (1, 2)), id="SECRET@example.org")
    ours, theirs = f"{spoken.id}.0123456789abcdef.1", f"{spoken.id}.SECRET.0123456789abcdef.1"
    leases = tuple(
        Lease(id=id, owner="e0", blocks=1, tokens=9, consumers=1, age_s=1, remaining_s=9, request=id.partition(".0")[0])
        for id in (ours, theirs)
    )
    node = snapshot(0, recent=(spoken, named), ledger=LedgerSnapshot(leases=leases))
    kept = bare(node, SECRET)
    assert b"SECRET" in msgspec.json.encode(node)
    assert b"SECRET" not in msgspec.json.encode(kept)
    assert kept.recent[0].error == kept.recent[0].legs[0].error == LEFT_OUT
    assert kept.recent[0].id == spoken.id, "an id of ours says nothing, and finds the request in the log"
    assert kept.recent[1].id == bare(node, SECRET).recent[1].id != bare(node, b"other").recent[1].id
    assert kept.ledger.leases[0] == leases[0]
    assert kept.ledger.leases[1] == replace(
        leases[1], id=kept.ledger.leases[1].id, request=kept.ledger.leases[1].request
    )
    without = {"recent": (), "ledger": LedgerSnapshot()}
    assert replace(kept, **without) == replace(node, **without), "all else is as it was"


def test_no_record_of_a_snapshot_has_room_for_text_or_an_address() -> None:
    """A field of such a name in what is exported must be looked at by a person."""
    names = set(_fields(NodeSnapshot))
    assert {"ttft_s", "kv_usage", "clock_mhz"} <= names, "the test sees all of it"
    assert not {
        name for name in names if any(word in name for word in ("text", "message", "peer_address", "client", "body"))
    }
    assert {name for name in names if "prompt" in name} <= {
        "prompt_tokens", "prompt_tokens_s", "outstanding_prompt_tokens", "step_prompt_tokens",
        "long_prompt_tokens",
    }  # fmt: skip


def _fields(kind: Any) -> list[str]:
    found = []
    for field in msgspec.structs.fields(kind):
        found.append(field.name)
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                found += _fields(inner)
    return found


# ---- the file


INCIDENT = Incident(
    id="231114-2213", opened=NOON + 120, version="0.1.0", slo_share=0.95, slo_ttft_s=2.0, slo_itl_s=0.05
)


def exported(path: Path, life: Sequence[NodeSnapshot], incident: Incident = INCIDENT) -> Path:
    recorder = Recorder(SECRET)
    for one in life:
        recorder.fold(one)
    recorder.begin("a", life[-1].uptime_s)
    chunks, _ = recorder.due(life[-1].uptime_s)
    path.write_bytes(write(incident, [joined(chunk.frames) for chunk in chunks], now=NOON))
    return path


def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path: Path) -> None:
    life = [replace(made.bottleneck(number), uptime_s=number / 2) for number in range(40)]
    found = read(exported(tmp_path / "a.pdi", life))
    assert (found.incident, len(found.snapshots)) == (INCIDENT, 40)
    assert [replace(one, recent=()) for one in found.snapshots] == [replace(one, recent=()) for one in life]
    assert (found.header.slo_share, found.header.simulated, found.header.version) == (0.95, False, "0.1.0")


def test_it_is_readable_without_us(tmp_path: Path) -> None:
    lines = gzip.decompress(exported(tmp_path / "a.pdi", row(0, 10)).read_bytes()).splitlines()
    header, incident, *rest, end = map(json.loads, lines)
    assert (header["pd_appliance_incident"], header["snapshots"], end) == (1, 20, {"end": 20})
    assert incident["incident"]["id"] == INCIDENT.id
    assert [one["snapshot"]["uptime_s"] for one in rest] == [number / 2 for number in range(20)]


def test_a_chunk_that_was_written_twice_or_is_damaged_does_no_harm(tmp_path: Path) -> None:
    recorder = Recorder(SECRET)
    for one in row(0, 10):
        recorder.fold(one)
    recorder.begin("a", 9.5)
    [chunk] = recorder.due(9.5)[0]
    data = joined(chunk.frames)
    (tmp_path / "a.pdi").write_bytes(write(INCIDENT, [data, data, b"damaged", zlib.compress(b"\xc1")]))
    assert len(read(tmp_path / "a.pdi").snapshots) == 20


def packed(*lines: object) -> bytes:
    return compressed(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def compressed(data: bytes) -> bytes:
    """Without the time of day: it is part of a test's name, and processes that share out tests must agree on names."""
    return gzip.compress(data, mtime=0)


HEADER = {"pd_appliance_incident": 1, "version": "0.1.0", "written": 0, "simulated": False, "snapshots": 0}
HEADER |= {"slo_ttft_s": 2.0, "slo_itl_s": 0.05, "slo_share": 0.95}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no incident"),
        (b"PK\x03\x04", "is no incident"),
        (packed(), "is no incident"),
        (packed("hello"), "is no incident"),
        (packed({"other": 1}), "is no incident"),
        (packed({**HEADER, "pd_appliance_incident": 2, "version": "9.0"}), "it was written by pd-appliance 9.0"),
        (
            compressed(b'{"pd_appliance_incident": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
            "is no incident",
        ),
        (compressed(b'{"pd_appliance_incident": 1, "version": "\xff"}'), "is no incident"),
        (compressed(json.dumps(HEADER).encode() + b'\n{"incident": {"id": "\xff", "opened": 1}}\n'), "can't read"),
        (packed(HEADER, {"incident": {"id": 7}}), "says that this version has written it, and it has not"),
        (packed({**HEADER, "version": "0.0.9"}, {"incident": {"id": 7}}), "it is of pd-appliance 0.0.9; use that"),
        (packed(HEADER, {"incident": {"id": "a", "opened": 1}}, {"snapshot": {"time": 1}}), "this version can't read"),
        (packed({**HEADER, "snapshots": 3}, {"incident": {"id": "a", "opened": 1}}, {"end": 0}), "has 0 snapshots"),
    ],
)
def test_what_is_no_incident_is_refused_in_a_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "a.pdi"
    path.write_bytes(data)
    with pytest.raises(IncidentError, match=says) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_off_or_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    whole = exported(tmp_path / "a.pdi", row(0, 30)).read_bytes()
    cut = tmp_path / "cut.pdi"
    for length in range(0, len(whole), 97):
        cut.write_bytes(whole[:length])
        with pytest.raises(IncidentError):
            read(cut)
    refused = 0
    for place in range(20, len(whole), 97):
        cut.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read(cut)
        except IncidentError:
            refused += 1
    assert refused == len(range(20, len(whole), 97))


def test_a_file_that_was_cut_and_packed_again_is_said_to_be_cut_off(tmp_path: Path) -> None:
    """As by ``zcat | head``: gzip has nothing against it."""
    whole = gzip.decompress(exported(tmp_path / "a.pdi", row(0, 10)).read_bytes())
    header, incident, first, *_ = whole.splitlines(keepends=True)
    cut = tmp_path / "cut.pdi"
    for data in (
        header,
        header + incident,
        header + incident[:-20],
        header + incident + first,
        header + incident + first[:200],
        whole[: whole.rindex(b'{"snapshot"')],
    ):
        cut.write_bytes(gzip.compress(data))
        with pytest.raises(IncidentError, match=r"cut\.pdi is cut off: copy or export it again"):
            read(cut)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(IncidentError, match=r"nothing\.pdi can't be read: No such file"):
        read(tmp_path / "nothing.pdi")
    with pytest.raises(IncidentError, match="can't be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("line", [b"0" * 10_000, b'{"snapshot": null}\n' * 1000])
def test_a_file_that_would_fill_the_memory_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """In one line, or in many of which each is small."""
    monkeypatch.setattr(bundle, "_LINE_BYTES", 1000)
    monkeypatch.setattr(bundle, "_BYTES", 5000)
    path = tmp_path / "a.pdi"
    head = json.dumps(HEADER).encode() + b'\n{"incident": {"id": "a", "opened": 1}}\n'
    path.write_bytes(gzip.compress(head + line))
    with pytest.raises(IncidentError, match=r"can't read|more than"):
        read(path)


def test_many_small_lines_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_BYTES", 200_000)
    life = row(0, 60)
    assert len(read(exported(tmp_path / "a.pdi", life[:20])).snapshots) == 20
    with pytest.raises(IncidentError, match=r"a\.pdi holds more than"):
        read(exported(tmp_path / "a.pdi", life))


@pytest.mark.parametrize("key", ["time", "uptime_s"])
@pytest.mark.parametrize("value", [1e300, -1e300, 1e12])
def test_times_that_no_clock_has_said_are_refused(tmp_path: Path, key: str, value: float) -> None:
    life = row(0, 10)
    life[3] = msgspec.structs.replace(life[3], **{key: value})
    lines = [{"snapshot": msgspec.to_builtins(one)} for one in life]
    head = {**HEADER, "snapshots": len(life)}
    (tmp_path / "a.pdi").write_bytes(packed(head, {"incident": {"id": "a", "opened": 1}}, *lines, {"end": len(life)}))
    with pytest.raises(IncidentError, match="no clock has said"):
        read(tmp_path / "a.pdi")


@pytest.mark.parametrize("order", [slice(None, None, -1), [0, 1, 1, 2]], ids=["reversed", "twice"])
def test_times_that_run_backwards_are_refused(tmp_path: Path, order: slice | list[int]) -> None:
    """A diagnoser can't judge them, and no appliance has written them: not even one whose clock was set back."""
    life = [replace(one, time=NOON - one.uptime_s) for one in row(0, 10)]
    assert len(read(exported(tmp_path / "a.pdi", life)).snapshots) == 20
    wrong = life[order] if isinstance(order, slice) else [life[number] for number in order]
    lines = [{"snapshot": msgspec.to_builtins(one)} for one in wrong]
    head = {**HEADER, "snapshots": len(wrong)}
    (tmp_path / "a.pdi").write_bytes(packed(head, {"incident": {"id": "a", "opened": 1}}, *lines, {"end": len(wrong)}))
    with pytest.raises(IncidentError, match="run backwards"):
        read(tmp_path / "a.pdi")


def test_a_long_one_is_written_without_being_held_as_a_whole() -> None:
    """The file is made where requests are served."""
    recorder = Recorder(SECRET)
    for one in row(0, 150):
        recorder.fold(one)
    frames = list(recorder._frames)
    chunks = [joined(frames[at : at + 10]) for at in range(0, 300, 10)]
    assert peak_bytes(chunks) < 1.2 * peak_bytes(chunks[:5])


def peak_bytes(chunks: Sequence[bytes]) -> int:
    tracemalloc.start()
    write(INCIDENT, chunks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


# ---- the replay


def trouble(length_s: float = 200.0) -> list[NodeSnapshot]:
    """A queue from the 130th to the 160th second, judged as the collector would have it."""
    times = [number / 2 for number in range(round(2 * length_s))]
    return diagnosed([crowded(at_s, depth=40 if 130 <= at_s < 160 else 0) for at_s in times])


def test_the_diagnoser_says_again_what_it_said(tmp_path: Path) -> None:
    found = replay(read(exported(tmp_path / "a.pdi", trouble())))
    assert (found.agrees, found.judged) == (True, 141), "from the time on at which its window is full"
    said = [one.replayed.cause for one in found.changes]
    assert said == [None, "prefill_saturated", None]
    assert found.changes[1].time == NOON + 131.0


def test_what_was_said_otherwise_is_told_apart(tmp_path: Path) -> None:
    life = trouble()
    told = [
        replace(one, verdict=bottleneck("decode_kv_full", "e1") if one.verdict and one.verdict.cause else OK)
        for one in life
    ]
    found = replay(read(exported(tmp_path / "a.pdi", told)))
    assert found.agrees is False
    wrong = [one for one in found.changes if not one.same]
    assert [(one.recorded.cause, one.replayed.cause) for one in wrong] == [("decode_kv_full", "prefill_saturated")]


def test_a_verdict_that_comes_a_moment_later_is_the_same(tmp_path: Path) -> None:
    life = trouble()
    later = [replace(one, verdict=(life[max(0, number - 2)]).verdict) for number, one in enumerate(life)]
    assert replay(read(exported(tmp_path / "a.pdi", later))).agrees is True
    much_later = [replace(one, verdict=(life[max(0, number - 8)]).verdict) for number, one in enumerate(life)]
    assert replay(read(exported(tmp_path / "a.pdi", much_later))).agrees is False


def test_what_was_not_seen_can_not_be_judged(tmp_path: Path) -> None:
    short = [one for one in trouble() if 100 <= one.uptime_s < 180]
    assert replay(read(exported(tmp_path / "a.pdi", short))).agrees is None
    fresh = [replace(one, uptime_s=one.uptime_s - 100) for one in short]
    assert complete(fresh)[0] is True, "before the start there was nothing to see"
    holed = [one for one in row(0, 400) if not 100 <= one.uptime_s < 130]
    judged = complete(holed)
    assert judged[199] and not judged[200], "up to the hole"
    assert holed[judged.index(True, 200)].uptime_s == 130 + 90
    assert all(complete([snapshot(number * 5.0) for number in range(10)])), "whose ticks are that long"
