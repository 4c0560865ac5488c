"""Blocks that nobody's lease accounts for: told once they stand, and never for an instant's difference."""

from __future__ import annotations

from msgspec.structs import replace

from appliance.records import EngineSnapshot, EngineState, Lease, Role, Unexplained
from appliance.telemetry.leaks import Leaks

S = 1_000_000_000
ENGINE = EngineSnapshot(name="e0", role=Role.PREFILL, state=EngineState.READY, epoch=1, leased_blocks=40)
LEASE = Lease(id="a.1", owner="e0", blocks=30, tokens=480, consumers=1, age_s=1, remaining_s=59)


def ticks(leaks: Leaks, engine: EngineSnapshot, leases: tuple[Lease, ...], seconds: range) -> tuple[Unexplained, ...]:
    found: tuple[Unexplained, ...] = ()
    for second in seconds:
        found = leaks.fold((engine,), leases, second * S)
    return found


def test_what_leases_account_for_is_no_leak() -> None:
    whole = replace(LEASE, blocks=40)
    assert ticks(Leaks(), ENGINE, (whole,), range(60)) == ()
    assert ticks(Leaks(), replace(ENGINE, leased_blocks=None), (), range(60)) == ()
    assert ticks(Leaks(), ENGINE, (replace(whole, blocks=90),), range(60)) == (), "the ledger may know of one earlier"


def test_more_than_that_is_one_once_it_stands() -> None:
    leaks = Leaks()
    assert ticks(leaks, ENGINE, (LEASE,), range(5)) == ()
    assert ticks(leaks, ENGINE, (LEASE,), range(5, 8)) == (Unexplained(engine="e0", blocks=10, age_s=7.0),)


def test_as_many_as_there_were_at_least() -> None:
    leaks = Leaks()
    ticks(leaks, replace(ENGINE, leased_blocks=70), (), range(10))
    [found] = ticks(leaks, replace(ENGINE, leased_blocks=90), (), range(10, 12))
    assert found.blocks == 70
    [found] = ticks(leaks, replace(ENGINE, leased_blocks=90), (), range(12, 20))
    assert found.blocks == 90


def test_a_moment_without_begins_anew_and_so_does_another_life() -> None:
    leaks = Leaks()
    assert ticks(leaks, ENGINE, (), range(8))
    assert ticks(leaks, replace(ENGINE, leased_blocks=0), (), range(8, 9)) == ()
    assert ticks(leaks, ENGINE, (), range(9, 13)) == ()
    assert ticks(leaks, ENGINE, (), range(13, 16))
    assert ticks(leaks, replace(ENGINE, epoch=2), (), range(16, 20)) == ()
