"""``pd-appliance`` over simulated engines that misbehave: everything else of it is real. ``SCRIPT`` is for all engines.

``PAUSE``: seconds before it ends for want of what can't be had now.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance import cli
from appliance.simulator import specs

HERE = Path(__file__).parent

if __name__ == "__main__":
    specs.MODULE = "misbehaving_engine"
    os.environ["PYTHONPATH"] = f"{HERE}:{HERE.parents[1]}"
    cli._PAUSE_S = float(os.environ.get("PAUSE", "20"))
    sys.exit(cli.main())
