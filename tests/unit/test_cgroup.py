"""CPU quotas and pressure, of both versions of control groups, as files that say what the kernel would."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.telemetry.cgroup import Cgroups

SECOND_NS = 10**9


class Machine:
    """A mount of control groups and a /proc, below a directory."""

    def __init__(self, root: Path, line: str) -> None:
        self.mount, self.proc = root / "cgroup", root / "proc"
        self.write(self.proc / "7" / "cgroup", line)
        self.cgroups = Cgroups(self.mount, self.proc)

    @staticmethod
    def write(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def stat(self, group: str, periods: int, held: int, held_us: int) -> None:
        text = f"usage_usec 5\nnr_periods {periods}\nnr_throttled {held}\nthrottled_usec {held_us}\n"
        self.write(self.mount / group / "cpu.stat", text)


@pytest.fixture
def unified(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, "0::/system.slice/pd.service\n")
    machine.write(machine.mount / "cgroup.controllers", "cpu memory\n")
    machine.write(machine.mount / "cpu.stat", "usage_usec 5\n")  # the outermost has no quota
    machine.stat("system.slice", 0, 0, 0)
    machine.stat("system.slice/pd.service", 100, 10, 500_000)
    return machine


def test_the_share_is_of_the_time_since_the_last_look(unified: Machine) -> None:
    assert unified.cgroups.throttled(7, 0) is None
    unified.stat("system.slice/pd.service", 110, 16, 900_000)
    assert unified.cgroups.throttled(7, SECOND_NS) == pytest.approx(0.4)  # 6 of 10 periods, 0.4 of 1 s
    unified.stat("system.slice/pd.service", 120, 18, 8_900_000)
    assert unified.cgroups.throttled(7, 2 * SECOND_NS) == pytest.approx(0.2)  # 8 s of 8 CPUs, in 2 of 10 periods


def test_a_quota_further_out_counts_and_none_at_all_is_no_throttling(unified: Machine) -> None:
    unified.cgroups.throttled(7, 0)
    assert unified.cgroups.throttled(7, SECOND_NS) == 0.0
    unified.stat("system.slice", 10, 5, 500_000)
    assert unified.cgroups.throttled(7, 2 * SECOND_NS) == pytest.approx(0.5)


def test_engines_of_one_group_are_told_the_same_at_one_tick(unified: Machine) -> None:
    unified.write(unified.proc / "8" / "cgroup", "0::/system.slice/pd.service\n")
    unified.cgroups.throttled(7, 0)
    unified.stat("system.slice/pd.service", 110, 16, 900_000)
    first = unified.cgroups.throttled(7, SECOND_NS)
    assert unified.cgroups.throttled(8, SECOND_NS + 1_000_000) == first == pytest.approx(0.4)


def test_the_older_version_counts_nanoseconds(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n2:cpuset:/y\n0::/\n")
    stat = machine.mount / "cpu,cpuacct" / "docker" / "abc" / "cpu.stat"
    machine.write(stat, "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n")
    assert machine.cgroups.throttled(7, 0) is None
    machine.write(stat, "nr_periods 10\nnr_throttled 3\nthrottled_time 250000000\n")
    assert machine.cgroups.throttled(7, SECOND_NS) == pytest.approx(0.25)


@pytest.mark.parametrize("line", ["", "0::/../other\n", "nonsense\n", "0::/not/mounted\n"])
def test_what_can_not_be_read_is_none(line: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, line)
    assert [machine.cgroups.throttled(pid, n * SECOND_NS) for n in range(3) for pid in (7, 99)] == [None] * 6
    assert machine.cgroups.pressure(7, 0) is None


def test_pressure_is_that_of_its_own_group_or_else_of_the_machine(unified: Machine) -> None:
    machine_wide = unified.proc / "pressure" / "cpu"
    unified.write(machine_wide, "some avg10=0.13 avg60=0.10 avg300=1.10 total=1000\nfull avg10=0.00 total=0\n")
    unified.cgroups.pressure(7, 0)
    unified.write(machine_wide, "some avg10=0.13 avg60=0.10 avg300=1.10 total=301000\nfull avg10=0.00 total=0\n")
    assert unified.cgroups.pressure(7, SECOND_NS) == pytest.approx(0.3)
    own = unified.mount / "system.slice/pd.service/cpu.pressure"
    unified.write(own, "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    assert unified.cgroups.pressure(7, 2 * SECOND_NS) is None
    unified.write(own, "some avg10=0.00 avg60=0.00 avg300=0.00 total=700000\n")
    assert unified.cgroups.pressure(7, 3 * SECOND_NS) == pytest.approx(0.7)


def test_a_process_that_was_moved_is_found_again_within_ten_seconds(unified: Machine) -> None:
    unified.stat("other", 100, 0, 0)
    assert unified.cgroups.throttled(7, 0) is None
    unified.write(unified.proc / "7" / "cgroup", "0::/other\n")
    for second in range(1, 12):
        unified.stat("other", 100 + 10 * second, 5 * second, 500_000 * second)
        unified.cgroups.throttled(7, second * SECOND_NS)
    assert unified.cgroups.throttled(7, 12 * SECOND_NS) == pytest.approx(0.0)
    unified.stat("other", 230, 65, 6_500_000)
    assert unified.cgroups.throttled(7, 13 * SECOND_NS) == pytest.approx(0.5)
