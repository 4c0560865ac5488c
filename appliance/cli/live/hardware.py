"""Hand-offs between engines, and the GPUs below them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from appliance.cli import glyphs
from appliance.cli.live.engines import held_back
from appliance.cli.live.layout import Column, Section, flowing, table, wrapped
from appliance.records import GpuSnapshot, LinkSnapshot, NodeSnapshot, Pair
from web import words
from web.gpus import errors, slowed

_SLOW: Final = 1.5
_MARK: Final = "▶"
_FEW: Final = 8


def handoffs(snapshot: NodeSnapshot, width: int) -> Section:
    """One line for all of them, the links of the last seconds, and pairs over which no KV gets."""
    found, ledger = snapshot.handoffs, snapshot.ledger
    if not found.count and not snapshot.links and not ledger.leases and not snapshot.pairs:
        return Section([])
    blocks = sum(lease.blocks for lease in ledger.leases)
    line = [
        Text(f"hand-offs/s {words.number(found.recent_s)}"),
        Text(glyphs.plain(f"at {words.traffic_rate(found.recent_bytes_s)}")),
        Text(f"{words.count(found.count)} so far"),
        Text(f"recomputed {words.count(found.failed)}", "yellow" if found.failed else ""),
        Text(f"leases {len(ledger.leases)} of {words.count(blocks)} blocks"),
    ]
    head = flowing(line, width, between=" · ")
    broken = [row for pair in snapshot.pairs if not pair.in_use for row in _broken(pair, width)]
    slow = sorted(snapshot.links, key=_place)
    links = flowing([_link(link) for link in slow], width, indent="  ")
    worst = flowing([_link(link) for link in slow if _is_slow(link)], width, indent="  ")
    return Section.of(
        (6.2, [*broken, *head, *links]),
        (5.2, [*broken, *head, *(worst or links[:1])[:2]]),
        (2.8, [*broken, *worst[:1]]),
    )


def _broken(pair: Pair, width: int) -> list[Text]:
    said = f"{pair.prefill} → {pair.decode} is broken and not used: {pair.error or 'no KV gets over it'}"
    return wrapped(said, width, style="bold red", indent="    ", first="✕ ")


def _place(link: LinkSnapshot) -> tuple[float, str, str]:
    """Slow ones first, the slowest of all; the others where one looks for them, whatever they do from second to second."""
    return -(link.slowdown or 0.0) if _is_slow(link) else 0.0, link.producer, link.consumer


def _is_slow(link: LinkSnapshot) -> bool:
    return link.slowdown is not None and link.slowdown > _SLOW


def _link(link: LinkSnapshot) -> Text:
    rate = glyphs.plain(words.traffic_rate(link.bytes_s))
    said = f"{link.producer}→{link.consumer} {words.number(link.handoffs_s)}/s {rate} {glyphs.times(link.slowdown)}"
    return Text(f"{said} SLOW" if _is_slow(link) else said, "bold yellow" if _is_slow(link) else "")


def gpus(snapshot: NodeSnapshot, width: int) -> Section:
    """A row each; with less room those that are not as they should be, and the range of all."""
    if not snapshot.gpus:
        return Section([])
    held = held_back(snapshot)
    unwell = [gpu for gpu in snapshot.gpus if slowed(gpu) or errors(gpu)]
    columns = _columns(held, width)
    rank = 3.4 if unwell else 5.0
    short = [*(table(columns, unwell, width) if unwell else []), *_others(snapshot.gpus, unwell, width)]
    everything = table(columns, snapshot.gpus, width)
    return Section.of(
        (5.6, everything), (rank, short), (2.0, [line for gpu in unwell for line in _said(gpu, width)][:2])
    )


def _columns(held: Sequence[str], width: int) -> list[Column[GpuSnapshot]]:
    bar = 4 if width < 100 else 8

    def share(value: float | None) -> str:
        return f"{glyphs.bar(value, bar)} {glyphs.percent(value):>4}"

    def bad(gpu: GpuSnapshot) -> str:
        return "bold yellow" if slowed(gpu) else ""

    columns: list[Column[GpuSnapshot]] = [
        Column(
            "  GPU", lambda g: f"{_MARK if g.engine in held else ' '} {g.index}", right=False, style=lambda _: "bold"
        ),
        Column("engine", lambda g: g.engine or words.DASH, right=False),
        Column("clock MHz", _clock, style=bad),
        Column("power", lambda g: _of(g.power_w, g.power_limit_w, "W"), rank=4),
        Column("temp", lambda g: words.DASH if g.temperature_c is None else f"{g.temperature_c:.0f} °C", rank=3),
        Column("tensor", lambda g: share(g.tensor), rank=5),
        Column("DRAM", lambda g: share(g.dram), rank=5),
        Column("memory", lambda g: words.memory(g.memory_used_bytes), rank=8),
        Column("NVLink", lambda g: words.traffic_rate(g.nvlink_bytes_s), rank=7),
        Column("why", _why, rank=1, right=False, style=lambda _: "bold yellow"),
    ]
    return columns


def _clock(gpu: GpuSnapshot) -> str:
    return (
        words.number(gpu.clock_mhz)
        if gpu.clock_max_mhz is None
        else f"{words.number(gpu.clock_mhz)}/{gpu.clock_max_mhz:,.0f}"
    )


def _of(value: float | None, limit: float | None, unit: str) -> str:
    if value is None:
        return words.DASH
    return f"{value:.0f} {unit}" if limit is None else f"{value:.0f}/{limit:.0f} {unit}"


def _why(gpu: GpuSnapshot) -> str:
    return "; ".join(filter(None, (slowed(gpu), errors(gpu))))


def _others(every: Sequence[GpuSnapshot], unwell: Sequence[GpuSnapshot], width: int) -> list[Text]:
    """``7 other GPUs: 1,980 MHz, 61 °C, 412–520 W``."""
    others = [gpu for gpu in every if gpu not in unwell]
    if not others:
        return []
    readings = (
        (_range([gpu.clock_mhz for gpu in others]), "MHz"),
        (_range([gpu.temperature_c for gpu in others]), "°C"),
        (_range([gpu.power_w for gpu in others]), "W"),
    )
    said = ", ".join(f"{text} {unit}" for text, unit in readings)
    return wrapped(f"{words.several(len(others), 'other GPU' if unwell else 'GPU')}: {said}", width, indent="  ")


def _range(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return words.DASH
    low, high = f"{known[0]:,.0f}", f"{known[-1]:,.0f}"
    return low if low == high else f"{low}–{high}"


def _said(gpu: GpuSnapshot, width: int) -> list[Text]:
    said = f"GPU {gpu.index} ({gpu.engine or 'no engine'}): {_clock(gpu)} MHz, {_why(gpu)}"
    return wrapped(said, width, style="bold yellow", indent="  ")
