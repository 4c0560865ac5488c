"""How copies are cut and gathered before CUDA gets them: the same bytes, each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.kv.runs import Run, Stride, sliced, strided

RUNS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9)), max_size=30).map(
    lambda gaps: [
        (sum(one[0] + one[2] for one in gaps[:at]), 10_000 + sum(one[1] + one[2] for one in gaps[:at]), gaps[at][2])
        for at in range(len(gaps))
    ]
)


def moved(runs: Iterable[Run]) -> list[tuple[int, int]]:
    """Byte by byte, target and source."""
    return [(target + at, source + at) for target, source, size in runs for at in range(size)]


def rows(strides: Iterable[Stride]) -> list[Run]:
    return [
        (one.target + row * one.target_pitch, one.source + row * one.source_pitch, one.width)
        for one in strides
        for row in range(one.height)
    ]


@given(RUNS, st.integers(1, 20))
def test_slices_have_the_same_bytes_in_the_same_order_and_all_but_the_last_are_full(
    runs: list[Run], limit: int
) -> None:
    slices = list(sliced(runs, limit))
    assert moved(run for one in slices for run in one) == moved(runs)
    sizes = [sum(size for *_, size in one) for one in slices]
    assert all(size == limit for size in sizes[:-1])
    assert all(0 < size <= limit for size in sizes[-1:])


@given(RUNS, st.sampled_from([20, 1 << 31]))
def test_strides_have_the_same_runs(runs: list[Run], most_pitch: int) -> None:
    found = list(strided(runs, most_pitch))
    assert rows(found) == list(runs)
    assert all(one.width <= min(one.target_pitch, one.source_pitch) for one in found)
    assert all(max(one.target_pitch, one.source_pitch) <= most_pitch for one in found if one.height > 1)


def heights(runs: Sequence[Run]) -> list[int]:
    return [one.height for one in strided(runs)]


def test_equal_distances_are_one_copy_and_others_are_not() -> None:
    layers = [(100 * layer, 300 * layer, 50) for layer in range(32)]
    assert heights(layers) == [32]
    assert heights([*layers, (0, 1_000_000, 50), (7, 2_000_000, 20)]) == [32, 1, 1]
    assert heights([(0, 0, 10), (5, 20, 10), (40, 40, 10)]) == [1, 2], "rows that overlap are none"
    assert heights([]) == []
