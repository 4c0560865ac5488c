"""``make bench-split``: layouts that are predicted, and what they come to when they are played on simulated nodes. Seeded.

    python -m bench.split --seeds 100:121

What the planner assumes was chosen on seeds below 100; what counts is scored on others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from bench.diagnosis.__main__ import seeds
from bench.split.run import run
from bench.split.score import markdown


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="bench.split", description="Whether the layout that is predicted to be best is."
    )
    parser.add_argument("--seeds", type=seeds, default=range(100, 107), help="first:last, the last one left out")
    parser.add_argument(
        "--fast", action="store_true", help="do not look for the highest rates, which takes most of the time"
    )
    parser.add_argument("--out", type=Path, help="a directory for the report as Markdown and JSON")
    options = parser.parse_args()
    played = run(options.seeds, rates=not options.fast)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "split.json").write_bytes(msgspec.json.format(msgspec.json.encode(played)))
        (options.out / "split.md").write_text(markdown(played))
    sys.stdout.write(markdown(played))


if __name__ == "__main__":
    main()
