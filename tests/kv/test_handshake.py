"""The KV handshake: what differs is named, and what is broken is refused."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from exporter import layout_of, manifest_of

from appliance.channel import encode
from appliance.engine.kv.handshake import KvServer, Manifest, ask, fingerprint, refusal
from appliance.errors import HandoffError


def ours(**changes: object) -> Manifest:
    return manifest_of("shared_memory", 8, [b""], **{"engine": "e1", **changes})


def theirs(**changes: object) -> Manifest:
    return manifest_of("shared_memory", 8, [b""], **changes)


def test_equal_engines_may_share() -> None:
    assert refusal(ours(), theirs()) is None
    assert refusal(ours(), theirs(layout=layout_of(20))) is None  # more memory is no difference
    assert refusal(ours(), theirs(rank=1, ranks=4)) is None  # nor are more ranks


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": 1}, "protocol 2 against 1"),
        ({"transport": "cuda_ipc"}, "transport shared_memory against cuda_ipc"),
        (
            {"traits": {"model": "other"}, "fingerprint": fingerprint({"model": "other"})},
            "model synthetic against other",
        ),
    ],
)
def test_a_difference_is_named_with_both_engines(change: dict[str, object], says: str) -> None:
    sentence = refusal(ours(), theirs(**change))
    assert sentence is not None
    assert sentence.startswith("e1 can't use the KV of e0: ")
    assert says in sentence


@pytest.mark.parametrize(
    ("differing", "says"),
    [
        (
            {"attention": ("FLASH_ATTN", "FLASHINFER"), "order": ("NHC", "HNC")},
            "attention FLASH_ATTN against FLASHINFER; order NHC against HNC; give both engines the same --attention-backend",
        ),
        (
            {"kv_dtype": ("torch.bfloat16", "torch.uint8"), "kv_cache_dtype": ("auto", "fp8")},
            "kv_dtype torch.bfloat16 against torch.uint8; give both engines the same --kv-cache-dtype",
        ),
        ({"order": ("NHC", "HNC")}, "give both engines the same VLLM_KV_CACHE_LAYOUT"),
        ({"dtype": ("torch.float32", "torch.bfloat16")}, "give both engines the same --dtype"),
    ],
)
def test_what_would_make_it_the_same_is_said(differing: dict[str, tuple[str, str]], says: str) -> None:
    mine, other = ({name: pair[side] for name, pair in differing.items()} for side in (0, 1))
    sentence = refusal(
        ours(traits=mine, fingerprint=fingerprint(mine)), theirs(traits=other, fingerprint=fingerprint(other))
    )
    assert says in (sentence or "")


def test_the_manifest_and_its_descriptors_arrive(tmp_path: Path) -> None:
    descriptor = os.memfd_create("kv")
    os.write(descriptor, b"bytes of e0")
    server = KvServer(tmp_path / "kv", theirs(), [descriptor])
    manifest, descriptors = ask(str(tmp_path / "kv"), "e0")
    assert manifest == theirs()
    assert os.pread(descriptors[0], 100, 0) == b"bytes of e0"
    for opened in [descriptor, *descriptors]:
        os.close(opened)
    server.close()


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """A server that answers one connection with the bytes given, and ends it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = str(tmp_path / "kv")
    listener.bind(path)
    listener.listen()

    def answer(data: bytes) -> str:
        def once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(data)

        threading.Thread(target=once, daemon=True).start()
        return path

    yield answer
    listener.close()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "ended after 0 bytes"),
        (encode(theirs())[:40], "ended after 40 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not an engine channel"),
        (encode(theirs())[:8] + b"\xff" * (len(encode(theirs())) - 8), "can't be read"),
    ],
)
def test_a_truncated_or_foreign_answer_is_refused(answering: Callable[[bytes], str], data: bytes, says: str) -> None:
    with pytest.raises(HandoffError, match=says) as caught:
        ask(answering(data), "e0")
    assert "no KV handshake with e0" in str(caught.value)


def test_nobody_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HandoffError, match="no KV handshake with e7"):
        ask(str(tmp_path / "nothing"), "e7")
