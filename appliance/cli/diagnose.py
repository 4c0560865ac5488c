"""``pd-appliance diagnose``: what holds a node back, in words."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Annotated, Any, Final

import msgspec
import typer

from appliance.cli.ask import URL, answered, not_as_a_node, not_serving
from appliance.cli.glyphs import visible
from appliance.cli.output import unheard
from appliance.diagnosis.because import clock
from appliance.errors import ActionError
from appliance.records import Verdict

EXIT_OK, EXIT_BOTTLENECK, EXIT_UNKNOWN = 0, 10, 11
_EXITS: Final = {"ok": EXIT_OK, "bottleneck": EXIT_BOTTLENECK, "unknown": EXIT_UNKNOWN}
_LOOK_S: Final = 1.0


class Look(msgspec.Struct, frozen=True):
    """One answer of the node. ``body``: as it came. ``idle``: why it serves nobody, where nothing is known to hold it back."""

    verdict: Verdict
    body: bytes
    idle: str | None = None
    simulated: bool = False

    @property
    def exit_code(self) -> int:
        """A node that serves nobody is not well, though nobody waits."""
        return EXIT_UNKNOWN if self.idle is not None else _EXITS.get(self.verdict.state, EXIT_UNKNOWN)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it worth saying again."""
        one = self.verdict
        return one.state, one.engine, one.link, one.cause, self.idle is not None


def diagnose(
    url: Annotated[str, typer.Option(help="Of the node.")] = URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one verdict per line.")] = False,
    watch: Annotated[
        bool, typer.Option(help="Say it again whenever it changes, with the time, until interrupted.")
    ] = False,
) -> None:
    """Say what holds the node back, why, and what to do.

    Exit code: 0 nothing, 10 something, 11 something unknown or a node that serves nobody, 2 no answer.
    """
    found = look(url)
    _say(found, as_json, watch)
    with contextlib.suppress(KeyboardInterrupt):
        while watch and not unheard():
            time.sleep(_LOOK_S)
            found = _after(url, found, as_json)
    raise typer.Exit(found.exit_code)


def look(url: str) -> Look:
    """Raises ``ActionError`` if the node says nothing."""
    body, simulated = answered(url, "GET", "api", "diagnosis")
    try:
        verdict = msgspec.json.decode(body, type=Verdict)
    except msgspec.MsgspecError as error:
        raise not_as_a_node(url, error) from error
    return Look(verdict, body, not_serving(url) if verdict.state == "ok" else None, simulated)


def _after(url: str, said: Look, as_json: bool) -> Look:
    """What is said next, if it is something else. A node that is started again is waited for, as long as somebody listens."""
    lost = False
    while not unheard():
        try:
            found = look(url)
        except ActionError as error:
            if not lost:
                _tell_lost(error, as_json)
            lost = True
            time.sleep(_LOOK_S)
        else:
            if lost or found.key != said.key:
                _say(found, as_json, watched=True)
            return found
    return said


def text(found: Look) -> str:
    """For people."""
    verdict, action = found.verdict, found.verdict.action
    lines = [verdict.summary]
    if verdict.state == "bottleneck":
        lines.insert(0, _title(verdict))
    if found.idle is not None:
        lines = [f"NOT SERVING: {found.idle}"]
    if found.simulated:
        lines[0] = f"SIMULATED: {lines[0]}"
    lines += [f"  - {evidence.sentence}" for evidence in verdict.evidence]
    if action is not None:
        lines.append(f"What to do: {action.sentence}")
        lines += [f"  {way}" for way in (action.call, action.setting) if way]
    if verdict.next:
        lines.append(f"Then: {verdict.next}")
    return "\n".join(map(visible, lines))


def _title(verdict: Verdict) -> str:
    where = " to ".join(verdict.link) if verdict.link else ", ".join(verdict.engines) or verdict.engine or "the node"
    sure = "" if verdict.confidence is None else f", {verdict.confidence:.0%} sure"
    return f"BOTTLENECK {where}: {verdict.cause} (since {clock(verdict.since)}{sure})"


def _say(found: Look, as_json: bool, watched: bool) -> None:
    said = json.dumps(json.loads(found.body)) if as_json else text(found)
    sys.stdout.write(f"{_now() if watched and not as_json else ''}{said}\n")
    sys.stdout.flush()


def _tell_lost(error: ActionError, as_json: bool) -> None:
    """Beside the JSON, of which each line is a verdict."""
    stream = sys.stderr if as_json else sys.stdout
    stream.write(f"{_now()}NO ANSWER: {visible(str(error))}; it is asked again and again\n")
    stream.flush()


def _now() -> str:
    return f"{clock(time.time())}  "
