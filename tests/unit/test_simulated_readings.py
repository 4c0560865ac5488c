"""What virtual GPUs and the host of a simulated engine read while steps outlast readings."""

from __future__ import annotations

import pytest
from test_simulated_node import CONFIGS

from appliance.costs import huggingface
from appliance.costs.gpus import gpu
from appliance.costs.roofline import Batch, Roofline
from appliance.simulator.clock import VirtualClock
from appliance.simulator.frontend import Frontend
from appliance.simulator.gpus import VirtualGpus, Wear, together
from appliance.simulator.host import VirtualHost

COST = Roofline(huggingface.read(CONFIGS / "llama-3.1-8b"), gpu("h100")).step(Batch([(8192, 0)]))


def readings(clock: VirtualClock, gpus: VirtualGpus, count: int) -> list[float]:
    """Of the first GPU's ``busy``, one each half second."""
    found = []
    for _ in range(count):
        clock.run(clock.now_ns + 500_000_000)
        found.append(gpus.read()[0].busy or 0.0)
    return found


def virtual(clock: VirtualClock) -> VirtualGpus:
    return VirtualGpus(gpu("h100"), 0, 2, 1 << 30, "e0", clock)


def test_a_gpu_is_busy_for_as_long_as_its_step_takes() -> None:
    clock = VirtualClock()
    gpus = virtual(clock)
    gpus.ran(COST, 1.75)
    assert readings(clock, gpus, 5) == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0], abs=1e-6)
    gpus.ran(COST, 0.25, late_s=0.5)
    assert readings(clock, gpus, 3) == pytest.approx([0.0, 0.5, 0.0], abs=1e-6), "not before it has begun"


def test_a_gpu_whose_engine_is_gone_does_nothing() -> None:
    clock = VirtualClock()
    gpus = virtual(clock)
    gpus.ran(COST, 10.0)
    assert readings(clock, gpus, 1) == [1.0]
    gpus.ended()
    assert readings(clock, gpus, 2) == [0.0, 0.0]
    assert gpus.read()[0].clock_reasons == ("gpu_idle",)


def test_a_long_wait_for_a_core_is_read_for_as_long_as_it_takes() -> None:
    clock = VirtualClock()
    host = VirtualHost(clock, Frontend(clock))
    host.stepped(1.25)
    found = []
    for _ in range(4):
        clock.run(clock.now_ns + 500_000_000)
        found.append(host.read().core_delay)
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_a_gpu_that_two_engines_share_reads_as_one() -> None:
    clock = VirtualClock()
    first, second = (VirtualGpus(gpu("h100"), 0, 1, 1 << 30, f"e{number}", clock) for number in range(2))
    first.ran(COST, 0.5)
    second.ran(COST, 0.25)
    second.copied(1000)
    clock.run(clock.now_ns + 500_000_000)
    [one], [other] = first.read(), second.read()
    [found] = together((one, other))
    assert (found.engine, found.memory_used_bytes) == ("e0", 2 << 30)
    assert (found.busy, found.sm) == pytest.approx((1.0, 0.75))
    assert found.tensor == pytest.approx(((one.tensor or 0) + (other.tensor or 0)) / 2)
    assert found.nvlink_bytes_s == pytest.approx(2000)
    assert found.clock_reasons == ()
    assert min(one.power_w or 0, other.power_w or 0) < (found.power_w or 0) < max(one.power_w or 0, other.power_w or 0)


def test_what_slows_one_half_down_is_read_of_the_whole_gpu() -> None:
    clock = VirtualClock()
    first, second = (VirtualGpus(gpu("h100"), 0, 1, 1 << 30, f"e{number}", clock) for number in range(2))
    second.broke(Wear(clock=0.5, memory=0.1))
    clock.run(clock.now_ns + 2_000_000_000)
    [found] = together((*first.read(), *second.read()))
    assert found.clock_reasons == ("hw_thermal_slowdown",)
    assert found.clock_mhz == pytest.approx((found.clock_max_mhz or 0) / 2)
    assert (found.ecc_uncorrected, found.xids) == (1, (94,))
    assert found.throttled[0].total_s == pytest.approx(2.0)
    assert together(virtual(clock).read()) == virtual(clock).read(), "GPUs of their own are left as they are"
