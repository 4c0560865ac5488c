"""``make bench-diagnosis``: faults of simulated nodes, and whether the diagnoser names them. Seeded.

    python -m bench.diagnosis --seeds 100:110 --healthy 20

Thresholds were chosen on seeds below 100; what counts is scored on others. ``--healthy``: runs of ten minutes in which nothing is done.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from bench.diagnosis.report import markdown
from bench.diagnosis.run import run


def seeds(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last or first) + (0 if last else 1))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench.diagnosis", description="Whether the diagnoser names what is wrong.")
    parser.add_argument("--seeds", type=seeds, default=range(100, 102), help="first:last, the last one left out")
    parser.add_argument("--healthy", type=int, default=2, metavar="N", help="N runs of ten minutes of each node")
    parser.add_argument("--out", type=Path, help="a directory for the report as Markdown and JSON")
    options = parser.parse_args()
    report = run(options.seeds, options.healthy)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "diagnosis.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (options.out / "diagnosis.md").write_text(markdown(report))
    sys.stdout.write(markdown(report))


if __name__ == "__main__":
    main()
