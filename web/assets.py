"""Where templates and static files are: inside the wheel, or at the top of the checkout."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_HERE = Path(__file__).resolve().parent
VENDOR_FILES = ("htmx-sse.min.js", "uPlot.iife.min.js", "uPlot.min.css")
"""What ``npm run build`` puts into ``static/vendor``."""


def directory(name: str) -> Path:
    """``templates`` or ``static``. The wheel carries them under ``web/_assets``."""
    packed = _HERE / "_assets" / name
    return packed if packed.is_dir() else _HERE.parent / name


def vendor_present() -> bool:
    """False until the browser libraries are built; the page then is right, but does not move."""
    vendor = directory("static") / "vendor"
    return all((vendor / name).is_file() for name in VENDOR_FILES)


@cache
def fingerprint() -> str:
    """Changes with every static file and template, so that browsers may keep files for ever and old pages notice."""
    digest = hashlib.sha256()
    for name in ("static", "templates"):
        for path in sorted(directory(name).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
