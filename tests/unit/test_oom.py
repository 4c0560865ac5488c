"""The kernel's counts of processes that it killed for want of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.supervisor import oom
from appliance.supervisor.oom import Evidence, OomKills

S = 1_000_000_000
OWN, MACHINE = Path("/sys/fs/cgroup/x/memory.events"), Path("/proc/vmstat")


def watching(*readings: dict[Path, int]) -> OomKills:
    left = iter(readings)
    return OomKills(lambda: next(left))


def test_only_a_kill_of_the_last_seconds_explains_a_death() -> None:
    kills = watching({OWN: 3}, {OWN: 3}, {OWN: 4}, {OWN: 4}, {OWN: 4})
    assert [kills.lately(at_s * S) for at_s in (1, 2, 7, 9)] == [
        Evidence.NONE, Evidence.HERE, Evidence.HERE, Evidence.NONE
    ]  # fmt: skip


def test_a_kill_somewhere_on_the_machine_is_less_than_one_here() -> None:
    kills = watching({OWN: 0, MACHINE: 7}, {OWN: 0, MACHINE: 8}, {OWN: 1, MACHINE: 9})
    assert kills.lately(1 * S) is Evidence.ELSEWHERE
    assert kills.lately(2 * S) is Evidence.HERE


def test_a_count_that_can_not_be_read_for_once_has_not_risen() -> None:
    kills = watching({OWN: 3}, {}, {OWN: 3})
    assert [kills.lately(at_s * S) for at_s in (1, 2)] == [Evidence.NONE, Evidence.NONE]


def test_this_machine_can_be_asked() -> None:
    assert MACHINE in oom.counts()


def test_both_kinds_of_cgroups(tmp_path: Path) -> None:
    listing = tmp_path / "cgroup"
    listing.write_text("9:name=systemd:/a\n4:cpu,memory:/one/two\n0::/three\n")
    assert oom.own_cgroup(listing, tmp_path) == [
        tmp_path / "memory" / "one" / "two" / "memory.oom_control",
        tmp_path / "three" / "memory.events",
    ]
    assert oom.own_cgroup(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    "content",
    [
        "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "nr_free_pages 1\noom_kill 2\nnuma_hit 7\n",
    ],
)
def test_the_count_is_found(tmp_path: Path, content: str) -> None:
    (tmp_path / "count").write_text(content)
    assert oom._read(tmp_path / "count") == 2
    assert oom._read(tmp_path / "nothing") is None
