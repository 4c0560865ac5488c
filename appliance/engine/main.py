"""An engine: vLLM's own OpenAI server, bound to the supervisor's life and telling it how the start goes.

    python -m appliance.engine.main --engine e0 --epoch 1 --channel PATH --parent PID [--cores 0,1] -- VLLM-ARGUMENTS

multiprocessing's ``spawn`` imports this module again in each child before anything else, so that the module level binds those
children to their parent too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from appliance.channel import Progress
from appliance.engine.life import bind_children, die_with, die_with_spawner, entitle, tell_stacks
from appliance.engine.link import process_link

_RANKS: Final = "--tensor-parallel-size"

if __name__ == "__mp_main__":
    die_with_spawner()


def main() -> None:
    """An engine in an interpreter of its own."""
    options, vllm_arguments = parse(sys.argv[1:])
    bind(options)
    serve(options, vllm_arguments)


def bind(options: argparse.Namespace) -> None:
    """Tie this process to its supervisor and to its cores."""
    die_with(options.parent)
    if options.cores:
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})


def serve(options: argparse.Namespace, vllm_arguments: Sequence[str]) -> None:
    """Become vLLM's server."""
    bind_children()
    tell_stacks()
    entitle(f"{options.engine} API")
    link = process_link(options.channel, options.engine, options.epoch, "api")
    link.send(Progress(stage="importing vLLM", fraction=0.05))
    sys.argv = ["vllm", *vllm_arguments]
    from vllm.entrypoints.launchers.api_server.entry import main as serve_api

    link.send(Progress(stage="starting EngineCore", fraction=0.35))
    serve_api()  # type: ignore[no-untyped-call]


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Sequence[str]]:
    """Our own arguments, and vLLM's behind the ``--``."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="appliance.engine.main")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--channel", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--cores", default="")
    return parser.parse_args(arguments[:split]), arguments[split + 1 :]


def ranks(vllm_arguments: Sequence[str]) -> int:
    """How many ranks there will be, by what the supervisor writes."""
    if _RANKS not in vllm_arguments:
        return 1
    return int(vllm_arguments[vllm_arguments.index(_RANKS) + 1])


if __name__ == "__main__":
    main()
