"""A model's files, and whether its weights fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from appliance.checks import weights
from appliance.checks.line import Line, bad, ok, skipped
from appliance.records import Card
from appliance.supervisor import refused
from appliance.supervisor.specs import EngineSpec, Model

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json", "vocab.json")
_ELSEWHERE: Final = {"--load-format": "weights", "--tokenizer": "tokenizer", "--skip-tokenizer-init": "tokenizer"}
_SHOWN: Final = 3  # troubles


def files(model: Model, repository: str = "", arguments: Sequence[str] = ()) -> Line:
    """All that an engine will read is there, and can be read.

    Args:
        repository: of a preset: where its weights are.
        arguments: of vLLM, that the owner gives. With some of them it reads other files.
    """
    if repository or not model.local:
        named = (
            f"{model.name}: its weights are {repository}'s"
            if repository
            else f"{model.path} is a hub id: its files are"
        )
        return skipped("model", f"{named} on the hub, and whether they can be had shows when engines load them")
    try:
        return _local(Path(model.path), _elsewhere(arguments))
    except OSError as error:
        return bad(
            "model", f"{model.path} can't be read ({error.strerror})", "name another directory, or let it be read"
        )


def _local(directory: Path, elsewhere: Mapping[str, str]) -> Line:
    found = weights.read(directory)
    troubles = list(filter(None, [_misconfigured(directory)]))
    if "tokenizer" not in elsewhere and not any((directory / name).is_file() for name in _TOKENIZERS):
        troubles.append("it has no tokenizer")
    if "weights" not in elsewhere:
        troubles += found.troubles
    if troubles:
        more = f"; and {len(troubles) - _SHOWN} more" if len(troubles) > _SHOWN else ""
        return bad("model", f"{directory}: {'; '.join(troubles[:_SHOWN])}{more}", found.remedy)
    said = [f"{found.size_bytes / 1e9:.2f} GB of weights"] if "weights" not in elsewhere else []
    said += [f"its {what} not looked at because of {argument}" for what, argument in elsewhere.items()]
    return ok("model", f"{directory}, {', '.join(said)}")


def _elsewhere(arguments: Sequence[str]) -> dict[str, str]:
    """What is not in the model's directory, or need not be, and the argument that says so."""
    named = (refused.meant(argument, _ELSEWHERE) for argument in arguments)
    return {_ELSEWHERE[name]: name for name in named if name is not None}


def _misconfigured(directory: Path) -> str | None:
    try:
        found = msgspec.json.decode((directory / "config.json").read_bytes())
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
        found = None
    if not isinstance(found, dict):
        return "its config.json is none that can be read"
    if not found.get("model_type") and not found.get("architectures"):
        return "its config.json says neither model_type nor architectures"
    return None


def on_gpus(weight_bytes: int, engines: Sequence[EngineSpec], cards: Sequence[Card]) -> Line | None:
    """Weights that are larger than the GPUs they are for, whatever has been reckoned; None where they are not."""
    taken: dict[str, float] = {}
    for engine in engines:
        for gpu in engine.gpus:
            taken[gpu] = taken.get(gpu, 0) + weight_bytes / len(engine.gpus)
    short = [card for card in cards if taken.get(card.uuid, 0) > card.free_bytes]
    if not short:
        return None
    said = (
        f"{taken[card.uuid] / 2**30:.1f} GiB on GPU {card.index}, which has {card.free_bytes / 2**30:.1f} GiB free"
        for card in short
    )
    return bad("weights", "; ".join(said), "more GPUs to an engine (--topology 1b@tp2), or a smaller model")
