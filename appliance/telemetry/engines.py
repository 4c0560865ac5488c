"""One engine as it is now: the supervisor's view of it, and what its present life has reported. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from appliance.channel import Step
from appliance.records import EngineSnapshot, EngineState, EngineView, HostReading
from appliance.telemetry.lately import OfEngine
from appliance.telemetry.series import Load, Rates, Series

_IN_SERVICE: Final = (EngineState.READY, EngineState.DRAINING, EngineState.SUSPECT)  # their rates mean something


def engine_snapshot(
    view: EngineView,
    series: Series | None,
    now_ns: int,
    *,
    in_flight: int,
    outstanding: int,
    memory_bytes: int | None,
    itl_target_s: float = 1.0,
    told: OfEngine | None = None,
    host: HostReading | None = None,
) -> EngineSnapshot:
    """A view, what that life has reported, and what requests tell of it. Without reports, readings are None, not 0."""
    last = series.last if series else None
    rates = series.rates(now_ns) if series and view.state in _IN_SERVICE else None
    load = series.load(now_ns, itl_target_s) if series and view.state in _IN_SERVICE else None
    sign_ns = series.last_sign_ns() if series else None
    core = series.core if series else None
    total = core.kv_blocks if core else None
    return EngineSnapshot(
        name=view.name,
        role=view.role,
        state=view.state,
        epoch=view.epoch,
        pid=view.pid,
        gpus=view.gpus,
        cores=view.cores,
        stage=view.stage,
        progress=view.progress,
        in_state_s=(now_ns - view.since_ns) * 1e-9 if view.since_ns else 0.0,
        restarts=view.restarts,
        cause=view.cause,
        restarting=view.restarting,
        in_flight=in_flight,
        outstanding_prompt_tokens=outstanding,
        running=last.running if last else None,
        waiting=last.waiting if last else None,
        fetching=last.fetching if last else None,
        kv_usage=1 - last.kv_free / total if last and total else None,
        kv_blocks_total=total,
        kv_blocks_free=last.kv_free if last else None,
        block_tokens=core.block_tokens if core else None,
        preemptions=_preemptions(series),
        last_step_age_s=max(0, now_ns - sign_ns) * 1e-9 if sign_ns is not None else None,
        peers=view.peers,
        peer_errors=view.peer_errors,
        memory_bytes=memory_bytes,
        weight=view.weight,
        max_running=core.max_running if core else None,
        token_budget=core.max_batched_tokens if core else None,
        leased_blocks=last.leased if last else None,
        host=host,
        calibration=series.calibrated if series else None,
        **_figures(rates),
        **_figures(load),
        **_figures(told),
    )


def _figures(found: Rates | Load | OfEngine | None) -> dict[str, Any]:
    """Whose names are those of the snapshot's fields."""
    return msgspec.structs.asdict(found) if found is not None else {}


def _preemptions(series: Series | None) -> int | None:
    step: Step | None = series.last_step if series else None
    return step.preemptions if step else None
