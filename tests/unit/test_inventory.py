"""What GPUs there are, by the real binding over a driver that is not there."""

from __future__ import annotations

from pathlib import Path

import pynvml as nv
import pytest
from fake_nvml import GIB, MIB, FakeDriver, FakeGpu, geforce, h100, installed

from appliance.errors import ConfigError
from appliance.gpu import inventory
from appliance.gpu.nvml import machine
from appliance.records import Inventory


def read(*gpus: FakeGpu) -> Inventory:
    driver = FakeDriver(*gpus)
    with installed(driver):
        found = machine(lambda: nv)
    assert driver.inits == 0, "NVML is given back"
    return found


def eight(**changes: object) -> list[FakeGpu]:
    return [h100(uuid=f"GPU-{index}", used_bytes=GIB, **changes) for index in range(8)]


def test_behind_switches_all_are_one_island() -> None:
    found = read(*eight(links=[None] * 18))
    assert [one.uuid for one in found.cards] == [f"GPU-{index}" for index in range(8)]
    assert {one.island for one in found.cards} == {0}
    assert found.cards[3].memory_bytes == 81_559 * MIB - 551 * MIB, "as CUDA has it: without what the driver keeps"
    assert found.cards[3].free_bytes == 81_559 * MIB - GIB
    assert found.apart == frozenset()
    assert not found.given


def test_pairs_with_bridges_are_islands_of_two() -> None:
    gpus = [h100(uuid=f"GPU-{index}", links=[index ^ 1] * 4) for index in range(4)]
    assert [one.island for one in read(*gpus).cards] == [0, 0, 2, 2]


def test_a_ring_is_no_island_of_all() -> None:
    gpus = [h100(uuid=f"GPU-{index}", links=[(index + 1) % 4, (index - 1) % 4]) for index in range(4)]
    assert [one.island for one in read(*gpus).cards] == [0, 0, 2, 2]


def test_a_driver_that_does_not_say_what_it_keeps_is_believed_as_it_is() -> None:
    [found] = read(h100(refused={"nvmlDeviceGetMemoryInfo_v2": nv.NVML_ERROR_FUNCTION_NOT_FOUND})).cards
    assert found.memory_bytes == 81_559 * MIB


def test_gpus_below_one_pcie_switch_are_told() -> None:
    gpus = [geforce(uuid=f"GPU-{index}", switch=index // 2) for index in range(4)]
    assert [one.bridge for one in read(*gpus).cards] == [0, 0, 2, 2]
    refused = {"nvmlDeviceGetTopologyCommonAncestor": nv.NVML_ERROR_NOT_SUPPORTED}
    gpus = [geforce(uuid=f"GPU-{index}", refused=refused) for index in range(2)]
    assert [one.bridge for one in read(*gpus).cards] == [0, 1]


def test_without_nvlink_each_stands_alone_and_peer_access_is_told() -> None:
    gpus = [geforce(uuid=f"GPU-{index}", unreadable={1 - index}) for index in range(2)]
    found = read(*gpus)
    assert [one.island for one in found.cards] == [0, 1]
    assert found.apart == frozenset({("GPU-0", "GPU-1")})


def test_what_stands_against_a_gpu_is_read() -> None:
    gpus = [
        h100(uuid="GPU-0", mig=["MIG-1"]),
        h100(uuid="GPU-1", compute_mode=nv.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS),
        h100(uuid="GPU-2", compute_mode=nv.NVML_COMPUTEMODE_PROHIBITED),
        h100(uuid="GPU-3", processes=[(4711, 30 * GIB)]),
    ]
    found = read(*gpus).cards
    assert [one.mig for one in found] == [True, False, False, False]
    assert [one.compute for one in found] == ["default", "exclusive", "prohibited", "default"]
    [other] = found[3].others
    assert (other.pid, other.memory_bytes) == (4711, 30 * GIB)


def test_a_refusal_takes_nothing_but_its_answer() -> None:
    refused = {"nvmlDeviceGetP2PStatus": nv.NVML_ERROR_NO_PERMISSION, "nvmlDeviceGetComputeMode": nv.NVML_ERROR_UNKNOWN}
    [found] = read(h100(refused=refused)).cards
    assert found.compute == "default"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (nv.NVML_ERROR_LIBRARY_NOT_FOUND, None),
        (nv.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia loads it"),
        (nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine"),
        (nv.NVML_ERROR_NO_PERMISSION, "nvidia-smi says more"),
    ],
)
def test_a_driver_that_can_not_be_asked_says_what_to_do(code: int, said: str | None) -> None:
    driver = FakeDriver(h100())
    driver.cannot_start = code
    with installed(driver):
        found = machine(lambda: nv)
    assert found.cards == ()
    assert (said is None and found.trouble is None) or (said or "") in (found.trouble or "")


def test_without_the_library_there_is_nothing_to_say() -> None:
    def absent() -> object:
        raise ImportError("libnvidia-ml.so.1")

    assert machine(absent) == Inventory(cards=())


def test_a_driver_without_a_gpu_says_so() -> None:
    found = read()
    assert found.cards == ()
    assert found.trouble is not None
    assert "(580.82.07) tells of no GPU: nvidia-smi -L should list some" in found.trouble


def test_the_driver_says_its_version_and_what_cuda_it_runs() -> None:
    driver = FakeDriver(h100())
    driver.version, driver.cuda = "550.54.15", 12040
    with installed(driver):
        found = machine(lambda: nv)
    assert (found.driver, found.cuda, found.trouble) == ("550.54.15", (12, 4), None)
    driver.lacks = {"nvmlSystemGetCudaDriverVersion_v2"}
    with installed(driver):
        assert machine(lambda: nv).cuda is None


def test_only_those_that_are_named_are_visible() -> None:
    found = read(*eight())
    assert [one.index for one in inventory.visible(found, "3, GPU-1,GPU-1").cards] == [1, 3]
    assert inventory.visible(found, "").cards == ()
    assert inventory.visible(found, " ").cards == ()
    assert inventory.visible(found, "NoDevFiles").cards == ()
    assert [one.index for one in inventory.visible(found, "0,-1,3").cards] == [0], "CUDA reads no further either"
    with pytest.raises(ConfigError, match=r"names '8', which is no GPU of this machine; there are 0 \(GPU-0\), 1"):
        inventory.visible(found, "0,8")


def test_numa_and_near_cores_are_the_kernels(tmp_path: Path) -> None:
    device = tmp_path / "0000:1a:00.0"
    device.mkdir()
    (device / "numa_node").write_text("1\n")
    (device / "local_cpulist").write_text("32-35,96\n")
    with installed(FakeDriver(h100())):
        nv.nvmlInit()
        [found] = inventory.inventory(nv, tmp_path).cards
        nv.nvmlShutdown()
    assert (found.numa, found.cores) == (1, (32, 33, 34, 35, 96))
