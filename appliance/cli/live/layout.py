"""Lines that fit: tables that lose columns, and screens that lose sections, what matters least first. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from rich.text import Text

from appliance.cli.glyphs import plain

T = TypeVar("T")
_GAP: Final = 2


class Column(NamedTuple, Generic[T]):
    """``rank``: the highest goes first where there is no room. ``style`` may depend on the row."""

    head: str
    cell: Callable[[T], str]
    rank: int = 0
    right: bool = True
    style: Callable[[T], str] = lambda _: ""


def table(columns: Sequence[Column[T]], rows: Sequence[T], width: int) -> list[Text]:
    """A head and a line for each row, with the columns that there is room for."""
    cells = {column.head: [plain(column.cell(row)) for row in rows] for column in columns}
    kept, gap = _fitting(columns, cells, width)
    lines = [_line([_padded(column, column.head, cells) for column in kept], ["dim"] * len(kept), gap)]
    for at, row in enumerate(rows):
        texts = [_padded(column, cells[column.head][at], cells) for column in kept]
        lines.append(_line(texts, [column.style(row) for column in kept], gap))
    return lines


def _fitting(columns: Sequence[Column[T]], cells: dict[str, list[str]], width: int) -> tuple[list[Column[T]], int]:
    """Narrow gaps come before a column goes."""
    kept = list(columns)
    while True:
        for gap in (_GAP, 1):
            if sum(_width(column, cells) for column in kept) + gap * (len(kept) - 1) <= width:
                return kept, gap
        least = max(kept, key=lambda column: column.rank)
        if least.rank == 0:
            return kept, 1
        kept.remove(least)


def _width(column: Column[T], cells: dict[str, list[str]]) -> int:
    return max(len(text) for text in (column.head, *cells[column.head]))


def _padded(column: Column[T], text: str, cells: dict[str, list[str]]) -> str:
    width = _width(column, cells)
    return text.rjust(width) if column.right else text.ljust(width)


def _line(texts: Sequence[str], styles: Sequence[str], gap: int) -> Text:
    found = Text()
    for text, style in zip(texts, styles, strict=True):
        found.append(" " * gap if found else "")
        found.append(text, style)
    found.rstrip()
    return found


def wrapped(said: str, width: int, *, style: str = "", indent: str = "", first: str | None = None) -> list[Text]:
    """A sentence in lines; ``first``: what stands before its first line instead of the indentation."""
    head = indent if first is None else first
    found = textwrap.wrap(
        plain(said), max(10, width), initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
    )
    return [Text(line, style) for line in found]


def flowing(items: Sequence[Text], width: int, *, indent: str = "", between: str = "  ·  ") -> list[Text]:
    """One after the other, in as many lines as that takes."""
    lines: list[Text] = []
    for item in items:
        if lines and lines[-1].cell_len + len(between) + item.cell_len <= width:
            lines[-1].append(between, "dim").append_text(item)
        else:
            lines.append(Text(indent).append_text(item))
    return lines


class Variant(NamedTuple):
    """A section in one size. ``rank``: the highest is given up first, for the next smaller one."""

    rank: float
    lines: list[Text]


class Section(NamedTuple):
    """From its fullest to its smallest; after the last one with a rank above 0 it is left out."""

    variants: list[Variant]

    @staticmethod
    def of(*variants: tuple[float, list[Text]]) -> Section:
        return Section([Variant(rank, lines) for rank, lines in variants if lines])


_BLANK_LINES: Final = 7.5  # the rank of the empty lines between sections


def fit(sections: Sequence[Section], height: int | None) -> list[Text]:
    """As much of it as there is room for; all of it where ``height`` is None."""
    chosen = [list(section.variants) for section in sections if section.variants]
    blank = True
    while height is not None and _height(chosen, blank) > height:
        least = max(chosen, key=lambda variants: variants[0].rank if variants else 0.0)
        rank = least[0].rank if least else 0.0
        if blank and rank < _BLANK_LINES:
            blank = False
        elif rank <= 0:
            break
        else:
            least.pop(0)
    return _joined(chosen, blank)[:height]


def _height(chosen: Sequence[Sequence[Variant]], blank: bool) -> int:
    return len(_joined(chosen, blank))


def _joined(chosen: Sequence[Sequence[Variant]], blank: bool) -> list[Text]:
    found: list[Text] = []
    for variants in chosen:
        if variants:
            found += [Text()] if found and blank else []
            found += variants[0].lines
    return found
