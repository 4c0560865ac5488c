"""The API process of a simulated engine: one core that reads requests, tokenizes prompts and writes tokens, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from appliance.simulator.clock import Event, Timer

REQUEST_S: Final = 300e-6  # to read and render one
PROMPT_TOKEN_S: Final = 0.6e-6  # to make one of text: Rust tokenizers make one to two millions per second
TOKEN_S: Final = 15e-6  # to turn one into an event of a stream and write it


class Frontend:
    """What is passed comes out in order, late by what it costs and what is before it."""

    def __init__(self, timer: Timer, *, quiet: bool = False) -> None:
        """``quiet``: it costs nothing while it is whole."""
        self._timer = timer
        self._quiet = quiet
        self._free_ns = 0
        self._share = 1.0
        self._booked_s = 0.0  # of its core, what waits included
        self._line: deque[tuple[int, Event]] = deque()  # what waits, and some that has come out already

    @property
    def share(self) -> float:
        """Of its core that it gets; a fault's."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        """What waits is done at the new pace from now on: a backlog is work, and not a time."""
        self._rest(self._share / share)
        self._share = share

    @property
    def occupied_s(self) -> float:
        """Since its start, until now."""
        return self._booked_s - self._backlog_ns * 1e-9

    @property
    def _backlog_ns(self) -> int:
        return max(0, self._free_ns - self._timer.now_ns)

    def request(self, prompt_tokens: int, call: Callable[[], None]) -> None:
        """One comes in."""
        self._pass(REQUEST_S + prompt_tokens * PROMPT_TOKEN_S, call)

    def tokens(self, count: int, call: Callable[[], None]) -> None:
        """So many go out."""
        self._pass(count * TOKEN_S, call)

    def busy(self, tokens: int) -> None:
        """So many go out, and nobody waits for these."""
        self._free_ns = max(self._timer.now_ns, self._free_ns) + self._ns(tokens * TOKEN_S)

    def end(self) -> None:
        """Its process ends. Whoever waits learns that now."""
        self._rest(0.0)

    def _pass(self, seconds: float, call: Callable[[], None]) -> None:
        now_ns = self._timer.now_ns
        cost_ns = self._ns(seconds)
        if not cost_ns and self._free_ns <= now_ns:
            return call()
        self._free_ns = max(now_ns, self._free_ns) + cost_ns
        line = self._line
        while line and line[0][0] < now_ns:
            line.popleft()
        line.append((self._free_ns, self._timer.at(self._free_ns, call)))

    def _ns(self, seconds: float) -> int:
        if self._quiet and self._share >= 1.0:
            return 0
        self._booked_s += seconds / self._share
        return int(seconds / self._share * 1e9)

    def _rest(self, times: float) -> None:
        """What is still to be done takes so many times as long as it would have."""
        now_ns, before_ns = self._timer.now_ns, self._backlog_ns
        self._free_ns = now_ns + int(before_ns * times)
        self._booked_s += (self._backlog_ns - before_ns) * 1e-9
        waiting = [(when_ns, event) for when_ns, event in self._line if when_ns > now_ns]
        self._line = deque((self._later(event, now_ns + int((at - now_ns) * times)) for at, event in waiting))

    def _later(self, event: Event, when_ns: int) -> tuple[int, Event]:
        """The same, at another time."""
        event.cancel()
        return when_ns, self._timer.at(when_ns, event.call)
