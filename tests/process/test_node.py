"""The real node over simulated engines that misbehave: real processes, sockets and signals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from appliance.channel import Heartbeat, PeerClosed, Release, Up
from appliance.config import Config, EngineConfig
from appliance.costs import huggingface
from appliance.errors import ActionError
from appliance.records import EngineState, EngineView, Role
from appliance.simulator import specs as simulated
from appliance.simulator.leg import Settings
from appliance.simulator.plan import EnginePlan
from appliance.supervisor import introductions, lifecycle, listening, loading
from appliance.supervisor import node as node_module
from appliance.supervisor.node import Node
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.specs import EngineSpec, arguments, command, environment, resolve_model, specs
from appliance.supervisor.topology import Place, parse

HERE = Path(__file__).parent
SHAPE = huggingface.read(HERE.parent / "unit" / "configs" / "llama-3.1-8b")
SETTINGS = Settings(kv_blocks=100, block_tokens=16, max_model_len=1024, max_batched_tokens=512, max_running=8)


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "BACKOFF_S", (0.1, 0.2, 0.4))
    monkeypatch.setattr(listening, "_DEAF_S", 0.2)
    monkeypatch.setattr(introductions, "_AGAIN_S", 0.2)


class Scene:
    """A node, and what it said."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.views: list[EngineView] = []
        self.lost: list[tuple[str, int]] = []
        self.messages: list[tuple[str, int, Up]] = []
        node.on_change(self.views.append)
        node.on_engine_lost(lambda name, epoch: self.lost.append((name, epoch)))
        node.on_message(lambda name, epoch, message: self.messages.append((name, epoch, message)))

    def engine(self, name: str) -> EngineView:
        return next(view for view in self.node.views() if view.name == name)

    async def until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)

    async def all_ready(self) -> None:
        await self.until(lambda: all(view.state is EngineState.READY for view in self.node.views()))


def engines(layout: str, scripts: Mapping[str, str]) -> tuple[EngineSpec, ...]:
    """Of a layout; each misbehaves as its script says."""
    plans = [_plan(place, number) for number, place in enumerate(parse(layout).places)]
    return tuple(_scripted(spec, scripts.get(spec.name, "")) for spec in simulated.specs(plans, "m"))


def _plan(place: Place, number: int) -> EnginePlan:
    return EnginePlan(
        name=place.name,
        role=place.role,
        settings=SETTINGS,
        shape=SHAPE,
        gpu="h100",
        first_gpu=number,
        link_bytes_s=1e9,
    )


def _scripted(spec: EngineSpec, script: str) -> EngineSpec:
    variables = {**spec.environment, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "SCRIPT": script}
    return replace(spec, module="misbehaving_engine", environment=variables)


@asynccontextmanager
async def node(
    layout: str = "1p1d",
    *,
    stall_s: float = 30.0,
    in_flight: Callable[[str], int] = lambda engine: 0,
    **scripts: str,
) -> AsyncIterator[Scene]:
    """Scripts by engine name; afterwards nothing of it may be left."""
    config = Config(engine=EngineConfig(stall_s=stall_s))
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        made = Node(config, engines(layout, scripts), Runtime(Path(name) / "run"))
        made.actions.in_flight = in_flight
        scene = Scene(made)
        await made.start()
        try:
            yield scene
        finally:
            children = psutil.Process().children(recursive=True)
            await made.stop(0.2)
            _, alive = psutil.wait_procs(children, timeout=3)
            assert not alive


async def test_engines_become_ready_and_meet() -> None:
    async with node() as scene:
        await scene.all_ready()
        await scene.until(lambda: all(view.peers for view in scene.node.views()))
        e0 = scene.engine("e0")
        assert (e0.peers, e0.kv_blocks, e0.max_batched_tokens, e0.epoch, e0.restarts) == (("e1",), 100, 512, 1, 0)
        states = [view.state for view in scene.views if view.name == "e0"]
        assert states[0] is EngineState.STARTING
        assert any(view.stage == "beginning to simulate" for view in scene.views)
        await scene.until(lambda: any(isinstance(message, Heartbeat) for *_, message in scene.messages))


async def test_an_engine_that_is_killed_comes_back_as_another_life_after_its_peers_have_unmapped_it() -> None:
    async with node() as scene:
        await scene.until(lambda: all(view.peers for view in scene.node.views()))
        pid = scene.engine("e0").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await scene.until(lambda: scene.engine("e0").state is EngineState.BACKOFF)
        assert scene.engine("e1").peers == (), "nobody is sent to what is gone"
        assert "SIGKILL" in (scene.engine("e0").cause or "")
        await scene.until(lambda: scene.engine("e0").peers == ("e1",))
        assert scene.lost == [("e0", 1)]
        assert (scene.engine("e0").epoch, scene.engine("e0").restarts) == (2, 1)
        unmapped = scene.messages.index(("e1", 1, PeerClosed(peer="e0", epoch=1, rank=0)))
        assert unmapped < [(name, epoch) for name, epoch, _ in scene.messages].index(("e0", 2)), "and not too late"
        await scene.until(lambda: scene.engine("e1").peers == ("e0",))


async def test_an_engine_that_dies_again_and_again_backs_off() -> None:
    async with node("1b", e0="dies") as scene:
        await scene.until(lambda: scene.engine("e0").epoch == 3, 20)
        assert "of old age" in (scene.engine("e0").cause or "")


async def test_starts_that_fail_are_given_up() -> None:
    async with node("1b", e0="crash") as scene:
        await scene.until(lambda: scene.engine("e0").state is EngineState.FAILED)
        assert scene.engine("e0").epoch == lifecycle.FAILED_STARTS
        assert "it was told to" in (scene.engine("e0").cause or "")


async def test_a_terminal_cause_is_not_tried_twice() -> None:
    async with node(e0="bad-argument") as scene:
        await scene.until(lambda: scene.engine("e0").state is EngineState.FAILED)
        assert scene.engine("e0").epoch == 1
        assert "--no-such" in (scene.engine("e0").cause or "")
        await scene.until(lambda: scene.engine("e1").state is EngineState.READY)  # the other one is not harmed


async def test_a_start_without_progress_is_ended() -> None:
    async with node("1b", stall_s=0.5, e0="silent") as scene:
        await scene.until(lambda: "no progress for" in (scene.engine("e0").cause or ""))


async def test_peers_that_refuse_are_reported_and_not_paired() -> None:
    async with node(e1="refuse") as scene:
        await scene.until(lambda: scene.engine("e1").peer_errors)
        assert scene.engine("e1").peer_errors == ("can't use the KV of e0: told so",)
        assert scene.engine("e1").peers == ()
        await scene.until(lambda: scene.engine("e0").peers == ("e1",))


async def test_peers_that_can_not_meet_now_meet_later() -> None:
    async with node(e1="busy") as scene:
        await scene.until(lambda: scene.engine("e1").peer_errors)
        await scene.until(lambda: scene.engine("e1").peers == ("e0",))
        assert scene.engine("e1").peer_errors == ()


async def test_an_engine_that_closed_its_channel_is_replaced() -> None:
    async with node(e0="deaf") as scene:
        await scene.until(lambda: ("e0", 1) in scene.lost)
        assert scene.engine("e0").cause == "its EngineCore lives, but has closed the engine channel"
        assert scene.engine("e1").restarts == 0


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("mute", "its EngineCore gave no sign of life for"),
        ("spins", r"its EngineCore gave no sign of life for \d\.\d s \(busy\)"),
        ("speechless", "its API process gave no sign of life for"),
    ],
)
async def test_an_engine_that_hangs_is_replaced_and_its_stacks_are_kept(
    script: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "BUSY_PATIENCE_S", 2.5)
    async with node(e0=script) as scene:
        await scene.until(lambda: ("e0", 1) in scene.lost, 12)
        states = [view.state for view in scene.views if (view.name, view.epoch) == ("e0", 1)]
        assert [state for state in states if state in (EngineState.SUSPECT, EngineState.HUNG)][-2:] == [
            EngineState.SUSPECT,
            EngineState.HUNG,
        ]
        assert re.search(says, scene.engine("e0").cause or "")
        assert any("misbehaving_engine.py" in line and "line" in line for line in scene.node.logs("e0") or [])
        assert scene.engine("e1").restarts == 0


async def test_an_engine_that_is_stopped_is_replaced() -> None:
    async with node() as scene:
        await scene.all_ready()
        pid = scene.engine("e0").pid
        os.kill(pid or 0, signal.SIGSTOP)
        await scene.until(lambda: ("e0", 1) in scene.lost, 5)
        assert "(stopped)" in (scene.engine("e0").cause or "")
        await scene.until(lambda: scene.engine("e0").epoch == 2 and scene.engine("e0").state is EngineState.READY)


async def test_an_engine_that_goes_on_in_time_is_no_longer_suspect() -> None:
    async with node() as scene:
        await scene.all_ready()
        pid = scene.engine("e0").pid or 0
        os.kill(pid, signal.SIGSTOP)
        await scene.until(lambda: scene.engine("e0").state is EngineState.SUSPECT)
        os.kill(pid, signal.SIGCONT)
        await scene.until(lambda: scene.engine("e0").state is EngineState.READY)
        assert (scene.engine("e0").pid, scene.lost) == (pid, [])


async def test_draining_and_resuming() -> None:
    async with node("2b") as scene:
        await scene.all_ready()
        scene.node.actions.drain("e0")
        await scene.until(lambda: scene.engine("e0").state is EngineState.DRAINING)
        with pytest.raises(ActionError, match="e0 is draining and can't drain now"):
            scene.node.actions.drain("e0")
        scene.node.actions.resume("e0")
        await scene.until(lambda: scene.engine("e0").state is EngineState.READY)
        with pytest.raises(ActionError, match="there is no engine 'e7': there are e0, e1"):
            scene.node.actions.resume("e7")


async def test_the_last_engine_that_prefills_or_decodes_drains_only_if_that_is_forced() -> None:
    async with node("2p1d") as scene:
        await scene.all_ready()
        actions = scene.node.actions
        with pytest.raises(ActionError, match="e2 is the only engine that decodes: let another one decode first, or"):
            actions.drain("e2")
        actions.drain("e0")
        with pytest.raises(ActionError, match=r"e1 is the only engine that prefills now \(e0 is draining\)"):
            actions.drain("e1")  # before the node has got to the first
        await scene.until(lambda: scene.engine("e0").state is EngineState.DRAINING)
        with pytest.raises(ActionError, match=r"e1 is the only engine that prefills now \(e0 is draining\): let"):
            actions.drain("e1")
        actions.role("e2", Role.BOTH)
        actions.drain("e1")
        await scene.until(lambda: scene.engine("e1").state is EngineState.DRAINING)
        for name in ("e0", "e1"):
            actions.resume(name)
        await scene.all_ready()
        actions.role("e2", Role.DECODE)
        actions.drain("e2", force=True)
        await scene.until(lambda: scene.engine("e2").state is EngineState.DRAINING)


async def test_roles_change_while_all_goes_on() -> None:
    async with node("2p1d") as scene:
        await scene.all_ready()
        actions, before = scene.node.actions, [view.pid for view in scene.node.views()]
        scene.views.clear()
        actions.relabel("1p2d")
        assert [(view.name, view.role) for view in scene.views] == [("e1", Role.DECODE)]
        assert scene.node.topology == "1p2d"
        actions.role("e1", Role.BOTH)
        assert scene.node.topology == "1p1d1b"
        assert [view.pid for view in scene.node.views()] == before
        actions.relabel("3b")
        with pytest.raises(ActionError, match=r"'4b' takes other engines than there are \(3\)"):
            actions.relabel("4b")
        with pytest.raises(ActionError, match="name each engine, as that layout has them"):
            actions.relabel("3b", {"zz": Role.PREFILL})
        actions.relabel("1p2d")
        with pytest.raises(ActionError, match="e0 is the only engine that prefills"):
            actions.role("e0", Role.DECODE)


async def test_a_restart_waits_for_what_is_under_way() -> None:
    under_way = {"e0": 1, "e1": 0}
    async with node(in_flight=under_way.__getitem__) as scene:
        await scene.until(lambda: all(view.peers for view in scene.node.views()))
        pid = scene.engine("e0").pid
        scene.node.actions.restart("e0")
        await scene.until(lambda: scene.engine("e0").state is EngineState.DRAINING)
        await asyncio.sleep(0.5)
        assert scene.engine("e0").pid == pid
        under_way["e0"] = 0
        await scene.until(lambda: scene.engine("e0").epoch == 2 and scene.engine("e0").state is EngineState.READY)
        assert scene.engine("e0").cause is None
        assert not any(view.state is EngineState.FAILED for view in scene.views)


async def test_a_life_that_the_supervisor_does_not_know_is_hung_up_on_and_ends() -> None:
    """One that was forked while its order failed, say."""
    async with node("1b") as scene:
        await scene.all_ready()
        [spec] = engines("1b", {"e0": "brief"})
        runtime = scene.node._runtime
        told = arguments(spec, runtime, Config(), epoch=7, parent=os.getpid())
        told[told.index("--uds") + 1] = str(runtime.directory / "x")
        unknown = await asyncio.create_subprocess_exec(
            *command(spec, told), env=environment(spec, runtime.directory, os.environ)
        )
        async with asyncio.timeout(20):
            assert await unknown.wait() == 70
        assert scene.engine("e0").state is EngineState.READY


async def test_a_restart_that_is_ordered_anew_has_all_of_its_time() -> None:
    async with node(in_flight={"e0": 1, "e1": 0}.__getitem__) as scene:
        await scene.all_ready()
        actions, pid = scene.node.actions, scene.engine("e0").pid
        actions._grace_s = 1.0
        actions.restart("e0")
        await scene.until(lambda: scene.engine("e0").state is EngineState.DRAINING)
        await asyncio.sleep(0.7)
        actions.resume("e0")
        await scene.until(lambda: scene.engine("e0").state is EngineState.READY)
        actions.restart("e0")
        await asyncio.sleep(0.6)
        assert (scene.engine("e0").pid, scene.engine("e0").state) == (pid, EngineState.DRAINING), (
            "the first order's time is up"
        )
        await scene.until(lambda: scene.engine("e0").epoch == 2)


async def test_an_engine_that_has_been_told_to_end_does_not_resume() -> None:
    async with node() as scene:
        await scene.all_ready()
        pid = scene.engine("e0").pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it takes its time over ending
        try:
            scene.node.actions.restart("e0")
            await scene.until(lambda: scene.node._engines["e0"].life.leaving)
            with pytest.raises(ActionError, match="e0 has been told to end and can't resume now"):
                scene.node.actions.resume("e0")
        finally:
            os.kill(pid, signal.SIGCONT)
        await scene.until(lambda: scene.engine("e0").epoch == 2 and scene.engine("e0").state is EngineState.READY)


async def test_all_are_restarted_one_after_the_other() -> None:
    async with node() as scene:
        await scene.until(lambda: all(view.peers for view in scene.node.views()))
        seen = len(scene.views)
        scene.node.actions.restart_all()
        with pytest.raises(ActionError, match="already"):
            scene.node.actions.restart_all()
        await scene.until(lambda: all(view.epoch == 2 and view.peers for view in scene.node.views()), 20)
        states = {"e0": EngineState.READY, "e1": EngineState.READY}
        for view in scene.views[seen:]:
            states[view.name] = view.state
            assert EngineState.READY in states.values(), "one of them serves at any time"


async def test_an_engine_that_was_given_up_is_tried_again() -> None:
    async with node("1b", e0="bad-argument") as scene:
        await scene.until(lambda: scene.engine("e0").state is EngineState.FAILED)
        scene.node.actions.restart("e0")
        await scene.until(lambda: scene.engine("e0").epoch == 2)


async def test_semaphores_and_memory_of_an_engine_whose_tracker_was_killed_are_removed() -> None:
    def named() -> set[Path]:
        return {path for pattern in ("sem.mp-*", "psm_*") for path in Path("/dev/shm").glob(pattern)}

    before = named()
    async with node("1b", e0="semaphore") as scene:
        await scene.all_ready()
        pid = scene.engine("e0").pid or 0
        memory, semaphore = sorted(named() - before)
        [tracker] = psutil.Process(pid).children()
        assert "resource_tracker" in " ".join(tracker.cmdline())
        tracker.kill()
        os.kill(pid, signal.SIGKILL)
        await scene.until(lambda: scene.lost == [("e0", 1)])
        assert not memory.exists() and not semaphore.exists()


async def test_what_can_not_be_tidied_up_keeps_no_engine_from_coming_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    async with node() as scene:
        await scene.until(lambda: all(view.peers for view in scene.node.views()))
        with monkeypatch.context() as broken:
            broken.setattr("pathlib.Path.unlink", full)
            broken.setattr("pathlib.Path.glob", full)
            os.kill(scene.engine("e0").pid or 0, signal.SIGKILL)
            await scene.until(lambda: scene.lost == [("e0", 1)])
            broken.setattr("pathlib.Path.mkdir", full)
            await scene.until(lambda: scene.engine("e0").state is EngineState.BACKOFF and scene.engine("e0").epoch > 1)
        await scene.until(lambda: all(view.state is EngineState.READY and view.peers for view in scene.node.views()))


async def test_a_start_that_is_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "_CLOCK_S", 0.1)
    monkeypatch.setattr(loading, "_STOPPED_S", 0.3)
    async with node("1b", e0="silent", stall_s=60.0) as scene:
        await scene.until(lambda: scene.engine("e0").pid)
        os.kill(scene.engine("e0").pid or 0, signal.SIGSTOP)
        await scene.until(lambda: scene.engine("e0").epoch == 2)
        causes = {view.cause for view in scene.views if view.cause}
        assert causes == {"a process of it was stopped (SIGSTOP) while starting its process"}


async def test_without_descriptors_for_a_while_starts_and_hangs_are_still_noticed_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    async with node(e0="silent", e1="", stall_s=4.0) as scene:
        await scene.until(lambda: scene.engine("e1").state is EngineState.READY)
        with monkeypatch.context() as broken:
            broken.setattr("psutil.Process.children", none_left)
            broken.setattr("pathlib.Path.glob", none_left)
            os.kill(scene.engine("e1").pid or 0, signal.SIGSTOP)
            await asyncio.sleep(1.8)
        await scene.until(lambda: scene.engine("e1").epoch == 2, 20)
        await scene.until(lambda: any("no progress for 4 s" in (view.cause or "") for view in scene.views))
        async with asyncio.timeout(5):
            await scene.node.turns()


async def test_the_watchdog_goes_hungry_when_the_clock_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node("1b") as scene:
        await scene.all_ready()
        async with asyncio.timeout(5):
            await scene.node.turns()
        for task in list(scene.node._tasks):
            if task.get_name() == "node clock":
                task.cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await scene.node.turns()


async def test_a_callback_that_fails_stops_nothing() -> None:
    """Somebody closed the terminal: telling of a change raises."""
    async with node() as scene:

        def broken(view: EngineView) -> None:
            raise BrokenPipeError(32, "Broken pipe")

        scene.node.on_change(broken)
        await scene.until(lambda: all(view.peers for view in scene.node.views()))
        os.kill(scene.engine("e0").pid or 0, signal.SIGKILL)
        await scene.until(lambda: scene.engine("e0").peers == ("e1",) and scene.engine("e0").epoch == 2)


async def test_a_command_line_that_can_not_be_is_told() -> None:
    async with node("1b") as scene:
        await scene.all_ready()
    config = Config(engine=EngineConfig(args=("--seed", "\0")))
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        [spec] = specs(config, parse("1b"), resolve_model(config), [0])
        made = Node(config, [replace(spec, forked=False)], Runtime(Path(name)))
        await made.start()
        async with asyncio.timeout(5):
            while made.views()[0].state is not EngineState.FAILED:
                await asyncio.sleep(0.02)
        assert "embedded null" in (made.views()[0].cause or "")
        await made.stop(0.1)


async def test_stopping_is_not_told_as_a_death() -> None:
    async with node() as scene:
        await scene.all_ready()
        seen = len(scene.views)
        await scene.node.stop(2.0)
        assert {view.state for view in scene.views[seen:]} == {EngineState.STOPPED}
        assert {view.cause for view in scene.views[seen:]} == {None}


async def test_a_foreign_frame_ends_that_engine_alone() -> None:
    async with node(e0="gibberish") as scene:
        await scene.until(lambda: ("e0", 1) in scene.lost)
        assert scene.engine("e1").state is EngineState.READY
        assert scene.engine("e1").restarts == 0


async def test_stopping_takes_children_along_and_leaves_no_zombie() -> None:
    async with node("1b", e0="child") as scene:
        await scene.all_ready()
        leader = scene.engine("e0").pid
        family = psutil.Process(leader).children()
        assert len(family) == 1
        await scene.node.stop(0.2)
        assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        assert not psutil.pid_exists(leader or 0)


async def test_messages_to_an_engine_that_is_gone_are_refused_not_lost() -> None:
    async with node("1b", e0="crash") as scene:
        await scene.until(lambda: scene.engine("e0").state is EngineState.FAILED)
        assert not scene.node.send_core("e0", Release(lease="x", reason="released"))
        assert not scene.node.send_core("nobody", Release(lease="x", reason="released"))
