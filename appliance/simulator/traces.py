"""Published traces of requests, or an owner's in the same form, replayed.

``.csv``: ``TIMESTAMP,ContextTokens,GeneratedTokens`` (Azure). ``.jsonl``: ``timestamp`` in ms, ``input_length``, ``output_length`` and
``hash_ids``, one for each 512 tokens of the prompt (Mooncake, FAST '25).
"""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from appliance.errors import ConfigError
from appliance.simulator.request import Asked

T = TypeVar("T")
MOONCAKE_BLOCK_TOKENS: Final = 512
MOST_TOKENS: Final = 10_000_000  # of a prompt or an answer: no context is so long
Arrival = tuple[float, Asked]
"""Seconds from the beginning, and what is asked."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class _Azure(msgspec.Struct):
    TIMESTAMP: datetime.datetime
    ContextTokens: Tokens
    GeneratedTokens: Tokens


class _Mooncake(msgspec.Struct):
    timestamp: float
    input_length: Tokens
    output_length: Tokens
    hash_ids: tuple[int, ...] = ()


def replay(path: Path, speed: float, duration_s: float, block_tokens: int) -> Iterator[Arrival]:
    """In order of time, the first one at 0. Raises ``ConfigError`` that names the line which can't be read."""
    rows = sorted(_rows(path, block_tokens), key=lambda arrival: arrival[0])
    if not rows:
        raise ConfigError(f"traffic.trace: {path} has no requests")
    first_s = rows[0][0]
    return (((at_s - first_s) / speed, asked) for at_s, asked in rows if at_s - first_s < duration_s * speed)


def _rows(path: Path, block_tokens: int) -> list[Arrival]:
    kinds = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    read = kinds.get(path.suffix.lower())
    if read is None:
        raise ConfigError(
            f"traffic.trace: {path} is neither .csv (TIMESTAMP,ContextTokens,GeneratedTokens) nor .jsonl (timestamp, input_length, …)"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(read(path, file, block_tokens))
    except OSError as error:
        raise ConfigError(f"traffic.trace: {path} can't be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"traffic.trace: {path} is no text: {error}") from error


def _csv_rows(path: Path, file: Iterable[str], block_tokens: int) -> Iterator[Arrival]:
    table = csv.DictReader(file)
    for fields in table:
        row = _converted(path, table.line_num, fields, _Azure)
        at = row.TIMESTAMP
        at = at if at.tzinfo else at.replace(tzinfo=datetime.UTC)
        yield at.timestamp(), _asked(row.ContextTokens, row.GeneratedTokens)


def _jsonl_rows(path: Path, file: Iterable[str], block_tokens: int) -> Iterator[Arrival]:
    per = MOONCAKE_BLOCK_TOKENS // block_tokens
    for number, line in enumerate(file, 1):
        if line.strip():
            row = _converted(path, number, line, _Mooncake)
            digests = tuple(block * per + place for block in row.hash_ids for place in range(per))
            yield (
                row.timestamp / 1000,
                _asked(row.input_length, row.output_length, digests[: row.input_length // block_tokens]),
            )


def _asked(prompt: int, output: int, digests: tuple[int, ...] = ()) -> Asked:
    return Asked(prompt_tokens=max(1, prompt), output_tokens=max(1, output), digests=digests)


def _converted(path: Path, number: int, row: str | Mapping[str | None, Any], kind: type[T]) -> T:
    try:
        if isinstance(row, str):
            return msgspec.json.decode(row, type=kind)
        return msgspec.convert({name: value for name, value in row.items() if name}, kind, strict=False)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ConfigError(f"traffic.trace: {path}, line {number}: {error}") from error
