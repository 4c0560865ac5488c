"""What the web layer needs of the appliance: the only names it knows besides ``appliance.records`` and ``appliance.errors``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

from appliance.records import Incident, KneeReading, Moment, NodeSnapshot, Order, Plans, Remedy, StepReading, Timeline


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

    def undo(self, id: str, by: str) -> Remedy:
        """Take a remedy back."""
        ...

    def remedies(self) -> Sequence[Remedy]:
        """Those that were given, and what they brought; newest first."""
        ...


class Planning(Protocol):
    """What other layouts of the node's engines would bring."""

    def plans(self) -> Plans | None:
        """Predicted for each layout, at most some seconds ago; None before the first time."""
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

    def steps(self, engine: str, since: int, limit: int) -> Sequence[StepReading] | None:
        """Its latest steps after that number, oldest first; None if there is no such engine."""
        ...

    async def knee(self, engine: str) -> KneeReading | None:
        """The smallest prefill batch that saturates it, by the steps that it has made; None if there is no such engine."""
        ...
