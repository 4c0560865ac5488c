"""How an engine learns of a peer's memory: each worker rank says what it has to whoever connects to its KV socket.

The answer is one channel frame, a ``Manifest``, with the memory's file descriptors beside it. A consumer checks version, fingerprint
and layout before it maps anything, so that a mismatch is a sentence about two engines and never wrong tokens.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.channel import Frames, Message, encode
from appliance.engine.kv.layout import Layout
from appliance.errors import ChannelError, HandoffError

PROTOCOL: Final = 2
MAX_DESCRIPTORS: Final = 64
_TIMEOUT_S: Final = 5.0
_ALIKE: Final = {  # what would make a trait the same on both sides, by its name; the first that differs decides the others
    "kv_cache_dtype": "give both engines the same --kv-cache-dtype",
    "attention": "give both engines the same --attention-backend",
    "order": "give both engines the same VLLM_KV_CACHE_LAYOUT",
    "dtype": "give both engines the same --dtype",
    "quantization": "give both engines the same --quantization",
}


class Manifest(Message, frozen=True, kw_only=True, tag=True):
    """What one worker rank exports. ``fingerprint`` stands for all that decides what a block's bytes mean."""

    protocol: int
    engine: str
    epoch: int
    rank: int
    ranks: int
    transport: str
    traits: dict[str, str]
    fingerprint: str
    layout: Layout
    handles: tuple[bytes, ...]


def fingerprint(traits: dict[str, str]) -> str:
    """SHA-256 over the traits, which are compared one by one only to say what differs."""
    return hashlib.sha256(msgspec.msgpack.encode(sorted(traits.items()))).hexdigest()


def refusal(ours: Manifest, theirs: Manifest) -> str | None:
    """Why ``ours`` must not pull from ``theirs``, whatever their layouts are, naming both engines; None if it may."""
    reason = _protocol_difference(ours, theirs) or _trait_difference(ours, theirs)
    return refused(ours, theirs, reason) if reason else None


def refused(ours: Manifest, theirs: Manifest, reason: str) -> str:
    return f"{ours.engine} can't use the KV of {theirs.engine}: {reason}"


def _protocol_difference(ours: Manifest, theirs: Manifest) -> str | None:
    if ours.protocol != theirs.protocol:
        return f"hand-off protocol {ours.protocol} against {theirs.protocol}"
    if ours.transport != theirs.transport:
        return f"transport {ours.transport} against {theirs.transport}"
    return None


def _trait_difference(ours: Manifest, theirs: Manifest) -> str | None:
    if ours.fingerprint == theirs.fingerprint:
        return None
    names = sorted(ours.traits.keys() | theirs.traits.keys())
    different = [name for name in names if ours.traits.get(name) != theirs.traits.get(name)]
    said = [f"{name} {ours.traits.get(name)} against {theirs.traits.get(name)}" for name in different]
    remedies = [remedy for name, remedy in _ALIKE.items() if name in different][:1]
    return "; ".join((*said, *remedies)) or "fingerprints differ"


class KvServer:
    """Answers every connection to ``path`` with the manifest and its descriptors, on a thread of its own."""

    def __init__(self, path: Path, manifest: Manifest, descriptors: list[int]) -> None:
        path.unlink(missing_ok=True)
        self._frame = encode(manifest)
        self._descriptors = descriptors
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        self._socket.listen(16)
        threading.Thread(target=self._run, name="appliance-kv", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_TIMEOUT_S)
                sent = socket.send_fds(connection, [self._frame], self._descriptors)
                connection.sendall(self._frame[sent:])


def ask(path: str, peer: str) -> tuple[Manifest, list[int]]:
    """The manifest of the rank that listens at ``path``, and its descriptors, now the caller's.

    Raises:
        HandoffError: nobody listens, or what came is truncated, foreign or of another version; names ``peer``.
    """
    descriptors: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(path)
            return _read(connection, descriptors), descriptors
    except (OSError, ChannelError, HandoffError) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise HandoffError(f"no KV handshake with {peer}: {error}") from error


def _read(connection: socket.socket, descriptors: list[int]) -> Manifest:
    frames: Frames[Manifest] = Frames(Manifest)
    while True:
        data, ancillary, _, _ = connection.recvmsg(
            1 << 16, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
        )
        descriptors.extend(_descriptors(ancillary))
        if not data:
            raise HandoffError(f"it ended after {frames.pending} bytes")
        for manifest in frames.feed(data):
            return manifest


def _descriptors(ancillary: list[tuple[int, int, Any]]) -> list[int]:
    found = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    return list(found)
