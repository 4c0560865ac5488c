"""What the web layer needs of the appliance: the only names it knows besides ``appliance.records`` and ``appliance.errors``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

from appliance.records import (
    Change,
    History,
    Incident,
    KneeReading,
    Moment,
    NodeSnapshot,
    Order,
    Plans,
    Remedy,
    StepReading,
    Timeline,
)


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call to the API as it came in. ``headers`` has lower-case names; two requests may have one ``id``."""

    id: str
    peer: str = ""  # network address, behind a trusted proxy the one that it names
    method: str
    path: str  # without the query string
    query: bytes
    headers: Mapping[str, str]
    body: bytes


class Reply(Protocol):
    """Where an answer goes. ``start`` once, ``send`` any number of times, then ``end``."""

    @property
    def started(self) -> bool:
        """True once a status line has left for the client."""
        ...

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    async def send(self, chunk: bytes) -> None:
        """Bytes go out unchanged; waits while the client reads slowly."""
        ...

    def send_now(self, chunk: bytes) -> bool:
        """The same where that can be done without waiting; else nothing is done, and it is False."""
        ...

    async def end(self) -> None: ...


class Inference(Protocol):
    """The router."""

    async def serve(self, request: InferenceRequest, reply: Reply) -> None:
        """Answer one request.

        Cancelling the task that runs this is how a client's leaving is told: both legs are then cancelled and the KV is
        released. Raises ``RequestError`` before ``reply.start`` for all that is refused.
        """
        ...


class Actions(Protocol):
    """The remedies. Each returns at once; what comes of it shows in the snapshots. Orders raise ``ActionError``."""

    def apply(self, order: Order, by: str) -> Remedy:
        """Give an order. ``by``: api, cli or page."""
        ...

    def undo(self, id: str, by: str, *, force: bool = False) -> Remedy:
        """Take a remedy back. ``force``: even if the order that does would be refused."""
        ...

    def remedies(self) -> Sequence[Remedy]:
        """Those that were given, and what they brought; newest first."""
        ...


class Planning(Protocol):
    """What other layouts of the node's engines would bring."""

    def plans(self) -> Plans | None:
        """Predicted for each layout, some seconds after the last request came; None before the first time."""
        ...


class Simulation(Protocol):
    """What a simulated node has besides. All raise ``ActionError``."""

    title: str

    def faults(self) -> Mapping[str, Sequence[msgspec.Struct]]:
        """That last now, by engine."""
        ...

    def fault(self, engine: str, kind: str, severity: float, peer: str | None = None) -> None:
        """A fault begins, or changes."""
        ...

    def mend(self, engine: str, kind: str | None = None) -> None:
        """All faults of an engine end, or those of one kind."""
        ...


class IncidentView(Protocol):
    """What is kept of incidents."""

    async def incidents(self, limit: int, state: str | None) -> Sequence[Incident]:
        """Newest first. ``state``: open or closed ones only."""
        ...

    async def incident(self, id: str) -> Incident | None: ...

    async def bundle(self, id: str) -> bytes | None:
        """One file with all that was seen around it; None if there is no such incident."""
        ...

    async def moments(self, id: str, limit: int) -> Sequence[Moment] | None:
        """What the snapshots around it come to: at most so many, evenly spread, oldest first; None if there is no such incident."""
        ...

    async def frame(self, id: str, uptime_s: float) -> NodeSnapshot | None:
        """The snapshot of that moment, or the last one before it that is kept."""
        ...


class MarkView(Protocol):
    """What happened to the node."""

    async def between(self, since: float, until: float, limit: int) -> tuple[Sequence[Change], Sequence[Incident]]:
        """What changed between two times, and the incidents that were open then: the newest of each, oldest first."""
        ...


class HistoryView(Protocol):
    """How the node was."""

    def sample(self, snapshot: NodeSnapshot) -> Mapping[str, float | None]:
        """What the page's charts are told with each snapshot, by the names that ``read`` knows."""
        ...

    async def read(self, since: float, until: float, points: int, series: Sequence[str]) -> History:
        """Series between two times, in at most so many points.

        Args:
            since, until: Unix seconds.
            series: names: ``ttft_s``, ``e0.kv_usage``, ``*.kv_usage``. Raises ``RequestError`` where there is no such.
        """
        ...


class NodeView(Protocol):
    """The collector's read side."""

    def latest(self) -> NodeSnapshot: ...

    def updates(self) -> AsyncIterator[NodeSnapshot]:
        """Each new snapshot, beginning with the latest; a slow reader skips to the newest."""
        ...

    def timelines(self, limit: int) -> list[Timeline]:
        """Newest first."""
        ...

    def timeline(self, request_id: str) -> Timeline | None: ...

    def logs(self, engine: str) -> list[str] | None:
        """The engine's last log lines, oldest first; None if there is no such engine."""
        ...

    def command(self, engine: str) -> list[str] | None:
        """What it is started with, without secrets; None if there is no such engine."""
        ...

    def steps(self, engine: str, since: int, limit: int) -> Sequence[StepReading] | None:
        """Its latest steps after that number, oldest first; None if there is no such engine."""
        ...

    async def knee(self, engine: str) -> KneeReading | None:
        """The smallest prefill batch that saturates it, by the steps that it has made; None if there is no such engine."""
        ...


class Part(Protocol):
    """A stage of a request, beside what is usual."""

    @property
    def stage(self) -> str: ...

    @property
    def duration_s(self) -> float: ...

    @property
    def share(self) -> float | None:
        """Of the time to the first token."""
        ...

    @property
    def usual_s(self) -> float | None: ...


class Pace(Protocol):
    """A stream after its first piece."""

    @property
    def each_s(self) -> float:
        """From one piece to the next, mean."""
        ...

    @property
    def usual_s(self) -> float | None: ...


class Moved(Protocol):
    """KV on its way."""

    @property
    def bytes_s(self) -> float | None: ...

    @property
    def usual_bytes_s(self) -> float | None: ...


class Explained(Protocol):
    """What held one request up, and what is usual."""

    @property
    def sentence(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]:
        """What was not as it mostly is."""
        ...

    @property
    def held_by(self) -> str | None:
        """A stage, or ``decode``; None if nothing did."""
        ...

    @property
    def also(self) -> str | None:
        """What did so besides."""
        ...

    @property
    def parts(self) -> Sequence[Part]: ...

    @property
    def pace(self) -> Pace | None: ...

    @property
    def transfer(self) -> Moved | None: ...

    @property
    def usual_first_s(self) -> float | None: ...

    @property
    def compared(self) -> int:
        """Others that say what is usual."""
        ...


class Explain(Protocol):
    """Says what held a request up."""

    def __call__(self, timeline: Timeline, kept: Sequence[Timeline], snapshot: NodeSnapshot) -> Explained:
        """Of the timelines that are ``kept``, with the verdict and the targets that the node has now."""
        ...
