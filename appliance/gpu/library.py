"""NVML, asked one question at a time: what it does not tell is None, and said once if somebody can do something about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

_log = logging.getLogger("pd-appliance")

_GONE: Final = ("UNINITIALIZED", "DRIVER_NOT_LOADED", "LIBRARY_NOT_FOUND", "LIB_RM_VERSION_MISMATCH")
_LOST: Final = ("GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND")
_NEVER: Final = (
    "NOT_SUPPORTED",
    "FUNCTION_NOT_FOUND",  # the driver is older than the question
    "VGPU_ECC_NOT_SUPPORTED",
    "ARGUMENT_VERSION_MISMATCH",
    "DEPRECATED",
    "INVALID_ARGUMENT",  # a field that this driver does not know
)
_NOT_NOW: Final = ("NOT_FOUND", "NO_DATA", "TIMEOUT", "NOT_READY", "IN_USE")
_COUNTERS: Final = "GPM"
_REMEDY: Final = {
    _COUNTERS: "let everybody read performance counters (options nvidia NVreg_RestrictProfilingToAdminUsers=0 in /etc/modprobe.d, "
    "then load the driver again), or run as root",
}
_REMEDY_ELSE: Final = "run as a user that may, or give this one access to /dev/nvidia*"


class LostError(Exception):
    """One GPU does not answer any more."""


class GoneError(Exception):
    """The driver does not answer any more."""


class Library:
    """Raises ``LostError`` and ``GoneError``, and nothing else."""

    def __init__(self, module: Any, said: set[tuple[str, str]] | None = None) -> None:
        """``module``: pynvml."""
        self.module = module
        self._never: set[tuple[str, str]] = set()
        self._said = said if said is not None else set()

    def anew(self) -> Library:
        """After a driver has come back: everything is asked again, and nothing said again."""
        return Library(self.module, self._said)

    def ask(self, gpu: str, what: str, function: str, *args: Any) -> Any:
        """``what`` is for people. None where it is not told; what is refused for good is not asked for again."""
        if (gpu, function + what) in self._never:
            return None
        call: Callable[..., Any] | None = getattr(self.module, function, None)
        if call is None:  # the binding is older than the question
            return None
        try:
            return call(*args)
        except self.module.NVMLError as error:
            if self.refused(gpu, what, error.value):
                self._never.add((gpu, function + what))
        except (self.module.NVMLLibraryMismatchError, UnicodeDecodeError):
            self._never.add((gpu, function + what))
        return None

    def refused(self, gpu: str, what: str, code: int) -> bool:
        """Why something is not told. True where it never will be. Raises where the GPU or the driver is gone."""
        if self._is(code, _GONE):
            raise GoneError(self.words(code))
        if self._is(code, _LOST):
            raise LostError(self.words(code))
        if code == self.module.NVML_ERROR_NO_PERMISSION:
            self._warn(gpu, what, f"{self.words(code)}; {_REMEDY.get(what, _REMEDY_ELSE)}")
            return True
        if self._is(code, _NEVER):
            return True
        if not self._is(code, _NOT_NOW):
            self._warn(gpu, what, self.words(code))
        return False

    def words(self, code: int) -> str:
        return str(self.module.NVMLError(code))

    def _is(self, code: int, names: tuple[str, ...]) -> bool:
        return any(code == getattr(self.module, f"NVML_ERROR_{name}", None) for name in names)

    def _warn(self, gpu: str, what: str, why: str) -> None:
        if (gpu, what) not in self._said:
            self._said.add((gpu, what))
            _log.warning("%s: %s can't be read: %s", gpu, what, why)


class Questions:
    """What one GPU is asked."""

    def __init__(self, library: Library, handle: Any, title: str) -> None:
        self.library = library
        self.module = library.module
        self.handle = handle
        self.title = title

    def ask(self, what: str, function: str, *args: Any) -> Any:
        return self.library.ask(self.title, what, function, self.handle, *args)

    def call(self, what: str, function: str, *args: Any) -> Any:
        """Something that takes no GPU."""
        return self.library.ask(self.title, what, function, *args)

    def refused(self, what: str, code: int) -> bool:
        return self.library.refused(self.title, what, code)
