"""The table of ``docs/costs.md`` says what the roofline says today."""

from __future__ import annotations

import pytest
from published import BEGIN, DOCUMENT, END, Row, error_percent, load, table

PUBLISHED = load()


def name(row: Row) -> str:
    return f"{row.source}-{row.gpu}x{row.tp}-{row.model}-{row.kind}-{row.sequences}-{row.prompt or row.context}"


@pytest.mark.parametrize("row", PUBLISHED.rows, ids=name)
def test_the_error_is_the_one_stated(row: Row) -> None:
    assert error_percent(row, PUBLISHED.core) == pytest.approx(row.error_percent, abs=0.51)


def test_the_document_shows_the_table() -> None:
    shown = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown == table(PUBLISHED)


def test_every_row_has_a_source_and_every_miss_a_reason() -> None:
    for row in PUBLISHED.rows:
        assert row.source in PUBLISHED.sources
        assert row.note in PUBLISHED.notes if row.note else abs(row.error_percent) <= 25


def test_gpus_and_kinds_are_covered() -> None:
    assert {row.gpu for row in PUBLISHED.rows} == {"A100", "H100", "H200", "B200", "core"}
    assert len({row.model for row in PUBLISHED.rows}) >= 10
