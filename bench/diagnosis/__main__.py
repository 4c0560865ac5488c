"""``make bench-diagnosis``: faults of simulated nodes, and whether the diagnoser names them. Seeded.

    python -m bench.diagnosis --seeds 100:117 --healthy 9 --out DIR

Thresholds were chosen on seeds below 100; what counts is scored on others. ``--healthy``: runs of ten minutes in which nothing is done, of
each node and each kind of traffic. What is in DIR already is not played again, so a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from bench.diagnosis.cases import World
from bench.diagnosis.report import markdown
from bench.diagnosis.run import Wanted, run


def seeds(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last or first) + (0 if last else 1))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench.diagnosis", description="Whether the diagnoser names what is wrong.")
    parser.add_argument("--seeds", type=seeds, default=range(100, 102), help="first:last, the last one left out")
    parser.add_argument(
        "--healthy", type=int, default=1, metavar="N", help="N runs of ten minutes of each node and traffic"
    )
    parser.add_argument("--noise", type=float, default=1.0, help="noise, drift and interference: times what is usual")
    parser.add_argument(
        "--constants", type=float, default=0.0, help="share by which the cost model's constants are off"
    )
    parser.add_argument("--follow", action="store_true", help="play each case once more, with its advice followed")
    parser.add_argument("--only", nargs="*", default=(), help="kinds of injection")
    parser.add_argument("--out", type=Path, help="a directory for what was played, and the report as Markdown and JSON")
    options = parser.parse_args()
    kept = options.out / "played" if options.out else None
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
    wanted = Wanted(
        seeds=options.seeds,
        healthy=options.healthy,
        world=World(noise=options.noise, constants=options.constants),
        follow=options.follow,
        only=tuple(options.only),
    )
    report = run(wanted, kept)
    if options.out:
        (options.out / "diagnosis.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (options.out / "diagnosis.md").write_text(markdown(report))
    sys.stdout.write(markdown(report))


if __name__ == "__main__":
    main()
