"""``pd-appliance remedy``: what is done about a bottleneck, what that brought, and the way back."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console

from appliance.cli.ask import URL, ask, read
from appliance.errors import ActionError
from appliance.records import Order, OrderKind, Remedy, RemedyState, Role, Verdict

app = typer.Typer(help="Do something about a bottleneck, see what it brought, and take it back.", no_args_is_help=True)
Url = Annotated[str, typer.Option(help="Of the node.")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Until it is known what it brought: half a minute or more.")
]
Force = Annotated[bool, typer.Option("--force", help="Even if no engine takes requests then, or none of a role.")]
Name = Annotated[str, typer.Argument(help="e0, e1, …")]
_LOOK_S: Final = 1.0


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many.")] = 20,
    url: Url = URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Those that were given, the newest first."""
    remedies = read(url, list[Remedy], "api", "remedies", query=f"?limit={limit}")
    if as_json:
        _say(json.dumps(msgspec.to_builtins(remedies)))
    else:
        _say("\n".join(map(text, remedies)) or "none")


@app.command()
def advised(
    yes: Annotated[bool, typer.Option("--yes", help="Without asking.")] = False, wait: Wait = True, url: Url = URL
) -> None:
    """Do what the verdict advises, after asking."""
    verdict = read(url, Verdict, "api", "diagnosis")
    _say(verdict.summary)
    action = verdict.action
    if action is None:
        return
    _say(f"What to do: {action.sentence}")
    if action.order is None:
        raise ActionError(
            "that is not done by an order while the node serves" + (f": {action.setting}" if action.setting else "")
        )
    if yes or typer.confirm(f"{action.call}?"):
        _give(url, action.order, wait)


@app.command()
def role(
    engine: Name,
    role: Annotated[Role, typer.Argument()],
    force: Force = False,
    wait: Wait = False,
    url: Url = URL,
) -> None:
    """Use an engine for something else; nothing restarts."""
    _give(url, Order(kind=OrderKind.ROLE, engine=engine, role=role, force=force), wait)


@app.command()
def weight(
    engine: Name,
    weight: Annotated[float, typer.Argument(help="1 is what every engine begins with.")],
    wait: Wait = False,
    url: Url = URL,
) -> None:
    """Give an engine more or less of the work than its like."""
    _give(url, Order(kind=OrderKind.WEIGHT, engine=engine, weight=weight), wait)


@app.command()
def drain(engine: Name, force: Force = False, url: Url = URL) -> None:
    """Take no new work on an engine."""
    _give(url, Order(kind=OrderKind.DRAIN, engine=engine, force=force), False)


@app.command()
def resume(engine: Name, url: Url = URL) -> None:
    """Take work on it again; or try one again that was given up."""
    _give(url, Order(kind=OrderKind.RESUME, engine=engine), False)


@app.command()
def restart(
    engine: Annotated[str | None, typer.Argument(help="Without one: all, one after the other.")] = None,
    wait: Wait = False,
    url: Url = URL,
) -> None:
    """Start an engine again once what it has begun is done."""
    _give(url, Order(kind=OrderKind.RESTART, engine=engine), wait)


@app.command()
def topology(
    layout: Annotated[str, typer.Argument(help="NpMd or Nb, with sizes: 1p1d@tp4.")],
    force: Force = False,
    wait: Wait = False,
    url: Url = URL,
) -> None:
    """Have another layout. Of the same engines nothing restarts; else engines end and begin part by part, while the others serve."""
    _give(url, Order(kind=OrderKind.TOPOLOGY, topology=layout, force=force), wait)


@app.command()
def undo(
    id: Annotated[str, typer.Argument(help="r261126-1432, …")],
    force: Force = False,
    wait: Wait = False,
    url: Url = URL,
) -> None:
    """Take a remedy back."""
    body = {"force": True} if force else None
    _follow(url, ask(url, "POST", "api", "remedies", id, "undo", body=body), wait)


def text(remedy: Remedy) -> str:
    """For people."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(remedy.time))
    lines = [f"{remedy.id}  {at}  {remedy.sentence}  [by {remedy.by}]"]
    lines += [f"    said then: {remedy.verdict}"] if remedy.verdict else []
    lines += [f"    expected: {remedy.expected}"] if remedy.expected else []
    lines.append(f"    brought: {remedy.brought or 'not known yet'}")
    lines += [f"    but: {one}" for one in remedy.beside]
    if remedy.over is not None:
        lines.append(f"    does not hold any more: {remedy.over}")
    elif remedy.undo is not None:
        lines.append(f"    back: pd-appliance remedy undo {remedy.id}")
    return "\n".join(lines)


def _give(url: str, order: Order, wait: bool) -> None:
    body = msgspec.to_builtins(order)
    _follow(url, ask(url, "POST", "api", "remedies", body=body), wait)


def _follow(url: str, answer: dict[str, Any], wait: bool) -> None:
    remedy = msgspec.convert(answer["remedy"], Remedy)
    if wait:
        with Console(stderr=True).status(f"{remedy.sentence}: what does it bring?"):
            remedy = _settled(url, remedy)
    _say(text(remedy))


def _settled(url: str, remedy: Remedy) -> Remedy:
    while remedy.state is RemedyState.SETTLING:
        time.sleep(_LOOK_S)
        remedy = read(url, Remedy, "api", "remedies", remedy.id)
    return remedy


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
