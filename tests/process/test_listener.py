"""The socket that is listened on."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from appliance.cli.serve import _listen
from appliance.config import ServerConfig
from appliance.errors import ConfigError


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    with _listen(ServerConfig(port=0, stalled_client_s=1.0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection, pytest.raises(TimeoutError):
            send_for(connection, 20.0)


def send_for(connection: socket.socket, seconds: float) -> None:
    """Raises ``TimeoutError`` when the kernel has ended the connection."""
    connection.setblocking(False)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with contextlib.suppress(BlockingIOError):
            connection.send(b"x" * (1 << 16))
        time.sleep(0.001)


def test_a_port_in_use_is_told_with_a_way_out() -> None:
    with (
        _listen(ServerConfig(port=0)) as listener,
        pytest.raises(ConfigError, match=r"can't be listened on.*--port"),
    ):
        _listen(ServerConfig(port=listener.getsockname()[1]))
