"""``pd-appliance`` over scripted engines: everything else of it is real. ``SCRIPT`` is for all engines.

``PAUSE``: seconds before it ends for want of what can't be had now.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from appliance import cli
from appliance.cli import serve
from appliance.supervisor.specs import EngineSpec, specs

HERE = Path(__file__).parent


def scripted(*arguments: Any) -> tuple[EngineSpec, ...]:
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "SCRIPT": os.environ.get("SCRIPT", "")}
    return tuple(
        replace(spec, module="scripted_engine", forked=False, environment=environment) for spec in specs(*arguments)
    )


if __name__ == "__main__":
    serve.specs = scripted
    cli._PAUSE_S = float(os.environ.get("PAUSE", "20"))
    sys.exit(cli.main())
