"""What is kept for long is called after the minute in which it began."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Collection, Iterator
from typing import Final

_LETTERS: Final = "bcdfghjklmnpqrstvwxz"  # of which no words are made


def new_id(began: float, taken: Collection[str], prefix: str = "", run: str = "") -> str:
    """Short, in order of time, and to be said over a telephone: ``261126-1432``, and ``261126-1432b`` for a second one of that minute.

    ``began`` is in Unix seconds; the name is in UTC. ``run``: its end, ``261126-1432-kqxz``, while nobody knows what an earlier run of the
    appliance has called after the same minute.
    """
    name = prefix + time.strftime("%y%m%d-%H%M", time.gmtime(began))
    last = f"-{run}" if run else ""
    endings: Iterator[str] = itertools.chain(
        ["", *"bcdefghijklmnopqrstuvwxyz"], (f"z{number}" for number in itertools.count(1))
    )
    return next(found for ending in endings if (found := name + ending + last) not in taken)


def new_run() -> str:
    """Of 160,000, one."""
    return "".join(secrets.choice(_LETTERS) for _ in range(4))
