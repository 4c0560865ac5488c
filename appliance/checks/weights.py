"""A model's weights: which files an engine would read, how large they are, and what is wrong with them. Reads headers, no weights.

vLLM takes ``*.safetensors`` where there are some, of these those that an index names, and else ``*.bin`` or ``*.pt``. A model that comes in
Mistral's files, too (``consolidated*``), is read from the others.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

_FORMATS: Final = ("safetensors", "bin", "pt")
_OTHERS: Final = re.compile(r".*(?:training_args|optimizer|scheduler|scaler)\.(?:bin|pt)")  # of training
_PART: Final = re.compile(r"(.+)-(\d+)-of-(\d+)(\.\w+)")
_MOST_PARTS: Final = 10_000  # that a name is believed
_INDEX: Final = {"safetensors": ".safetensors.index.json", "bin": ".bin.index.json"}
_POINTER: Final = b"version https://git-lfs"
_LONGEST_HEADER: Final = 100_000_000  # bytes, as safetensors has it
_MISTRALS: Final = "consolidated"
AGAIN: Final = "download it again (hf download …), or name another directory"
_PULL: Final = f"git lfs pull in that directory, or {AGAIN}"


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """``troubles``: why they can't be loaded, each with its file's name; ``remedy`` is for the first."""

    size_bytes: int
    troubles: tuple[str, ...] = ()
    remedy: str = AGAIN


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    data_offsets: tuple[int, int]


def read(directory: Path) -> Weights:
    """Raises ``OSError`` for a directory that can't be read."""
    files, troubles = _files(directory)
    if not files and not troubles:
        troubles = ["it has no weights (*.safetensors)"]
    troubles += [f"{file.name} {why}" for file in files if (why := _trouble(file))]
    remedy = _PULL if troubles and any(map(_is_pointer, files)) else AGAIN
    return Weights(size_bytes=sum(map(_size, files)), troubles=tuple(troubles), remedy=remedy)


def taken(directory: Path) -> int:
    """Bytes that an engine takes for them at least: vLLM has 16 bits for each 32, unless it is told ``--dtype float32``."""
    try:
        return sum(map(_taken, _files(directory)[0]))
    except OSError:
        return 0


def _taken(file: Path) -> int:
    """Of a file that does not tell, half."""
    tensors = _tensors(file) if file.suffix == ".safetensors" and file.is_file() else None
    if tensors is None:
        return _size(file) // 2
    sizes = ((one.data_offsets[1] - one.data_offsets[0]) // (2 if one.dtype == "F32" else 1) for one in tensors)
    return max(0, min(sum(sizes), _size(file)))


def _tensors(file: Path) -> list[_Tensor] | None:
    """By its header: 8 bytes for its length, and JSON. None where it has none that can be read."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = msgspec.json.decode(
                opened.read(length) if length <= _LONGEST_HEADER else b"", type=dict[str, msgspec.Raw]
            )
        return [msgspec.json.decode(told, type=_Tensor) for name, told in header.items() if name != "__metadata__"]
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
        return None


def _files(directory: Path) -> tuple[list[Path], list[str]]:
    """Those that there are, and which are missing or can't be known."""
    for kind in _FORMATS:
        there = [file for file in sorted(directory.glob(f"*.{kind}")) if not _OTHERS.fullmatch(file.name)]
        there = [file for file in there if not file.name.startswith(_MISTRALS)] or there
        if there:
            return _announced(directory, kind, there) or (there, [f"{name} is missing" for name in _absent(there)])
    return [], []


def _announced(directory: Path, kind: str, there: Sequence[Path]) -> tuple[list[Path], list[str]] | None:
    """By the index; None where there is none."""
    start = _MISTRALS if there[0].name.startswith(_MISTRALS) else "pytorch_model" if kind == "bin" else "model"
    index = directory / f"{start}{_INDEX.get(kind, '')}"
    if kind not in _INDEX or not index.is_file():
        return None
    try:
        names = set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values())
    except (UnicodeDecodeError, msgspec.MsgspecError):
        return list(there), [f"{index.name} is no index of weights"]
    found = {file.name for file in there}
    return [file for file in there if file.name in names], [f"{name} is missing" for name in sorted(names - found)]


def _absent(there: Sequence[Path]) -> list[str]:
    """Parts that others tell of by their names: ``model-00001-of-00003.safetensors``."""
    names, wanted = {file.name for file in there}, set()
    for part in filter(None, map(_PART.fullmatch, names)):
        start, number, count, end = part.groups()
        if 0 < int(number) <= int(count) <= _MOST_PARTS:
            wanted |= {f"{start}-{at:0{len(number)}}-of-{count}{end}" for at in range(1, int(count) + 1)}
    return sorted(wanted - names)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _trouble(file: Path) -> str | None:
    """Why it can't be loaded, as far as its beginning tells."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return "is no file"
        if not found.st_size:
            return "is empty"
        if _is_pointer(file):
            return "is a pointer of git-lfs, in the place of weights"
        return _unreadable(file) if file.suffix == ".safetensors" else None
    except FileNotFoundError:
        return f"is a link to {file.readlink()}, which is not there" if file.is_symlink() else "has just gone"
    except OSError as error:
        return f"can't be read ({error.strerror})"


def _is_pointer(file: Path) -> bool:
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return opened.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _unreadable(file: Path) -> str | None:
    """What is wrong with its header: it tells where each tensor is, so that a file that ends too early shows, too."""
    try:
        from safetensors import SafetensorError, safe_open  # comes with vLLM, and may not be here
    except ImportError:
        return None
    try:
        with safe_open(file, framework="np"):
            return None
    except SafetensorError as error:
        return f"is damaged or cut short ({str(error).rpartition('header: ')[2]})"
