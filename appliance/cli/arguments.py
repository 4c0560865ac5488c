"""What an owner tells vLLM himself, of all that a plan rests on. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from appliance.config import Config
from appliance.costs.formats import Format
from appliance.errors import ConfigError
from appliance.planner.node import Settings
from appliance.planner.wanted import SETTINGS
from appliance.records import Role
from appliance.supervisor.refused import meant

_CONTEXT: Final = "--max-model-len"
_SHARE: Final = "--gpu-memory-utilization"
_KV: Final = "--kv-cache-dtype"
_BUDGET: Final = "--max-num-batched-tokens"
_PLACES: Final = "--max-num-seqs"
_OF_ALL: Final = (_CONTEXT, _SHARE, _KV)  # engines of a node, which hand KV over and change roles
_FREE: Final = ("auto", "-1")  # vLLM takes what there is room for
_UNITS: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """None: nobody has said so."""

    context: int | None  # the longest request, in tokens
    open_context: bool  # it is left to vLLM
    share: float | None  # of each GPU's memory
    kv: Format | None
    settings: dict[Role, Settings]
    firm: frozenset[Role]  # whose token budget is not to be made smaller


def told(config: Config) -> Told:
    """Raises ``ConfigError`` for what is no number, and what must be the same for all engines and is said for some."""
    ours = config.engine.args
    by_role = {Role.PREFILL: config.engine.prefill.args, Role.DECODE: config.engine.decode.args, Role.BOTH: ()}
    for role, arguments in by_role.items():
        if name := next((name for name in _OF_ALL if _said(arguments, name) is not None), None):
            raise ConfigError(f"engine.{role.value}.args: {name} is of all engines: write it into [engine] args")
    context = _said(ours, _CONTEXT)
    return Told(
        context=None if context in (None, *_FREE) else _whole(_CONTEXT, context or ""),
        open_context=context in _FREE,
        share=_share(_said(ours, _SHARE)),
        kv=Format.FP8 if (_said(ours, _KV) or "").startswith("fp8") else None,
        settings={role: _settings(SETTINGS[role], (*ours, *arguments)) for role, arguments in by_role.items()},
        firm=frozenset(role for role, some in by_role.items() if _said((*ours, *some), _BUDGET) is not None),
    )


def _settings(usual: Settings, arguments: Sequence[str]) -> Settings:
    budget, places = _said(arguments, _BUDGET), _said(arguments, _PLACES)
    return replace(
        usual,
        token_budget=usual.token_budget if budget is None else _whole(_BUDGET, budget),
        places=usual.places if places is None else _whole(_PLACES, places),
    )


def _said(arguments: Sequence[str], name: str) -> str | None:
    """What an argument is given, in whatever spelling; the last one counts."""
    found = None
    for number, argument in enumerate(arguments):
        if meant(argument, {name: ""}) and len(argument) > 2:
            _, equals, value = argument.partition("=")
            found = value if equals else (arguments[number + 1] if number + 1 < len(arguments) else "")
    return found


def _whole(name: str, text: str) -> int:
    """As vLLM reads it: 32k is 32,000, and 32K 32,768."""
    match = _NUMBER.fullmatch(text)
    number = int(float(match[1]) * _UNITS.get(match[2], 1)) if match else 0
    if number < 1:
        raise ConfigError(
            f"engine.args: {name} {text!r} is no number of tokens or requests: write one, as in {name} 8192 or 8K"
        )
    return number


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(
            f"engine.args: {_SHARE} {text!r} is no share of a GPU's memory: write one above 0 and up to 1, as in {_SHARE} 0.9"
        )
    return share
