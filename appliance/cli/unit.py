"""The unit that systemd is given: the shipped one, with this installation's command line in it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance.errors import ConfigError

NAME: Final = "pd-appliance.service"
_PACKED: Final = Path(__file__).resolve().parents[1] / "_systemd"
_QUOTED: Final = frozenset(" \"'\\;")
_REFUSED: Final = frozenset("\"'\\")
_NOT_FOR_USERS: Final = ("Wants=", "After=")  # a user's own manager has no network target


def shipped() -> str:
    """``systemd/pd-appliance.service``; the wheel carries it under ``appliance/_systemd``."""
    directory = _PACKED if _PACKED.is_dir() else _PACKED.parents[1] / "systemd"
    return (directory / NAME).read_text(encoding="utf-8")


def render(template: str, command: Sequence[str], *, run_as: str | None = None, for_user: bool = False) -> str:
    """The unit for a command line. ``for_user``: for a user's own service manager. Raises ``ConfigError``."""
    lines = []
    for line in template.splitlines():
        if line.startswith("ExecStart="):
            lines += [f"ExecStart={command_line(command)}", *([f"User={run_as}"] if run_as else [])]
        elif for_user and line.startswith("WantedBy="):
            lines.append("WantedBy=default.target")
        elif not (for_user and line.startswith(_NOT_FOR_USERS)):
            lines.append(line)
    return "\n".join(lines) + "\n"


def command_line(command: Sequence[str]) -> str:
    """As ``systemd.service(5)`` reads it. In the program's path, unlike in what follows, no variable is looked for."""
    program, *arguments = command
    if _REFUSED & set(program):
        raise ConfigError(
            f"systemd starts no program in {program!r}, for its quotes or backslash: install it elsewhere"
        )
    return " ".join([_quoted(program), *(_quoted(argument.replace("$", "$$")) for argument in arguments)])


def _quoted(word: str) -> str:
    if any(ord(character) < 32 for character in word):
        raise ConfigError(f"{word!r} has a character that no unit can name: use another path")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if _QUOTED & set(word) or not word else escaped
