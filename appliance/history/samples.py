"""What is kept of a snapshot: columns of numbers for the node, for each engine and for each GPU. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Final

import msgspec

from appliance.records import LATELY_S, STAGES, EngineSnapshot, GpuSnapshot, NodeSnapshot

_RATE: Final = 100
_SHARE: Final = 1000
_SECOND: Final = 100_000
_MIB: Final = 2.0**-20
_AGAIN_S: Final = 150.0  # two snapshots further apart have no rates between them


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One number. It is kept as a whole number of ``1 / scale`` of its unit: SQLite writes small whole numbers in two or three bytes."""

    name: str
    scale: float = 1
    extreme: str | None = None  # MAX or MIN, where a mean alone would hide what matters
    weight: str | None = (
        None  # the column whose amount its means go by: first tokens, not seconds, for a time to first token
    )
    part: bool = False  # of a sum: where it is missing and the weight is not, it took no time


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot's numbers, in the order of the columns, scaled. ``time`` is in Unix seconds."""

    time: float
    node: tuple[int | None, ...]
    engines: dict[str, tuple[int | None, ...]] = {}
    gpus: dict[str, tuple[int | None, ...]] = {}


class Seen(msgspec.Struct, frozen=True):
    """A snapshot, and the one before it if that is not long ago."""

    now: NodeSnapshot
    before: NodeSnapshot | None = None


Reading = Callable[[Seen], float | None]


def _total(field: str) -> Reading:
    """Of all engines; those that tell nothing count for nothing, unless none does."""
    read = attrgetter(field)

    def total(seen: Seen) -> float | None:
        known = [value for engine in seen.now.engines if (value := read(engine)) is not None]
        return sum(known) if known else None

    return total


def _by_tokens(field: str) -> Reading:
    """Mean over engines, by the tokens that each makes."""
    read = attrgetter(field)

    def mean(seen: Seen) -> float | None:
        told = [engine for engine in seen.now.engines if read(engine) is not None and engine.output_tokens_s]
        tokens = sum(engine.output_tokens_s or 0.0 for engine in told)
        return sum(read(engine) * engine.output_tokens_s for engine in told) / tokens if tokens else None

    return mean


def _growth(field: str) -> Reading:
    """Per second, of something that is counted since the start. None across a restart."""
    read = attrgetter(field)

    def growth(seen: Seen) -> float | None:
        now, before = seen.now, seen.before
        if before is None or not 0 < now.time - before.time < _AGAIN_S or read(now) < read(before):
            return None
        return float((read(now) - read(before)) / (now.time - before.time))

    return growth


def _of(field: str) -> Reading:
    read = attrgetter(field)
    return lambda seen: read(seen.now)


def _lately(field: str) -> Reading:
    read = attrgetter(field)
    return lambda seen: None if seen.now.lately is None else read(seen.now.lately)


def _per_second(field: str) -> Reading:
    count = _lately(field)
    return lambda seen: None if (found := count(seen)) is None else found / LATELY_S


def _stage(name: str) -> Reading:
    def mean(seen: Seen) -> float | None:
        stages = seen.now.lately.stages if seen.now.lately is not None else ()
        return next((stage.duration_s for stage in stages if stage.name == name), None)

    return mean


def _good(seen: Seen) -> float | None:
    lately = seen.now.lately
    return None if lately is None else (lately.good or 0.0) * lately.ended / LATELY_S


def _row(name: str, read: Reading, scale: float, **more: Any) -> tuple[Column, Reading]:
    return Column(name=name, scale=scale, **more), read


_NODE: Final[tuple[tuple[Column, Reading], ...]] = (
    _row("prompt_tokens_s", _total("prompt_tokens_s"), 1, extreme="MAX"),
    _row("output_tokens_s", _total("output_tokens_s"), 10, extreme="MAX"),
    _row("requests_s", _growth("requests.total"), _RATE),
    _row("failed_s", _growth("requests.failed"), _RATE),
    _row("first_tokens_s", _per_second("first_tokens"), _RATE),
    _row("ended_s", _per_second("ended"), _RATE),
    _row("good_s", _good, _RATE),
    _row("good_share", _lately("good"), _SHARE, weight="ended_s"),
    _row("ttft_s", _lately("ttft_s"), _SECOND, weight="first_tokens_s"),
    _row("ttft_late", _lately("ttft_late"), _SHARE, weight="first_tokens_s"),
    *(_row(f"ttft_{name}_s", _stage(name), _SECOND, weight="first_tokens_s", part=True) for name in STAGES),
    _row("ttft_p50_s", _of("ttft_p50_s"), _SECOND),
    _row("ttft_p99_s", _of("ttft_p99_s"), _SECOND, extreme="MAX"),
    _row("itl_s", _by_tokens("itl_s"), _SECOND, weight="output_tokens_s"),
    _row("itl_p50_s", _of("itl_p50_s"), _SECOND),
    _row("itl_late", _by_tokens("itl_late"), _SHARE, weight="output_tokens_s", extreme="MAX"),
    _row("queue_depth", _of("queue.depth"), 10, extreme="MAX"),
    _row("queue_oldest_s", _of("queue.oldest_s"), _RATE, extreme="MAX"),
    _row("in_flight", _of("queue.in_flight"), 10, extreme="MAX"),
    _row("handoffs_s", _growth("handoffs.count"), _RATE),
    _row("handoff_bytes_s", _growth("handoffs.bytes"), _MIB),
    _row("loop_delay_ms", _of("supervisor.loop_delay_ms"), _RATE, extreme="MAX"),
)

NODE: Final = tuple(column for column, _ in _NODE)
ENGINE: Final = (
    Column(name="prompt_tokens_s"),
    Column(name="output_tokens_s"),
    Column(name="running", scale=10, extreme="MAX"),
    Column(name="waiting", scale=10, extreme="MAX"),
    Column(name="kv_usage", scale=_SHARE, extreme="MAX"),
    Column(name="busy", scale=_SHARE),
    Column(name="slowdown", scale=_SHARE, extreme="MAX"),
    Column(name="step_ms", scale=_RATE),
    Column(name="memory_bytes", scale=_MIB),
)
GPU: Final = (
    Column(name="tensor", scale=_SHARE),
    Column(name="dram", scale=_SHARE),
    Column(name="nvlink_bytes_s", scale=_MIB),
    Column(name="clock_mhz", extreme="MIN"),
    Column(name="power_w", extreme="MAX"),
    Column(name="temperature_c", extreme="MAX"),
    Column(name="memory_used_bytes", scale=_MIB),
)
TABLES: Final = {"node": NODE, "engine": ENGINE, "gpu": GPU}
"""Fields of an engine's and a GPU's snapshot go by their names there."""

_ENGINE_READS: Final = tuple((column, attrgetter(column.name)) for column in ENGINE)
_GPU_READS: Final = tuple((column, attrgetter(column.name)) for column in GPU)


def sample(seen: Seen) -> Sample:
    """What is kept of a snapshot."""
    return Sample(
        time=seen.now.time,
        node=tuple(_scaled(read(seen), column.scale) for column, read in _NODE),
        engines={engine.name: _fields(engine, _ENGINE_READS) for engine in seen.now.engines},
        gpus={f"gpu{gpu.index}": _fields(gpu, _GPU_READS) for gpu in seen.now.gpus},
    )


def _fields(
    of: EngineSnapshot | GpuSnapshot, reads: Iterable[tuple[Column, Callable[[Any], float | None]]]
) -> tuple[int | None, ...]:
    return tuple(_scaled(read(of), column.scale) for column, read in reads)


def _scaled(value: float | None, scale: float) -> int | None:
    return None if value is None else round(value * scale)


def lately(now: NodeSnapshot) -> dict[str, float | None]:
    """What the page's charts are told with every snapshot: the node's series, and how full each engine's KV is."""
    seen = Seen(now)
    node = {column.name: _rounded(read(seen), column.scale) for column, read in _NODE}
    return node | {f"{engine.name}.kv_usage": _rounded(engine.kv_usage, _SHARE) for engine in now.engines}


def _rounded(value: float | None, scale: float) -> float | None:
    return None if value is None else round(value * scale) / scale
