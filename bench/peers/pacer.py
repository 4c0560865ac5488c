"""An engine's place-holder for the raw relay: answers whatever is asked with so many tokens, one every some milliseconds, one event each.

    python -m bench.peers.pacer --uds S --pace-ms 8

All streams get their token in the same turn, as an engine's step gives it to them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Final, cast

import uvloop

from bench.peers.proxy import length

_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_CHOICE: Final = {
    "index": 0,
    "text": " word",
    "logprobs": None,
    "finish_reason": None,
    "stop_reason": None,
    "prompt_logprobs": None,
}
_EVENT: Final = {"id": f"cmpl-{'0' * 32}", "object": "text_completion", "created": 1, "model": "bench"}


def chunk(data: bytes) -> bytes:
    """One of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKEN: Final = chunk(b"data: " + json.dumps({**_EVENT, "choices": [_CHOICE], "usage": None}).encode() + b"\n\n")


def ending(tokens: int) -> bytes:
    """What comes after the last token."""
    usage = json.dumps({**_EVENT, "choices": [], "usage": {"completion_tokens": tokens}}).encode()
    return chunk(b"data: " + usage + b"\n\n") + chunk(b"data: [DONE]\n\n") + chunk(b"")


class Pacer:
    """Gives each stream a token per turn."""

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s
        self._left: dict[Stream, tuple[int, int]] = {}

    def begin(self, stream: Stream, tokens: int) -> None:
        self._left[stream] = (tokens, tokens)

    def forget(self, stream: Stream) -> None:
        self._left.pop(stream, None)

    def turn(self) -> None:
        for stream, (left, tokens) in list(self._left.items()):
            stream.transport.write(TOKEN if left > 1 else TOKEN + ending(tokens))
            if left > 1:
                self._left[stream] = (left - 1, tokens)
            else:
                self.forget(stream)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self._pace_s, loop.time())
            await asyncio.sleep(due - loop.time())
            self.turn()


class Stream(asyncio.Protocol):
    """One connection; one request after the other."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, found, body = self._seen.partition(b"\r\n\r\n")
        if found and len(body) >= length(head):
            self._seen = b""
            self.transport.write(_HEAD)
            self._pacer.begin(self, json.loads(body)["max_tokens"])

    def connection_lost(self, error: Exception | None) -> None:
        self._pacer.forget(self)


async def _serve(options: argparse.Namespace) -> None:
    pacer = Pacer(options.pace_ms * 1e-3)
    await asyncio.get_running_loop().create_unix_server(lambda: Stream(pacer), options.uds)
    await pacer.run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.pacer")
    parser.add_argument("--uds", required=True)
    parser.add_argument("--pace-ms", type=float, default=8.0)
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
