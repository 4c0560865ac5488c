"""What is kept for long is called after the minute in which it began."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator


def new_id(began: float, taken: Collection[str], prefix: str = "") -> str:
    """Short, in order of time, and to be said over a telephone: ``261126-1432``, and ``261126-1432b`` for a second one of that minute.

    ``began`` is in Unix seconds; the name is in UTC.
    """
    name = prefix + time.strftime("%y%m%d-%H%M", time.gmtime(began))
    endings: Iterator[str] = itertools.chain(
        ["", *"bcdefghijklmnopqrstuvwxyz"], (f"z{number}" for number in itertools.count(1))
    )
    return next(name + ending for ending in endings if name + ending not in taken)
