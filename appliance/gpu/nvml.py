"""All GPUs of the node, by NVML. The only module that imports pynvml.

Nothing here raises. Without a driver there are no readings and nothing is said; a driver that goes away is asked again from time to time.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable
from typing import Any, Final

from appliance.gpu.device import Device, Reading
from appliance.gpu.inventory import inventory
from appliance.gpu.library import GoneError, Library, LostError
from appliance.records import Inventory

_log = logging.getLogger("pd-appliance")
_LIBRARY: Final = "libnvidia-ml.so.1"
_AGAIN_NS: Final = 30 * 10**9


def binding() -> Any:
    """Imported only where there is a driver, and in the thread that reads: it is large. Raises ``ImportError`` without one."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise ImportError(_LIBRARY) from error
    import pynvml

    return pynvml


class Nvml:
    """Reads in one thread: operations on event sets and samples are not thread-safe."""

    def __init__(self, load: Callable[[], Any] = binding) -> None:
        self._load = load
        self._library: Library | None = None
        self._devices: list[Device] = []
        self._open = False
        self._again_ns = 0  # when to try to open it next
        self._said: str | None = None
        self.absent = False  # there is no driver on this machine, and there won't be one

    def read(self, now_ns: int) -> tuple[Reading, ...]:
        """One reading per GPU, in NVML's order; empty while there is no driver."""
        if not self._open and not self._begin(now_ns):
            return ()
        try:
            return tuple(device.read(now_ns) for device in self._devices)
        except GoneError as error:
            _log.warning("NVML does not answer any more (%s); it is tried again every %.0f s", error, _AGAIN_NS * 1e-9)
            self._end(now_ns)
            return ()

    def close(self) -> None:
        """Give back what NVML has allocated, and NVML itself."""
        if self._open:
            self._end(0)

    def _begin(self, now_ns: int) -> bool:
        if self.absent or now_ns < self._again_ns:
            return False
        self._again_ns = now_ns + _AGAIN_NS
        if not self._start():
            return False
        self._open = True
        try:
            self._devices = self._found()
        except GoneError:
            self._end(now_ns)
        return self._open

    def _start(self) -> bool:
        """NVML itself."""
        try:
            module = self._library.module if self._library else self._load()
        except ImportError:
            self.absent = True
            return False
        self._library = self._library or Library(module)
        try:
            module.nvmlInit()
        except module.NVMLError as error:
            self._not_started(module, error)
            return False
        return True

    def _not_started(self, module: Any, error: Any) -> None:
        """A machine without a driver is no news; one whose driver can't be used is."""
        self.absent = error.value == module.NVML_ERROR_LIBRARY_NOT_FOUND
        if not self.absent and error.value != module.NVML_ERROR_DRIVER_NOT_LOADED and self._said != str(error):
            self._said = str(error)
            _log.warning("GPUs can't be read: NVML can't be started: %s; nvidia-smi says more", error)

    def _found(self) -> list[Device]:
        """Those that answer; the others are named by ``Library``. Raises ``GoneError``."""
        assert self._library is not None
        count = self._library.ask("NVML", "the number of GPUs", "nvmlDeviceGetCount") or 0
        devices = []
        for index in range(count):
            try:
                handle = self._library.ask(f"GPU {index}", "it", "nvmlDeviceGetHandleByIndex", index)
                if handle is not None:
                    devices.append(Device(self._library, handle, index))
            except LostError as error:
                _log.warning("GPU %d does not answer: %s; reset it or restart the machine", index, error)
        return devices

    def _end(self, now_ns: int) -> None:
        assert self._library is not None
        for device in self._devices:
            device.close()
        self._devices, self._open, self._again_ns = [], False, now_ns + _AGAIN_NS
        module, self._library = self._library.module, self._library.anew()
        try:
            module.nvmlShutdown()
        except module.NVMLError:
            return


def machine(load: Callable[[], Any] = binding) -> Inventory:
    """The GPUs of this machine, asked once; none where there is no driver, or one that can't be used, which says why."""
    try:
        module = load()
        module.nvmlInit()
    except ImportError:
        return Inventory(cards=())
    except module.NVMLError as error:
        return Inventory(cards=(), trouble=_trouble(module, error))
    try:
        return inventory(module)
    finally:
        with contextlib.suppress(module.NVMLError):
            module.nvmlShutdown()


def _trouble(module: Any, error: Any) -> str | None:
    """In words, with what to do; None where no driver is no news."""
    if error.value == module.NVML_ERROR_LIBRARY_NOT_FOUND:
        return None
    if error.value == module.NVML_ERROR_DRIVER_NOT_LOADED:
        return "NVIDIA's driver is not loaded: modprobe nvidia loads it, and dmesg says why where it does not"
    if error.value == module.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "NVIDIA's driver was updated, and the old one is still loaded: restart the machine"
    return f"NVIDIA's driver can't be asked: {error}; nvidia-smi says more"
