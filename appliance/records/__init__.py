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
from appliance.records.history import History
from appliance.records.incident import Change, ChangeKind, Incident, IncidentState, IncidentTotals, Moment, Said
from appliance.records.inventory import Card, Inventory
from appliance.records.names import new_id, new_run
from appliance.records.node import (
    BRIEF_S,
    LATELY_S,
    LINKS_S,
    MOST_TIMES,
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
from appliance.records.remedy import Condition, Moved, Order, OrderKind, Remedy, RemedyState
from appliance.records.request import STAGES, Leg, Pieces, Stage, Timeline, is_clients_own
from appliance.records.verdict import GAINS_REQUESTS, Action, Evidence, Verdict

__all__ = [
    "BRIEF_S",
    "GAINS_REQUESTS",
    "LATELY_S",
    "LINKS_S",
    "MOST_TIMES",
    "STAGES",
    "Action",
    "Better",
    "CalibrationSnapshot",
    "Card",
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
    "History",
    "HostReading",
    "Incident",
    "IncidentState",
    "IncidentTotals",
    "Inventory",
    "KneeReading",
    "Lately",
    "Lease",
    "LedgerSnapshot",
    "Leg",
    "LinkSnapshot",
    "Moment",
    "Moved",
    "NodeSnapshot",
    "Order",
    "OrderKind",
    "Pair",
    "Pieces",
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
    "is_clients_own",
    "new_id",
    "new_run",
]
