"""The real app under uvicorn over made-up states, and the system's Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from demo_server import Demo
from made_up import FullNode
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


class Served:
    """A demo server in a thread; ``stop`` and ``start`` cut and mend the live stream.

    The port is bound as long as this lives, so that nobody else gets it; but nobody listens there while it is stopped.
    """

    def __init__(self, site: Callable[[FullNode], Demo] = Demo) -> None:
        self.node = FullNode("empty", tick_s=0.1)
        self._site = site
        self._place = _bound(0)
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def _port(self) -> int:
        return int(self._place.getsockname()[1])

    def start(self) -> None:
        self._demo = self._site(self.node)
        self._server = uvicorn.Server(uvicorn.Config(self._demo, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, args=([_bound(self._port)],))
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline, "the demo server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.servers[0].get_loop().call_soon_threadsafe(self._demo.site.close_streams)
        self._server.should_exit = True
        self._thread.join(timeout=10)
        assert not self._thread.is_alive(), "open streams kept the server from stopping"

    def close(self) -> None:
        self.stop()
        self._place.close()


def _bound(port: int) -> socket.socket:
    """Several sockets of ours may be bound to one port; only those that listen get connections."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("127.0.0.1", port))
    return found


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here; install it, or name it in $CHROMIUM")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=_FLAGS.split())
        yield found
        found.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console said."""
    return []


@pytest.fixture
def open_page(browser: Browser, served: Served, complaints: list[str]) -> Iterator[Callable[..., Page]]:
    """Opens the page, live; keyword arguments are those of ``new_page``. The console must stay silent to the end."""
    pages: list[Page] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def opened(state: str, live: bool = True, path: str = "/", **options: object) -> Page:
        served.node.show(state)
        page = browser.new_page(**{"viewport": {"width": 1400, "height": 900}, **options})  # type: ignore[arg-type]
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        pages.append(page)
        page.goto(served.url + path)
        if live:
            page.locator('html[data-link="live"]').wait_for(timeout=10_000)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not complaints
