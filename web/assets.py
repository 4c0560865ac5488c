"""Where templates and static files are: inside the wheel, or at the top of the checkout."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from markupsafe import Markup

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


@cache
def inline(name: str) -> Markup:
    """A static file as it stands in pages: what the first paint waits for comes with them, for each further request delays it."""
    return Markup((directory("static") / name).read_text(encoding="utf-8"))


def source(name: str) -> str:
    """The same, as a content security policy allows it."""
    digest = hashlib.sha256(inline(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
