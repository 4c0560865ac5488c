"""``pd-appliance why``: where one request's time went, and what held it up."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from appliance.cli.ask import URL, read
from appliance.cli.live.frame import printable
from appliance.cli.live.requests import listed, shortened
from appliance.cli.waterfall import waterfall
from appliance.diagnosis.because import Why, clock, explain
from appliance.diagnosis.why import first
from appliance.errors import ActionError
from appliance.records import NodeSnapshot, Timeline

_MOST: Final = 1000  # that the node gives at once
_LISTED: Final = 15
_WIDTH: Final = 120  # of what is piped
_NAMED: Final = 5


def why(
    request: Annotated[
        str | None,
        typer.Argument(metavar="[REQUEST_ID]", help="From an answer's x-request-id header; its beginning is enough."),
    ] = None,
    slowest: Annotated[
        bool, typer.Option("--slowest", help="The one whose first token took longest, of those that are kept.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Annotated[str, typer.Option(help="Of the node.")] = URL,
) -> None:
    """Say where a request's time went, and what held it up. Without an ID: list the slowest and the newest."""
    kept = read(url, list[Timeline], "api", "requests", query=f"?limit={_MOST}")
    snapshot = read(url, NodeSnapshot, "api", "node")
    if request is None and not slowest:
        _list(kept, snapshot, as_json)
        return
    found = _found(url, request, kept) if request is not None else slowest_of(kept)
    explained = explained_by(found, kept, snapshot)
    if as_json:
        sys.stdout.write(msgspec.json.encode(explained).decode() + "\n")
    else:
        _print(waterfall(explained, _width()), snapshot)


def explained_by(timeline: Timeline, kept: Sequence[Timeline], snapshot: NodeSnapshot) -> Why:
    """With the verdict and the targets that the node has now."""
    return explain(
        timeline,
        kept,
        now=snapshot.time,
        ttft_target_s=snapshot.slo_ttft_s,
        itl_target_s=snapshot.slo_itl_s,
        verdict=snapshot.verdict,
        lately=snapshot.lately,
    )


def _found(url: str, request: str, kept: Sequence[Timeline]) -> Timeline:
    """By its whole ID, which the node looks for among more than it lists, or else by its beginning."""
    try:
        return read(url, Timeline, "api", "requests", request)
    except ActionError as error:
        if not error.unknown:
            raise
    return beginning_with(request, kept)


def beginning_with(beginning: str, kept: Sequence[Timeline]) -> Timeline:
    """The one request whose ID begins so; of several with one ID, the newest. Raises ``ActionError``."""
    found = {timeline.id: timeline for timeline in reversed(kept) if timeline.id.startswith(beginning)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        names = ", ".join([*list(found)[:_NAMED], *(["…"] if len(found) > _NAMED else [])])
        raise ActionError(
            f"{len(found)} requests begin with {beginning!r}: {names}; write more of the one that is meant"
        )
    raise ActionError(_unknown(beginning, kept), unknown=True)


def _unknown(request: str, kept: Sequence[Timeline]) -> str:
    ids = "IDs are in the x-request-id header of each answer; pd-appliance why alone lists some"
    if not kept:
        return f"there is no request {request!r}: the node has had none yet. {ids}"
    oldest = clock(min(timeline.arrived for timeline in kept))
    return (
        f"there is no request {request!r} among the {len(kept):,} newest, the oldest of which came at {oldest}; "
        f"[telemetry] recent_requests says how many are kept. {ids}"
    )


def slowest_of(kept: Sequence[Timeline]) -> Timeline:
    """By the time to the first token, or the time without one. Raises ``ActionError`` if there is none."""
    if not kept:
        raise ActionError("the node has had no request yet")
    return max(kept, key=first)


def _list(kept: Sequence[Timeline], snapshot: NodeSnapshot, as_json: bool) -> None:
    slow = sorted(kept, key=first, reverse=True)[:_LISTED]
    if as_json:
        sys.stdout.write(msgspec.json.encode({"slowest": slow, "newest": kept[:_LISTED]}).decode() + "\n")
        return
    if not kept:
        _print([Text("The node has had no request yet.")], snapshot)
        return
    ids = shortened([timeline.id for timeline in kept])
    width, target_s = _width(), snapshot.slo_ttft_s
    _print(
        [
            Text(f"The slowest to their first token, of {len(kept):,} that are kept:", "bold"),
            *listed(slow, width, target_s, ids),
            Text(),
            Text("The newest:", "bold"),
            *listed(kept[:_LISTED], width, target_s, ids),
            Text(),
            Text(f"pd-appliance why {ids[slow[0].id]} says where the time of one of them went.", "dim"),
        ],
        snapshot,
    )


def _width() -> int:
    return shutil.get_terminal_size((_WIDTH, 0)).columns


def _print(lines: list[Text], snapshot: NodeSnapshot) -> None:
    console = Console(highlight=False, soft_wrap=True)
    marked = [Text("SIMULATED", "bold magenta")] if snapshot.simulated else []
    for line in printable([*marked, *lines], console.encoding):
        console.print(line)
