"""The kernel's count of processes that it killed for want of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.supervisor import oom
from appliance.supervisor.oom import OomKills

S = 1_000_000_000


def test_only_a_kill_of_the_last_seconds_explains_a_death() -> None:
    counts = iter([3, 3, 4, 4, 4])
    kills = OomKills(lambda: next(counts))
    assert not kills.lately(1 * S)
    assert kills.lately(2 * S)
    assert kills.lately(7 * S)
    assert not kills.lately(9 * S)


def test_this_machine_can_be_asked() -> None:
    assert oom.kills() >= 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ],
)
def test_both_kinds_of_cgroups(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert oom._read(tmp_path / name) == 2
    assert oom._read(tmp_path / "nothing") is None
