"""``make bench-diagnosis-cpu``: faults of real vLLM engines on this machine's CPUs, and whether the diagnoser names them. Seeded, slow.

    python -m bench.diagnosis.real --seeds 100:144 --healthy-minutes 60 --out DIR

One case for each seed, some 45 seconds long, on nodes that are started once each; 44 seeds are every kind twice. What is in DIR already is
not played again, so a run that was interrupted goes on; what was played with other sources is played again. Thresholds were chosen on
seeds below 100. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec

from bench.diagnosis.__main__ import seeds
from bench.diagnosis.real.report import markdown
from bench.diagnosis.real.run import Wanted, until_told


def main() -> int:
    """Exit status 130 if it was told to end before it was through."""
    parser = argparse.ArgumentParser(
        prog="bench.diagnosis.real", description="Whether the diagnoser names what is wrong with real engines."
    )
    parser.add_argument("--seeds", type=seeds, default=range(22), help="first:last, the last one left out")
    parser.add_argument("--healthy-minutes", type=float, default=0.0, help="of nodes that nothing is done to")
    parser.add_argument("--only", nargs="*", default=(), help="kinds of injection")
    parser.add_argument("--out", type=Path, required=True, help="a directory for what was played, and the report")
    options = parser.parse_args()
    kept = options.out / "played"
    kept.mkdir(parents=True, exist_ok=True)
    wanted = Wanted(seeds=options.seeds, minutes=options.healthy_minutes, only=tuple(options.only))
    try:
        report = until_told(wanted, kept)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("ended; the same command goes on from here\n")
        return 130
    (options.out / "diagnosis-cpu.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    (options.out / "diagnosis-cpu.md").write_text(markdown(report))
    sys.stdout.write(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
