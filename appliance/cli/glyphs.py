"""Bars and lines of bars for terminals, and numbers as the page says them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from web import words

_EIGHTHS: Final = "▏▎▍▌▋▊▉█"
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_EMPTY: Final = "·"
_ASCII: Final = str.maketrans(
    {
        **dict.fromkeys("▍▌▋▊▉█", "#"),
        **dict.fromkeys("▏▎", "|"),
        **dict(zip("▁▂▃▄▅▆▇", "_.,-=+*", strict=True)),
        "·": ".", "—": "-", "…": "~", "→": ">", "×": "x", "▶": ">", "°": " ", "≤": "<", "–": "-",
        "●": "*", "✕": "X", "▲": "!", "◔": "o", "○": "o", "■": "#",
    }
)  # fmt: skip


def plain(text: str) -> str:
    """The page's words, with the spaces that terminals copy; an engine's last words among them are shown, and not obeyed."""
    return visible(text.replace("\u00a0", " "))


def visible(text: str) -> str:
    """What a node or a file says, as one line that a terminal shows and does not obey."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}" for one in text)


def ascii_only(text: str) -> str:
    """For terminals that can't show more; as long as it was."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def bar(share: float | None, width: int) -> str:
    """A share of 1, in eighths of a character; what is something shows as something. Absent is blank."""
    if share is None or width <= 0:
        return " " * max(0, width)
    eighths = round(8 * width * min(1.0, max(0.0, share)))
    if share > 0:
        eighths = max(1, eighths)
    full, rest = divmod(eighths, 8)
    return (_EIGHTHS[-1] * full + (_EIGHTHS[rest - 1] if rest else "")).ljust(width, _EMPTY)


def span(start: float, length: float, width: int) -> str:
    """A part of a whole, both as shares of 1, at its place; at least one thin stroke."""
    first = min(width - 1, round(start * width))
    cells = max(1, round((start + length) * width) - first)
    drawn = _EIGHTHS[-1] * cells if length * width >= 0.5 else _EIGHTHS[0]
    return (" " * first + drawn)[:width].ljust(width)


def spark(values: Sequence[float | None], highest: float | None = None) -> str:
    """A line of bars from nothing to the highest; absent is blank, and nothing the lowest bar."""
    known = [value for value in values if value is not None]
    top = max([*known, highest or 0.0], default=0.0)
    return "".join(" " if value is None else _height(value, top) for value in values)


def _height(value: float, top: float) -> str:
    step = 0 if top <= 0 else round(8 * value / top)
    return _HEIGHTS[max(0, min(8, step) - 1)]


def short(value: float | None) -> str:
    """Rates where there is little room: 98, 4.2k, 21k, 1.3M."""
    if value is None:
        return words.DASH
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return words.number(value) if value < 10 else f"{value:.0f}"


def seconds(value: float | None) -> str:
    return plain(words.duration(value))


def age(value: float | None) -> str:
    return plain(words.age(value))


def percent(value: float | None) -> str:
    """Without a space: columns are narrow."""
    return words.DASH if value is None else f"{value:.0%}"


def times(value: float | None) -> str:
    return words.DASH if value is None else f"{value:.1f}×"
