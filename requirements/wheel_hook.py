"""For hatchling: no wheel is built without the browser libraries that its pages load. They are fetched (static/vendor.mjs), not kept."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageLibraries(BuildHookInterface):
    """An editable install may come before they are fetched."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable" and (missing := absent(Path(self.root))):
            sys.exit(
                f"pd-appliance: {', '.join(missing)}: not there, and pages load them: run make setup, then build again"
            )


def absent(root: Path) -> list[str]:
    """Libraries that pages name and the checkout has not."""
    pages = "".join(file.read_text(encoding="utf-8") for file in (root / "templates").rglob("*.html"))
    named = sorted(set(re.findall(r"/(static/vendor/[\w.-]+)", pages)))
    return [name for name in named if not (root / name).is_file()]
