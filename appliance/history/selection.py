"""Which series are meant: ``ttft_s``, ``e0.kv_usage``, ``*.kv_usage``, ``gpu0.*``, ``*``. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from appliance.errors import RequestError
from appliance.history.samples import ENGINE, GPU, NODE, TABLES, Column

Wanted = Mapping[str, Mapping[str, Sequence[Column]]]
"""Table → engine or GPU (empty for the node itself) → columns."""

_ALL: Final = "*"


def select(series: Sequence[str], names: Callable[[str], Sequence[str]]) -> Wanted:
    """``names`` tells the engines or the GPUs that there are, by table. Raises ``RequestError``."""
    wanted: dict[str, dict[str, dict[str, Column]]] = {}
    for one in series:
        subject, dot, column = one.rpartition(".")
        if not dot:
            _want(wanted, "node", [""], _columns(NODE, column, one))
        elif subject == _ALL:
            _everybody(wanted, column, one, names)
        else:
            table = "gpu" if subject.startswith("gpu") else "engine"
            _want(wanted, table, [subject], _columns(TABLES[table], column, one))
    return {
        table: {name: tuple(columns.values()) for name, columns in by_name.items()} for table, by_name in wanted.items()
    }


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
        raise RequestError(400, f"There is no series {one!r}; {hint}", param="series")
    return found
