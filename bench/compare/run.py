"""``make bench-compare``: whether this tree is slower than an earlier commit, before it lands.

    python -m bench.compare HEAD~20
    python -m bench.compare v0.1 --only tokens --rounds 5 --out DIR

Both trees serve in turn, on the packages that are installed here; the commit gets a work tree of its own, which is removed again. Exit
status 1 if something is worse. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec
import psutil

from bench import measure
from bench.compare.measures import SUITES, Figures
from bench.compare.report import ENOUGH, Report, Round, markdown, worse
from bench.compare.trees import NoCommitError, Tree, earlier, here
from bench.run import cancel_at_sigterm, make_model
from bench.servers import ServerError


async def compare(commit: str, suites: Sequence[str], rounds: int) -> Report:
    """Raises ``NoCommitError``, and ``ServerError`` if one of them can't be measured."""
    machine = measure.machine()
    cancel_at_sigterm()
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        directory = Path(name)
        async with earlier(commit, directory) as that:
            this = await here()
            model = await make_model(directory / "model") if "engines" in suites else directory
            found = [
                await _round(number, (this, that), suites, directory, model, f"round {number + 1} of {rounds}")
                for number in range(rounds)
            ]
    return Report(this=this.name, that=that.name, machine=machine, rounds=tuple(found))


async def _round(
    number: int, trees: tuple[Tree, Tree], suites: Sequence[str], directory: Path, model: Path, title: str
) -> Round:
    """Who is first changes from round to round."""
    found: dict[Tree, Figures] = {tree: {} for tree in trees}
    for suite in suites:
        for turn, tree in enumerate(trees if number % 2 == 0 else trees[::-1]):
            sys.stderr.write(f"{title}: {suite}: {tree.name}\n")
            place = directory / f"{suite[0]}{number}{turn}"  # short: it has Unix sockets
            place.mkdir()
            found[tree] |= await SUITES[suite](tree, place, model, 2 * number + turn)
    return Round(this=found[trees[0]], that=found[trees[1]])


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of rounds: 1 or more, and {ENOUGH} to call anything worse"
        )
    return int(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commit", help="that this tree is compared with: a hash, a tag, HEAD~20")
    parser.add_argument(
        "--rounds", type=_rounds, default=ENOUGH, help=f"each measures both; {ENOUGH} are needed to call anything worse"
    )
    parser.add_argument(
        "--only", nargs="+", choices=SUITES, default=list(SUITES), metavar="WHAT", help=", ".join(SUITES)
    )
    parser.add_argument("--out", type=Path, help="a directory for compare.md and compare.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if something is worse, 2 if it can't be told."""
    options = _options(arguments)
    try:
        report = asyncio.run(compare(options.commit, options.only, options.rounds))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench.compare: interrupted; whatever ran has been ended\n")
        return 130
    except (NoCommitError, ServerError, TimeoutError, OSError, aiohttp.ClientError, psutil.Error) as error:
        sys.stderr.write(f"bench.compare: {str(error) or type(error).__name__}\n")
        return 2
    text = markdown(report)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "compare.md").write_text(text)
        (options.out / "compare.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    sys.stdout.write(text)
    return 1 if worse(report) else 0


if __name__ == "__main__":
    sys.exit(main())
