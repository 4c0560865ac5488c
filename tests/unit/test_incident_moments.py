"""What was seen at a moment of an incident: found by uptime, bounded, and whole."""

from __future__ import annotations

import zlib
from itertools import pairwise

from incident_scenes import OK, bottleneck, snapshot

from appliance.incidents import moments
from appliance.incidents.frames import Frame, joined, packed
from appliance.records import NodeSnapshot

SECRET = b"s" * 16


def chunk(*row: NodeSnapshot) -> bytes:
    return joined([Frame(one.uptime_s, packed(one, SECRET)) for one in row])


ROW = [snapshot(n / 2, bottleneck() if n >= 40 else OK, late=0.5 if n >= 40 else None) for n in range(100)]
CHUNKS = [chunk(*ROW[:30]), chunk(*ROW[25:70]), chunk(*ROW[70:])]


def test_all_of_them_in_order_where_they_are_few() -> None:
    found = moments.spread(CHUNKS, 200)
    assert [one.uptime_s for one in found] == [one.uptime_s for one in ROW], "those that two chunks have are told once"
    assert [(one.state, one.engine, one.cause, one.ttft_late) for one in found[39:41]] == [
        ("ok", None, None, None),
        ("bottleneck", "e0", "prefill_straggler_gpu", 0.5),
    ]
    assert found[40].time == ROW[40].time
    assert found[0].output_tokens_s == 0.0, "of engines that tell"


def test_of_too_many_a_few_that_cover_the_time() -> None:
    found = moments.spread(CHUNKS, 20)
    times = [one.uptime_s for one in found]
    assert len(times) <= 20
    assert (times[0], times[-1]) == (0.0, 49.5)
    assert max(later - earlier for earlier, later in pairwise(times)) <= 2 * 49.5 / 19
    assert moments.spread([], 20) == ()


def test_one_of_them_is_the_snapshot_as_it_was() -> None:
    assert moments.at(CHUNKS[1], 20.3) == ROW[40]
    assert moments.at(CHUNKS[1], 0.0) == ROW[25], "before all of them: the first"
    assert moments.at(CHUNKS[1], 999.0) == ROW[69]


def test_what_cannot_be_read_is_none() -> None:
    assert moments.at(b"no", 1.0) is None
    assert moments.at(zlib.compress(b"\x91\x81\xa8uptime_s\x01"), 1.0) is None, "of another version"
    assert moments.at(joined([]), 1.0) is None
