"""``pd-appliance sim``: bad luck for a simulated node that runs."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Annotated, Any, Final

import typer

from appliance.errors import ActionError
from appliance.simulator.faults import KINDS, LASTING

app = typer.Typer(help="Faults of a simulated node that runs.", no_args_is_help=True)
_TIMEOUT_S: Final = 10.0
_KIND_HELP: Final = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
Url = Annotated[str, typer.Option(help="Of the node.")]
_URL: Final = "http://127.0.0.1:8000"


@app.command()
def fault(
    engine: Annotated[str, typer.Argument(help="e0, e1, …")],
    kind: Annotated[str, typer.Option(help=_KIND_HELP)],
    severity: Annotated[float, typer.Option(help="Share of the capacity that is lost, 0 to 1.")] = 0.5,
    peer: Annotated[str | None, typer.Option(help="The other end of a link fault.")] = None,
    url: Url = _URL,
) -> None:
    """Let an engine have a fault."""
    body = {"kind": kind, "severity": severity, "peer": peer}
    _call("POST", f"{url}/api/sim/engines/{engine}/fault", body)
    lasts = f", {severity:.0%} lost. pd-appliance sim mend {engine} ends it" if kind in LASTING else ""
    sys.stdout.write(f"{engine}: {kind}{lasts}.\n")


@app.command()
def mend(
    engine: Annotated[str, typer.Argument(help="e0, e1, …")],
    kind: Annotated[str | None, typer.Option(help="Of one kind only.")] = None,
    url: Url = _URL,
) -> None:
    """End an engine's faults."""
    _call("DELETE", f"{url}/api/sim/engines/{engine}/fault" + (f"?kind={kind}" if kind else ""))
    sys.stdout.write(f"{engine}: {kind or 'all faults'} mended.\n")


@app.command()
def faults(url: Url = _URL) -> None:
    """Say which faults there are now."""
    found = _call("GET", f"{url}/api/sim")["faults"]
    lines = [f"{engine}: {_said(one)}" for engine, several in sorted(found.items()) for one in several]
    sys.stdout.write("\n".join(lines or ["none"]) + "\n")


def _said(fault: dict[str, Any]) -> str:
    peer = f" to {fault['peer']}" if fault.get("peer") else ""
    return f"{fault['kind']}{peer}, {fault['severity']:.0%} lost"


def _call(method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Raises ``ActionError`` with what the node says."""
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), method=method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        raise ActionError(_message(error.read()) or f"{url} answered {error.code}") from error
    except (OSError, ValueError) as error:
        raise ActionError(f"{url}: no node answers there ({error}); name the right one with --url") from error


def _message(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None
