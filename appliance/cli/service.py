"""``pd-appliance service``: hand the appliance to systemd, and take it away again.

What is to be done is a list of steps; the same list is shown by ``--dry-run`` and carried out without it.
"""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from appliance.cli import unit
from appliance.config import config_path_default, load
from appliance.errors import ConfigError

BOOTED: Final = Path("/run/systemd/system")  # sd_booted(3)
SYSTEM_UNITS: Final = Path("/etc/systemd/system")

app = typer.Typer(help="Run it as a service of systemd.", no_args_is_help=True)
ForUser = Annotated[bool, typer.Option("--user", help="Your own service manager instead of the machine's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the file and the commands, and change nothing.")]


class Write(msgspec.Struct, frozen=True):
    """A file with this text."""

    path: Path
    text: str


class Remove(msgspec.Struct, frozen=True):
    path: Path


class Run(msgspec.Struct, frozen=True):
    """A command that must end well; else ``hint`` says what to look at."""

    command: tuple[str, ...]
    hint: str


class Tidy(msgspec.Struct, frozen=True):
    """A command that may fail: there may be nothing to tidy."""

    command: tuple[str, ...]


class Say(msgspec.Struct, frozen=True):
    text: str


Step = Write | Remove | Run | Tidy | Say


@app.command()
def install(
    for_user: ForUser = False,
    config: Annotated[Path | None, typer.Option(help="A TOML file; else /etc/pd-appliance/config.toml.")] = None,
    run_as: Annotated[str | None, typer.Option(help="The user that it runs as; root if left out.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Write the unit, and start it now and at each boot."""
    _check_user(run_as, for_user)
    load(config or config_path_default(), {}, {})  # what can't work is told now, not in the journal
    text = unit.render(unit.shipped(), command(config), run_as=run_as, for_user=for_user)
    _carry_out(install_steps(units(for_user) / unit.NAME, text, for_user, run_as), for_user, dry_run)


@app.command()
def uninstall(for_user: ForUser = False, dry_run: DryRun = False) -> None:
    """Stop it, and remove the unit. Configuration and state stay."""
    path = units(for_user) / unit.NAME
    if not path.exists() and not dry_run:
        other = "without --user" if for_user else "with --user"
        raise ConfigError(f"there is no {path}, so nothing is installed there; was it installed {other}?")
    _carry_out(uninstall_steps(path, for_user), for_user, dry_run)


def install_steps(path: Path, text: str, for_user: bool, run_as: str | None) -> list[Step]:
    """What installing does. A service that runs already is restarted: it may be that of another installation."""
    control, logs = _control(for_user), "journalctl --user" if for_user else "journalctl"
    look = f"{' '.join(control)} status pd-appliance, and {logs} -u pd-appliance, say why"
    last = "it ends when you log out, unless: loginctl enable-linger" if for_user else ""
    if not for_user and run_as is None:
        last = "it runs as root; name another user with --run-as"
    return [
        Write(path, text),
        Run((*control, "daemon-reload"), "is this the service manager's machine?"),
        Tidy((*control, "reset-failed", unit.NAME)),  # starts that failed before are forgiven
        Run((*control, "enable", unit.NAME), look),
        Say("starting it; this returns when it serves, which takes as long as the model takes to load"),
        Run((*control, "restart", unit.NAME), look),
        *([Say(last)] if last else []),
    ]


def uninstall_steps(path: Path, for_user: bool) -> list[Step]:
    """What uninstalling does."""
    control = _control(for_user)
    kept = "its configuration and its state directory" if for_user else "/etc/pd-appliance and /var/lib/pd-appliance"
    return [
        Run((*control, "disable", "--now", unit.NAME), f"{' '.join(control)} status pd-appliance says why"),
        Remove(path),
        Run((*control, "daemon-reload"), "is this the service manager's machine?"),
        Tidy((*control, "reset-failed", unit.NAME)),
        Say(f"{kept} are left as they are"),
    ]


def command(config: Path | None) -> list[str]:
    """This very installation's command line: its script, or its interpreter where there is no script beside it."""
    script = Path(sys.executable).with_name("pd-appliance")
    program = [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "appliance"]
    return [*program, "serve", *(("--config", str(config.absolute())) if config else ())]


def units(for_user: bool) -> Path:
    """Where units go."""
    if not for_user:
        return SYSTEM_UNITS
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "systemd" / "user"


def _control(for_user: bool) -> tuple[str, ...]:
    return ("systemctl", "--user") if for_user else ("systemctl",)


def _check_user(run_as: str | None, for_user: bool) -> None:
    if run_as is None:
        return
    if for_user:
        raise ConfigError("--run-as: your own service manager runs everything as you; leave out --run-as or --user")
    try:
        pwd.getpwnam(run_as)
    except KeyError:
        raise ConfigError(f"--run-as: there is no user {run_as!r}; make one: useradd --system {run_as}") from None


def _carry_out(steps: Sequence[Step], for_user: bool, dry_run: bool) -> None:
    if not dry_run:
        _check_machine(for_user)
    for step in steps:
        _say(told(step, dry_run))
        if not dry_run:
            _do(step)


def _check_machine(for_user: bool) -> None:
    if not BOOTED.is_dir():
        raise ConfigError(f"systemd does not run this machine (there is no {BOOTED}): use pd-appliance serve instead")
    if not for_user and os.geteuid() != 0:
        raise ConfigError("only root may do that: use sudo, or --user for a service of your own")


def told(step: Step, in_full: bool) -> str:
    """What a step does, in a line; ``in_full`` with the text of a file."""
    match step:
        case Write(path, text):
            return f"# writes {path}" + (f":\n{text}" if in_full else "")
        case Remove(path):
            return f"# removes {path}"
        case Run(command) | Tidy(command):
            return shlex.join(command)
        case Say(text):
            return f"# {text}"


def _do(step: Step) -> None:
    try:
        match step:
            case Write(path, text):
                _write(path, text)
            case Remove(path):
                _check_masked(path)
                path.unlink(missing_ok=True)
            case Tidy(command):
                subprocess.run(command, check=False, capture_output=True)
            case Run(command, hint):
                _run(command, hint)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; nothing further was done") from error


def _write(path: Path, text: str) -> None:
    """In one go, and never through a link: it may lead to the file that ships."""
    _check_masked(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _check_masked(path: Path) -> None:
    if path.is_symlink() and path.resolve() == Path("/dev/null"):
        raise ConfigError(f"{path} is masked; if it should run: systemctl unmask {unit.NAME}")


def _run(command: Sequence[str], hint: str) -> None:
    code = subprocess.run(command, check=False).returncode
    if code:
        raise ConfigError(f"{shlex.join(command)} failed with {code}: {hint}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
