"""The rooms of one node, wired together: the only place where they meet. Nothing runs yet; ``serve.py`` begins and ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from appliance import __version__
from appliance.channel import Up
from appliance.cli.announce import report, say
from appliance.cli.cast import Cast, Company
from appliance.cli.forecast import Forecast
from appliance.cli.why import explained_by
from appliance.config import Config
from appliance.diagnosis.verdicts import Diagnoser
from appliance.gpu.device import Reading
from appliance.history.keeper import History
from appliance.incidents.keeper import Incidents
from appliance.records import NodeSnapshot, new_run
from appliance.remedies.apply import Remedies, present
from appliance.router.router import Router
from appliance.supervisor.node import Node
from appliance.supervisor.runtime import Runtime
from appliance.telemetry import exposition
from appliance.telemetry.collector import Collector
from appliance.telemetry.fits import Fits
from appliance.telemetry.host import Machine
from appliance.telemetry.ledger import Ledger
from appliance.telemetry.timeline import Timelines
from web.app import Site, create_app


class Rooms:
    """``readings``: the latest ones of the machine's GPUs; ``state``: the directory for what is kept."""

    def __init__(
        self,
        config: Config,
        cast: Cast,
        runtime: Runtime,
        state: Path,
        readings: Callable[[], Sequence[Reading]],
    ) -> None:
        self._config = config
        self._cast = cast
        self._company = Company(cast)
        self._fits = Fits(state, self._company.kinds, experts=cast.experts)
        self.node = Node(config, cast.specs, runtime)
        self._ledger = Ledger(send=self.node.send_core)
        self._timelines = Timelines(config.telemetry.recent_requests)
        self.router = self._router()
        self._control = cast.control(self.node)
        self._company.follow(self.node, self._control)
        self._collector = self._watching(readings)
        self._connect()
        self.incidents = Incidents(config, state)
        self.remedies = Remedies(self.node.actions, self._as_it_is, say, self.incidents.keep_remedy, new_run())
        self.incidents.recall = self.remedies.recall
        self.history = History(config.telemetry, state)
        self._forecast = Forecast(self._collector, config.slo.share)
        self._collector.better = self._forecast.better

    def loops(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """That run for as long as anybody is served; ``incidents`` has one of its own, which ends first."""
        return (
            self._collector.run(),
            self._forecast.run(),
            self.remedies.run(self._collector.updates()),
            self._fits.run(self._collector.updates()),
            self.history.run(self._collector.updates()),
        )

    def watching(self) -> Coroutine[Any, Any, None]:
        """For incidents."""
        return self.incidents.run(self._collector.updates())

    def not_ready(self) -> str | None:
        """Why no request can be served; None as soon as one can, and not before /ready says so, too."""
        return self.router.not_ready() or self._collector.latest().reason

    def site(self, bound_to: str) -> Site:
        """What clients and people see. ``bound_to``: the address that is listened on."""
        server = self._config.server
        return create_app(
            inference=self.router,
            node=self._collector,
            actions=self.remedies,
            simulation=self._control,
            incidents=self.incidents,
            planning=self._forecast,
            history=self.history,
            marks=self.incidents,
            explain=explained_by,
            max_body_bytes=server.max_body_bytes,
            max_held_bytes=server.max_held_bytes,
            metrics=lambda snapshot: exposition.render(snapshot, self.incidents.totals()),
            bound_to=bound_to,
            allowed_hosts=server.allowed_hosts,
        )

    def _router(self) -> Router:
        config = self._config
        return Router(
            config.router,
            self.node.views,
            self._ledger,
            self._timelines,
            self._cast.model,
            calibrate_s=config.diagnosis.calibrate_s,
        )

    def _watching(self, readings: Callable[[], Sequence[Reading]]) -> Collector:
        return Collector(
            self._config,
            self.node,
            self.router,
            self._ledger,
            self._timelines,
            model_name=self._cast.model,
            version=__version__,
            hardware=self._control or Machine(self.node.views, readings),
            diagnose=Diagnoser(self._config.slo.share),
            kinds=self._company.kinds,
            models=self._fits.model,
            notes=self._company.notes,
            simulated=self._control is not None,
        )

    def _as_it_is(self) -> NodeSnapshot:
        """Now, and not at the last tick."""
        return present(self._collector.latest(), self.node.views(), self.node.topology)

    def _connect(self) -> None:
        """Who hears what of the engines."""
        node, router, ledger, control = self.node, self.router, self._ledger, self._control
        node.on_message(self._fold)
        router.calibration.told = self._collector.calibrating
        node.on_change(report)
        node.on_change(lambda _: router.engines_changed())
        node.on_engine_lost(ledger.lost)
        node.on_engine_lost(router.engine_lost)
        if control is not None:
            node.on_message(lambda engine, _, message: control.fold(engine, message))
            node.on_engine_lost(control.lost)
        node.actions.in_flight = lambda engine: router.in_flight(engine) + ledger.held_by(engine)

    def _fold(self, engine: str, epoch: int, message: Up) -> None:
        now_ns = time.monotonic_ns()
        self._ledger.fold(engine, epoch, message, now_ns)
        self._timelines.fold(engine, message)
        self.router.fold(engine, message)
        self._collector.fold(engine, epoch, message, now_ns)
