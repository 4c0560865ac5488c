"""Property tests take the same examples each time, so that a run says something about the change alone.

``--hypothesis-profile=explore`` looks for new ones.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=300)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile("repeatable")
