"""What a value in somebody's file should have been, in that person's words and not in those of types. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_EXPECTED: Final = re.compile(r"Expected `([\w |]+)`(?:, got `(\w+)`)?(?: (>=|>|<=|<) (\S+))?(?: matching regex (.+))?")
_WANTED: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list, as in {example}",
    "object": "a table of names and values",
}
_GOT: Final = {
    "int": "a number",
    "float": "a number with a fraction",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
_BOUNDS: Final = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}


def in_words(said: str, *, example: str = '["a", "b"]', patterns: Mapping[str, str] | None = None) -> str:
    """msgspec's ``Expected `int` <= 65535`` is ``expected a whole number of at most 65535``; what is told otherwise stays as it is.

    Args:
        example: of a list, where one is expected.
        patterns: what text is to be like, by the regular expression that it has to match.
    """
    found = _EXPECTED.fullmatch(said)
    if found is None:
        return f"{said[:1].lower()}{said[1:]}"
    kinds, got, bound, limit, pattern = found.groups()
    wanted = " or ".join(_WANTED.get(kind, kind).format(example=example) for kind in kinds.split(" | "))
    if pattern:
        wanted = next((words for regex, words in (patterns or {}).items() if repr(regex) == pattern), wanted)
    limits = f" {_BOUNDS[bound]} {limit.removesuffix('.0')}" if bound else ""
    return f"expected {wanted}{limits}" + (f", not {_GOT.get(got, got)}" if got else "")
