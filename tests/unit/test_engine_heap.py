"""An engine at rest keeps no memory that it has freed."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from appliance.engine import heap, recorder
from appliance.engine.recorder import StepRecorder

PIECE = 64 << 10  # small enough for the heap itself
PIECES = 1024
S = 1_000_000_000


@pytest.fixture
def libc() -> Any:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return library


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def test_what_is_freed_below_something_in_use_is_returned(libc: Any) -> None:
    pieces = [libc.malloc(PIECE) for _ in range(PIECES)]
    last = libc.malloc(PIECE)
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    full = resident()
    for piece in pieces:
        libc.free(piece)
    freed = resident()
    heap.give_back()
    returned = resident()
    libc.free(last)
    assert full - freed < PIECE * PIECES / 4, "else there is no need for it"
    assert freed - returned > PIECE * PIECES * 3 / 4


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns, self.given = 1000 * S, 0
        monkeypatch.setattr(recorder.time, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(heap, "give_back", self._give_back)

    def _give_back(self) -> None:
        self.given += 1


def test_it_is_given_back_once_after_a_rest_and_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    half = SimpleNamespace(tick=lambda now_ns: None)
    engine: Any = SimpleNamespace(
        connector=SimpleNamespace(scheduler_half=half), _beat=lambda now_ns: None, _last_end_ns=0, _given_back_ns=0
    )

    def after(seconds: float) -> int:
        clock.now_ns += int(seconds * S)
        StepRecorder.idle(engine)
        return clock.given

    assert (after(1), after(1), after(60)) == (1, 1, 1), "what the start has freed, once"
    engine._last_end_ns = clock.now_ns
    assert (after(1), after(8)) == (1, 1), "somebody may come again"
    assert (after(2), after(1), after(60)) == (2, 2, 2)
