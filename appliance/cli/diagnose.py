"""``pd-appliance diagnose``: what holds a node back, in words."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, Final

import typer

from appliance.cli.ask import URL, ask
from appliance.errors import ActionError

EXIT_OK, EXIT_BOTTLENECK, EXIT_UNKNOWN = 0, 10, 11
_EXITS: Final = {"ok": EXIT_OK, "bottleneck": EXIT_BOTTLENECK, "unknown": EXIT_UNKNOWN}
_LOOK_S: Final = 1.0


def diagnose(
    url: Annotated[str, typer.Option(help="Of the node.")] = URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one verdict per line.")] = False,
    watch: Annotated[bool, typer.Option(help="Say it again whenever it changes, until interrupted.")] = False,
) -> None:
    """Say what holds the node back, why, and what to do. Exit code: 0 nothing, 10 something, 11 something unknown, 2 no answer."""
    verdict = _verdict(url)
    _say(verdict, as_json)
    said = verdict
    while watch:
        time.sleep(_LOOK_S)
        verdict = _verdict(url)
        if _key(verdict) != _key(said):
            _say(verdict, as_json)
            said = verdict
    raise typer.Exit(_EXITS.get(verdict["state"], EXIT_UNKNOWN))


def _verdict(url: str) -> dict[str, Any]:
    """Raises ``ActionError`` if there is none to be had."""
    found = ask(url, "GET", "api", "diagnosis")
    if "state" not in found:
        raise ActionError(f"{url} answers, but not as a node does; name the right one with --url")
    return found


def text(verdict: dict[str, Any]) -> str:
    """For people."""
    lines = [verdict["summary"]]
    if verdict["state"] == "bottleneck":
        where = " to ".join(verdict["link"]) if verdict["link"] else verdict["engine"]
        lines.insert(0, f"BOTTLENECK {where or 'the node'}: {verdict['cause']} ({verdict['confidence']:.0%} sure)")
    lines += [f"  - {one['sentence']}" for one in verdict["evidence"]]
    action = verdict["action"]
    if action:
        lines.append(f"What to do: {action['sentence']}")
        lines += [f"  {action[name]}" for name in ("call", "setting") if action[name]]
    if verdict["next"]:
        lines.append(f"Then: {verdict['next']}")
    return "\n".join(lines)


def _say(verdict: dict[str, Any], as_json: bool) -> None:
    sys.stdout.write((json.dumps(verdict) if as_json else text(verdict)) + "\n")
    sys.stdout.flush()


def _key(verdict: dict[str, Any]) -> tuple[Any, ...]:
    return verdict["state"], verdict["engine"], verdict["cause"]
