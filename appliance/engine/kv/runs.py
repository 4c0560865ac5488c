"""Copies within one GPU's view of memory, as few and as large as CUDA takes them. Pure: integers in, integers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

Run = tuple[int, int, int]  # target, source, bytes


class Stride(msgspec.Struct, frozen=True, array_like=True):
    """``height`` runs of ``width`` bytes each, as far apart as the pitches say; a single run has height 1."""

    target: int
    source: int
    width: int
    height: int
    target_pitch: int
    source_pitch: int


def sliced(runs: Sequence[Run], limit: int) -> Iterator[list[Run]]:
    """The same bytes in the same order, at most ``limit`` of them in each list; a run that is longer is cut."""
    slice_: list[Run] = []
    room = limit
    for target, source, size in runs:
        done = 0
        while done < size:
            part = min(room, size - done)
            slice_.append((target + done, source + done, part))
            done, room = done + part, room - part
            if not room:
                yield slice_
                slice_, room = [], limit
    if slice_:
        yield slice_


def strided(runs: Sequence[Run], most_pitch: int = (1 << 31) - 1) -> Iterator[Stride]:
    """Runs of one size that follow each other at equal distances, on both sides, as one."""
    place = 0
    while place < len(runs):
        height = _height(runs, place, most_pitch)
        target, source, size = runs[place]
        if height > 1:
            yield Stride(target, source, size, height, runs[place + 1][0] - target, runs[place + 1][1] - source)
        else:
            yield Stride(target, source, size, 1, size, size)
        place += height


def _height(runs: Sequence[Run], first: int, most_pitch: int) -> int:
    """How many runs from there on make one stride."""
    if first + 1 == len(runs):
        return 1
    size, pitches = runs[first][2], _apart(runs, first)
    if not all(size <= pitch <= most_pitch for pitch in pitches):
        return 1
    last = first
    while last + 1 < len(runs) and runs[last + 1][2] == size and _apart(runs, last) == pitches:
        last += 1
    return last - first + 1


def _apart(runs: Sequence[Run], first: int) -> tuple[int, int]:
    return runs[first + 1][0] - runs[first][0], runs[first + 1][1] - runs[first][1]
