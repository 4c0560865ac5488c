"""How numbers are said on the page. Absent is a dash, never 0; units are spelled as engineers write them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from urllib.parse import urlencode

DASH = "—"
_NB = "\u00a0"  # no line ends between a number and its unit
_UNIT = re.compile(r"(?<=\d) (?=(?:%|°C|W|[kMGT]?Hz|[kMGT]?i?B(?:/s)?|ms|s|min|h|d)(?!\w))")


def count(value: int | None) -> str:
    """12,345."""
    return DASH if value is None else f"{value:,}"


def number(value: float | None) -> str:
    """Three significant digits below a thousand, none after the point above: 0.42, 4.2, 98.1, 4,213."""
    if value is None:
        return DASH
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def percent(share: float | None) -> str:
    """A share of 1 as 43 %."""
    return DASH if share is None else f"{share * 100:.0f}{_NB}%"


def duration(seconds: float | None) -> str:
    """0.4 ms, 12 ms, 1.25 s, 42 s, 3 min 5 s, 12 min, 5 h 12 min, 3 d 4 h."""
    if seconds is None:
        return DASH
    if seconds < 59.5:
        return _short(seconds)
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if seconds < 600:
        rest = round(seconds) % 60
        return f"{round(seconds) // 60}{_NB}min" + (f" {rest}{_NB}s" if rest else "")
    if minutes < 60:
        return f"{minutes}{_NB}min"
    if hours < 48:
        return f"{hours}{_NB}h {minutes % 60}{_NB}min"
    return f"{hours // 24}{_NB}d {hours % 24}{_NB}h"


def setting(seconds: float | None) -> str:
    """Of what somebody has set, or a mark on a scale: 2 s, 1.5 s, 50 ms. It is exact, so no digits say how exact it is."""
    if seconds is None or seconds >= 60:
        return duration(seconds)
    return f"{seconds:g}{_NB}s" if seconds >= 1 else f"{seconds * 1e3:g}{_NB}ms"


def age(seconds: float | None) -> str:
    """The same, but never finer than a second: what is shown of it must not flicker."""
    return f"{int(seconds)}{_NB}s" if seconds is not None and seconds < 60 else duration(seconds)


def _short(seconds: float) -> str:
    if seconds < 0.0005:
        return f"0{_NB}ms" if seconds < 0.00005 else f"{seconds * 1e3:.1f}{_NB}ms"
    if seconds < 0.9995:
        milliseconds = seconds * 1e3
        return f"{milliseconds:.1f}{_NB}ms" if milliseconds < 9.95 else f"{milliseconds:.0f}{_NB}ms"
    return f"{seconds:.2f}{_NB}s" if seconds < 10 else f"{seconds:.0f}{_NB}s"


def memory(size_bytes: int | None) -> str:
    """Memory, in powers of 1024: 312 MiB, 1.4 GiB."""
    return DASH if size_bytes is None else _scaled(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def traffic(size_bytes: float | None) -> str:
    """Bytes moved, in powers of 1000: 312 MB, 1.4 GB."""
    return DASH if size_bytes is None else _scaled(size_bytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def traffic_rate(bytes_s: float | None) -> str:
    """Always GB/s from 10 MB/s up, so that two rates can be compared at a glance."""
    if bytes_s is None:
        return DASH
    if bytes_s < 1e7:
        return f"{traffic(bytes_s)}/s"
    return f"{bytes_s / 1e9:.2f}{_NB}GB/s" if bytes_s < 1e10 else f"{bytes_s / 1e9:.1f}{_NB}GB/s"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if value < base * 0.9995:
            return f"{value:.0f}{_NB}{unit}" if value >= 100 or unit == units[0] else f"{value:.3g}{_NB}{unit}"
        value /= base
    return f"{value:.3g}{_NB}{units[-1]}"


def ranges(values: Sequence[int]) -> str:
    """0, 1, 2, 3, 8 as 0–3, 8."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def unbroken(sentence: str) -> str:
    """A sentence that was written elsewhere, with its numbers kept together with their units."""
    return _UNIT.sub(_NB, sentence)


def several(amount: int, noun: str) -> str:
    """1 engine, 2 engines."""
    return f"{count(amount)} {noun}" if amount == 1 else f"{count(amount)} {noun}s"


def times(amount: int) -> str:
    """once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(amount, f"{count(amount)} times")


def listing(items: Sequence[str]) -> str:
    """a, b and c."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def address(path: str, **query: str) -> str:
    """With those parts of a query that say something."""
    said = {name: value for name, value in query.items() if value}
    return f"{path}?{urlencode(said)}" if said else path


def quoted(argument: str) -> str:
    """As a shell takes it; dots that stand for something stay as they are."""
    return argument if "…" in argument else shlex.quote(argument)
