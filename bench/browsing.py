"""A made-up node of ``tests/browser``, served to the system's Chromium."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import uvicorn
from playwright.sync_api import Browser, sync_playwright

from bench.servers import ROOT, free_port

FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
_START_S: Final = 10.0


def made_up(name: str) -> Any:
    """A module of ``tests/browser``, which is no package."""
    directory = str(ROOT / "tests" / "browser")
    if directory not in sys.path:
        sys.path.append(directory)
    return import_module(name)


@contextmanager
def served(demo: Any) -> Iterator[str]:
    """Its address, for as long as it is served. ``demo``: a ``demo_server.Demo``."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(demo, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait(server)
        yield f"http://127.0.0.1:{port}"
    finally:
        demo.site.close_streams()
        server.should_exit = True
        thread.join()


def _wait(server: uvicorn.Server) -> None:
    deadline = time.monotonic() + _START_S
    while not server.started:
        if time.monotonic() > deadline:
            raise TimeoutError("the made-up node did not start")
        time.sleep(0.02)


def executable() -> str:
    """Where Chromium is. Raises ``SystemExit``."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise SystemExit("no Chromium here: install it, or name it in $CHROMIUM")
    return path


@contextmanager
def chromium() -> Iterator[Browser]:
    """That of ``$CHROMIUM``, or the system's."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        yield browser
        browser.close()
