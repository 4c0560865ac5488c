"""How a leg fails: what is an engine's own failure, what a client's, and how that is told."""

from __future__ import annotations

from typing import Final

from appliance.records import EngineView
from appliance.router import wire
from appliance.router.client import Response, Unreachable
from appliance.router.routes import Route, Way
from appliance.router.wire import Answer

TOLD_TO_END: Final = "was told to end, and has ended its answers"


class LegFailed(Exception):
    """A leg failed through no fault of the client's.

    ``answer`` is what the engine said, if it said something; ``tail`` the last bytes that the client got of it.
    ``final``: another engine would not do better.
    """

    def __init__(
        self,
        engine: str,
        message: str,
        *,
        answer: Answer | None = None,
        tail: bytes = wire.EVENT_END,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.engine = engine
        self.answer = answer
        self.tail = tail
        self.final = final

    @property
    def lost(self) -> bool:
        """True where the engine ended while it had this request, which may be why."""
        if self.answer is not None:
            return wire.engine_died(self.answer)
        return isinstance(self.__cause__, Unreachable) and self.__cause__.had_it

    @property
    def detail(self) -> str:
        """For the log: what lies behind it, too."""
        return self.__cause__.detail if isinstance(self.__cause__, Unreachable) else str(self)


class Outcome:
    """How a leg went."""

    def __init__(self) -> None:
        self.kind = "ok"
        self.status: int | None = None
        self.error: str | None = None


async def read(view: EngineView, response: Response, outcome: Outcome, route: Route) -> Answer:
    """All of an answer. Raises ``LegFailed`` if it is the engine's own failure; one of the client's is an answer."""
    outcome.status = response.status
    answer = Answer(response.status, response.content_type, await response.all())
    if answer.status >= 400:
        outcome.kind, outcome.error = "error", wire.error_message(answer.body)
    if answer.status >= 500 and answer.status != 501:  # not implemented there is not implemented anywhere
        raise LegFailed(view.name, said(view, answer), answer=answer)
    if route.way is Way.SPLIT and wire.aborted(answer.body):
        raise LegFailed(view.name, f"{view.name} {TOLD_TO_END}")
    return answer


def said(view: EngineView, answer: Answer) -> str:
    return f"{view.name} answered {answer.status}: {wire.error_message(answer.body) or 'no reason given'}"
