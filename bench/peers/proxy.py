"""The proxy between clients and vLLM's pair of engines with the NIXL connector.

vLLM comes with one for its tests, of FastAPI and httpx, which would cost the peer more than its engines do. This one does as little as can
be done: per client's connection it keeps one to each engine, asks for the prompt's KV with one token, puts ``kv_transfer_params`` of that
answer into the request, and passes on bytes of the decode engine's answer as they come, unread.

    python -m bench.peers.proxy --port 8000 --prefill P.sock --decode D.sock
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, Final

import uvloop

_LIMIT_BYTES: Final = 1 << 24
_PIECE_BYTES: Final = 1 << 16
_FOR_PREFILL: Final[dict[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_LEFT_OUT: Final = ("stream_options", "min_tokens")  # vLLM refuses them in a request of one token in one piece
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RefusedError(Exception):
    """The prefill engine did not answer with 200; the message is its answer's body."""


def prefill_body(body: dict[str, Any]) -> dict[str, Any]:
    """One token, in one piece, and keep the KV."""
    kept = {name: value for name, value in body.items() if name not in _LEFT_OUT}
    return {**kept, "stream": False, "max_tokens": 1, "kv_transfer_params": _FOR_PREFILL}


def decode_body(body: dict[str, Any], prefilled: dict[str, Any]) -> dict[str, Any]:
    """The client's request, with where its KV is. Raises ``RefusedError`` where that is not said."""
    if not prefilled.get("kv_transfer_params"):
        raise RefusedError("the prefill engine has told no kv_transfer_params")
    return {**body, "kv_transfer_params": prefilled["kv_transfer_params"]}


def request(line: bytes, body: bytes) -> bytes:
    """An engine's request."""
    head = f"host: engine\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return line + b"\r\n" + head.encode() + body


def length(head: bytes) -> int:
    """Of the body, by the head of a request or answer."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """First line and body of one message that tells its length. Raises ``IncompleteReadError`` at the connection's end."""
    head = await reader.readuntil(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], await reader.readexactly(length(head))


class Proxy:
    """Serves one client's connection after another's."""

    def __init__(self, prefill: str, decode: str) -> None:
        self._prefill, self._decode = prefill, decode

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection: requests come one after the other, so whatever the decode engine says is the answer to the last."""
        try:
            prefill, decode = await self._connect(self._prefill), await self._connect(self._decode)
        except OSError:
            writer.close()
            return
        passing = asyncio.create_task(_pass(decode[0], writer))
        try:
            while True:
                line, body = await _read(reader)
                await self._one(line, body, prefill, decode[1], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            passing.cancel()
            for connection in (prefill[1], decode[1], writer):
                connection.close()

    async def _one(
        self, line: bytes, body: bytes, prefill: Streams, decode: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        if not line.startswith(b"POST"):
            decode.write(request(line, body))
            return
        asked = json.loads(body)
        try:
            prefill[1].write(request(line, json.dumps(prefill_body(asked)).encode()))
            status, answer = await _read(prefill[0])
            if b" 200 " not in status + b" ":
                raise RefusedError(answer.decode(errors="replace"))
            decode.write(request(line, json.dumps(decode_body(asked, json.loads(answer))).encode()))
        except RefusedError as error:
            said = json.dumps({"error": {"message": str(error)}}).encode()
            head = f"HTTP/1.1 502 Bad Gateway\r\ncontent-type: application/json\r\ncontent-length: {len(said)}\r\n\r\n"
            client.write(head.encode() + said)

    async def _connect(self, path: str) -> Streams:
        return await asyncio.open_unix_connection(path, limit=_LIMIT_BYTES)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """To the end of either; the client hears of it."""
    try:
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
    finally:
        writer.close()


async def _serve(options: argparse.Namespace) -> None:
    proxy = Proxy(options.prefill, options.decode)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", options.port, limit=_LIMIT_BYTES)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.proxy")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--prefill", required=True, help="the prefill engine's Unix socket")
    parser.add_argument("--decode", required=True, help="the decode engine's")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
