"""Leases: ended exactly once, and seen to have ended by whoever maps the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.kv.lease import SLOTS, HeldLease, LeaseBook, LeaseTable


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[tuple[LeaseTable, LeaseTable]]:
    owner = LeaseTable(tmp_path / "leases", create=True)
    consumer = LeaseTable(tmp_path / "leases", create=False)
    yield owner, consumer
    owner.close()
    consumer.close()


def grant(book: LeaseBook, name: str, *, consumers: int = 1, deadline_ns: int = 100) -> HeldLease:
    held = book.grant(name, (1, 2, 3), 300, consumers, deadline_ns)
    assert held is not None
    return held


def test_a_consumer_sees_a_lease_live_and_end(tables: tuple[LeaseTable, LeaseTable]) -> None:
    owner, consumer = tables
    book = LeaseBook(owner)
    held = grant(book, "a")
    assert consumer[held.slot] == held.generation != 0
    assert book.end("a", all_consumers=False) is held
    assert consumer[held.slot] == 0
    assert book.end("a", all_consumers=True) is None


def test_the_next_lease_in_a_slot_is_another_generation(tables: tuple[LeaseTable, LeaseTable]) -> None:
    book = LeaseBook(tables[0])
    first = grant(book, "a")
    book.end("a", all_consumers=True)
    second = grant(book, "b")
    assert second.slot == first.slot
    assert tables[1][first.slot] not in (0, first.generation)


def test_a_lease_of_several_consumers_ends_with_the_last(tables: tuple[LeaseTable, LeaseTable]) -> None:
    book = LeaseBook(tables[0])
    held = grant(book, "a", consumers=3)
    assert [book.end("a", all_consumers=False) for _ in range(3)] == [None, None, held]


def test_expiry_ends_only_what_is_due(tables: tuple[LeaseTable, LeaseTable]) -> None:
    book = LeaseBook(tables[0])
    grant(book, "early", deadline_ns=10)
    grant(book, "late", deadline_ns=20)
    assert [held.id for held in book.expired(10)] == ["early"]
    assert len(book) == 1 and book.blocks == 3


def test_one_id_is_granted_once_and_slots_run_out(tables: tuple[LeaseTable, LeaseTable]) -> None:
    book = LeaseBook(tables[0])
    grant(book, "a")
    assert book.grant("a", (9,), 1, 1, 100) is None
    for number in range(SLOTS - 1):
        grant(book, f"more-{number}")
    assert book.grant("one too many", (9,), 1, 1, 100) is None


def test_a_slot_out_of_range_holds_no_lease(tables: tuple[LeaseTable, LeaseTable]) -> None:
    assert tables[1][-1] == tables[1][SLOTS] == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["grant", "end", "cancel", "expire"]), st.integers(0, 5)), max_size=60))
def test_whatever_happens_each_grant_is_handed_back_once(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]]
) -> None:
    table = LeaseTable(tmp_path_factory.mktemp("leases") / "table", create=True)
    book = LeaseBook(table)
    granted: list[int] = []
    ended: list[int] = []
    for now, (what, name) in enumerate(events):
        if what == "grant":
            held = book.grant(str(name), (1,), 1, 2, now + 3)
            granted += [held.generation] if held else []
        elif what == "expire":
            ended += [held.generation for held in book.expired(now)]
        else:
            over = book.end(str(name), all_consumers=what == "cancel")
            ended += [over.generation] if over else []
    ended += [held.generation for held in book.expired(10**9)]
    assert sorted(granted) == sorted(ended)
    assert len(book) == 0 and book.blocks == 0
    assert all(table[slot] == 0 for slot in range(8)) and table[SLOTS - 1] == 0
    table.close()
