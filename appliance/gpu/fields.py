"""NVML's field values: counters by number, all of them asked for at once.

The numbers of the newer throttle times differ between drivers: 251 to 253 with 575 and with early 580, 269 to 271 since (nvidia-ml-py
12.575.51 and 13.580.65 against 13.580.82), where 251 to 253 say how power is smoothed. So both are tried, and believed only where exactly
one of them answers like three times.
"""

from __future__ import annotations

from typing import Any, Final

from appliance.gpu.library import Questions
from appliance.records import Throttled

_ALL_LINKS: Final = 0xFFFF_FFFF  # "A scopeId of UINT_MAX returns aggregate value summed up across all links" (nvml.h)
_KIB: Final = 1 << 10
_TYPES: Final = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
_TIME: Final = 3  # what times come as: unsigned long long
_NS: Final = 1e-9

KNOWN: Final = {  # all of them in nanoseconds
    "NVML_FI_DEV_PERF_POLICY_POWER": "sw_power_cap",
    "NVML_FI_DEV_PERF_POLICY_THERMAL": "thermal",
}
_PROBED: Final = ("sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake")
BASES: Final = (251, 269)  # the first of three numbers
TRAFFIC: Final = {  # in KiB
    "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX": _ALL_LINKS,
    "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX": _ALL_LINKS,
}
PCIE: Final = ("NVML_FI_DEV_PCIE_COUNT_TX_BYTES", "NVML_FI_DEV_PCIE_COUNT_RX_BYTES")
ERRORS: Final = (
    "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
)


class Counters:
    """Of one GPU. ``read`` asks; the others tell of what was read."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._ids = {name: getattr(questions.module, name) for name in (*KNOWN, *TRAFFIC, *PCIE, *ERRORS)}
        self._wanted = [(number, TRAFFIC.get(name, 0)) for name, number in self._ids.items()]
        self._values: dict[int, float] = {}
        self._never: set[int] = set()
        self._base = self._probe()
        if self._base is not None:
            self._wanted += [(self._base + place, 0) for place in range(len(_PROBED))]

    def read(self) -> None:
        self._wanted = [one for one in self._wanted if one[0] not in self._never]
        self._values = {number: value for number, (value, _) in self._ask(self._wanted).items()}

    @property
    def throttled(self) -> tuple[Throttled, ...]:
        """What the driver counts, and no more."""
        named = [(self._ids[name], reason) for name, reason in KNOWN.items()]
        if self._base is not None:
            named += [(self._base + place, reason) for place, reason in enumerate(_PROBED)]
        return tuple(
            Throttled(reason=reason, total_s=self._values[number] * _NS)
            for number, reason in named
            if number in self._values
        )

    @property
    def nvlink_bytes(self) -> float | None:
        kibibytes = self._sum(tuple(TRAFFIC))
        return None if kibibytes is None else kibibytes * _KIB

    @property
    def pcie_bytes(self) -> float | None:
        return self._sum(PCIE)

    @property
    def nvlink_errors(self) -> int | None:
        found = [self._values[self._ids[name]] for name in ERRORS if self._ids[name] in self._values]
        return int(sum(found)) if found else None

    def _sum(self, names: tuple[str, ...]) -> float | None:
        found = [self._values.get(self._ids[name]) for name in names]
        return None if None in found else sum(value for value in found if value is not None)

    def _probe(self) -> int | None:
        """Where the three newer times are, if that is beyond doubt."""
        numbers = range(len(_PROBED))
        found = self._ask([(base + place, 0) for base in BASES for place in numbers])
        times = [base for base in BASES if all(found.get(base + place, (0, None))[1] == _TIME for place in numbers)]
        return times[0] if len(times) == 1 else None

    def _ask(self, wanted: list[tuple[int, int]]) -> dict[int, tuple[float, int]]:
        """By number: what was told, and its type."""
        answers = self._questions.ask("counters", "nvmlDeviceGetFieldValues", wanted) if wanted else None
        return {answer.fieldId: found for answer in answers or () if (found := self._told(answer)) is not None}

    def _told(self, answer: Any) -> tuple[float, int] | None:
        if answer.nvmlReturn:
            if self._questions.refused(f"counter {answer.fieldId}", answer.nvmlReturn):
                self._never.add(answer.fieldId)
            return None
        name = _TYPES.get(answer.valueType)
        return None if name is None else (getattr(answer.value, name), answer.valueType)


class Rate:
    """A counter's growth per second between two readings; None the first time, and where it began anew."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def of(self, value: float | None, now_ns: int) -> float | None:
        before, self._last = self._last, None if value is None else (now_ns, value)
        if before is None or value is None or now_ns <= before[0] or value < before[1]:
            return None
        return (value - before[1]) / ((now_ns - before[0]) * 1e-9)
