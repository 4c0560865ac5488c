"""Broken handshakes: callers of the engine channel and of KV sockets, and somebody else who answers in an engine's place.

Bytes are made here by hand, from what the frames' documentation says, so that a fault in the appliance's own encoder can't hide one in
its decoder.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.channel import VERSION

_MAGIC: Final = 0x7064
_ANSWER_S: Final = 3.0
_SILENCE_S: Final = 4.0
_FLOOD: Final = 64
_NOBODY: Final = {"type": "Hello", "engine": "e99", "epoch": 1, "process": "core", "pid": 1, "rank": 0}


def frame(message: Any, version: int = VERSION, length: int | None = None, magic: int = _MAGIC) -> bytes:
    """A frame of the channel's, right or wrong."""
    payload = msgspec.msgpack.encode(message)
    return struct.pack(">HHI", magic, version, len(payload) if length is None else length) + payload


def nonsense(variant: str) -> bytes:
    """What a broken peer says at first. ``silence`` and ``closes`` say nothing."""
    return {
        "garbage": b"\x00\xffGET / HTTP/1.1\r\n\r\n" * 8,
        "truncated": frame(_NOBODY)[:-5],
        "version": frame(_NOBODY, version=VERSION + 1),
        "huge": frame(_NOBODY, length=(1 << 32) - 1),
        "early": frame(
            {"type": "Heartbeat", "at_ns": 1, "running": 0, "waiting": 0, "fetching": 0, "kv_free": 0, "leased": 0}
        ),
        "foreign": frame(_NOBODY)
        + frame({"type": "LeaseEnded", "lease": "x", "reason": "released", "blocks": 1, "at_ns": 1}),
    }.get(variant, b"")


async def call_channel(path: Path, variant: str, victim: str) -> str:
    """Call the supervisor as a broken engine would. ``flood``: many at once, one of each kind. In words, what came of it."""
    if variant == "flood":
        kinds = ("garbage", "truncated", "version", "huge", "early", "foreign")
        answers = await asyncio.gather(*(_call(path, nonsense(kinds[n % len(kinds)])) for n in range(_FLOOD)))
        return f"{len(answers)} callers, {answers.count('closed')} connections were closed"
    data = nonsense(variant)
    if variant == "foreign":  # an earlier life of the victim speaks up again
        data += frame({**_NOBODY, "engine": victim, "epoch": 0})
    return f"a caller that says {variant}: {await _call(path, data, hangs_up=variant == 'truncated')}"


async def call_as(path: Path, engine: str, epoch: int, variant: str) -> str:
    """Call the supervisor as the EngineCore of a living engine, as if it had called twice; then leave, or talk nonsense."""
    hello = {**_NOBODY, "engine": engine, "epoch": epoch}
    return (
        f"a second EngineCore of {engine}: {await _call(path, frame(hello) + nonsense(variant), variant == 'leaves')}"
    )


async def call_kv(path: Path) -> str:
    """Call an engine's KV socket: send it nonsense, and leave, or stay and read nothing."""
    answers = await asyncio.gather(*(_call(path, nonsense(kind)) for kind in ("garbage", "huge", "silence", "version")))
    return f"callers of {path.name}: {', '.join(answers)}"


async def _call(path: Path, data: bytes, hangs_up: bool = False) -> str:
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError as error:
        return f"refused ({error.strerror})"
    with contextlib.closing(writer):
        try:
            writer.write(data)
            if hangs_up:
                return "hung up"
            async with asyncio.timeout(_ANSWER_S if data else _SILENCE_S):
                while await reader.read(1 << 16):
                    pass
            return "closed"
        except TimeoutError:
            return "left open"
        except OSError:
            return "closed"


@asynccontextmanager
async def in_place_of(path: Path, *variants: str) -> AsyncIterator[list[str]]:
    """Somebody else listens at ``path`` meanwhile, and answers in each variant in turn. Gives those in which it has answered."""
    aside, asked = path.with_name(f"{path.name}.aside"), list[str]()
    held: list[asyncio.StreamWriter] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        variant = variants[len(asked) % len(variants)]
        asked.append(variant)
        writer.write(nonsense(variant))
        held.append(writer)
        if variant != "silence":
            writer.close()

    path.rename(aside)
    server = await asyncio.start_unix_server(answer, str(path))
    try:
        yield asked
    finally:
        server.close()
        for writer in held:
            writer.close()
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):  # that engine's life may be over
            aside.rename(path)
