"""What all tests share: repeatable property tests, and a directory whose path is short enough for Unix sockets.

Property tests take the same examples each time, so that a run says something about the change alone;
``--hypothesis-profile=explore`` looks for new ones.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from appliance.checks import software

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=300)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile("repeatable")

logging.getLogger("pd-appliance").setLevel(logging.WARNING)  # vLLM's command line raises the level of all others


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real engines are tested on the CPU."""
    if software.builds() != "cuda":
        return
    skip = pytest.mark.skip(reason="vLLM's CUDA build is installed; make clean test CPU=1 installs the CPU build")
    for item in items:
        if any(name in item.path.parts for name in ("engine", "fault")):
            item.add_marker(skip)


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pd-", dir="/tmp") as name:
        yield Path(name)
