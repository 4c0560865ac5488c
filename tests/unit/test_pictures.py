"""The contact sheet: which pages and states it has."""

from __future__ import annotations

import argparse
import re

import pytest

from bench import pictures
from bench.pictures import Picture
from web.views import PLACES


def test_every_page_is_on_it() -> None:
    demo = pictures.made_up("demo_server").Demo(pictures.made_up("made_up").FullNode("busy"))
    pages = {re.sub(r"\{\w+\}", "{}", page.path) for page in demo.site._pages._pages}
    pictured = {re.sub(r"e1|\{\w+\}", "{}", shot.path) for shot in pictures.SHOTS.values()}
    assert pictured == pages
    assert pictured >= set(PLACES.values())


def test_every_scene_is_a_state_of_the_made_up_node() -> None:
    states = pictures.made_up("page_states")
    pictures.made_up("page_kept")  # has some of its own
    assert {scene.node for scene in pictures.SCENES.values()} <= set(states.STATES)


def test_a_line_of_the_sheet_has_a_page_in_all_its_states() -> None:
    shown = [Picture(page="kv", state=state, theme="dark", width=390) for state in ("empty", "leaking")]
    found = pictures.sheet([*shown, Picture(page="kv", state="empty", theme="light", width=390)])
    assert re.findall("<h2>(.*)</h2>", found) == ["kv, dark, 390 px", "kv, light, 390 px"]
    dark = found[found.index("kv, dark") : found.index("kv, light")]
    assert re.findall('src="([^"]*)"', dark) == ["kv-empty-dark-390.png", "kv-leaking-dark-390.png"]


def test_a_state_that_there_is_not_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="broke: not one of"):
        pictures._names(pictures.SCENES)("healthy,broke")
