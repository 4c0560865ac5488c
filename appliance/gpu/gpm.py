"""What a GPU does, by NVML's GPU performance monitoring (Hopper and later): two samples, and what was between them.

"The interval between these two nvmlGpmSampleGet() API calls should be greater than 100ms due to the internal sample refresh rate" (NVML API
reference, nvmlGpmMetricsGet). So the sample of one tick is compared with that of the tick before, and nobody has to wait. Utilisations
come in percent, traffic in MiB/s.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from appliance.gpu.library import Questions

_APART_NS: Final = 120_000_000
_WHAT: Final = "GPM"
_MIB: Final = 1 << 20
METRICS: Final = (
    "NVML_GPM_METRIC_SM_UTIL",
    "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
    "NVML_GPM_METRIC_DRAM_BW_UTIL",
    "NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC",
    "NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC",
    "NVML_GPM_METRIC_PCIE_RX_PER_SEC",
    "NVML_GPM_METRIC_PCIE_TX_PER_SEC",
)


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the time between two samples, 0 to 1, and bytes per second, in and out."""

    sm: float | None = None
    tensor: float | None = None
    dram: float | None = None
    nvlink_bytes_s: float | None = None
    pcie_bytes_s: float | None = None


NOTHING: Final = Activity()


class Gpm:
    """Of one GPU. Owns two samples, which ``close`` gives back."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._samples: list[Any] = []
        self._taken_ns: int | None = None  # when the first of them was
        self._latest = NOTHING
        support = questions.ask(_WHAT, "nvmlGpmQueryDeviceSupport")
        if support is not None and support.isSupportedDevice:
            self._samples = [s for _ in range(2) if (s := questions.call(_WHAT, "nvmlGpmSampleAlloc")) is not None]

    def read(self, now_ns: int) -> Activity:
        """Since the sample before; of the last time where that is too short ago."""
        if len(self._samples) < 2 or (self._taken_ns is not None and now_ns - self._taken_ns < _APART_NS):
            return self._latest
        before, after = self._samples
        if self._questions.ask(_WHAT, "nvmlGpmSampleGet", after) is None:
            self._taken_ns, self._latest = None, NOTHING
            return NOTHING
        self._latest = self._between(before, after) if self._taken_ns is not None else NOTHING
        self._samples, self._taken_ns = [after, before], now_ns
        return self._latest

    def close(self) -> None:
        while self._samples:
            self._questions.call("a sample", "nvmlGpmSampleFree", self._samples.pop())

    def _between(self, before: Any, after: Any) -> Activity:
        request = self._questions.module.c_nvmlGpmMetricsGet_t()
        request.version = self._questions.module.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2, request.numMetrics = before, after, len(METRICS)
        for place, name in enumerate(METRICS):
            request.metrics[place].metricId = getattr(self._questions.module, name)
        if self._questions.call(_WHAT, "nvmlGpmMetricsGet", request) is None:
            return NOTHING
        sm, tensor, dram, *traffic = (self._value(request.metrics[place]) for place in range(len(METRICS)))
        return Activity(
            sm=_share(sm),
            tensor=_share(tensor),
            dram=_share(dram),
            nvlink_bytes_s=_bytes_s(traffic[0], traffic[1]),
            pcie_bytes_s=_bytes_s(traffic[2], traffic[3]),
        )

    def _value(self, metric: Any) -> float | None:
        """Each metric may be refused by itself."""
        if metric.nvmlReturn:
            self._questions.refused(_WHAT, metric.nvmlReturn)
            return None
        return metric.value if math.isfinite(metric.value) else None


def _share(percent: float | None) -> float | None:
    return None if percent is None else min(1.0, max(0.0, percent / 100))


def _bytes_s(received: float | None, sent: float | None) -> float | None:
    return None if received is None or sent is None else (received + sent) * _MIB
