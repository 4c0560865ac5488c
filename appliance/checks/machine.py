"""Memory, shared memory, descriptors, cores, ports and directories. Each function looks at one thing; none changes anything."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance.checks.line import Line, bad, ok, warn

_SHM: Final = Path("/dev/shm")
_DESCRIPTORS: Final = 4096  # some clients, twice: from them and to engines
_OWN_DESCRIPTORS: Final = 100  # of one process: EngineCore has 79 open when it has nothing to do, the supervisor fewer
_LEAST_CLIENTS: Final = 8
_MORE_DESCRIPTORS: Final = "ulimit -n 65536, or LimitNOFILE= in the unit (service install writes it)"
_ANOTHER: Final = "take another --host, as in 127.0.0.1 or 0.0.0.0"
_REMEDIES: Final = {
    errno.EADDRINUSE: "somebody listens there already (ss -ltnp shows who): end that, or take another --port",
    errno.EACCES: "ports below 1024 need root: take another --port, with a proxy before it",
    errno.EADDRNOTAVAIL: f"this machine has no such address: {_ANOTHER}",
    socket.EAI_NONAME: f"nobody knows a host of that name: {_ANOTHER}",
}
QUEUE_BYTES: Final = 240 << 20  # vLLM starts no rank where less is free; of it little is ever touched
_RANK_BYTES: Final = 4 << 30  # of the host's memory, for a GPU: torch, CUDA's libraries and context, buffers; estimated
_STATE_BYTES: Final = 1 << 30  # incidents, history and fits stay well below


def memory(available: int, wanted: int, engines: int, weights: int = 0) -> Line:
    """``available``, ``wanted``: bytes; of all engines together. ``weights``: bytes of it, of each."""
    of_it = f", {_gib(weights)} of it for the weights of each" if weights > wanted // 10 else ""
    said = f"{_gib(available)} available, {engines} engines take about {_gib(wanted)}{of_it}"
    if wanted <= available:
        return ok("memory", said)
    if weights > available:
        return bad("memory", said, "use a smaller model, or one of fewer bits, or a machine with more memory")
    return bad("memory", said, "use fewer engines (--topology), or a lower [engine] kv_cache_bytes")


def shared_memory(kv_bytes: int, *, ranks: bool = False, path: Path = _SHM) -> Line:
    """``kv_bytes``: of CPU engines, whose KV lies there; ``ranks``: vLLM's queues between those of an engine do."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        return bad("shared memory", f"{path}: {error.strerror}", f"mount a tmpfs at {path}")
    free, wanted = found.f_bavail * found.f_frsize, kv_bytes + (QUEUE_BYTES if ranks else 0)
    takers = [f"KV takes {_gib(kv_bytes)}"] if kv_bytes else []
    takers += [f"each queue between an engine's ranks wants {_gib(QUEUE_BYTES)}"] if ranks else []
    said = f"{path} has {_gib(free)} free, {' and '.join(takers)}"
    if wanted > free:
        remedy = f"mount -o remount,size={-(-wanted >> 30) + 1}G {path}, or docker run --shm-size=… (or --ipc=host)"
        return bad("shared memory", said, f"{remedy}, or a lower [engine] kv_cache_bytes" if kv_bytes else remedy)
    return ok("shared memory", said)


def host_memory(available: int, ranks: int) -> Line:
    """Of engines on GPUs. ``available``: bytes."""
    wanted = ranks * _RANK_BYTES
    said = (
        f"{_gib(available)} of the host's available; processes of {ranks} GPUs take about {_gib(wanted)} (our estimate)"
    )
    if wanted > available:
        return warn("memory", said, "use fewer GPUs (--topology), or end what else takes the host's memory")
    return ok("memory", said)


def descriptors(limit: int | None = None) -> Line:
    """Open files and sockets. ``limit``: soft; this process's, if not given."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if soft == resource.RLIM_INFINITY:
        return ok("file limit", "none")
    clients, said = max(0, soft - _OWN_DESCRIPTORS) // 2, f"{soft:,} open files"
    if clients < _LEAST_CLIENTS:
        return bad("file limit", f"{said}: an engine has some {_OWN_DESCRIPTORS} open by itself", _MORE_DESCRIPTORS)
    if soft < _DESCRIPTORS:
        return warn(
            "file limit",
            f"{said}: each client takes two, so that about {clients:,} can be served at once",
            _MORE_DESCRIPTORS,
        )
    return ok("file limit", said)


def cores(usable: Sequence[int], engines: int) -> Line:
    """One for each engine, at least."""
    said = f"{len(usable)} for {engines} engines and the supervisor"
    if len(usable) < engines:
        return warn(
            "cores", said, "engines share cores and slow each other down: fewer engines (--topology), or more cores"
        )
    return ok("cores", said)


def port(host: str, number: int) -> Line:
    """Whether it can be listened on, by what ``serve`` itself does first."""
    place = f"[{host}]:{number}" if ":" in host else f"{host or repr(host)}:{number}"
    try:
        bound(host, number).close()
    except OSError as error:
        told = error.strerror or str(error)
        return bad("port", f"{place} can't be listened on: {told}", _REMEDIES.get(error.errno or 0, _ANOTHER))
    return ok("port", f"{place} is free" if number else f"a free one of {host} is taken")


def bound(host: str, number: int) -> socket.socket:
    """A socket for TCP with that address, which takes no connections yet. Raises ``OSError``."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
    except ValueError as error:  # such a name has no form in which it could be asked for
        raise OSError(errno.EINVAL, "that is no name of a host") from error
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def state(directory: Path) -> Line:
    """Where incidents, history and what was learnt are kept."""
    there = next((one for one in (directory, *directory.parents) if one.exists()), Path("/"))
    if not os.access(there, os.W_OK | os.X_OK):
        return bad(
            "state directory",
            f"{there} can't be written to",
            "chown it to the user that serves, or take another --state-dir",
        )
    found = os.statvfs(there)
    free = found.f_bavail * found.f_frsize
    if free < _STATE_BYTES:
        return warn("state directory", f"{directory}: {_gib(free)} free", "make room, or take another --state-dir")
    return ok("state directory", f"{directory}, {_gib(free)} free")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
