"""What ``cudart.py`` takes CUDA's structures, constants and functions to be, against CUDA's own header and library.

vLLM's CUDA build brings both (``make cuda-contract``); neither needs a GPU. Where they are not, nothing of this is run.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from appliance.engine.kv import cudart
from appliance.engine.kv.cudart import Attributes, CudaError, Cudart, Handle

_FOUND: Final = [path for place in sys.path for path in Path(place, "nvidia").glob("*/include/cuda_runtime_api.h")]
pytestmark = pytest.mark.skipif(not _FOUND, reason="needs CUDA's header, which vLLM's CUDA build brings")

_PROGRAM: Final = """
#include <stddef.h>
#include <stdio.h>
#include <cuda_runtime_api.h>

static cudaError_t (*many)(BATCH) = cudaMemcpyBatchAsync;
static cudaError_t (*export)(cudaIpcMemHandle_t *, void *) = cudaIpcGetMemHandle;
static cudaError_t (*open)(void **, cudaIpcMemHandle_t, unsigned int) = cudaIpcOpenMemHandle;
static cudaError_t (*one)(void *, const void *, size_t, enum cudaMemcpyKind, cudaStream_t) = cudaMemcpyAsync;
static cudaError_t (*grid)(void *, size_t, const void *, size_t, size_t, size_t, enum cudaMemcpyKind, cudaStream_t) = cudaMemcpy2DAsync;
static cudaError_t (*peer)(void *, int, const void *, int, size_t, cudaStream_t) = cudaMemcpyPeerAsync;
static cudaError_t (*hold)(cudaStream_t, cudaEvent_t, unsigned int) = cudaStreamWaitEvent;
static cudaError_t (*address)(char *, int, int) = cudaDeviceGetPCIBusId;
static cudaError_t (*device)(int *, const char *) = cudaDeviceGetByPCIBusId;

int main(void) {
    (void)many, (void)export, (void)open, (void)one, (void)grid, (void)peer, (void)hold, (void)address, (void)device;
    typedef struct cudaMemcpyAttributes A;
    printf("{\\"version\\": %d, \\"handle\\": %zu, \\"attributes\\": %zu, ", CUDART_VERSION, sizeof(cudaIpcMemHandle_t), sizeof(A));
    printf("\\"order\\": %zu, \\"source_kind\\": %zu, ", offsetof(A, srcAccessOrder), offsetof(A, srcLocHint.type));
    printf("\\"source\\": %zu, \\"target_kind\\": %zu, ", offsetof(A, srcLocHint.id), offsetof(A, dstLocHint.type));
    printf("\\"target\\": %zu, \\"flags\\": %zu, ", offsetof(A, dstLocHint.id), offsetof(A, flags));
    printf("\\"lazy\\": %d, \\"device_to_device\\": %d, ", cudaIpcMemLazyEnablePeerAccess, cudaMemcpyDeviceToDevice);
    printf("\\"non_blocking\\": %d, \\"event\\": %d, ", cudaStreamNonBlocking, cudaEventBlockingSync | cudaEventDisableTiming);
    printf("\\"in_order\\": %d, \\"beside\\": %d}", cudaMemcpySrcAccessOrderStream, cudaMemcpyFlagPreferOverlapWithCompute);
    return 0;
}
"""
_BATCH: Final = (
    "{pointers}, const size_t *, size_t, struct cudaMemcpyAttributes *, size_t *, size_t, {failed}cudaStream_t"
)


def test_the_header_says_what_is_passed(tmp_path: Path) -> None:
    told = _compiled(tmp_path, _FOUND[0].parent)
    assert (told["handle"], told["attributes"]) == (ctypes.sizeof(Handle), ctypes.sizeof(Attributes))
    fields = [name for name, *_ in Attributes._fields_]
    assert {name: told[name] for name in fields} == {name: getattr(Attributes, name).offset for name in fields}
    assert told["lazy"] == cudart.LAZY_PEER_ACCESS
    assert told["device_to_device"] == cudart._DEVICE_TO_DEVICE
    assert (told["non_blocking"], told["event"]) == (cudart._NON_BLOCKING, cudart._EVENT)
    assert (told["in_order"], told["beside"]) == (cudart._IN_STREAM_ORDER, cudart._BESIDE_KERNELS)


def test_the_library_has_every_function_and_says_by_name_that_there_is_no_gpu() -> None:
    runtime = cudart._runtime()
    names = set(Path(cudart.__file__).read_text().split("self._runtime.")[1:])
    called = {text.partition("(")[0].split()[0] for text in names} - {"cudaGetErrorName"} | {"cudaMemcpyBatchAsync"}
    assert len(called) > 15
    assert [name for name in sorted(called) if not hasattr(runtime, name)] == []
    if _has_gpu():
        pytest.skip("there is a GPU: tests/gpu ask it")
    cuda = Cudart(runtime, SimpleNamespace())
    assert cuda.batches
    with pytest.raises(CudaError, match=r"open a peer's memory: cudaError(NoDevice|InsufficientDriver|StubLibrary)"):
        cuda.open(bytes(cudart.HANDLE_BYTES))


def _compiled(directory: Path, include: Path) -> dict[str, int]:
    """What the program prints. Its declarations are of both forms of the batch: with CUDA 13 it has one argument less."""
    old = "#define CUDART_VERSION  12" in (include / "cuda_runtime_api.h").read_text()
    pointers = "void **, void **" if old else "void *const *, const void *const *"
    batch = _BATCH.format(pointers=pointers, failed="size_t *, " if old else "")
    source, program = directory / "what.c", directory / "what"
    source.write_text(_PROGRAM.replace("BATCH", batch))
    flags = ["-Werror", f"-I{include}", "-Wl,--unresolved-symbols=ignore-all"]
    subprocess.run(["cc", *flags, "-o", str(program), str(source)], check=True)
    found: dict[str, int] = json.loads(subprocess.check_output([str(program)]))
    return found


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()
