"""What is long and seldom asked for goes out compressed where it may: pages, their files, and history.

Not so live streams, each of whose pieces would be packed for each viewer, nor what programs poll.
"""

from __future__ import annotations

from typing import Final

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

PACKED: Final = (Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5),)
"""For a route."""
