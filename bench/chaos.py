"""A seeded schedule of faults under load, from outside the process, with every answer held against the fault-free one.

``python -m bench.chaos --minutes 30 --seed 1 --concurrency 16``. Exit status 1 if an answer was wrong, silently short,
lost or without an end, if something was left, held or had grown afterwards, or if too little was right for that to mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import psutil

from bench import faults, integrity, pool, servers
from bench.checker import DEFECTS, Broken, Case, Heard, Kind, Said, Verdict, essence, judge, same
from bench.clients import Clients, Manner
from bench.faults import Done, Ground
from bench.integrity import Watch
from bench.measure import versions
from bench.outcomes import Happened, Outcome, Report, Wrong, bounded, effects, excuse, markdown
from bench.schedule import GROUPS, Planned, schedule
from bench.servers import Server, ServerError, Serving

ARGUMENTS: Final = ("--dtype", "float32", "--max-model-len", "4096")
TOOLS: Final = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
BUDGET: Final = ("--max-num-batched-tokens", "512")  # so that long prompts are prefilled in pieces
WHOLE: Final = (
    "--max-num-batched-tokens",
    "16384",
)  # plain vLLM does not survive seeded prompts in pieces (engine/mends.py)
KV_CACHE_BYTES: Final = 128 << 20
REFERENCE: Final = Serving(arguments=(*ARGUMENTS, *WHOLE, *TOOLS), kv_cache_bytes=KV_CACHE_BYTES)
_AT_ONCE: Final = 5  # times 2,100 tokens are fewer than WHOLE
_PROGRESS_S: Final = 10.0
_REVIVE_S: Final = 5.0
_KEPT: Final = 100  # wrong answers, in full
_PAUSE_S: Final = 0.5  # a client whom nobody answered waits
_ODD: Final = {Manner.SLOW: 2, Manner.STALLS: 1, Manner.LEAVES_EARLY: 2, Manner.LEAVES_LATE: 2, Manner.HALF_CLOSES: 1}
_PLAIN: Final = 60  # of as many requests as these are together
Expected = dict[str, Said]


def serving(layout: str) -> Serving:
    """How the appliance is run under chaos."""
    settings = {"server": "grace_s = 10.0"}
    return Serving(
        layout=layout, arguments=(*ARGUMENTS, *BUDGET, *TOOLS), kv_cache_bytes=KV_CACHE_BYTES, settings=settings
    )


async def make_model(directory: Path, kind: str = "llama") -> Path:
    """The random model in which any wrong KV block shows."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.random_model", str(directory), kind, cwd=servers.ROOT
    )
    if await process.wait() != 0:
        raise ServerError(f"making the model ended with {process.returncode}")
    return directory


# ---- fault-free answers


async def fault_free(clients: Clients, cases: Sequence[Case]) -> tuple[Expected, tuple[str, ...]]:
    """The answers, and the names of those that are not the same alone and in company. Raises ``Broken``."""
    alone = await _answers(clients, cases, 1)
    together = await _answers(clients, cases, _AT_ONCE)
    unstable = tuple(case.name for case in cases if not same(alone[case.name], together[case.name]))
    return {name: said for name, said in alone.items() if name not in unstable}, unstable


async def _answers(clients: Clients, cases: Sequence[Case], at_once: int) -> Expected:
    found: Expected = {}
    waiting = iter(cases)

    async def client() -> None:
        for case in waiting:
            found[case.name] = essence(case, await clients.ask(case))

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(client())
    return found


# ---- load


class Load:
    """A closed loop of clients, each with a seeded sequence of requests and manners of its own."""

    def __init__(self, clients: Clients, cases: Sequence[Case], expected: Expected) -> None:
        self.outcomes: list[Outcome] = []
        self.wrongs: list[Wrong] = []
        self._clients = clients
        self._cases = cases
        self._expected = expected
        self._over = asyncio.Event()

    def stop(self) -> None:
        """No client sends another request."""
        self._over.set()

    async def lap(self) -> None:
        """Every request once, one after the other."""
        for case in self._cases:
            await self._one(case, Manner.PLAIN)

    async def run(self, concurrency: int, seed: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(concurrency):
                group.create_task(self._client(random.Random(f"client {seed} {number}")))

    async def _client(self, rng: random.Random) -> None:
        manners, weights = [Manner.PLAIN, *_ODD], [_PLAIN, *_ODD.values()]
        while not self._over.is_set():
            manner = rng.choices(manners, weights)[0]
            if await self._one(rng.choice(self._cases), manner) in (Kind.REFUSED, Kind.DROPPED):
                await asyncio.sleep(_PAUSE_S)

    async def _one(self, case: Case, manner: Manner) -> Kind:
        sent_s = time.monotonic()
        heard = await self._clients.ask(case, manner)
        verdict = judge(case, self._expected[case.name], heard)
        self.outcomes.append(
            Outcome(
                case=case.name,
                manner=manner.value,
                sent_s=sent_s,
                ended_s=time.monotonic(),
                verdict=verdict,
                request_id=heard.headers.get("x-request-id"),
                retry_after="retry-after" in heard.headers,
            )
        )
        if verdict.kind in DEFECTS:
            self._keep(case, manner, heard, verdict)
        if verdict.kind is Kind.FAILED and heard.status == 503:
            await asyncio.sleep(_PAUSE_S)
        return verdict.kind

    def _keep(self, case: Case, manner: Manner, heard: Heard, verdict: Verdict) -> None:
        """Said at once, with where the answers part, and kept in full."""
        _say(f"  {verdict.kind.value.upper()}: {case.name}, {manner.value}: {verdict.reason!r}")
        if len(self.wrongs) < _KEPT:
            one = Wrong(
                case=case.name,
                manner=manner.value,
                request_id=heard.headers.get("x-request-id"),
                reason=verdict.reason,
                expected=bounded(msgspec.json.encode(self._expected[case.name])),
                heard=bounded(heard.body),
            )
            self.wrongs.append(one)


# ---- the run


class Run:
    """One appliance under load and faults, from the first request to what is left after its end."""

    def __init__(self, options: argparse.Namespace, cases: Sequence[Case], expected: Expected) -> None:
        self._options = options
        self._cases = [case for case in cases if case.name in expected]
        self._expected = expected
        self._happened: list[Happened] = []
        self._notes: list[str] = []
        self.problems: list[str] = []

    async def on(self, server: Server, runtime: Path) -> Report:
        async with Clients(server.target.url("")) as clients:
            self._load = Load(clients, self._cases, self._expected)
            self._watch = Watch(server)
            self._ground = Ground(server, runtime, clients, tuple(self._cases))
            await self._load.lap()
            before = psutil.Process(server.pid).num_fds()
            began_s = time.monotonic()
            await self._traffic(began_s)
            ended_s = time.monotonic()
            self.problems += await integrity.after_traffic(server, before)
            await self._watch.look()
        return self._report(began_s, ended_s)

    async def _traffic(self, began_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(task) for task in (self._watch.run(), self._tell(began_s), self._revive(began_s))
            ]
            load = group.create_task(self._load.run(self._options.concurrency, self._options.seed))
            await self._faults(began_s)
            await asyncio.sleep(max(0.0, began_s + self._options.minutes * 60 - time.monotonic()))
            self._load.stop()
            await load
            for task in beside:
                task.cancel()

    async def _faults(self, began_s: float) -> None:
        engines = [engine["name"] for engine in (await self._ground.server.json("/api/node"))["engines"]]
        for planned in schedule(self._options.seed, self._options.minutes * 60, engines, self._options.only):
            await asyncio.sleep(max(0.0, began_s + planned.at_s - time.monotonic()))
            if self._ground.server.returncode is not None:
                self.problems.append(f"the supervisor ended with {self._ground.server.returncode}")
                return
            await self._fault(planned)

    async def _fault(self, planned: Planned) -> None:
        at_s = time.monotonic()
        try:
            done = await faults.apply(self._ground, planned)
        except Exception as error:  # a fault that could not be made is told, and the run goes on
            done = Done(f"could not be made: {type(error).__name__}: {error}", made=False)
        over_s = time.monotonic()
        self._happened.append(Happened(planned=planned, at_s=at_s, over_s=over_s, did=done.did, made=done.made))
        _say(f"  {planned.kind} of {planned.victim}: {'' if done.made else 'NOT MADE: '}{done.did}")

    async def _revive(self, began_s: float) -> None:
        """Do what an owner would: try an engine again that was given up, for having died too often or for another reason."""
        while True:
            await asyncio.sleep(_REVIVE_S)
            for engine in (self._watch.node or {}).get("engines", ()):
                if engine["state"] == "failed":
                    status = await self._ground.post(f"/api/engines/{engine['name']}/resume")
                    note = f"{time.monotonic() - began_s:.0f} s: {engine['name']} was given up ({engine['cause']}); resume: {status}"
                    self._notes.append(note)
                    _say(f"  {note}")

    async def _tell(self, began_s: float) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            counts = Counter(one.verdict.kind.value for one in self._load.outcomes)
            engines = (self._watch.node or {}).get("engines", ())
            states = " ".join(f"{one['name']}:{one['state']}#{one['epoch']}" for one in engines)
            told = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
            _say(f"{time.monotonic() - began_s:6.0f} s: {told}; {states}")

    def _report(self, began_s: float, ended_s: float) -> Report:
        outcomes = excuse(self._load.outcomes, self._happened)
        found = effects(self._happened, outcomes, self._watch.looks, ended_s)
        replace = msgspec.structs.replace
        since = [replace(one, sent_s=one.sent_s - began_s, ended_s=one.ended_s - began_s) for one in outcomes]
        return Report(
            seed=self._options.seed,
            layout=self._options.layout,
            concurrency=self._options.concurrency,
            duration_s=ended_s - began_s,
            pool=len(self._cases),
            unstable=(),
            versions=versions(),
            outcomes=tuple(since),
            effects=tuple(replace(one, at_s=one.at_s - began_s) for one in found),
            usages=tuple(replace(one, at_s=one.at_s - began_s) for one in self._watch.usages),
            notes=tuple(self._notes),
            problems=(*self.problems, *integrity.growth(self._watch.usages)),
            wrongs=tuple(self._load.wrongs),
        )

    async def afterwards(self, server: Server, shared_memory: set[str], runtime_parent: Path) -> list[str]:
        """Problems once the server has ended."""
        code = [] if server.returncode == 0 else [f"the supervisor's exit code was {server.returncode} after SIGTERM"]
        left = await self._watch.left_processes()
        return code + left + integrity.left_files(shared_memory, runtime_parent)


@asynccontextmanager
async def reference(directory: Path, model: Path) -> AsyncIterator[Clients]:
    """Plain vLLM, and clients of it."""
    clients = Clients("http://engine", str(directory / "aggregated-0.sock"))
    async with servers.aggregated(directory, model, 0, REFERENCE), clients:
        yield clients


async def run(options: argparse.Namespace, directory: Path) -> Report:
    """Everything, in a directory that must have a short path and be on no file system that may not be filled."""
    model = await make_model(directory / "model")
    cases = pool.cases(options.seed, options.requests)
    _say(f"{len(cases)} fault-free answers of plain vLLM")
    async with reference(directory, model) as clients:
        expected, unstable = await fault_free(clients, cases)
    for name in unstable:
        _say(f"  left out: {name}")
    shared_memory = integrity.shared_memory()
    one = Run(options, cases, expected)
    runtime_parent = directory / "run-1"
    with faults.small(runtime_parent):
        async with servers.appliance(directory, model, 1, serving(options.layout)) as (server, _):
            [runtime] = list(runtime_parent.glob("pd-appliance-*"))
            try:
                report = await one.on(server, runtime)
            finally:
                (options.out / "appliance.log").write_text(server.log)
        later = await one.afterwards(server, shared_memory, runtime_parent)
        (options.out / "appliance.log").write_text(server.log)
    return msgspec.structs.replace(report, unstable=unstable, problems=(*report.problems, *later))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=66, help="different ones")
    parser.add_argument("--layout", default="1p1d")
    only = f"of {','.join(GROUPS)}: these groups; 'fds: limit': this kind; -oom: all but these (write --only=-oom)"
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(GROUPS), help=only)
    parser.add_argument("--out", type=Path, default=servers.ROOT / "bench" / "results" / "chaos")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes ``chaos.json``, ``chaos.md`` and the appliance's log into ``--out``."""
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="pd-chaos-") as name:
            report = asyncio.run(run(options, Path(name)))
    except (ServerError, ValueError, Broken) as error:
        sys.stderr.write(f"bench.chaos: {error}\n")
        return 2
    (options.out / "chaos.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    (options.out / "chaos.md").write_text(markdown(report))
    sys.stdout.write(markdown(report))
    return 0 if report.well else 1


if __name__ == "__main__":
    sys.exit(main())
