"""What is known of a node from here: its last snapshot, the last minutes, whether it still answers. Times are passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.records import EngineSnapshot, NodeSnapshot

_KEPT_S: Final = 900.0
_RATE_S: Final = 10.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One moment, by the node's clock. Absent is None."""

    time: float
    queue: float
    ttft_s: float | None  # mean of the first tokens of the last seconds
    output_tokens_s: float | None
    requests: int  # since the node's start


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is drawn. ``now`` and ``lost_at`` are Unix seconds of this machine; the snapshot's are the node's."""

    url: str
    now: float
    snapshot: NodeSnapshot | None = None
    samples: tuple[Sample, ...] = ()
    error: str | None = None  # why it does not answer; None while it does
    lost_at: float | None = None  # since when it does not
    silent_s: float = 0.0  # since there was something new
    interval_s: float = 1.0

    @property
    def stale(self) -> bool:
        """What it shows is no longer how the node is."""
        return self.snapshot is not None and self.silent_s > max(5.0, 3 * self.interval_s)

    @property
    def requests_s(self) -> float | None:
        """Requests that came per second, of the last ten; None until there are two looks at the node."""
        if len(self.samples) < 2:
            return None
        last = self.samples[-1]
        first = next((one for one in self.samples if last.time - one.time <= _RATE_S), self.samples[-2])
        first = self.samples[-2] if first is last else first
        return max(0, last.requests - first.requests) / max(last.time - first.time, 1e-6)

    def series(self, pick: Callable[[Sample], float | None], cells: int, cell_s: float) -> list[float | None]:
        """The highest of each ``cell_s`` seconds, newest last; None where nothing is known. Cells stand still while time passes."""
        found: list[float | None] = [None] * cells
        if not self.samples:
            return found
        newest = int(self.samples[-1].time // cell_s)
        for sample in self.samples:
            at, value = cells - 1 - (newest - int(sample.time // cell_s)), pick(sample)
            if at >= 0 and value is not None:
                found[at] = max(value, found[at] or 0.0)
        return found


class Watch:
    """Is told what each try to ask the node came to."""

    def __init__(self, url: str, interval_s: float) -> None:
        self._view = View(url=url, now=0.0, interval_s=interval_s)
        self._samples: deque[Sample] = deque()
        self._new_at: float | None = None  # by this machine's monotonic clock

    def heard(self, snapshot: NodeSnapshot, monotonic_s: float) -> None:
        """It answered. One that says the same again and again answers, but is stale."""
        last = self._view.snapshot
        if last is None or snapshot.time != last.time:
            self._new_at = monotonic_s
            if last is not None and (snapshot.time < last.time or snapshot.uptime_s < last.uptime_s):
                self._samples.clear()  # another life, or a clock that was set back
            self._samples.append(sample(snapshot))
        while snapshot.time - self._samples[0].time > _KEPT_S:
            self._samples.popleft()
        self._change(snapshot=snapshot, samples=tuple(self._samples), error=None, lost_at=None)

    def failed(self, error: str, unix_s: float) -> None:
        """It did not; the first failure in a row is when it was lost."""
        self._change(error=error, lost_at=unix_s if self._view.lost_at is None else self._view.lost_at)

    def view(self, monotonic_s: float, unix_s: float) -> View:
        silent_s = 0.0 if self._new_at is None else monotonic_s - self._new_at
        return msgspec.structs.replace(self._view, now=unix_s, silent_s=silent_s)

    def _change(self, **fields: object) -> None:
        self._view = msgspec.structs.replace(self._view, **fields)


def sample(snapshot: NodeSnapshot) -> Sample:
    lately = snapshot.lately
    return Sample(
        time=snapshot.time,
        queue=snapshot.queue.depth,
        ttft_s=lately.ttft_s if lately else None,
        output_tokens_s=total(snapshot.engines, lambda engine: engine.output_tokens_s),
        requests=snapshot.requests.total,
    )


def total(engines: Sequence[EngineSnapshot], pick: Callable[[EngineSnapshot], float | None]) -> float | None:
    """Of all engines that tell; None if none does."""
    known = [value for engine in engines if (value := pick(engine)) is not None]
    return sum(known) if known else None
