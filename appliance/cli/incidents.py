"""``pd-appliance incidents``: what held the node back, and what was seen around it."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, Protocol, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from appliance.cli.ask import URL, fetch, read
from appliance.cli.told import incident_text, replay_text, row, zone
from appliance.errors import ActionError, IncidentError
from appliance.incidents import bundle, database
from appliance.incidents.replay import replay as replayed
from appliance.records import Incident, IncidentState

T = TypeVar("T")
EXIT_SAME, EXIT_DIFFERS, EXIT_UNKNOWN = 0, 10, 11
_EXITS: Final = {True: EXIT_SAME, False: EXIT_DIFFERS, None: EXIT_UNKNOWN}
app = typer.Typer(help="What held the node back, and what was seen around it.")
Url = Annotated[str, typer.Option(help="Of the node.")]
StateDir = Annotated[
    Path | None, typer.Option(help="Read a node's state directory instead, whether or not the node runs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(help="As the list has it, 261126-1432.")]
_STDOUT: Final = Path("-")
_WIDTH: Final = 160  # of what is no terminal
_TIMEOUT_S: Final = 60.0


class Source(Protocol):
    """Where incidents are had from. All raise ``ApplianceError``."""

    def incidents(self, limit: int, state: str | None) -> list[Incident]: ...
    def incident(self, id: str) -> Incident: ...
    def bundle(self, id: str) -> bytes: ...


@app.callback(invoke_without_command=True)
def list_(
    context: typer.Context,
    url: Url = URL,
    state_dir: StateDir = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 50,
    state: Annotated[IncidentState | None, typer.Option(help="Those only.")] = None,
    as_json: Json = False,
) -> None:
    """List them, the newest first."""
    if context.invoked_subcommand is not None:
        return _refuse_lost(context)
    found = _source(url, state_dir).incidents(limit, state.value if state else None)
    if as_json:
        _say(json.dumps(msgspec.to_builtins(found)))
    elif found:
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH).print(table(found, time.time()))
    else:
        _say("none")


def _refuse_lost(context: typer.Context) -> None:
    """What is said before the name of a command would be lost on it."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        option = f"--{given[0].replace('_', '-').removeprefix('as-')}"
        raise ActionError(
            f"{option} comes after the command: pd-appliance incidents {context.invoked_subcommand} … {option}"
        )


@app.command()
def show(id: Id, url: Url = URL, state_dir: StateDir = None, as_json: Json = False) -> None:
    """All that is known of one, with its time line."""
    incident = _source(url, state_dir).incident(id)
    _say(json.dumps(msgspec.to_builtins(incident)) if as_json else incident_text(incident, time.time()))


@app.command()
def export(
    id: Id,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Without it: incident-ID.pdi; - is standard output.")
    ] = None,
    url: Url = URL,
    state_dir: StateDir = None,
) -> None:
    """Write one file with what the appliance saw, for a colleague: no prompts, answers or addresses are in it."""
    data = _source(url, state_dir).bundle(id)
    if output == _STDOUT:
        sys.stdout.buffer.write(data)
        return
    path = output or Path(f"incident-{id}{bundle.ENDING}")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ActionError(f"{path} can't be written ({error.strerror}); name another file with -o") from error
    _say(f"{path}: {len(data) / 1024:,.0f} KiB. pd-appliance incidents replay {path}")


@app.command()
def replay(file: Annotated[Path, typer.Argument(help="As export wrote it.")], as_json: Json = False) -> None:
    """Run what was seen through the diagnoser again.

    Exit code: 0 it says the same, 10 it does not, 11 too little was seen to judge, 2 the file can't be read.
    """
    read = bundle.read(file)
    found = replayed(read)
    if as_json:
        _say(json.dumps({**msgspec.to_builtins(found), "agrees": found.agrees, "incident": read.incident.id}))
    else:
        _say(replay_text(read, found))
    raise typer.Exit(_EXITS[found.agrees])


def table(incidents: Sequence[Incident], now: float) -> Table:
    """The list. ``now``: Unix seconds."""
    drawn = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("id", f"opened ({zone(now)})", "lasted", "where", "cause"):
        drawn.add_column(name, no_wrap=True)
    for name in ("at the peak", "late", "failed"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for one in incidents:
        drawn.add_row(*map(Text, row(one, now)))
    return drawn


class _Node:
    """A node that runs."""

    def __init__(self, url: str) -> None:
        self._url = url

    def incidents(self, limit: int, state: str | None) -> list[Incident]:
        query = f"?limit={limit}" + (f"&state={state}" if state else "")
        return _asked(lambda: read(self._url, list[Incident], "api", "incidents", query=query))

    def incident(self, id: str) -> Incident:
        return _asked(lambda: read(self._url, Incident, "api", "incidents", id))

    def bundle(self, id: str) -> bytes:
        return _asked(lambda: fetch(self._url, "GET", "api", "incidents", id, "bundle", timeout_s=_TIMEOUT_S))


def _asked(how: Callable[[], T]) -> T:
    """Of a node that does not answer, the directory may still be there."""
    try:
        return how()
    except ActionError as error:
        if error.invalid or isinstance(error.__cause__, urllib.error.HTTPError):
            raise
        raise ActionError(f"{error}, or read a node's state directory with --state-dir") from error


class _Directory:
    """A state directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def incidents(self, limit: int, state: str | None) -> list[Incident]:
        with database.reading(self._path) as kept:
            return kept.incidents(limit, state)

    def incident(self, id: str) -> Incident:
        with database.reading(self._path) as kept:
            return _there(kept.incident(id), id, self._path)

    def bundle(self, id: str) -> bytes:
        with database.reading(self._path) as kept:
            return bundle.write(_there(kept.incident(id), id, self._path), kept.chunks(id))


def _source(url: str, state_dir: Path | None) -> Source:
    return _Node(url) if state_dir is None else _Directory(state_dir)


def _there(incident: Incident | None, id: str, path: Path) -> Incident:
    if incident is None:
        raise IncidentError(f"there is no incident {id!r} in {path}, or it is no longer kept")
    return incident


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
