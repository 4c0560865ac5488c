"""What a page weighs, and when it is first painted: by the system's Chromium's own account, with nothing in its cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from playwright.async_api import Browser, async_playwright

from bench.browsing import FLAGS, executable

_WAIT_MS: Final = 30_000
_PAINTED: Final = "() => performance.getEntriesByName('first-contentful-paint').length > 0"
PARTS: Final = """() => {
  const parts = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const data = ["fetch", "xmlhttprequest"];  // what the page shows is no weight of its own
  return parts.filter((one) => !data.includes(one.initiatorType))
    .map((one) => ({name: one.name, transferred_bytes: one.transferSize, bytes: one.decodedBodySize}));
}"""
"""A page's files, as a list of ``Part``."""
_TOLD: Final = f"""() => {{
  const painted = (name) => performance.getEntriesByName(name)[0].startTime;
  return {{
    parts: ({PARTS})(),
    first_paint_ms: painted("first-paint"),
    contentful_ms: painted("first-contentful-paint"),
  }};
}}"""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One file: the page itself, a style, a script."""

    name: str
    transferred_bytes: int  # with the head of its answer
    bytes: int  # uncompressed


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """One load of a page."""

    parts: tuple[Part, ...]
    first_paint_ms: float
    contentful_ms: float

    @property
    def transferred_bytes(self) -> int:
        return sum(part.transferred_bytes for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


async def visits(url: str, pages: Sequence[str], times: int) -> dict[str, list[Visit]]:
    """Each page so many times, in turn, after a visit that is not counted: a browser's first is its own start."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        await _visit(browser, url + pages[0])
        found: dict[str, list[Visit]] = {page: [] for page in pages}
        for _ in range(times):
            for page in pages:
                found[page].append(await _visit(browser, url + page))
        await browser.close()
    return found


async def _visit(browser: Browser, address: str) -> Visit:
    """In a context of its own, which has nothing cached."""
    context = await browser.new_context(viewport={"width": 1400, "height": 1000})
    page = await context.new_page()
    await page.goto(address, wait_until="load", timeout=_WAIT_MS)
    await page.wait_for_function(_PAINTED, timeout=_WAIT_MS)
    told: Any = await page.evaluate(_TOLD)
    await context.close()
    return msgspec.convert(told, Visit, strict=False)
