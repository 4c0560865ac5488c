"""What the router has open on each engine. Its own count, so that it is exact at the moment a choice is made."""

from __future__ import annotations

from collections.abc import Callable

from appliance.router.policy import IDLE, Load


class Leg:
    """One open leg. Its methods may be called in any order and any number of times."""

    def __init__(self, loads: Loads, engine: str, prompt_tokens: int) -> None:
        self.engine = engine
        self._loads = loads
        self._prompt_tokens = prompt_tokens
        self._open = True

    def prefilled(self) -> None:
        """Its prompt no longer stands in the way of others."""
        tokens, self._prompt_tokens = self._prompt_tokens, 0
        if tokens:
            self._loads.add(self.engine, 0, -tokens)

    def counted(self, prompt_tokens: int) -> None:
        """The engine has counted what was estimated."""
        more = prompt_tokens - self._prompt_tokens
        if self._prompt_tokens and prompt_tokens > 0 and more:
            self._prompt_tokens = prompt_tokens
            self._loads.add(self.engine, 0, more)

    def end(self) -> None:
        tokens, self._prompt_tokens = self._prompt_tokens, 0
        legs, self._open = int(self._open), False
        if legs:
            self._loads.add(self.engine, -legs, -tokens)

    def __enter__(self) -> Leg:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Loads:
    """Loads by engine. ``on_less`` is called whenever an engine has less to do than before."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._turn = 0
        self.on_less: Callable[[], None] = lambda: None

    def __getitem__(self, engine: str) -> Load:
        return self._loads.get(engine, IDLE)

    def begin(self, engine: str, prompt_tokens: int) -> Leg:
        """A leg is about to be sent; ``prompt_tokens`` are those that the engine has still to compute."""
        self._turn += 1
        load = self[engine]
        self._loads[engine] = Load(load.legs + 1, load.prompt_tokens + prompt_tokens, self._turn)
        return Leg(self, engine, prompt_tokens)

    def add(self, engine: str, legs: int, prompt_tokens: int) -> None:
        """Called by legs."""
        load = self[engine]
        self._loads[engine] = Load(load.legs + legs, load.prompt_tokens + prompt_tokens, load.turn)
        self.on_less()
