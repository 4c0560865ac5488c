"""``pd-appliance serve``: a node, from its command line to the last process gone. What it is made of meets in ``rooms.py``."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import resource
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvicorn
import uvloop

from appliance import __version__
from appliance.checks.machine import bound
from appliance.cli import output
from appliance.cli.announce import say
from appliance.cli.cast import Cast
from appliance.cli.cast import cast as _cast
from appliance.cli.herald import Herald
from appliance.cli.rooms import Rooms
from appliance.cli.stopping import Stopping, unfinished
from appliance.config import Config, ServerConfig, config_path_default, load, state_directory
from appliance.errors import NoEngineError, NotNowError
from appliance.gpu.nvml import Nvml
from appliance.gpu.watch import Watch
from appliance.supervisor.process import adopt_orphans
from appliance.supervisor.runtime import Runtime, parent_directory
from appliance.supervisor.specs import shown, shown_environment
from web.connection import IDLE_S, Connection, Crowd

_ENGINE_GRACE_S: Final = 5.0
_BACKLOG: Final = 2048
_MOST_CONNECTIONS: Final = 32_768


def serve(
    config: Annotated[Path | None, typer.Option(help="A TOML file.")] = None,
    model: Annotated[str | None, typer.Option(help="A directory, a preset, a hub id, or demo (ships).")] = None,
    topology: Annotated[str | None, typer.Option(help="NpMd or Nb: 1p1d, 2b, 2p1d@tp2:tp4.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, vllm or sim.")] = None,
    scenario: Annotated[Path | None, typer.Option(help="A simulated node's scenario.")] = None,
    gpus: Annotated[str, typer.Option(help="Of simulated engines, as in 8xH100.")] = "",
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
    cast = _cast(loaded, scenario, gpus)
    if dry_run:
        sys.stdout.writelines(f"{line}\n" for line in described(cast))
        return
    output.give_up()  # nobody need listen to a node that serves
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
        self._state_directory = state_directory(config, os.environ)
        self._listener = _listen(config.server)
        self._gpus = Watch(Nvml(), config.telemetry.tick_s)
        self._stopping = Stopping(self._config.server.grace_s)

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
        rooms = Rooms(self._config, self._cast, runtime, self._state_directory, self._gpus.latest)
        rooms.node.on_change(self._stopping.note)
        app = rooms.site(self._listener.getsockname()[0])
        server = _Web(app, self._listener)
        herald = Herald(self._config, self._cast.model, rooms.node, rooms.not_ready, lambda: unfinished(rooms.router))
        self._stopping.watch_signals()
        async with asyncio.TaskGroup() as group:
            web = group.create_task(server.run())
            loops = [group.create_task(loop) for loop in rooms.loops()]
            watch = group.create_task(rooms.watching())
            await rooms.router.start()
            await rooms.node.start()
            telling = group.create_task(herald.run())
            self._announce()
            async with self._cast.played(self._address()):
                failure = await self._stopping.asked_for(rooms.node)
            rooms.router.drain()
            rooms.remedies.close()
            herald.stopping()
            watch.cancel()
            farewell = group.create_task(rooms.incidents.close(self._config.server.grace_s, self._stopping.hurry))
            await self._stopping.finish(rooms.router)
            app.close_streams()
            _cancel(loops)
            await server.stop(web)
            await rooms.router.close()
            await farewell
            await rooms.history.close()
            await rooms.node.stop(0.0 if self._stopping.hurry.is_set() else _ENGINE_GRACE_S)
            telling.cancel()
        say("pd-appliance: stopped")
        if failure:
            raise NoEngineError(failure)

    def _announce(self) -> None:
        cast = self._cast
        say(f"pd-appliance {__version__}: {cast.model} as {cast.layout} on {self._address()}{cast.remark}")
        for note in cast.notes:
            say(note)

    def _address(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


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
                timeout_keep_alive=round(IDLE_S),
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


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


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
        listener = bound(host, port)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(server.stalled_client_s * 1000))
        listener.listen(_BACKLOG)
    except OSError as error:
        raise NotNowError(
            f"{host or repr(host)}:{port} can't be listened on: {error.strerror or error}; choose another --host or --port"
        ) from error
    listener.setblocking(False)
    return listener


logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
