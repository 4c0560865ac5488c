"""GPUs are read in a thread of their own: an answer takes up to tens of milliseconds, and one that hangs must not hang the node."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol, Self

from appliance.gpu.device import Reading

_log = logging.getLogger("pd-appliance")
_OLD_NS: Final = 5 * 10**9  # and ten ticks: what is older says nothing of now
_FAREWELL_S: Final = 1.0


class Source(Protocol):
    absent: bool

    def read(self, now_ns: int) -> tuple[Reading, ...]: ...
    def close(self) -> None: ...


class Watch:
    """Reads at each tick between entry and exit; ``latest`` may be asked from anywhere."""

    def __init__(self, source: Source, tick_s: float, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._source = source
        self._tick_s = tick_s
        self._clock_ns = clock_ns
        self._latest: tuple[int, tuple[Reading, ...]] = (0, ())  # replaced as a whole
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpus", daemon=True)  # one that hangs holds up no end
        self._failed = self._told_old = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_FAREWELL_S)

    def latest(self) -> tuple[Reading, ...]:
        """Empty where nothing was read lately."""
        read_ns, readings = self._latest
        old = self._clock_ns() - read_ns > max(_OLD_NS, 10 * self._tick_s * 1e9)
        if readings and old and not self._told_old:
            _log.warning(
                "NVML has not answered for %.0f s: GPUs are not read until it does", (self._clock_ns() - read_ns) * 1e-9
            )
        self._told_old = bool(readings) and old
        return () if old else readings

    def _run(self) -> None:
        pause_s = 0.0
        while not self._stop.wait(pause_s) and not self._source.absent:
            self._read()
            pause_s = self._tick_s
        self._source.close()

    def _read(self) -> None:
        """A fault of ours in reading must not end the readings: it is logged once."""
        try:
            self._latest = (self._clock_ns(), self._source.read(self._clock_ns()))
        except Exception:
            self._latest = (self._clock_ns(), ())
            if not self._failed:
                _log.exception("GPUs could not be read")
            self._failed = True
