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

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=300)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile("repeatable")

logging.getLogger("pd-appliance").setLevel(logging.WARNING)  # vLLM's command line raises the level of all others


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pd-", dir="/tmp") as name:
        yield Path(name)
