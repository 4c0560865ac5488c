"""Which series are meant: ``ttft_s``, ``e0.kv_usage``, ``*.kv_usage``, ``gpu0.*``, ``*``. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from appliance.errors import RequestError, quoted
from appliance.history.samples import ENGINE, GPU, NODE, TABLES, Column

VALUES_MOST: Final = 500_000
"""Of an answer: all series of eight engines on eight GPUs, in as many points as can be asked for."""
Wanted = Mapping[str, Mapping[str, Sequence[Column]]]
"""Table → engine or GPU (empty for the node itself) → columns."""

_ALL: Final = "*"


def select(
    series: Sequence[str], names: Callable[[str], Sequence[str]], present: Collection[str] | None = (), count: int = 1
) -> Wanted:
    """What is to be read.

    Args:
        series: as they were asked for.
        names: the engines or the GPUs of which anything is kept of that time, by table.
        present: those that there are now, of which there may be nothing yet; None where that is not known, either.
        count: values of each series.

    Raises ``RequestError`` for what there is not, and for more than ``VALUES_MOST``.
    """
    wanted = _selected(series, names, present)
    told = count * sum(
        _values(column) for by_name in wanted.values() for columns in by_name.values() for column in columns
    )
    if told > VALUES_MOST:
        raise RequestError(
            400,
            f"That is {told:,} values, and {VALUES_MOST:,} are told at once: ask for fewer series, or for at most "
            f"{max(2, VALUES_MOST * count // told):,} points.",
            param="points",
        )
    return wanted


def _values(column: Column) -> int:
    """At a point."""
    return 2 if column.extreme else 1


def _selected(series: Sequence[str], names: Callable[[str], Sequence[str]], present: Collection[str] | None) -> Wanted:
    wanted: dict[str, dict[str, dict[str, Column]]] = {}
    for one in series:
        subject, dot, column = one.rpartition(".")
        if not dot:
            _want(wanted, "node", [""], _columns(NODE, column, one))
        elif subject == _ALL:
            _everybody(wanted, column, one, names)
        else:
            table = "gpu" if subject.startswith("gpu") else "engine"
            columns = _columns(TABLES[table], column, one)
            if present is not None and subject not in present:
                _check_there(one, subject, table, names(table))
            _want(wanted, table, [subject], columns)
    return {
        table: {name: tuple(columns.values()) for name, columns in by_name.items()} for table, by_name in wanted.items()
    }


def _check_there(one: str, subject: str, table: str, there: Sequence[str]) -> None:
    if subject not in there:
        what = "GPUs" if table == "gpu" else "engines"
        known = f"{what} of that time are {', '.join(there)}" if there else f"nothing is kept of {what} of that time"
        raise RequestError(400, f"There is no series {quoted(one)}: {known}.", param="series")


def _everybody(
    wanted: dict[str, dict[str, dict[str, Column]]], column: str, one: str, names: Callable[[str], Sequence[str]]
) -> None:
    tables = [table for table in ("engine", "gpu") if column == _ALL or column in {c.name for c in TABLES[table]}]
    if not tables:
        _columns((*ENGINE, *GPU), column, one)  # says what is near
    for table in tables:
        _want(wanted, table, names(table), _columns(TABLES[table], column, one))


def _want(
    wanted: dict[str, dict[str, dict[str, Column]]], table: str, names: Sequence[str], columns: Sequence[Column]
) -> None:
    for name in names:
        wanted.setdefault(table, {}).setdefault(name, {}).update({column.name: column for column in columns})


def _columns(known: Sequence[Column], column: str, one: str) -> list[Column]:
    if column == _ALL:
        return list(known)
    found = [each for each in known if each.name == column]
    if not found:
        names = list(dict.fromkeys(each.name for each in known))
        near = difflib.get_close_matches(column, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."
        raise RequestError(400, f"There is no series {quoted(one)}; {hint}", param="series")
    return found
