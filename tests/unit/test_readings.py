"""A window of snapshots in a few figures."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from appliance.diagnosis import readings
from appliance.records import NodeSnapshot

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made


def node(at_s: float, epoch: int, kv: float, hits: float | None = None) -> NodeSnapshot:
    engines = (
        made.engine("e0", epoch=epoch, kv_usage=kv, prefix_hit_rate=hits),
        made.engine("e1", epoch=1, kv_usage=0.1),
    )
    return msgspec.structs.replace(made.node(engines, 0), uptime_s=at_s)


def test_what_an_engine_was_in_an_earlier_life_says_nothing_of_it() -> None:
    window = [node(at_s, 1, kv=0.9) for at_s in (10.0, 10.5)] + [node(at_s, 2, kv=0.2) for at_s in (11.0, 11.5)]
    found = {engine.name: engine for engine in readings.read(window).engines}
    assert found["e0"].kv == 0.2
    assert found["e1"].kv == 0.1


def test_each_figure_is_of_its_own_time() -> None:
    window = [node(float(at_s), 1, kv=0.8 if at_s < 28 else 0.4, hits=0.7 if at_s < 15 else 0.2) for at_s in range(30)]
    (e0, _) = readings.read(window).engines
    assert (e0.kv, e0.hits, e0.hits_before) == (0.4, 0.2, 0.7)
