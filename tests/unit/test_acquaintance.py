"""Introductions: who has mapped whom."""

from __future__ import annotations

from appliance.supervisor.acquaintance import Acquaintances, Key

E0, E1, E1_LATER = Key("e0", 1), Key("e1", 1), Key("e1", 2)


def test_a_peer_counts_once_every_rank_has_mapped_it() -> None:
    known = Acquaintances()
    assert known.open(E0, E1, {0, 1})
    assert not known.open(E0, E1, {0, 1}), "told once"
    known.opened(E0, E1, 0, None)
    assert known.peers(E0) == ()
    known.opened(E0, E1, 1, None)
    assert known.peers(E0) == ("e1",)
    assert known.peers(E1) == (), "the other way round is another matter"


def test_one_rank_that_can_not_makes_it_an_error() -> None:
    known = Acquaintances()
    known.open(E0, E1, {0, 1})
    known.opened(E0, E1, 0, "e0 can't use the KV of e1: model a against b")
    known.opened(E0, E1, 1, None)
    assert known.peers(E0) == ()
    assert known.errors(E0) == ("e0 can't use the KV of e1: model a against b",)


def test_a_death_ends_all_that_was_known_of_that_life() -> None:
    known = Acquaintances()
    known.open(E0, E1, {0})
    known.opened(E0, E1, 0, None)
    known.gone(E1)
    assert known.peers(E0) == ()
    assert known.open(E0, E1_LATER, {0}), "the next life is somebody else"


def test_a_dead_engine_is_mapped_until_all_ranks_say_otherwise() -> None:
    known = Acquaintances()
    known.close(E0, E1, {0, 1})
    assert known.still_mapped(E1)
    known.closed(E0, E1, 0)
    assert known.still_mapped(E1)
    known.closed(E0, E1, 1)
    assert not known.still_mapped(E1)


def test_a_consumer_that_dies_too_maps_nothing() -> None:
    known = Acquaintances()
    known.close(E0, E1, {0})
    known.gone(E0)
    assert not known.still_mapped(E1)


def test_late_answers_are_ignored() -> None:
    known = Acquaintances()
    known.opened(E0, E1, 0, None)
    known.closed(E0, E1, 0)
    assert known.peers(E0) == ()
