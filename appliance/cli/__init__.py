"""The command line: ``pd-appliance``. A file per command."""

from __future__ import annotations

import os
import sys
import time
from typing import Final

import typer

from appliance import __version__
from appliance.cli import (
    check,
    diagnose,
    incidents,
    output,
    plan,
    remedy,
    serve,
    service,
    sim,
    simulate,
    top,
    tune,
    why,
)
from appliance.cli.output import Unwritable
from appliance.errors import ApplianceError, NoEngineError, NotNowError
from appliance.supervisor import notify

EXIT_CONFIGURATION, EXIT_NO_ENGINE, EXIT_LATER = 2, 3, 75  # the last one is EX_TEMPFAIL of sysexits.h
_PAUSE_S: Final = 20.0

app = typer.Typer(
    help="Serve a large language model on one node: prefill and decode on separate engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve", context_settings={"allow_extra_args": False})(serve.serve)
app.add_typer(service.app, name="service")
app.add_typer(sim.app, name="sim")
app.add_typer(remedy.app, name="remedy")
app.add_typer(incidents.app, name="incidents")
app.command("diagnose")(diagnose.diagnose)
app.command("top")(top.top)
app.command("why")(why.why)
app.command("check")(check.check)
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("tune")(tune.tune)


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version and end.")) -> None:
    if version:
        sys.stdout.write(f"pd-appliance {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Run a command. What we refuse is one line, never a traceback; so is what can't be written."""
    output.prepare()
    try:
        code = _code()
        sys.stdout.flush()
    except Unwritable as error:
        output.give_up()
        _complain(error)
        code = EXIT_CONFIGURATION
    sys.exit(code)


def _code() -> int | str | None:
    """What the command ends with."""
    try:
        app()
    except SystemExit as ended:
        return ended.code
    except NoEngineError as error:
        _complain(error)
        return EXIT_NO_ENGINE
    except NotNowError as error:
        _complain(error)
        if notify.is_service(
            os.environ
        ):  # which starts it again, some times: with a pause in between, or all of them come too early
            time.sleep(_PAUSE_S)
            return EXIT_LATER
        return EXIT_CONFIGURATION
    except ApplianceError as error:
        _complain(error)
        return EXIT_CONFIGURATION
    return None


def _complain(error: ApplianceError | Unwritable) -> None:
    sys.stderr.write(f"pd-appliance: {error}\n")
    sys.stderr.flush()
    notify.complain(str(error))
