"""A model's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.checks.line import Line, bad, ok, skipped

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json")
_INDEX: Final = "model.safetensors.index.json"


def files(path: str, *, local: bool) -> Line:
    """All that an engine will read is there."""
    if not local:
        return skipped("model", f"{path} is a hub id: whether it can be had shows when engines load it")
    directory = Path(path)
    missing = _missing(directory)
    if missing:
        return bad(
            "model",
            f"{path} lacks {', '.join(missing)}",
            "download it again (hf download …), or name another directory",
        )
    size = sum(one.stat().st_size for one in _weights(directory))
    return ok("model", f"{path}, {size / 1e9:.2f} GB of weights")


def _missing(directory: Path) -> list[str]:
    found = [] if _configured(directory) else ["a config.json that can be read"]
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        found.append("a tokenizer")
    if not _weights(directory):
        return [*found, "weights (*.safetensors)"]
    return found + [name for name in _announced(directory) if not (directory / name).is_file()]


def _configured(directory: Path) -> bool:
    try:
        return isinstance(msgspec.json.decode((directory / "config.json").read_bytes()), dict)
    except (OSError, msgspec.MsgspecError):
        return False


def _weights(directory: Path) -> list[Path]:
    return [one for pattern in ("*.safetensors", "*.bin", "*.gguf") for one in directory.glob(pattern)]


def _announced(directory: Path) -> list[str]:
    """Parts that the index names."""
    try:
        index: dict[str, Any] = msgspec.json.decode((directory / _INDEX).read_bytes())
        return sorted(set(index["weight_map"].values()))
    except (OSError, msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return []
