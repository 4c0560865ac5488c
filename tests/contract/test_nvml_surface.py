"""Names of NVML's binding that we rely on. When nvidia-ml-py moves, this says what moved before a node with GPUs finds out."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import re
from pathlib import Path

import pynvml as nv
import pytest

from appliance.gpu import device, fields, gpm, library

ROOM = Path(device.__file__).parent
SOURCE = "\n".join(path.read_text() for path in sorted(ROOM.glob("*.py")))
FUNCTIONS = sorted(set(re.findall(r'"(nvml[A-Z]\w+)"', SOURCE)) | set(re.findall(r"module\.(nvml[A-Z]\w+)\(", SOURCE)))
CONSTANTS = sorted(
    {*re.findall(r"\b(NVML_[A-Z][A-Z_0-9]+)\b", SOURCE)} - {"NVML_ERROR_"}
    | {f"NVML_ERROR_{name}" for name in (*library._GONE, *library._LOST, *library._NEVER, *library._NOT_NOW)}
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_there(name: str) -> None:
    assert callable(getattr(nv, name))


def test_all_of_them_were_found() -> None:
    assert len(FUNCTIONS) > 30
    assert {"nvmlInit", "nvmlShutdown", "nvmlGpmMetricsGet", "nvmlEventSetWait"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", [name for name in CONSTANTS if not name.startswith("NVML_FI") or len(name) > 12])
def test_constants_are_numbers(name: str) -> None:
    assert isinstance(getattr(nv, name), int)


ARGUMENTS = {
    "nvmlDeviceGetFieldValues": ["handle", "fieldIds"],
    "nvmlDeviceGetMemoryInfo": ["handle", "version"],
    "nvmlDeviceGetTopologyCommonAncestor": ["device1", "device2"],
    "nvmlDeviceGetTotalEccErrors": ["handle", "errorType", "counterType"],
    "nvmlDeviceGetProcessUtilization": ["handle", "timeStamp"],
    "nvmlDeviceRegisterEvents": ["handle", "eventTypes", "eventSet"],
    "nvmlEventSetWait": ["eventSet", "timeoutms"],
    "nvmlGpmSampleGet": ["device", "gpmSample"],
    "nvmlGpmMetricsGet": ["metricsGet"],
    "nvmlDeviceGetMigDeviceHandleByIndex": ["device", "index"],
}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_arguments_stand_where_we_put_them(name: str) -> None:
    assert list(inspect.signature(getattr(nv, name)).parameters)[: len(ARGUMENTS[name])] == ARGUMENTS[name]


STRUCTS = {
    "c_nvmlFieldValue_t": {"fieldId", "scopeId", "valueType", "nvmlReturn", "value"},
    "c_nvmlGpmMetricsGet_t": {"version", "numMetrics", "sample1", "sample2", "metrics"},
    "c_nvmlGpmMetric_t": {"metricId", "nvmlReturn", "value"},
    "c_nvmlGpmSupport_t": {"version", "isSupportedDevice"},
    "c_nvmlEventData_t": {"eventType", "eventData"},
    "c_nvmlMemory_v2_t": {"total", "reserved", "used"},
    "c_nvmlProcessInfo_v3_t": {"pid", "usedGpuMemory"},
    "c_nvmlProcessUtilizationSample_t": {"pid", "timeStamp", "smUtil"},
    "c_nvmlUtilization_t": {"gpu"},
}


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_structs_have_the_fields_that_we_touch(name: str) -> None:
    assert {field[0] for field in getattr(nv, name)._fields_} >= STRUCTS[name]


def test_values_of_fields_are_read_by_their_type() -> None:
    assert fields._TYPES == {
        nv.NVML_VALUE_TYPE_DOUBLE: "dVal",
        nv.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        nv.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        nv.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        nv.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        nv.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
        nv.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
    }
    assert {field[0] for field in nv.c_nvmlValue_t._fields_} == set(fields._TYPES.values())
    assert fields._TIME == nv.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    assert ctypes.c_uint32(-1).value == fields._ALL_LINKS


def test_numbers_of_fields_and_metrics_are_those_of_nvml_h() -> None:
    """Numbers are the wire format. Those of the newer throttle times have moved before, so both places are tried."""
    assert [getattr(nv, name) for name in (*fields.KNOWN, *fields.TRAFFIC, *fields.PCIE, *fields.ERRORS)] == [
        74, 75, 138, 139, 197, 198, 38, 52, 59,
    ]  # fmt: skip
    assert [getattr(nv, name) for name in gpm.METRICS] == [2, 5, 10, 60, 61, 21, 20]
    newer = ("SW_THERM_SLOWDOWN", "HW_THERM_SLOWDOWN", "HW_POWER_BRAKE_SLOWDOWN")
    assert [getattr(nv, f"NVML_FI_DEV_CLOCKS_EVENT_REASON_{name}") for name in newer] == [269, 270, 271]
    assert fields.BASES[-1] == 269, "where this binding has them"


def test_bits_of_clock_reasons_have_names() -> None:
    bits = {name: getattr(nv, f"nvmlClocksEventReason{name}") for name in device.REASONS}
    assert sorted(bits.values()) == [1 << n for n in range(9)]
    assert bits["HwThermalSlowdown"] == 0x40
    assert bits["HwPowerBrakeSlowdown"] == 0x80


def test_errors_are_exceptions_with_their_number() -> None:
    assert isinstance(nv.NVMLError(nv.NVML_ERROR_NO_PERMISSION), nv.NVMLError_NoPermission)
    assert nv.NVMLError(nv.NVML_ERROR_GPU_IS_LOST).value == nv.NVML_ERROR_GPU_IS_LOST
    assert not issubclass(nv.NVMLLibraryMismatchError, nv.NVMLError), "it has to be caught by itself"


def has_driver() -> bool:
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL("libnvidia-ml.so.1"))
    return False


@pytest.mark.skipif(has_driver(), reason="there is NVML here: the suite in tests/gpu reads it")
def test_a_machine_without_a_driver_says_so_at_once() -> None:
    with pytest.raises(nv.NVMLError) as refused:
        nv.nvmlInit()
    assert refused.value.value == nv.NVML_ERROR_LIBRARY_NOT_FOUND
