"""One file of an incident, that a colleague can open: gzip of JSON lines, so that ``zcat`` and ``jq`` can read it, too.

The first line is the header, the second the incident, then comes a snapshot a line, and the last one says how many there were.
"""

from __future__ import annotations

import gzip
import io
import itertools
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance import __version__
from appliance.errors import IncidentError
from appliance.incidents import frames
from appliance.records import Incident, NodeSnapshot

FORMAT: Final = 1
ENDING: Final = ".pdi"
_LINE_BYTES: Final = 16 << 20
_BYTES: Final = 512 << 20  # in all, unpacked; a snapshot of eight engines has 30 KB
_AGES_S: Final = 1e11  # no clock says more, and dates can be made of it
_MAGIC: Final = b"\x1f\x8b"
_UNREADABLE: Final = (
    msgspec.MsgspecError,
    UnicodeDecodeError,
    RecursionError,
)  # of what is no JSON, or made to do harm


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


class _Moment(msgspec.Struct):
    """What tells one kept snapshot from another."""

    uptime_s: float


class _Line(msgspec.Struct):
    """A snapshot, or the end."""

    snapshot: NodeSnapshot | None = None
    end: int | None = None


def name(incident: Incident) -> str:
    """For a file of it."""
    return f"incident-{incident.id}{ENDING}"


def write(incident: Incident, chunks: Sequence[bytes], *, now: float | None = None) -> bytes:
    """The file. ``chunks``: as ``frames.joined`` makes them, in order."""
    count = sum(1 for _ in _in_order(chunks))
    header = Header(
        pd_appliance_incident=FORMAT,
        version=incident.version,
        written=time.time() if now is None else now,
        simulated=incident.simulated,
        slo_ttft_s=incident.slo_ttft_s,
        slo_itl_s=incident.slo_itl_s,
        slo_share=incident.slo_share,
        snapshots=count,
    )
    rows = (
        {"snapshot": _plain(one)} for one in _in_order(chunks)
    )  # never all of them at once: it is written where requests are served
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
        for line in itertools.chain[Any]((header, {"incident": incident}), rows, ({"end": count},)):
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
                return _read(_lines(unpacked, path), path)
    except EOFError as error:
        raise _cut_off(path) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise IncidentError(f"{path} is damaged ({error}): copy it again") from error
    except OSError as error:
        raise IncidentError(f"{path} can't be read: {error.strerror or error}") from error


def _read(lines: Iterator[bytes], path: Path) -> Bundle:
    first = next(lines, b"")
    try:
        known = msgspec.json.decode(first, type=_Format)
    except _UNREADABLE as error:
        raise IncidentError(f"{path} is no incident that a pd-appliance has exported") from error
    if known.pd_appliance_incident != FORMAT:
        raise IncidentError(
            f"{path} has format {known.pd_appliance_incident}, and this version knows {FORMAT}: "
            f"it was written by pd-appliance {known.version}; use that version, or a later one"
        )
    seen = _Seen(first)
    try:
        header = msgspec.json.decode(first, type=Header)
        incident = msgspec.json.decode(seen.next(lines), type=_IncidentLine).incident
        row = tuple(_snapshots(lines, seen))
    except _UNREADABLE as error:
        if not seen.last.endswith(b"\n") and not next(lines, b""):  # what is too long for a line goes on
            raise _cut_off(path) from error
        whose = (
            "it says that this version has written it, and it has not: export it again"
            if known.version == __version__
            else f"it is of pd-appliance {known.version}; use that"
        )
        raise IncidentError(f"{path} has something that this version can't read ({error}): {whose}") from error
    if not all(abs(one) < _AGES_S for one in _times(incident, row)):
        raise IncidentError(f"{path} has times in it that no clock has said: it was not written by a pd-appliance")
    if any(later.uptime_s <= earlier.uptime_s for earlier, later in itertools.pairwise(row)):
        raise IncidentError(f"{path} has times in it that run backwards: it was not written by a pd-appliance")
    if len(row) < header.snapshots and not seen.end:
        raise _cut_off(path)
    if len(row) != header.snapshots:
        raise IncidentError(f"{path} has {len(row)} snapshots and should have {header.snapshots}: export it again")
    return Bundle(header, incident, row)


class _Seen:
    """How far a file was read. ``end``: to the line that says how many there were."""

    def __init__(self, first: bytes) -> None:
        self.last = first
        self.end = False

    def next(self, lines: Iterator[bytes]) -> bytes:
        self.last = next(lines, b"")
        return self.last


def _snapshots(lines: Iterator[bytes], seen: _Seen) -> Iterator[NodeSnapshot]:
    """To the very end, where gzip has its checksum."""
    while line := seen.next(lines):
        one = msgspec.json.decode(line, type=_Line)
        seen.end = one.end is not None
        if one.snapshot is not None:
            yield one.snapshot


def _cut_off(path: Path) -> IncidentError:
    return IncidentError(f"{path} is cut off: copy or export it again")


def _times(incident: Incident, row: Sequence[NodeSnapshot]) -> Iterator[float]:
    yield incident.opened
    for one in row:
        yield from (one.time, one.uptime_s)


def _lines(file: gzip.GzipFile, path: Path) -> Iterator[bytes]:
    """Bounded: whoever sent the file may have made it to fill a disk or a memory."""
    left = _BYTES
    while line := file.readline(min(_LINE_BYTES, left)):
        left -= len(line)
        if left <= 0:
            raise IncidentError(f"{path} holds more than {_BYTES >> 20} MiB: no incident does, and it is not read")
        yield line


# ---- what was kept


def in_order(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Each snapshot once, as plain values."""
    return (_plain(one) for one in _in_order(chunks))


def _in_order(chunks: Iterable[bytes]) -> Iterator[msgspec.Raw]:
    """Each snapshot once, as it was kept. What can't be read is passed over: what is left says more than nothing."""
    last_s = float("-inf")
    for chunk in chunks:
        for one in _readable(chunk):
            now_s = msgspec.msgpack.decode(one, type=_Moment).uptime_s
            if now_s > last_s:
                last_s = now_s
                yield one


def _readable(chunk: bytes) -> list[msgspec.Raw]:
    try:
        return frames.raw(chunk)
    except (ValueError, msgspec.MsgspecError):
        return []


def _plain(one: msgspec.Raw) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.msgpack.decode(one)
    return found
