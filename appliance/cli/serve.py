"""``pd-appliance serve``: the only place where the rooms are wired together."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import resource
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvicorn
import uvloop

from appliance import __version__
from appliance.channel import Up
from appliance.cli.cast import Cast, Company
from appliance.cli.cast import cast as _cast
from appliance.cli.forecast import Forecast
from appliance.cli.herald import Herald
from appliance.cli.why import explained_by
from appliance.config import Config, ServerConfig, config_path_default, load, state_directory
from appliance.diagnosis.verdicts import Diagnoser
from appliance.errors import NoEngineError, NotNowError
from appliance.gpu.nvml import Nvml
from appliance.gpu.watch import Watch
from appliance.history.keeper import History
from appliance.incidents.keeper import Incidents
from appliance.records import EngineState, EngineView, NodeSnapshot, Role, new_run
from appliance.remedies.apply import Remedies, present
from appliance.router.router import Router
from appliance.simulator.control import Control
from appliance.supervisor import notify
from appliance.supervisor.node import Node
from appliance.supervisor.process import adopt_orphans
from appliance.supervisor.runtime import Runtime, parent_directory
from appliance.supervisor.specs import shown, shown_environment
from appliance.telemetry import exposition
from appliance.telemetry.collector import Collector
from appliance.telemetry.fits import Fits
from appliance.telemetry.host import Machine
from appliance.telemetry.ledger import Ledger
from appliance.telemetry.timeline import Timelines
from web.app import Site, create_app
from web.connection import Connection, Crowd

_ENGINE_GRACE_S: Final = 5.0
_GIVING_UP_S: Final = 2.0
_BACKLOG: Final = 2048
_MOST_CONNECTIONS: Final = 32_768


def serve(
    config: Annotated[Path | None, typer.Option(help="A TOML file.")] = None,
    model: Annotated[str | None, typer.Option(help="A directory, a hub id, or demo (the model that ships).")] = None,
    topology: Annotated[str | None, typer.Option(help="NpMd or Nb: 1p1d, 2b, 2p1d@tp2:tp4.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, vllm or sim.")] = None,
    scenario: Annotated[Path | None, typer.Option(help="A simulated node's scenario.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Directory for what is kept.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say which engines there would be, where, and what each would be started with."
        ),
    ] = False,
) -> None:
    """Serve a model, and a page that shows how it goes."""
    flags: dict[str, tuple[str, Any]] = {
        "model.path": ("--model", model),
        "topology.layout": ("--topology", topology),
        "engine.kind": ("--engine", engine),
        "server.host": ("--host", host),
        "server.port": ("--port", port),
        "server.state_dir": ("--state-dir", str(state_dir) if state_dir else None),
    }
    given = {setting: flag for setting, flag in flags.items() if flag[1] is not None}
    loaded = load(config or config_path_default(), os.environ, given)
    cast = _cast(loaded, scenario)
    if dry_run:
        for line in described(cast):
            _say(line)
        return
    _tell_stacks()
    uvloop.run(Appliance(loaded.config, cast).run())


def described(cast: Cast) -> Iterator[str]:
    """What would be started, and why. Secrets are left out."""
    yield f"{cast.model} as {cast.layout}{cast.remark}"
    yield from cast.notes
    for spec in cast.specs:
        yield f"{spec.name} ({spec.role.value}):"
        yield "  " + shlex.join([*(f"{name}={value}" for name, value in shown_environment(spec).items()), *shown(spec)])


class Appliance:
    """One run of the supervisor, from configuration to the last process gone."""

    def __init__(self, config: Config, cast: Cast) -> None:
        """Check what can be checked before anything is started. Raises ``ConfigError``."""
        self._config = cast.adapt(config)
        self._cast = cast
        self._company = Company(cast)
        self._state_directory = state_directory(config, os.environ)
        self._fits = Fits(self._state_directory, self._company.kinds)
        self._listener = _listen(config.server)
        self._gpus = Watch(Nvml(), config.telemetry.tick_s)
        self._served = False
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises ``NoEngineError`` if no engine can start."""
        adopt_orphans()
        runtime = Runtime(parent_directory(os.environ))
        try:
            with contextlib.nullcontext() if self._cast.plans else self._gpus:  # a simulated node has others
                await self._serve(runtime)
        finally:
            runtime.remove()

    async def _serve(self, runtime: Runtime) -> None:
        config = self._config
        cast, model = self._cast, self._cast.model
        node = Node(config, cast.specs, runtime)
        ledger = Ledger(send=node.send_core)
        timelines = Timelines(config.telemetry.recent_requests)
        router = Router(config.router, node.views, ledger, timelines, model, calibrate_s=config.diagnosis.calibrate_s)
        control = cast.control(node)
        self._company.follow(node, control)
        collector = self._collector(node, router, ledger, timelines, control)
        _connect(node, router, ledger, timelines, collector, control)
        incidents = Incidents(config, self._state_directory)
        remedies = Remedies(node.actions, partial(_as_it_is, collector, node), _say, incidents.keep_remedy, new_run())
        incidents.recall = remedies.recall
        node.on_change(self._note)
        history = History(config.telemetry, self._state_directory)
        forecast = Forecast(collector, config.slo.share)
        collector.better = forecast.better
        app = self._app(router, remedies, incidents, history, collector, control, forecast)
        server = _Web(app, self._listener)
        herald = Herald(
            config,
            model,
            node,
            lambda: router.not_ready() or collector.latest().reason,  # not before /ready says so, too
            lambda: _unfinished(router),
        )
        self._watch_signals()
        async with asyncio.TaskGroup() as group:
            web = group.create_task(server.run())
            telemetry = group.create_task(collector.run())
            planning = group.create_task(forecast.run())
            trials = group.create_task(remedies.run(collector.updates()))
            keeping = group.create_task(self._fits.run(collector.updates()))
            watch = group.create_task(incidents.run(collector.updates()))
            remembering = group.create_task(history.run(collector.updates()))
            await router.start()
            await node.start()
            telling = group.create_task(herald.run())
            _say(f"pd-appliance {__version__}: {model} as {cast.layout} on {self._address()}{cast.remark}")
            for note in cast.notes:
                _say(note)
            async with cast.played(self._address()):
                failure = await self._until_stopped(node)
            router.drain()
            remedies.close()
            herald.stopping()
            watch.cancel()
            farewell = group.create_task(incidents.close(config.server.grace_s, self._hurry))
            await self._finish(router)
            app.close_streams()
            planning.cancel()
            trials.cancel()
            telemetry.cancel()
            keeping.cancel()
            remembering.cancel()
            await server.stop(web)
            await router.close()
            await farewell
            await history.close()
            await node.stop(0.0 if self._hurry.is_set() else _ENGINE_GRACE_S)
            telling.cancel()
        _say("pd-appliance: stopped")
        if failure:
            raise NoEngineError(failure)

    def _collector(
        self, node: Node, router: Router, ledger: Ledger, timelines: Timelines, control: Control | None
    ) -> Collector:
        return Collector(
            self._config,
            node,
            router,
            ledger,
            timelines,
            model_name=self._cast.model,
            version=__version__,
            hardware=control or Machine(node.views, self._gpus.latest),
            diagnose=Diagnoser(self._config.slo.share),
            kinds=self._company.kinds,
            models=self._fits.model,
            notes=self._company.notes,
            simulated=control is not None,
        )

    def _app(
        self,
        router: Router,
        remedies: Remedies,
        incidents: Incidents,
        history: History,
        collector: Collector,
        control: Control | None,
        forecast: Forecast,
    ) -> Site:
        server = self._config.server
        return create_app(
            inference=router,
            node=collector,
            actions=remedies,
            simulation=control,
            incidents=incidents,
            planning=forecast,
            history=history,
            marks=incidents,
            explain=explained_by,
            max_body_bytes=server.max_body_bytes,
            max_held_bytes=server.max_held_bytes,
            metrics=lambda snapshot: exposition.render(snapshot, incidents.totals()),
            bound_to=self._listener.getsockname()[0],
            allowed_hosts=server.allowed_hosts,
        )

    async def _until_stopped(self, node: Node) -> str | None:
        """Until a signal, or until no engine can start any more: the reason then."""
        while not self._stopping.is_set():
            views = node.views()
            if all(view.state is EngineState.FAILED for view in views):
                return ("every engine has been given up: " if self._served else "no engine can start: ") + _causes(
                    views
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await self._stopping.wait()
        return None

    async def _finish(self, router: Router) -> None:
        """Let answers that are under way end, for the grace period or until a second signal."""
        deadline = time.monotonic() + self._config.server.grace_s
        waiting = _unfinished(router)
        if waiting:
            _say(f"pd-appliance: stopping; {waiting} answers have {self._config.server.grace_s:.0f} s to end")
        while _unfinished(router) and time.monotonic() < deadline and not self._hurry.is_set():
            await asyncio.sleep(0.05)
        left = _unfinished(router)
        if left:
            _say(f"pd-appliance: {left} answers are given up")
            router.abandon()
        deadline = time.monotonic() + _GIVING_UP_S
        while _unfinished(router) and time.monotonic() < deadline:  # their clients are being told
            await asyncio.sleep(0.02)

    def _note(self, view: EngineView) -> None:
        self._served = self._served or view.state is EngineState.READY

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        # A terminal that is closed ends what runs in it. A service manager would take a death by SIGHUP for a stop on purpose.
        loop.add_signal_handler(signal.SIGHUP, _nothing if notify.is_service(os.environ) else self._signalled)

    def _signalled(self) -> None:
        (self._hurry if self._stopping.is_set() else self._stopping).set()

    def _address(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _as_it_is(collector: Collector, node: Node) -> NodeSnapshot:
    """Now, and not at the last tick."""
    return present(collector.latest(), node.views(), node.topology)


def _connect(
    node: Node,
    router: Router,
    ledger: Ledger,
    timelines: Timelines,
    collector: Collector,
    control: Control | None,
) -> None:
    """Who hears what of the engines."""

    def fold(engine: str, epoch: int, message: Up) -> None:
        now_ns = time.monotonic_ns()
        ledger.fold(engine, epoch, message, now_ns)
        timelines.fold(engine, message)
        router.fold(engine, message)
        collector.fold(engine, epoch, message, now_ns)

    node.on_message(fold)
    router.calibration.told = collector.calibrating
    node.on_change(_report)
    node.on_change(lambda _: router.engines_changed())
    node.on_engine_lost(ledger.lost)
    node.on_engine_lost(router.engine_lost)
    if control is not None:
        node.on_message(lambda engine, _, message: control.fold(engine, message))
        node.on_engine_lost(control.lost)
    node.actions.in_flight = lambda engine: router.in_flight(engine) + ledger.held_by(engine)


class _Web(uvicorn.Server):
    """uvicorn inside our own loop: our signals, our socket."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, crowd=Crowd(_most_connections())),  # type: ignore[arg-type]
                log_level="warning",
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=2,
                server_header=False,
            )
        )
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def run(self) -> None:  # type: ignore[override]
        await self.serve(sockets=[self._listener])

    async def stop(self, running: asyncio.Task[None]) -> None:
        """Close the listener and what is still open."""
        self.should_exit = True
        await running


def _most_connections() -> int:
    """Half of the descriptors that there may be: a request that is served takes others, to engines."""
    return min(_MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] % sys.maxsize // 2)


def _causes(views: Sequence[EngineView]) -> str:
    """``e0, e1: out of memory; e2: …``"""
    named: dict[str, list[str]] = {}
    for view in views:
        named.setdefault(view.cause or "no reason given", []).append(view.name)
    return "; ".join(f"{', '.join(names)}: {cause}" for cause, names in named.items())


def _unfinished(router: Router) -> int:
    queue = router.queue_snapshot(time.monotonic_ns())
    return queue.depth + queue.in_flight


def _nothing() -> None:
    """There is no configuration that could be read again while it runs."""


def _tell_stacks() -> None:
    """Whatever ends this process from within, a watchdog's SIGABRT included, has it write first where its threads are."""
    with contextlib.suppress(RuntimeError, OSError, ValueError):  # there may be nowhere to write to
        faulthandler.enable()


def _listen(server: ServerConfig) -> socket.socket:
    """Bound before anything is started, so that a port in use costs nothing.

    The kernel ends connections whose client takes nothing for too long: such a client would keep its place on an engine.
    """
    host, port = server.host, server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(server.stalled_client_s * 1000))
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise NotNowError(
            f"{host}:{port} can't be listened on: {error.strerror or error}; choose another --host or --port"
        ) from error
    listener.setblocking(False)
    return listener


_last_said: dict[str, tuple[Role, EngineState, str | None]] = {}


def _report(view: EngineView) -> None:
    """A line whenever an engine's role, state or stage changes."""
    now = (view.role, view.state, view.stage)
    if _last_said.get(view.name) != now and view.epoch:
        _last_said[view.name] = now
        detail = (
            view.stage
            if view.state is EngineState.STARTING
            else view.cause
            if view.state is not EngineState.READY
            else None
        )
        _say(f"{view.name} {view.role.value:8} {view.state.value}" + (f": {detail}" if detail else ""))


def _say(line: str) -> None:
    """Nobody may listen any more (``serve | head -3``): that is no reason to stop serving."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # broken, closed, or never there
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
