"""What passing tokens on costs at least: bytes from one socket to another, nothing looked at.

python -m bench.peers.relay --port 8000 --to S
"""

from __future__ import annotations

import argparse
import select
import socket
from typing import Final

_PIECE_BYTES: Final = 1 << 16


class Relay:
    """Each connection to ``port`` has one of its own to the Unix socket."""

    def __init__(self, port: int, to: str) -> None:
        self._to = to
        self._door = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._epoll = select.epoll()
        self._epoll.register(self._door.fileno(), select.EPOLLIN)
        self._ends: dict[int, tuple[socket.socket, socket.socket]] = {}  # by what is read: it, and where that goes

    def run(self) -> None:
        while True:
            for number, _ in self._epoll.poll():
                if number == self._door.fileno():
                    self._accept()
                elif number in self._ends:
                    self._pass(number)

    def _accept(self) -> None:
        near, _ = self._door.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far = socket.socket(socket.AF_UNIX)
        far.connect(self._to)
        for one, other in ((near, far), (far, near)):
            self._ends[one.fileno()] = (one, other)
            self._epoll.register(one.fileno(), select.EPOLLIN)

    def _pass(self, number: int) -> None:
        one, other = self._ends[number]
        try:
            data = one.recv(_PIECE_BYTES)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        for end in (one, other):
            self._epoll.unregister(end.fileno())
            del self._ends[end.fileno()]
            end.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.relay")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", required=True, help="a Unix socket")
    options = parser.parse_args()
    Relay(options.port, options.to).run()


if __name__ == "__main__":
    main()
