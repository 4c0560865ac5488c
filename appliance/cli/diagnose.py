"""``pd-appliance diagnose``: what holds a node back, in words."""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from typing import Annotated, Any, Final

import typer

from appliance.errors import ActionError

EXIT_OK, EXIT_BOTTLENECK, EXIT_UNKNOWN = 0, 10, 11
_EXITS: Final = {"ok": EXIT_OK, "bottleneck": EXIT_BOTTLENECK, "unknown": EXIT_UNKNOWN}
_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 1.0


def diagnose(
    url: Annotated[str, typer.Option(help="Of the node.")] = "http://127.0.0.1:8000",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one verdict per line.")] = False,
    watch: Annotated[bool, typer.Option(help="Say it again whenever it changes, until interrupted.")] = False,
) -> None:
    """Say what holds the node back, why, and what to do. Exit code: 0 nothing, 10 something, 11 something unknown, 2 no answer."""
    verdict = ask(url)
    _say(verdict, as_json)
    said = verdict
    while watch:
        time.sleep(_LOOK_S)
        verdict = ask(url)
        if _key(verdict) != _key(said):
            _say(verdict, as_json)
            said = verdict
    raise typer.Exit(_EXITS.get(verdict["state"], EXIT_UNKNOWN))


def ask(url: str) -> dict[str, Any]:
    """A node's verdict. Raises ``ActionError`` if there is none to be had."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/diagnosis", timeout=_TIMEOUT_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        raise ActionError(f"{url} answered {error.code}: it has no verdict yet, or is no appliance") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ActionError(f"no node answers at {url} ({error}); name the right one with --url") from error


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
