"""A pytest plugin: vLLM's CUDA build believes that this machine has eight H100s, so that it can be configured where there is none.

Nothing is computed: what vLLM makes of arguments, and which of its classes it takes, is what contract tests look at. Where there is no
driver, its library is one whose functions all say that there is no GPU, for vLLM's own libraries are linked with it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
_DRIVER: Final = "libcuda.so.1"
_H100: Final = SimpleNamespace(major=9, minor=0, total_memory=80 << 30, multi_processor_count=132)
_GPUS: Final = 8


def _wanted() -> set[str]:
    """Functions of the driver that vLLM's libraries are linked with."""
    [place] = importlib.util.find_spec("vllm").submodule_search_locations  # type: ignore[union-attr,misc]
    found: set[str] = set()
    for library in Path(place).glob("*.so"):
        listed = subprocess.run(
            ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
        )
        names = (line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines())
        found |= {name for name in names if name.startswith("cu") and name[2:3].isupper()}
    return found


def _claim_driver() -> None:
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        with tempfile.TemporaryDirectory() as directory:
            source, library = Path(directory, "driver.c"), Path(directory, _DRIVER)
            source.write_text("".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in sorted(_wanted())))
            subprocess.run(
                ["cc", "-shared", "-fPIC", f"-Wl,-soname,{_DRIVER}", "-o", str(library), str(source)], check=True
            )
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _claim_gpus() -> None:
    import torch
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform

    runtime: Any = torch.cuda
    runtime.device_count = lambda: _GPUS
    runtime.get_device_capability = lambda *_: (_H100.major, _H100.minor)
    runtime.get_device_name = lambda *_: "NVIDIA H100 80GB HBM3"
    runtime.get_device_properties = lambda *_: _H100

    class Claimed(NonNvmlCudaPlatform):
        @classmethod
        def device_count(cls) -> int:
            return _GPUS

    platforms: Any = vllm.platforms
    platforms._current_platform = Claimed()


_claim_driver()
_claim_gpus()
