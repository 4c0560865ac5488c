"""The ledger: what it asks engines to release, what it counts, and what it forgets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.channel import Down, HandoffEnded, Heartbeat, LeaseEnded, LeaseGranted, Release
from appliance.telemetry import ledger as module
from appliance.telemetry.ledger import Ledger

S = 1_000_000_000
KEY = "r1.1"


class Bench:
    """A ledger, what it has sent, and a clock."""

    def __init__(self, delivered: bool = True) -> None:
        self.sent: list[tuple[str, Down]] = []
        self.now_ns = 1000 * S
        self.delivered = delivered
        self.ledger = Ledger(self._send)

    def _send(self, engine: str, message: Down) -> bool:
        self.sent.append((engine, message))
        return self.delivered

    def grant(self, key: str = KEY, owner: str = "e0", epoch: int = 1, **fields: Any) -> None:
        values: dict[str, Any] = {"blocks": 4, "tokens": 64, "consumers": 1, "ttl_s": 60.0, "at_ns": self.now_ns}
        self.ledger.fold(owner, epoch, LeaseGranted(lease=key, **(values | fields)), self.now_ns)

    def pulled(
        self, key: str = KEY, *, ok: bool = True, producer: str = "e0", size: int = 100, took_ns: int = 10
    ) -> None:
        message = HandoffEnded(
            lease=key,
            producer=producer,
            ok=ok,
            bytes=size,
            tokens=64,
            start_ns=self.now_ns - took_ns,
            end_ns=self.now_ns,
            error=None if ok else "the lease had ended",
        )
        self.ledger.fold("e1", 1, message, self.now_ns)

    def ended(self, reason: str, key: str = KEY) -> None:
        self.ledger.fold("e0", 1, LeaseEnded(lease=key, reason=reason, blocks=4, at_ns=self.now_ns), self.now_ns)

    def cancel(self, key: str = KEY) -> None:
        self.ledger.cancel(key, self.now_ns)

    def counts(self) -> tuple[int, ...]:
        """Granted; then released, cancelled, expired, lost."""
        found = self.ledger.snapshot(self.now_ns)
        return found.granted, found.released, found.cancelled, found.expired, found.lost

    def remembered(self) -> int:
        return len(self.ledger._unwanted) + len(self.ledger._pulled_early) + len(self.ledger._past)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def released(engine: str = "e0", key: str = KEY) -> tuple[str, Release]:
    return engine, Release(lease=key, reason="released")


def cancelled(engine: str = "e0", key: str = KEY) -> tuple[str, Release]:
    return engine, Release(lease=key, reason="cancelled")


# ---- a normal end


@pytest.mark.parametrize("ok", [True, False])
def test_an_ended_hand_off_releases_the_lease_at_its_owner(bench: Bench, ok: bool) -> None:
    bench.grant(owner="e3")
    bench.pulled(ok=ok, producer="e3")
    assert bench.sent == [released("e3")]


def test_the_routers_cancel_after_a_normal_end_asks_nothing_and_counts_released(bench: Bench) -> None:
    bench.grant()
    bench.pulled()
    bench.cancel()
    bench.ended("released")
    bench.cancel()
    assert bench.sent == [released()]
    assert bench.counts() == (1, 1, 0, 0, 0)
    assert bench.ledger.snapshot(bench.now_ns).leases == ()


def test_each_consumer_releases_once_and_the_lease_ends_with_the_last(bench: Bench) -> None:
    bench.grant(consumers=3)
    for _ in range(5):
        bench.pulled()
    bench.cancel()
    assert bench.sent == [released()] * 3
    assert bench.ledger.snapshot(bench.now_ns).leases[0].consumers == 0


def test_a_lease_is_shown_with_its_age_and_what_remains(bench: Bench) -> None:
    bench.grant(consumers=2, ttl_s=60.0)
    (lease,) = bench.ledger.snapshot(bench.now_ns + 2 * S).leases
    assert (lease.id, lease.owner, lease.blocks, lease.tokens, lease.consumers) == (KEY, "e0", 4, 64, 2)
    assert (lease.age_s, lease.remaining_s) == pytest.approx((2.0, 58.0))


@pytest.mark.parametrize(("reason", "place"), [("released", 1), ("cancelled", 2), ("expired", 3)])
def test_ends_are_counted_by_reason_and_once(bench: Bench, reason: str, place: int) -> None:
    bench.grant()
    bench.ended(reason)
    bench.ended(reason)
    expected = [1, 0, 0, 0, 0]
    expected[place] = 1
    assert bench.counts() == tuple(expected)


def test_other_messages_mean_nothing_to_it(bench: Bench) -> None:
    heartbeat = Heartbeat(at_ns=bench.now_ns, running=0, waiting=0, fetching=0, kv_free=1, leased=0)
    bench.ledger.fold("e0", 1, heartbeat, bench.now_ns)
    assert bench.sent == []
    assert bench.counts() == (0, 0, 0, 0, 0)


# ---- cancelling


def test_cancelling_a_held_lease_asks_once(bench: Bench) -> None:
    bench.grant()
    bench.cancel()
    bench.cancel()
    assert bench.sent == [cancelled()]


def test_a_pull_that_ends_after_the_cancel_asks_nothing_more(bench: Bench) -> None:
    bench.grant()
    bench.cancel()
    bench.pulled(ok=False)
    bench.ended("cancelled")
    bench.pulled(ok=False)
    assert bench.sent == [cancelled()]
    assert bench.counts() == (1, 0, 1, 0, 0)


def test_cancelling_ends_a_lease_that_some_consumers_still_want(bench: Bench) -> None:
    bench.grant(consumers=2)
    bench.pulled()
    bench.cancel()
    assert bench.sent == [released(), cancelled()]


def test_a_lease_cancelled_before_its_grant_is_ended_at_once(bench: Bench) -> None:
    bench.cancel()
    assert bench.sent == []
    bench.grant(owner="e2")
    assert bench.sent == [cancelled("e2")]


def test_a_cancel_is_for_one_key_only(bench: Bench) -> None:
    bench.cancel()
    bench.grant("r1.2")
    assert bench.sent == []


def test_an_owner_that_is_gone_swallows_the_release() -> None:
    bench = Bench(delivered=False)
    bench.grant()
    bench.cancel()
    bench.ledger.lost("e0", 1, bench.now_ns)
    assert bench.counts() == (1, 0, 0, 0, 1)


# ---- the messages of two engines race


def test_a_pull_told_before_the_grant_releases_at_its_producer(bench: Bench) -> None:
    bench.pulled(producer="e0")
    bench.grant()
    bench.cancel()
    bench.ended("released")
    assert bench.sent == [released()]
    assert bench.counts() == (1, 1, 0, 0, 0)


def test_a_pull_and_a_cancel_told_before_the_grant_are_one_release(bench: Bench) -> None:
    bench.pulled()
    bench.cancel()
    bench.grant()
    assert bench.sent == [released()]


def test_pulls_told_before_the_grant_count_against_its_consumers(bench: Bench) -> None:
    bench.pulled()
    bench.grant(consumers=3)
    bench.pulled()
    bench.cancel()
    assert bench.sent == [released(), released(), cancelled()]


# ---- lost engines


def test_an_engines_death_loses_its_leases_of_that_life_only(bench: Bench) -> None:
    bench.grant("a", "e0", 1)
    bench.grant("b", "e0", 2)
    bench.grant("c", "e1", 1)
    bench.ledger.lost("e0", 1, bench.now_ns)
    assert [lease.id for lease in bench.ledger.snapshot(bench.now_ns).leases] == ["b", "c"]
    assert bench.counts() == (3, 0, 0, 0, 1)


def test_a_lost_lease_is_not_released_at_the_owners_next_life(bench: Bench) -> None:
    bench.grant()
    bench.ledger.lost("e0", 1, bench.now_ns)
    bench.pulled(ok=False)
    bench.cancel()
    assert bench.sent == []


# ---- memory is bounded


def test_ended_leases_do_not_crowd_out_early_cancels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    bench.cancel("early")
    for number in range(10):
        bench.grant(f"r{number}")
        bench.pulled(f"r{number}")
        bench.ended("released", f"r{number}")
        bench.cancel(f"r{number}")
    bench.sent.clear()
    bench.grant("early")
    assert bench.sent == [cancelled(key="early")]


def test_keys_without_a_lease_are_remembered_up_to_a_number(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    for number in range(10):
        bench.cancel(f"r{number}")
    assert bench.remembered() == 3
    bench.grant("r0")
    bench.grant("r9")
    assert bench.sent == [cancelled(key="r9")]


def test_keys_without_a_lease_are_remembered_for_a_time(bench: Bench) -> None:
    bench.cancel("old")
    bench.now_ns += 119 * S
    bench.cancel("new")
    assert bench.remembered() == 2
    bench.now_ns += 2 * S
    bench.cancel("newest")
    bench.grant("old")
    assert bench.sent == []
    bench.grant("new")
    assert bench.sent == [cancelled(key="new")]


@given(st.lists(st.tuples(st.sampled_from(["grant", "pulled", "cancel", "released", "lost"]), st.integers(0, 3))))
def test_every_lease_granted_is_held_or_counted_once(events: list[tuple[str, int]]) -> None:
    bench, granted = Bench(), set()
    for what, number in events:
        key = f"r{number}"
        if what == "grant" and key not in granted:  # the router never uses a key twice
            granted.add(key)
            bench.grant(key, consumers=2)
        elif what in ("pulled", "cancel"):
            getattr(bench, what)(key)
        elif what == "released":
            bench.ended(what, key)
        elif what == "lost":
            bench.ledger.lost("e0", 1, bench.now_ns)
        count, *ends = bench.counts()
        assert count == sum(ends) + len(bench.ledger.snapshot(bench.now_ns).leases)
    assert [
        message for message in bench.sent if bench.sent.count(message) > 1 and message[1].reason == "cancelled"
    ] == []


# ---- hand-offs


def test_no_hand_off_has_no_speed(bench: Bench) -> None:
    found = bench.ledger.handoffs(bench.now_ns)
    assert (found.count, found.recent_s, found.recent_bytes_s, found.last_error) == (0, 0.0, None, None)


def test_hand_offs_are_counted_and_failures_say_why(bench: Bench) -> None:
    bench.pulled("a")
    bench.pulled("b", ok=False, size=0)
    bench.pulled("c")
    found = bench.ledger.handoffs(bench.now_ns)
    assert (found.count, found.failed, found.bytes, found.last_error) == (3, 1, 200, "the lease had ended")


def test_an_error_is_forgotten_after_five_minutes(bench: Bench) -> None:
    bench.pulled("a", ok=False, size=0)
    assert bench.ledger.handoffs(bench.now_ns + 299 * S).last_error == "the lease had ended"
    later = bench.ledger.handoffs(bench.now_ns + 301 * S)
    assert (later.failed, later.last_error) == (1, None)


def test_the_rates_are_of_the_last_ten_seconds(bench: Bench) -> None:
    bench.pulled("a", size=10_000, took_ns=S)
    bench.now_ns += 9 * S
    bench.pulled("b", size=3_000, took_ns=S // 2)
    both, later = bench.ledger.handoffs(bench.now_ns), bench.ledger.handoffs(bench.now_ns + 2 * S)
    assert (both.recent_s, both.recent_bytes_s) == pytest.approx((0.2, 13_000 / 1.5))
    assert (later.recent_s, later.recent_bytes_s) == pytest.approx((0.1, 6_000))
    assert later.bytes == 13_000


def test_a_pull_from_the_prefix_cache_has_no_speed(bench: Bench) -> None:
    bench.pulled(size=0, took_ns=0)
    found = bench.ledger.handoffs(bench.now_ns)
    assert (found.recent_s, found.recent_bytes_s) == (0.1, None)


def test_a_burst_is_counted_whole(bench: Bench) -> None:
    for number in range(5_000):
        bench.pulled(f"r{number}")
    assert bench.ledger.handoffs(bench.now_ns).recent_s == pytest.approx(500.0)


def test_leases_are_counted_by_their_owner(bench: Bench) -> None:
    bench.grant("a")
    bench.grant("b", owner="e1")
    bench.grant("c")
    assert (bench.ledger.held_by("e0"), bench.ledger.held_by("e1"), bench.ledger.held_by("e2")) == (2, 1, 0)
    bench.ended("released", "a")
    assert bench.ledger.held_by("e0") == 1
