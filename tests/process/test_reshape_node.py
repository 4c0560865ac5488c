"""The engines are changed while the node serves: real processes, of simulated engines that may misbehave."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Mapping, Sequence

import psutil
import pytest
from test_node import SETTINGS, SHAPE, Scene, _scripted, node

from appliance.errors import ActionError, ConfigError
from appliance.records import EngineState, Moved, Role
from appliance.simulator import specs as simulated
from appliance.simulator.plan import EnginePlan
from appliance.supervisor.specs import EngineSpec
from appliance.supervisor.topology import Place, parse


class Casting:
    """Engines on eight GPUs, given out in order; each misbehaves as its script says."""

    def __init__(self, **scripts: str) -> None:
        self.scripts: Mapping[str, str] = scripts

    def specs(self, layout: str, there: int) -> Sequence[EngineSpec]:
        places = parse(layout).places
        firsts = itertools.accumulate((place.tensor_parallel for place in places), initial=0)
        if sum(place.tensor_parallel for place in places) > 8:
            raise ConfigError(f"layout {layout} needs more GPUs than there are")
        plans = [_plan(place, first) for place, first in zip(places, firsts, strict=False)]
        return [_scripted(spec, self.scripts.get(spec.name, "")) for spec in simulated.specs(plans, "m")]


def _plan(place: Place, first: int) -> EnginePlan:
    return EnginePlan(
        name=place.name,
        role=place.role,
        settings=SETTINGS,
        shape=SHAPE,
        gpu="h100",
        tensor_parallel=place.tensor_parallel,
        first_gpu=first,
        link_bytes_s=1e9,
    )


async def ready_as(scene: Scene, topology: str) -> None:
    await scene.until(lambda: scene.node.topology == topology, 30)
    await scene.all_ready()


def somebody_always_served(scene: Scene, from_: int) -> None:
    """By what views said since."""
    states = {view.name: view.state for view in scene.views[:from_]}
    for view in scene.views[from_:]:
        states[view.name] = view.state
        assert EngineState.READY in states.values()


async def test_engines_are_regrouped_and_go_back_and_somebody_serves_all_the_time() -> None:
    async with node("4p4d") as scene:
        begun: list[str] = []
        gone: list[str] = []
        scene.node.roster.on_begin.append(lambda spec: begun.append(spec.name))
        scene.node.roster.on_remove.append(gone.append)
        await scene.all_ready()
        actions, seen = scene.node.actions, len(scene.views)
        actions.casting = Casting()
        moved = actions.relabel("1p1d@tp4")
        assert moved == Moved(("e0", "e1"), ("e2", "e3", "e4", "e5", "e6", "e7"))
        for order in (
            lambda: actions.drain("e0"),
            lambda: actions.resume("e0"),
            lambda: actions.restart("e0"),
            lambda: actions.weight("e0", 0.5),
            lambda: actions.role("e0", Role.BOTH),
            lambda: actions.relabel("8b"),
            actions.restart_all,
        ):
            with pytest.raises(ActionError, match="are being changed to 1p1d@tp4: wait"):
                order()
        await ready_as(scene, "1p1d@tp4")
        assert [(view.name, view.role, len(view.gpus)) for view in scene.node.views()] == [
            ("e0", Role.PREFILL, 4),
            ("e1", Role.DECODE, 4),
        ]
        assert (begun, sorted(gone)) == (["e0", "e1"], ["e1", "e2", "e3", "e4", "e5", "e6", "e7"]), "e1 for a while"
        assert [view.epoch for view in scene.node.views()] == [2, 2], "no life is taken for an earlier one"
        roles = {name: Role.PREFILL if name < "e4" else Role.DECODE for name in (f"e{n}" for n in range(8))}
        await scene.until(lambda: scene.node.actions._changing is None)
        actions.relabel("4p4d", roles)
        await ready_as(scene, "4p4d")
        assert {view.name: view.role for view in scene.node.views()} == roles
        assert {view.name: view.epoch for view in scene.node.views()}["e7"] == 2, "of a name that was nobody's, too"
        somebody_always_served(scene, seen)
        await scene.until(lambda: all(len(view.peers) == 7 for view in scene.node.views()))


async def test_engines_that_stay_are_not_started_again() -> None:
    async with node("2p1d") as scene:
        await scene.all_ready()
        pids = {view.name: view.pid for view in scene.node.views()}
        scene.node.actions.casting = Casting()
        assert scene.node.actions.relabel("1p1d") == Moved((), ("e2",))
        await ready_as(scene, "1p1d")
        assert {view.name: view.pid for view in scene.node.views()} == {"e0": pids["e0"], "e1": pids["e1"]}
        assert not psutil.pid_exists(pids["e2"] or 0)


async def test_what_is_under_way_on_an_engine_that_goes_is_waited_for() -> None:
    under_way = {"e1": 1}
    async with node("2b", in_flight=lambda name: under_way.get(name, 0)) as scene:
        await scene.all_ready()
        scene.node.actions.casting = Casting()
        scene.node.actions.relabel("1b")
        await scene.until(lambda: scene.engine("e1").state is EngineState.DRAINING)
        await asyncio.sleep(0.5)
        assert scene.engine("e1").state is EngineState.DRAINING
        under_way.clear()
        await ready_as(scene, "1b")


async def test_what_would_leave_nobody_to_serve_has_to_be_forced() -> None:
    async with node("1b") as scene:
        await scene.all_ready()
        scene.node.actions.casting = Casting()
        with pytest.raises(ActionError, match="no engine would take requests between the end of e0 and"):
            scene.node.actions.relabel("1b@tp2")
        with pytest.raises(ActionError, match="more GPUs than there are"):
            scene.node.actions.relabel("9b")
        assert scene.engine("e0").role is Role.BOTH and scene.node.topology == "1b"
        assert scene.node.actions.relabel("1b@tp2", force=True) == Moved(("e0",), ())
        await ready_as(scene, "1b@tp2")


async def test_where_one_can_not_start_the_others_go_on_and_there_is_a_way_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with node("4p4d") as scene:
        await scene.all_ready()
        actions, roles = scene.node.actions, {view.name: view.role for view in scene.node.views()}
        actions.casting = Casting(e0="bad-argument")
        actions.relabel("1p1d@tp4")
        await scene.until(lambda: actions._changing is None, 30)
        assert "the change to 1p1d@tp4 ends here: e0 can't start: " in caplog.text
        assert {view.name: view.state for view in scene.node.views()} == {
            "e0": EngineState.FAILED,
            **{f"e{number}": EngineState.READY for number in range(4, 8)},
        }
        assert {view.role for view in scene.node.views()} == {Role.BOTH}, "they serve whatever comes"
        actions.casting = Casting()
        actions.relabel("4p4d", roles)
        await ready_as(scene, "4p4d")
        assert {view.name: view.role for view in scene.node.views()} == roles


async def test_an_engine_that_dies_while_it_is_to_go_is_not_started_again() -> None:
    async with node("2b", in_flight={"e0": 0, "e1": 1}.__getitem__) as scene:
        await scene.all_ready()
        scene.node.actions.casting = Casting()
        scene.node.actions.relabel("1b")
        await scene.until(lambda: scene.engine("e1").state is EngineState.DRAINING)
        os.kill(scene.engine("e1").pid or 0, signal.SIGKILL)
        await ready_as(scene, "1b")
        await asyncio.sleep(0.5)  # its back-off is over by then
        assert [view.name for view in scene.node.views()] == ["e0"]
        assert len(psutil.Process().children()) == 1


async def test_a_node_that_is_stopped_amid_a_change_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with node("4p4d") as scene:
        await scene.all_ready()
        scene.node.actions.casting = Casting()
        scene.node.actions.relabel("1p1d@tp4")
        await scene.until(lambda: scene.engine("e0").epoch == 2)
    assert "ends here" not in caplog.text, "it is nobody's failure"


async def test_a_way_back_that_needs_other_engines_than_it_names_is_refused() -> None:
    async with node("2b") as scene:
        await scene.all_ready()
        actions = scene.node.actions
        actions.casting = Casting()
        with pytest.raises(ActionError, match="roles are of e0, and 3b has 3 engines"):
            actions.relabel("3b", {"e0": Role.BOTH})
        actions.relabel("1p1b", {"e0": Role.PREFILL, "e1": Role.BOTH})
        assert scene.node.topology == "1p1b", "which no configuration can say"
