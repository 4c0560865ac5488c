"""The API process of a simulated engine: one core that reads requests, tokenizes prompts and writes tokens, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.simulator.clock import Timer

REQUEST_S: Final = 300e-6  # to read and render one
PROMPT_TOKEN_S: Final = 0.6e-6  # to make one of text: Rust tokenizers make one to two millions per second
TOKEN_S: Final = 15e-6  # to turn one into an event of a stream and write it


class Frontend:
    """``share``: of its core that it gets; a fault's. What is passed comes out in order, late by what it costs and what is before it."""

    def __init__(self, timer: Timer, *, quiet: bool = False) -> None:
        """``quiet``: it costs nothing while it is whole."""
        self._timer = timer
        self._quiet = quiet
        self._free_ns = 0
        self.share = 1.0
        self.occupied_s = 0.0  # since its start

    def request(self, prompt_tokens: int, call: Callable[[], None]) -> None:
        """One comes in."""
        self._pass(REQUEST_S + prompt_tokens * PROMPT_TOKEN_S, call)

    def tokens(self, count: int, call: Callable[[], None]) -> None:
        """So many go out."""
        self._pass(count * TOKEN_S, call)

    def busy(self, tokens: int) -> None:
        """So many go out, and nobody waits for these."""
        self._free_ns = max(self._timer.now_ns, self._free_ns) + self._ns(tokens * TOKEN_S)

    def _pass(self, seconds: float, call: Callable[[], None]) -> None:
        now_ns = self._timer.now_ns
        cost_ns = self._ns(seconds)
        if not cost_ns and self._free_ns <= now_ns:
            return call()
        self._free_ns = max(now_ns, self._free_ns) + cost_ns
        self._timer.at(self._free_ns, call)

    def _ns(self, seconds: float) -> int:
        if self._quiet and self.share >= 1.0:
            return 0
        self.occupied_s += seconds / self.share
        return int(seconds / self.share * 1e9)
