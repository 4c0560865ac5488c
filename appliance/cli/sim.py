"""``pd-appliance sim``: bad luck for a simulated node that runs."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from appliance.cli.ask import URL, ask
from appliance.errors import ActionError
from appliance.simulator.faults import KINDS, LASTING

app = typer.Typer(help="Faults of a simulated node that runs.", no_args_is_help=True)
_FAULTS: Final = ("api", "sim", "engines")
_KIND_HELP: Final = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
Url = Annotated[str, typer.Option(help="Of the node.")]


@app.command()
def fault(
    engine: Annotated[str, typer.Argument(help="e0, e1, …")],
    kind: Annotated[str, typer.Option(help=_KIND_HELP)],
    severity: Annotated[float, typer.Option(help="Share of the capacity that is lost, 0 to 1.")] = 0.5,
    peer: Annotated[str | None, typer.Option(help="The other end of a link fault.")] = None,
    url: Url = URL,
) -> None:
    """Let an engine have a fault."""
    if not math.isfinite(severity):
        raise ActionError(f"severity {severity:g} is not from 0 to 1: it is the share of the capacity that is lost")
    body = {"kind": kind, "severity": severity, "peer": peer}
    ask(url, "POST", *_FAULTS, engine, "fault", body=body)
    sys.stdout.write(f"{engine}: {kind}{_lasts(engine, kind, severity)}.\n")


def _lasts(engine: str, kind: str, severity: float) -> str:
    if kind not in LASTING:
        return ""
    return f", {severity:.0%} lost. pd-appliance sim mend {engine} ends it" if severity else " mended"


@app.command()
def mend(
    engine: Annotated[str, typer.Argument(help="e0, e1, …")],
    kind: Annotated[str | None, typer.Option(help="Of one kind only.")] = None,
    url: Url = URL,
) -> None:
    """End an engine's faults."""
    ask(url, "DELETE", *_FAULTS, engine, "fault", query=f"?kind={quote(kind)}" if kind else "")
    sys.stdout.write(f"{engine}: {kind or 'all faults'} mended.\n")


@app.command()
def faults(url: Url = URL) -> None:
    """Say which faults there are now."""
    found = ask(url, "GET", "api", "sim").get("faults", {})
    lines = [f"{engine}: {_said(one)}" for engine, several in sorted(found.items()) for one in several]
    sys.stdout.write("\n".join(lines or ["none"]) + "\n")


def _said(fault: dict[str, Any]) -> str:
    peer = f" to {fault['peer']}" if fault.get("peer") else ""
    return f"{fault['kind']}{peer}, {fault['severity']:.0%} lost"
