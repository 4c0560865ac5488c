"""``pd-appliance`` where what a remedy brings is known after eight seconds instead of thirty; everything else of it is as ever."""

from __future__ import annotations

import sys

from appliance import cli
from appliance.remedies import trial

if __name__ == "__main__":
    trial.SETTLES_S, trial.AFTER_S = 3.0, 5.0  # type: ignore[misc]
    sys.exit(cli.main())
