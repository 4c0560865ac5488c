"""Frozen records that cross a boundary between packages.

``NodeSnapshot`` is the single source of every surface: the page, ``/api/node``, ``/metrics``, ``/events`` and the CLI read
snapshots and nothing else. Absent is ``None`` and shown as a dash; it is never 0. Units are in the names.
"""

from appliance.records.engine import (
    CalibrationSnapshot,
    EngineSnapshot,
    EngineState,
    EngineView,
    HostReading,
    KneeReading,
    Role,
    StepReading,
)
from appliance.records.gpu import GpuProcess, GpuSnapshot, Throttled
from appliance.records.incident import Change, ChangeKind, Incident, IncidentState, Moment, Said
from appliance.records.node import (
    LATELY_S,
    HandoffSnapshot,
    Lately,
    Lease,
    LedgerSnapshot,
    LinkSnapshot,
    NodeSnapshot,
    Pair,
    QueueSnapshot,
    RequestCounts,
    SupervisorSnapshot,
    Unexplained,
)
from appliance.records.plan import Better, Demand, Plan, Plans, Predicted
from appliance.records.remedy import Condition, Order, OrderKind, Remedy, RemedyState
from appliance.records.request import STAGES, Leg, Stage, Timeline
from appliance.records.verdict import Action, Evidence, Verdict

__all__ = [
    "LATELY_S",
    "STAGES",
    "Action",
    "Better",
    "CalibrationSnapshot",
    "Change",
    "ChangeKind",
    "Condition",
    "Demand",
    "EngineSnapshot",
    "EngineState",
    "EngineView",
    "Evidence",
    "GpuProcess",
    "GpuSnapshot",
    "HandoffSnapshot",
    "HostReading",
    "Incident",
    "IncidentState",
    "KneeReading",
    "Lately",
    "Lease",
    "LedgerSnapshot",
    "Leg",
    "LinkSnapshot",
    "Moment",
    "NodeSnapshot",
    "Order",
    "OrderKind",
    "Pair",
    "Plan",
    "Plans",
    "Predicted",
    "QueueSnapshot",
    "Remedy",
    "RemedyState",
    "RequestCounts",
    "Role",
    "Said",
    "Stage",
    "StepReading",
    "SupervisorSnapshot",
    "Throttled",
    "Timeline",
    "Unexplained",
    "Verdict",
]
