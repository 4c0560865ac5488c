"""``pd-appliance remedy``: what is done about a bottleneck, what that brought, and the way back."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console

from appliance.cli.ask import URL, ask, read
from appliance.cli.output import Unwritable
from appliance.errors import ActionError
from appliance.records import Order, OrderKind, Remedy, RemedyState, Role, Verdict
from appliance.supervisor.actions import LEAST_WEIGHT, MOST_WEIGHT

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
    if yes or _confirmed(f"{action.call}?"):
        _give(url, action.order, wait)
    else:
        _say("Nothing was ordered.")


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
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:  # nor nan, which no node can read
        raise ActionError(
            f"weight {weight:g} is not from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}; 1 is what every engine begins with"
        )
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
    return "\n".join([*_ordered(remedy), *_brought(remedy), *_back(remedy)])


def _ordered(remedy: Remedy) -> Iterator[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(remedy.time))
    yield f"{remedy.id}  {at}  {remedy.sentence}  [by {remedy.by}]"
    if remedy.verdict:
        yield f"    said then: {remedy.verdict}"
    if remedy.expected:
        yield f"    expected: {remedy.expected}"


def _brought(remedy: Remedy) -> Iterator[str]:
    yield f"    brought: {remedy.brought or 'not known yet'}"
    yield from (f"    but: {one}" for one in remedy.beside)


def _back(remedy: Remedy) -> Iterator[str]:
    if remedy.over is not None:
        yield f"    does not hold any more: {remedy.over}"
    elif remedy.undo is not None:
        yield f"    back: pd-appliance remedy undo {remedy.id}"


def _confirmed(question: str) -> bool:
    """Raises ``ActionError`` if nobody answers: input that ends, or Ctrl-C."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        _say("")  # the question's line has no end
        raise ActionError("nobody said yes, and nothing was ordered; --yes orders it without asking") from None


def _give(url: str, order: Order, wait: bool) -> None:
    body = msgspec.to_builtins(order)
    _follow(url, ask(url, "POST", "api", "remedies", body=body), wait)


def _follow(url: str, answer: dict[str, Any], wait: bool) -> None:
    """What was ordered, and the way back, are told before anything is waited for."""
    remedy = msgspec.convert(answer["remedy"], Remedy)
    try:
        if not wait or remedy.state is not RemedyState.SETTLING:
            _say(text(remedy))
            return
        with _held() as signals:
            _say("\n".join([*_ordered(remedy), *_back(remedy)]))
            with Console(stderr=True).status(f"{remedy.sentence}: what does it bring?"):
                settled = _settled(url, remedy, signals)
        _say("\n".join([*_brought(settled), *([] if settled.over is None else _back(settled))]))
    except _Interrupted as interrupted:
        sys.stderr.write(f"pd-appliance: it is no longer waited for, {_stands(url, remedy)}\n")
        raise typer.Exit(interrupted.code) from None
    except Unwritable as error:
        raise Unwritable(f"{error}, {_stands(url, remedy)}") from error


def _settled(url: str, remedy: Remedy, signals: set[signal.Signals]) -> Remedy:
    """Raises ``_Interrupted`` by these."""
    while remedy.state is RemedyState.SETTLING:
        if (sent := signal.sigtimedwait(signals, _LOOK_S)) is not None:
            raise _Interrupted(sent.si_signo)
        remedy = read(url, Remedy, "api", "remedies", remedy.id)
    return remedy


class _Interrupted(Exception):
    """The wait, by a signal."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


@contextlib.contextmanager
def _held() -> Iterator[set[signal.Signals]]:
    """Signals that would end us, and that are to be waited for instead: what is amid being written is written, and once.

    One that has come is followed by no other: ``timeout`` sends two.
    """
    found = {one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, found)
    interrupted = False
    try:
        yield found
    except _Interrupted:
        interrupted = True
        raise
    finally:
        if not interrupted:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stands(url: str, remedy: Remedy) -> str:
    where = "" if url == URL else f" --url {shlex.quote(url)}"
    back = "" if remedy.undo is None else f"; pd-appliance remedy undo {remedy.id}{where} takes it back"
    return f"but the order stands: pd-appliance remedy list{where} says later what it brought{back}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
