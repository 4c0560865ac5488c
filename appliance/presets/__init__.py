"""Models that people run, by name: where they come from, what vLLM is told, and which layouts suit which GPUs.

Each is a directory here with a ``preset.toml`` and the model's ``config.json``, of which only what a cost model reads is kept: a preset
can be planned and simulated without being downloaded.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Final

import msgspec

from appliance.errors import ConfigError

_HERE: Final = Path(__file__).parent


class Usual(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Traffic to plan for: requests per second, and mean lengths in tokens."""

    rate: float
    prompt: float
    output: float


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of them."""

    title: str
    repository: str  # a hub id, with the weights
    args: tuple[str, ...] = ()  # of vLLM
    context: int  # the longest request that it is set up for, in tokens
    layouts: dict[str, str] = {}  # by GPUs: ``8xH100``
    traffic: Usual


def names() -> list[str]:
    """Of all presets."""
    return sorted(file.parent.name for file in _HERE.glob("*/preset.toml"))


def directory(name: str) -> Path | None:
    """Where its ``config.json`` is; None if there is no such preset."""
    return _HERE / name if name in names() else None


def described(model: str, base: Path = Path()) -> Path:
    """The ``config.json``, or the directory with one, of what somebody calls a model: a path, seen from ``base``, or a preset's name."""
    path = base / _expanded(model)
    return path if exists(path) else directory(model) or path


def _expanded(model: str) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError:  # nobody is called so
        return Path(model)


def exists(path: Path) -> bool:
    """Names that are too long, or in directories that are not for us, are of nothing."""
    try:
        return path.exists()
    except OSError:
        return False


def nearest(name: str) -> str:
    """In words: the preset that somebody may have meant; empty where there is none like it."""
    found = difflib.get_close_matches(name.lower(), names(), n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def load(name: str) -> Preset:
    """Raises ``ConfigError`` for a name that is none."""
    found = directory(name)
    if found is None:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(names())}")
    return msgspec.convert(tomllib.loads((found / "preset.toml").read_text(encoding="utf-8")), Preset)
