"""The private directory that sockets and lease tables live in, for as long as the supervisor does."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from appliance.errors import ConfigError

_SOCKET_PATH_BYTES: Final = 107  # sun_path, less its end
_LONGEST_NAME: Final = "e99-9999-99.kv"
_PREFIX: Final = "pd-appliance-"


class Runtime:
    """``$RUNTIME_DIRECTORY``, else a directory of our own below ``$XDG_RUNTIME_DIR`` or the temporary one. Mode 0700."""

    def __init__(self, directory: Path) -> None:
        """Make it. Raises ``ConfigError`` if it can't be made, or its path is too long for Unix sockets."""
        longest = len(os.fsencode(directory / _LONGEST_NAME))
        if longest > _SOCKET_PATH_BYTES:
            raise ConfigError(f"{directory} is too long for Unix sockets: set RUNTIME_DIRECTORY to a shorter path")
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            (directory / "tmp").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the runtime directory {directory} can't be made: {error.strerror}") from error
        self.directory = directory

    @property
    def channel(self) -> Path:
        return self.directory / "channel"

    @property
    def temporary(self) -> Path:
        """Where engines put what they would leave in /tmp."""
        return self.directory / "tmp"

    def server_socket(self, engine: str) -> Path:
        return self.directory / f"{engine}.sock"

    def remove(self) -> None:
        """With all that is in it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def forget(self, engine: str, epoch: int) -> None:
        """Remove what a life of an engine left behind."""
        for path in (self.server_socket(engine), *self.directory.glob(f"{engine}-{epoch}*")):
            path.unlink(missing_ok=True)


def choose_directory(environment: dict[str, str], pid: int) -> Path:
    """Where the runtime directory goes; removes those of supervisors that are gone."""
    given = environment.get("RUNTIME_DIRECTORY")
    if given:
        return Path(given.split(":")[0])
    parent = Path(environment.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    for stale in parent.glob(f"{_PREFIX}*"):
        owner = stale.name.removeprefix(_PREFIX)
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                shutil.rmtree(stale)
    return parent / f"{_PREFIX}{pid}"
