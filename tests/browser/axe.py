"""axe-core in a page: what it finds wrong, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

SCRIPT = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"

_RUN = "async some => (await axe.run(document, {resultTypes: ['violations'], ...some})).violations"
_COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}


def in_both_themes(page: Page) -> dict[str, list[str]]:
    """By theme, what breaks a rule. Every rule that is on by default is asked for; again in the other theme those of colours."""
    page.emulate_media(color_scheme="light")
    light = violations(page)
    page.emulate_media(color_scheme="dark")
    dark = violations(page, _COLOURS)
    return {theme: found for theme, found in (("light", light), ("dark", dark)) if found}


def violations(page: Page, some: dict[str, Any] | None = None) -> list[str]:
    """One line for each element that breaks a rule, or one of ``some``."""
    if not page.evaluate("'axe' in window"):
        assert SCRIPT.exists(), "axe-core is not there: requirements/setup.sh test fetches it"
        page.evaluate(SCRIPT.read_text())
    return [_said(rule, node) for rule in page.evaluate(_RUN, some or {}) for node in rule["nodes"]]


def _said(rule: dict[str, Any], node: dict[str, Any]) -> str:
    return f"{rule['id']} ({rule['impact']}): {node['target'][0]}: {node['failureSummary']} in {node['html'][:160]}"
