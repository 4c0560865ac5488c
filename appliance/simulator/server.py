"""A simulated engine as a process: what the supervisor spawns where it would else spawn vLLM, told the same things in the same way.

python -m appliance.simulator.server --engine e0 --epoch 1 --channel PATH --parent PID -- --uds PATH --kv-transfer-config JSON …
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence

import msgspec
import uvicorn

from appliance.channel import Down, Progress
from appliance.engine.kv.settings import Settings
from appliance.engine.life import bind_children, die_with, entitle, tell_stacks
from appliance.engine.link import process_link
from appliance.simulator.api import Api
from appliance.simulator.live import LiveEngine
from appliance.simulator.plan import EnginePlan
from appliance.simulator.realtime import RealClock

_BACKLOG = 2048


def main() -> None:
    """Serve until the supervisor ends it."""
    options, more = parse(sys.argv[1:])
    die_with(options.parent)
    bind_children()
    tell_stacks()
    entitle(f"{options.engine} simulated")
    if options.cores:
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    asyncio.run(serve(options, more))


async def serve(options: argparse.Namespace, more: argparse.Namespace) -> None:
    """Be the engine."""
    settings = msgspec.convert(json.loads(more.kv_transfer_config)["kv_connector_extra_config"], Settings)
    plan = msgspec.json.decode(more.plan, type=EnginePlan)
    loop = asyncio.get_running_loop()
    link = process_link(options.channel, options.engine, options.epoch, "core")
    link.send(Progress(stage="beginning to simulate", fraction=0.5))
    engine = LiveEngine(plan, more.served_model_name, settings, RealClock(loop), link.send)
    link.on_message(engine.peers.receive)
    link.on_message(lambda message: _to_loop(loop, engine, message))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(more.uds)
    listener.listen(_BACKLOG)
    config = uvicorn.Config(
        Api(engine).app(), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    engine.begin()
    await uvicorn.Server(config).serve(sockets=[listener])


def _to_loop(loop: asyncio.AbstractEventLoop, engine: LiveEngine, message: Down) -> None:
    loop.call_soon_threadsafe(engine.receive, message)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, argparse.Namespace]:
    """What every engine is told, and behind the ``--`` what vLLM would be told. Of that it wants little, and ``--plan``."""
    split = arguments.index("--")
    own = argparse.ArgumentParser(prog="appliance.simulator.server")
    own.add_argument("--engine", required=True)
    own.add_argument("--epoch", type=int, required=True)
    own.add_argument("--channel", required=True)
    own.add_argument("--parent", type=int, required=True)
    own.add_argument("--cores", default="")
    more = argparse.ArgumentParser(prog="appliance.simulator.server --")
    more.add_argument("--uds", required=True)
    more.add_argument("--kv-transfer-config", required=True)
    more.add_argument("--served-model-name", required=True)
    more.add_argument("--plan", required=True)
    return own.parse_args(arguments[:split]), more.parse_args(arguments[split + 1 :])


if __name__ == "__main__":
    main()
