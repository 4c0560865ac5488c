"""The private directory that sockets and lease tables live in, for as long as the supervisor does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from appliance.errors import ConfigError, NotNowError

_SOCKET_PATH_BYTES: Final = 107  # sun_path, less its end
_LONGEST_NAME: Final = f"e63-9999/{'f' * 36}"  # vLLM's sockets between API process and EngineCore
_PREFIX: Final = "pd-appliance-"
_LOCK: Final = "lock"


class Runtime:
    """A directory of our own, mode 0700, locked for as long as this process lives."""

    def __init__(self, parent: Path) -> None:
        """Make it in ``parent``, and remove those of supervisors that are gone.

        Raises ``ConfigError`` if it can't be made, or its path is too long for Unix sockets.
        """
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(parent)
            self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = _lock(self.directory)
        except OSError as error:
            raise NotNowError(
                f"no runtime directory can be made in {parent} ({error.strerror}): set RUNTIME_DIRECTORY to another one"
            ) from error
        if len(os.fsencode(self.directory / _LONGEST_NAME)) > _SOCKET_PATH_BYTES:
            self.remove()
            raise ConfigError(f"{parent} is too long for Unix sockets: set RUNTIME_DIRECTORY to a shorter path")

    @property
    def channel(self) -> Path:
        return self.directory / "channel"

    def server_socket(self, engine: str) -> Path:
        return self.directory / f"{engine}.sock"

    def remove(self) -> None:
        """With all that is in it. Harmless a second time."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def temporary(self, engine: str, epoch: int) -> Path:
        """Where a life of an engine puts what it would leave in /tmp."""
        return self.directory / f"{engine}-{epoch}"

    def prepare(self, engine: str, epoch: int) -> None:
        """Make room for a life of an engine; what an earlier one left would be in the way."""
        self.forget(engine, epoch)
        self.temporary(engine, epoch).mkdir()

    def forget(self, engine: str, epoch: int) -> None:
        """Remove what a life of an engine left behind, as far as that is possible now: tidying up decides nothing."""
        with contextlib.suppress(OSError):  # no descriptors left, a directory that can't be written to
            shutil.rmtree(self.temporary(engine, epoch), ignore_errors=True)
            for path in (self.server_socket(engine), *self.directory.glob(f"{engine}-{epoch}[.-]*")):
                path.unlink(missing_ok=True)


def parent_directory(environment: Mapping[str, str]) -> Path:
    """``$RUNTIME_DIRECTORY`` (systemd sets it), else ``$XDG_RUNTIME_DIR``, else the temporary directory."""
    given = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(given or environment.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())


def _lock(directory: Path) -> int:
    """The descriptor that holds the lock. Under another name at first, so that a file called ``lock`` is never seen unlocked."""
    new = directory / f"{_LOCK}.new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    new.rename(directory / _LOCK)
    return descriptor


def _sweep(parent: Path) -> None:
    """A directory of ours whose lock can be had belongs to nobody any more. (A pid would not tell: containers share directories.)"""
    for directory in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _unlocked(directory / _LOCK):
            shutil.rmtree(directory)


@contextlib.contextmanager
def _unlocked(path: Path) -> Iterator[None]:
    """Raises ``OSError`` while somebody else holds the lock, or has it in a directory that isn't ours."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
