"""What a GPU check has found, and its report. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

_MARKS: Final = {True: "well", False: "**NOT WELL**", None: "told"}


class Finding(msgspec.Struct, frozen=True):
    """One thing that was measured. ``well`` None: there is nothing that it must be."""

    what: str
    said: str
    well: bool | None = None


def at_least(what: str, value: float | None, wanted: float, unit: str = "") -> Finding:
    """A figure that must not be lower; None: it could not be had, which is not well."""
    return _bound(what, value, f"at least {wanted:g}{unit}", value is not None and value >= wanted, unit)


def at_most(what: str, value: float | None, wanted: float, unit: str = "") -> Finding:
    """A figure that must not be higher."""
    return _bound(what, value, f"at most {wanted:g}{unit}", value is not None and value <= wanted, unit)


def _bound(what: str, value: float | None, wanted: str, well: bool, unit: str) -> Finding:
    return Finding(what, f"{'—' if value is None else f'{value:.3g}{unit}'}, wanted is {wanted}", well)


def not_run(what: str, why: str) -> Finding:
    return Finding(what, f"not run: {why}")


def failed(findings: Iterable[Finding]) -> bool:
    return any(finding.well is False for finding in findings)


def written(title: str, about: str, sections: Sequence[tuple[str, Sequence[Finding]]]) -> str:
    """In Markdown."""
    lines = [f"# {title}", "", about]
    for heading, findings in sections:
        lines += ["", f"## {heading}", "", "| what | figure | |", "|---|---|---|"]
        lines += [f"| {one.what} | {one.said.replace('|', '/')} | {_MARKS[one.well]} |" for one in findings]
    return "\n".join(lines) + "\n"
