"""The service manager's protocol (``sd_notify(3)``): datagrams of ``NAME=value`` lines to ``$NOTIFY_SOCKET``.

Nobody may be listening, now or ever. That is no reason not to serve, so nothing here raises or waits.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

FOR_THE_SUPERVISOR: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
"""Variables that are meant for one process: engines don't inherit them."""
_STATUS_BYTES: Final = 2000  # systemd ignores a datagram of more than 4096
_FEEDS: Final = 3  # in the time after which the watchdog acts: one or two may be lost or late


class Notifier:
    """Tells the service manager, if there is one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name  # @ stands for the abstract namespace
        self._socket: socket.socket | None = None
        if name.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @property
    def is_listened_to(self) -> bool:
        """False where no service manager has started this process."""
        return self._socket is not None

    def tell(self, fields: Mapping[str, str]) -> bool:
        """Send all of it as one datagram. False if it was not taken: it may be told again."""
        if self._socket is not None:
            with contextlib.suppress(OSError, ValueError):  # gone, full, or a name that can't be
                self._socket.sendto(message(fields), self._address)
                return True
        return False

    def close(self) -> None:
        """Nothing is told any more. Harmless a second time."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def is_service(environment: Mapping[str, str]) -> bool:
    """True where a service manager has started this process."""
    return environment.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def message(fields: Mapping[str, str]) -> bytes:
    """The datagram. A value is one line, whatever an engine has said, and not too long."""
    return "\n".join(f"{name}={_line(value)}" for name, value in fields.items()).encode()


def _line(value: str) -> str:
    return " ".join(value.split()).encode(errors="replace")[:_STATUS_BYTES].decode(errors="ignore")


def feeding_s(environment: Mapping[str, str], pid: int) -> float | None:
    """Seconds between two feedings of the watchdog; None where there is none, or one for another process."""
    try:
        usec = int(environment["WATCHDOG_USEC"])
        whose = int(environment.get("WATCHDOG_PID") or pid)
    except (KeyError, ValueError):
        return None
    return usec / 1e6 / _FEEDS if usec > 0 and whose == pid else None


def usec(seconds: float) -> str:
    """As ``EXTEND_TIMEOUT_USEC`` wants it."""
    return str(round(seconds * 1e6))


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment to hand on."""
    return {name: value for name, value in environment.items() if name not in FOR_THE_SUPERVISOR}


def complain(reason: str) -> None:
    """Leave it to be read in ``systemctl status`` why this process ends."""
    notifier = Notifier(os.environ)
    notifier.tell({"STATUS": reason})
    notifier.close()
