"""``make bench-peers``: install the peers, run the same load over all of them in turn, write a table.

    python -m bench.peers --out DIR
    python -m bench.peers --quick --only nixl-tuned 1p1d --out DIR

Goes on where it was interrupted: what is in DIR is not measured again. Whoever can't be installed or started is listed as such, and the
others go on.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import psutil
from rich.progress import Progress

from bench import measure
from bench.diagnosis.kept import judges
from bench.load import Plan, drive, progress_bar
from bench.peers import frontends, loads
from bench.peers.contestants import CONTESTANTS, TUNED, Contestant, Kind, chosen, turns
from bench.peers.environments import RECIPES, Environment, InstallError, digest, install, locked
from bench.peers.loads import FULL, QUICK, Load, Scale
from bench.peers.records import Handed, Measured, Report, Setup, Started, Try
from bench.peers.report import markdown
from bench.peers.starting import Running, Totals, running
from bench.peers.store import OtherResultsError, Store
from bench.run import cancel_at_sigterm, make_model
from bench.servers import KV_CACHE_BYTES, MODEL_NAME, ServerError

_SETTLE_S: Final = 1.0
_CALIBRATES_S: Final = 5.0  # after a start: the appliance makes steps of known sizes, for three of them
_TRIES: Final = 2  # to start one, or to measure it to the end
_ROOMS: Final = ("appliance", "web", "bench")
_WHY_CHARACTERS: Final = 600
_FAILURES: Final = (
    ServerError,
    OSError,
    ValueError,
    aiohttp.ClientError,
    psutil.Error,
)  # of a contestant, not of the bench
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


class Bench:
    """One run over a directory of results."""

    def __init__(self, store: Store, setup: Setup, contestants: Sequence[Contestant], progress: Progress) -> None:
        self.failed: dict[str, str] = {}
        self._store = store
        self._setup = setup
        self._scale = setup.scale
        self._contestants = contestants
        self._progress = progress
        self._task = progress.add_task("starting", total=None)
        self._starts = 0

    async def run(self, directory: Path) -> None:
        """Both phases of loads, then the frontends."""
        await self._install()
        self._say("making the model")
        model = await make_model(directory / "model")
        last = self._scale.prompts[-1]
        for repetition, tokens, one in self._turns():
            asked = loads.closed(one, self._scale, repetition, (tokens,))
            await self._serve(one, asked, repetition, directory, model, rest=tokens == last)
        self._store.keep_rates(loads.capacities(_held(self._store.measured()), self._scale))
        for repetition, tokens, one in self._turns():
            asked = loads.opened(one, self._scale, self._store.rates(), (tokens,))
            await self._serve(one, asked, repetition, directory, model)
        for repetition in range(self._scale.repetitions):
            for one in self._standing(repetition):
                await self._stream(one, repetition, directory, model)

    def report(self) -> Report:
        store = self._store
        return Report(
            setup=self._setup,
            versions=versions(),
            rates=store.rates(),
            measured=tuple(store.measured()),
            started=tuple(store.started()),
            streamed=tuple(store.streamed()),
            tries=tuple(store.tries()),
            failed=self.failed,
        )

    def save(self) -> str:
        """What is there so far; the Markdown."""
        report = self.report()
        text = markdown(report)
        self._store.write("report.json", msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
        self._store.write("report.md", text)
        return text

    def _turns(self) -> Iterator[tuple[int, int, Contestant]]:
        """Repetition, tokens of prompts, and who is asked: one after the other with the same, so that little time lies between them."""
        for repetition in range(self._scale.repetitions):
            for tokens in self._scale.prompts:
                for one in self._standing(repetition):
                    yield repetition, tokens, one

    def _standing(self, repetition: int) -> Iterable[Contestant]:
        """In this repetition's order; whoever fails meanwhile is left out from then on."""
        return (one for one in turns(self._contestants, repetition) if one.key not in self.failed)

    async def _install(self) -> None:
        for name in dict.fromkeys(one.requires for one in self._contestants if one.requires):
            try:
                await install(Environment(RECIPES[name]), self._say)
            except (InstallError, OSError) as error:
                for one in self._contestants:
                    if one.requires == name:
                        self._give_up(one, f"not installed: {error}")

    async def _serve(
        self,
        one: Contestant,
        all_loads: Sequence[Load],
        repetition: int,
        directory: Path,
        model: Path,
        *,
        rest: bool = False,
    ) -> None:
        """Whatever of these loads is not there yet, and then, with ``rest``, what it takes to do nothing. What fails is tried once more."""
        for left in reversed(range(_TRIES)):
            missing = [load for load in all_loads if not self._store.has(one, load, repetition)]
            rests = rest and bool(all_loads) and not self._store.has_start(one, repetition)
            if not missing and not rests:
                return
            self._starts += 1
            self._say(f"{repetition + 1}: {one.title}: starting")
            try:
                async with running(one, directory, model, self._starts) as it:
                    await self._all(it, missing, repetition)
                    if rests:
                        if all_loads[-1] not in missing:  # it was measured in another life
                            await drive(it.target, self._plan(all_loads[-1], repetition))
                        await self._rest(it, repetition)
            except _FAILURES as error:
                self._failed(one, repetition, error, left)
            self.save()

    async def _all(self, it: Running, missing: Sequence[Load], repetition: int) -> None:
        await asyncio.sleep(_CALIBRATES_S)
        for plan in loads.first(self._scale, MODEL_NAME):
            await drive(it.target, plan)
        for load in missing:
            await self._load(it, load, repetition)

    async def _load(self, it: Running, load: Load, repetition: int) -> None:
        """Raises ``ServerError`` where nobody answers any more: that is no figure."""
        one, plan = it.contestant, self._plan(load, repetition)
        self._say(f"{repetition + 1}: {one.title}: {load.title.lower()}", total=plan.requests)
        await drive(it.target, loads.warming(plan, self._scale))
        before = await it.transferred()
        summary, results = await drive(it.target, plan, lambda _: self._progress.advance(self._task))
        await asyncio.sleep(_SETTLE_S)
        if (ended := it.ended()) or summary.errors == summary.n:
            raise ServerError(ended or f"none of {summary.n} requests was answered: {summary.first_error}")
        self._store.keep(
            Measured(
                contestant=one.key,
                repetition=repetition,
                load=load,
                rate=plan.rate,
                summary=summary,
                ttfts_s=tuple(one.ttft_s for one in results if one.ok and one.ttft_s is not None),
                handed=await _handed_over(it, before, plan.requests),
            )
        )

    def _plan(self, load: Load, repetition: int) -> Plan:
        number = loads.seed(load, self._scale, repetition)
        return loads.plan(load, self._scale, MODEL_NAME, number, self._store.rates())

    async def _rest(self, it: Running, repetition: int) -> None:
        """After the loads, so that nothing is measured before its memory has been touched."""
        self._say(f"{repetition + 1}: {it.contestant.title}: at rest")
        usages = tuple(await it.at_rest())
        started = Started(
            contestant=it.contestant.key,
            repetition=repetition,
            page_s=it.page_s,
            first_token_s=it.first_token_s,
            usages=usages,
        )
        self._store.keep(started)

    async def _stream(self, one: Contestant, repetition: int, directory: Path, model: Path) -> None:
        if one.kind is not Kind.FRONTEND or self._store.has_stream(one, repetition):
            return
        for left in reversed(range(_TRIES)):
            self._say(f"{repetition + 1}: {one.title}: {self._scale.streams} streams")
            self._starts += 1
            try:
                self._store.keep(await frontends.measure(one, self._scale, directory, model, repetition, self._starts))
                break
            except _FAILURES as error:
                self._failed(one, repetition, error, left)
        self.save()

    def _failed(self, one: Contestant, repetition: int, error: Exception, left: int) -> None:
        """``left``: tries."""
        self._store.keep(Try(contestant=one.key, repetition=repetition, why=_short(str(error))))
        if left:
            self._say(f"{one.title}: once more: {error}")
        else:
            self._give_up(one, f"not started, or ended: {error}")

    def _give_up(self, one: Contestant, why: str) -> None:
        self.failed[one.key] = _short(why)
        self._say(f"{one.title}: {why}")

    def _say(self, text: str, total: int | None = None) -> None:
        """On a bar, or as lines where stderr is no terminal."""
        self._progress.reset(self._task, description=text.splitlines()[0], total=total)
        if not self._progress.console.is_terminal:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def _short(why: str) -> str:
    why = _COLOURS.sub("", why)
    return why if len(why) <= _WHY_CHARACTERS else f"{why[:200]} … {why[200 - _WHY_CHARACTERS :]}"


async def _handed_over(it: Running, before: Totals | None, requests: int) -> Handed | None:
    """A load that was measured is not lost for want of this."""
    try:
        return await it.handed_over(before, requests)
    except (*_FAILURES, TimeoutError, KeyError):
        return None


def _held(measured: Sequence[Measured]) -> list[tuple[Load, float]]:
    """By the peer whose capacity open loops are shares of, where it answered everything."""
    return [(one.load, one.summary.requests_s) for one in measured if one.contestant == TUNED.key and not one.failures]


def versions() -> dict[str, dict[str, str]]:
    """By environment. What is not locked by us is read from what is installed."""
    peers = {name: locked(recipe.requirements.read_text()) for name, recipe in RECIPES.items()}
    return {"this checkout": measure.versions(), **{f"peers-{name}": found for name, found in peers.items()}}


async def bench(store: Store, scale: Scale, contestants: Sequence[Contestant]) -> tuple[str, dict[str, str]]:
    """The Markdown, and who failed. Raises ``OtherResultsError``, ``ServerError`` if even the model can't be made."""
    setup = Setup(
        scale=scale,
        kv_cache_bytes=KV_CACHE_BYTES,
        machine=measure.machine(),
        sources=judges(_ROOMS)[:16],
        versions=measure.versions(),
        peers={name: digest(recipe, recipe.requirements.read_text()) for name, recipe in RECIPES.items()},
    )
    setup = store.open(setup)
    with tempfile.TemporaryDirectory(prefix="peers-") as directory, progress_bar() as progress:
        one = Bench(store, setup, contestants, progress)
        cancel_at_sigterm()
        await one.run(Path(directory))
        return one.save(), one.failed


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=(__doc__ or "").split("\n")[0])
    names = ", ".join(one.key for one in CONTESTANTS)
    parser.add_argument(
        "--quick", action="store_true", help="one client, a few requests, one repetition: whether all of it runs"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WHO", help=f"of {names}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "peers")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a contestant failed."""
    options = _options(arguments)
    try:
        who = chosen(options.only)
        text, failed = asyncio.run(bench(Store(options.out), QUICK if options.quick else FULL, who))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench.peers: interrupted; whatever ran has been ended. The same command goes on from here\n")
        return 130
    except (ValueError, OtherResultsError, ServerError) as error:
        sys.stderr.write(f"bench.peers: {error}\n")
        return 1
    sys.stdout.write(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
