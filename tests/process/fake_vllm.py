"""In the place of vLLM's engine: takes all that it is told, says what it sees, and simulates one by ``--plan``, which comes last."""

from __future__ import annotations

import os
import sys
from typing import Final

from appliance.simulator import server

WANTED: Final = ("--uds", "--kv-transfer-config", "--served-model-name", "--plan")


GIVEN: Final = ("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF")


def main() -> None:
    split = sys.argv.index("--") + 1
    told = sys.argv[split:]
    kept = [part for name in WANTED for part in (name, told[told.index(name) + 1])]
    sys.argv[split:] = kept
    for name in GIVEN:
        sys.stdout.write(f"{name}={os.environ.get(name)}\n")
    sys.stdout.flush()
    server.main()


if __name__ == "__main__":
    main()
