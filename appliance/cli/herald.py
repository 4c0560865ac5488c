"""What the service manager is told of a node: that it serves, how it is in words, and that its supervising loop turns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.config import Config
from appliance.records import EngineState, EngineView
from appliance.router import policy
from appliance.supervisor.node import Node
from appliance.supervisor.notify import Notifier, feeding_s, usec

_LOOK_S: Final = 0.25
_PATIENCE_S: Final = 30.0  # beyond [engine] stall_s, after which a start that stalls is ended by the node itself
_ENDING_S: Final = 20.0  # beyond the grace period: clients are told, connections closed, engines ended
_log = logging.getLogger("pd-appliance")


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """All that the words depend on."""

    node: str  # "m as 1p1d"
    views: Sequence[EngineView]
    not_ready: str | None  # why no request can be served, in words; None if one can
    served: bool = False  # it could serve before
    stopping: bool = False
    unfinished: int = 0  # answers under way


def words(moment: Moment) -> str:
    """How the node is, in a line."""
    if moment.stopping:
        return f"stopping: {_under_way(moment.unfinished)}"
    if moment.not_ready is not None:
        return f"{'not serving' if moment.served else 'starting'} {moment.node}: {moment.not_ready}"
    others = [view for view in moment.views if view.state is not EngineState.READY]
    ready = len(moment.views) - len(others)
    said = f"serving {moment.node}: {ready} of {len(moment.views)} engines {'is' if ready == 1 else 'are'} ready"
    return "; ".join([said, *filter(None, (policy.none_ready([view]) for view in others))])


def fields(moment: Moment) -> dict[str, str]:
    """What the service manager should know by now. What it was told before need not be told again."""
    found = {"STATUS": words(moment)}
    if moment.served or moment.not_ready is None:
        found["READY"] = "1"
    if moment.stopping:
        found["STOPPING"] = "1"
    return found


def _under_way(answers: int) -> str:
    if not answers:
        return "no answer is under way, and the engines end"
    return "1 answer is under way" if answers == 1 else f"{answers} answers are under way"


class Herald:
    """One for the run of a supervisor. Without a service manager it does nothing."""

    def __init__(
        self, config: Config, name: str, node: Node, not_ready: Callable[[], str | None], unfinished: Callable[[], int]
    ) -> None:
        """``not_ready``: why no request can be served. ``unfinished``: how many are under way."""
        self._name = name
        self._node = node
        self._not_ready = not_ready
        self._unfinished = unfinished
        self._notifier = Notifier(os.environ)
        self._feeding_s = feeding_s(os.environ, os.getpid())
        self._start_usec = usec(config.engine.stall_s + _PATIENCE_S)
        self._stop_usec = usec(config.server.grace_s + _ENDING_S)
        self._told: dict[str, str] = {}
        self._progress_ns = 0
        self._stopping = False
        self._wish: dict[str, str] = {}  # until it has been taken

    async def run(self) -> None:
        """Until cancelled."""
        if not self._notifier.is_listened_to:
            return
        with contextlib.closing(self._notifier):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell())
                if self._feeding_s is not None:
                    group.create_task(self._feed(self._feeding_s))

    def stopping(self) -> None:
        """The stop begins. It takes as long as answers may take, and whoever started us shall wait for it."""
        self._stopping = True
        self._wish = {"EXTEND_TIMEOUT_USEC": self._stop_usec}
        self._look_safely()

    async def _tell(self) -> None:
        while True:
            self._look_safely()
            await asyncio.sleep(_LOOK_S)

    def _look_safely(self) -> None:
        try:
            self._look(self._wish or self._more_time())
        except Exception:  # a fault in telling how the node is must not end the node
            _log.exception("telling the service manager failed")

    async def _feed(self, every_s: float) -> None:
        """The watchdog of the service manager. If the node's loop hangs, or this process does, it goes hungry."""
        while True:
            await self._node.turns()
            self._notifier.tell({"WATCHDOG": "1"})
            await asyncio.sleep(every_s)

    def _look(self, once: dict[str, str]) -> None:
        """Tell what is new, and ``once`` what is not a state but a wish."""
        now = fields(self._moment())
        new = {name: value for name, value in now.items() if self._told.get(name) != value}
        if (new or once) and self._notifier.tell(once | new):
            self._told |= new
            self._wish = {}

    def _more_time(self) -> dict[str, str]:
        """For a start that gets on. The node gives up engines that don't; a loop that doesn't turn sees no progress either."""
        progress_ns = self._node.progress_ns()
        if "READY" in self._told or progress_ns == self._progress_ns:
            return {}
        self._progress_ns = progress_ns
        return {"EXTEND_TIMEOUT_USEC": self._start_usec}

    def _moment(self) -> Moment:
        return Moment(
            node=f"{self._name} as {self._node.topology}",
            views=self._node.views(),
            not_ready=self._not_ready(),
            served="READY" in self._told,
            stopping=self._stopping,
            unfinished=self._unfinished(),
        )
