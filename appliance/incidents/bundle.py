"""One file of an incident, that a colleague can open: gzip of JSON lines, so that ``zcat`` and ``jq`` can read it, too.

The first line is the header, the second the incident, then comes a snapshot a line, and the last one says how many there were.
"""

from __future__ import annotations

import gzip
import io
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.errors import IncidentError
from appliance.incidents import frames
from appliance.records import Incident, NodeSnapshot

FORMAT: Final = 1
ENDING: Final = ".pdi"
_LINE_BYTES: Final = 16 << 20
_LINES: Final = 50_000
_MAGIC: Final = b"\x1f\x8b"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """``slo…`` as they were set then; ``snapshots``: how many follow."""

    pd_appliance_incident: int  # the format's version
    version: str  # of the appliance that has seen it
    written: float  # Unix seconds
    simulated: bool
    slo_ttft_s: float | None
    slo_itl_s: float | None
    slo_share: float | None
    snapshots: int


class Bundle(msgspec.Struct, frozen=True):
    header: Header
    incident: Incident
    snapshots: tuple[NodeSnapshot, ...]


class _Format(msgspec.Struct):
    """What every version can read of a header."""

    pd_appliance_incident: int
    version: str = "an unknown version"


class _IncidentLine(msgspec.Struct):
    incident: Incident


class _Line(msgspec.Struct):
    """A snapshot, or the end."""

    snapshot: NodeSnapshot | None = None
    end: int | None = None


def name(incident: Incident) -> str:
    """For a file of it."""
    return f"incident-{incident.id}{ENDING}"


def write(incident: Incident, chunks: Sequence[bytes], *, now: float | None = None) -> bytes:
    """The file. ``chunks``: as ``frames.joined`` makes them, in order."""
    row = list(in_order(chunks))
    header = Header(
        pd_appliance_incident=FORMAT,
        version=incident.version,
        written=time.time() if now is None else now,
        simulated=incident.simulated,
        slo_ttft_s=incident.slo_ttft_s,
        slo_itl_s=incident.slo_itl_s,
        slo_share=incident.slo_share,
        snapshots=len(row),
    )
    lines: list[Any] = [header, {"incident": incident}, *({"snapshot": one} for one in row), {"end": len(row)}]
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
        for line in lines:
            packed.write(msgspec.json.encode(line) + b"\n")
    return file.getvalue()


def read(path: Path) -> Bundle:
    """Raises ``IncidentError`` that says what is wrong with the file."""
    try:
        with path.open("rb") as file:
            if file.read(2) != _MAGIC:
                raise IncidentError(f"{path} is no incident that a pd-appliance has exported")
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(_lines(unpacked), path)
    except EOFError as error:
        raise IncidentError(f"{path} is cut off: copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise IncidentError(f"{path} is damaged ({error}): copy it again") from error
    except OSError as error:
        raise IncidentError(f"{path} can't be read: {error.strerror or error}") from error


def _read(lines: Iterator[bytes], path: Path) -> Bundle:
    first = next(lines, b"")
    try:
        known = msgspec.json.decode(first, type=_Format)
    except msgspec.MsgspecError as error:
        raise IncidentError(f"{path} is no incident that a pd-appliance has exported") from error
    if known.pd_appliance_incident != FORMAT:
        raise IncidentError(
            f"{path} has format {known.pd_appliance_incident}, and this version knows {FORMAT}: "
            f"it was written by pd-appliance {known.version}; use that version, or a later one"
        )
    try:
        header = msgspec.json.decode(first, type=Header)
        incident = msgspec.json.decode(next(lines, b""), type=_IncidentLine).incident
        row = tuple(_snapshots(lines))
    except msgspec.MsgspecError as error:
        raise IncidentError(
            f"{path} has something that this version can't read ({error}): it is of pd-appliance {known.version}; use that"
        ) from error
    if len(row) != header.snapshots:
        raise IncidentError(f"{path} has {len(row)} snapshots and should have {header.snapshots}: export it again")
    return Bundle(header, incident, row)


def _snapshots(lines: Iterator[bytes]) -> Iterator[NodeSnapshot]:
    """To the very end, where gzip has its checksum."""
    for line in lines:
        one = msgspec.json.decode(line, type=_Line)
        if one.snapshot is not None:
            yield one.snapshot


def _lines(file: gzip.GzipFile) -> Iterator[bytes]:
    """Bounded: whoever sent the file may have made it to fill a disk or a memory."""
    for _ in range(_LINES):
        line = file.readline(_LINE_BYTES)
        if not line:
            return
        yield line


def in_order(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Each snapshot once. What can't be read is passed over: what is left says more than nothing."""
    last_s = float("-inf")
    for chunk in chunks:
        for one in _readable(chunk):
            if one["uptime_s"] > last_s:
                last_s = one["uptime_s"]
                yield one


def _readable(chunk: bytes) -> list[dict[str, Any]]:
    try:
        return frames.snapshots(chunk)
    except (ValueError, msgspec.MsgspecError):
        return []
