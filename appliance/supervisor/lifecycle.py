"""An engine's life as a pure state machine: ``(life, event, now) → (life, actions)``."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from appliance.records import EngineState
from appliance.supervisor.exits import Exit
from appliance.supervisor.vitals import PATIENCE_S, Condition

BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
STABLE_NS: Final = 60 * 1_000_000_000  # an engine that was ready for this long has a clean record
FAILED_STARTS: Final = 3  # in a row, and one that has never served is given up
FLAPS: Final = 10  # deaths, and never stable in between: it is given up, too
BUSY_PATIENCE_S: Final = 60.0  # with an engine that computes but gives no sign
STACKS_S: Final = 0.3  # for processes to write their stacks
SUSPECT_SHARE: Final = 0.75  # of its patience used, and an engine gets no new work
TERMINATION_S: Final = 10.0  # between being asked to end and being ended
GONE: Final = "its EngineCore has ended, or has closed the engine channel"
GIVEN_UP: Final = (EngineState.FAILED, EngineState.BACKOFF, EngineState.STOPPED)
IN_SERVICE: Final = (EngineState.READY, EngineState.SUSPECT, EngineState.DRAINING)


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """Where one engine stands."""

    state: EngineState = EngineState.STOPPED
    since_ns: int = 0
    epoch: int = 0
    pid: int | None = None
    served_ns: int | None = None  # when it was first ready
    proven: bool = False  # it has served, in this life or an earlier one: what it is told to do can be done
    stage: str | None = None
    progress: float | None = None
    progress_ns: int = 0  # when it last gave a sign of getting on
    deaths: int = 0  # since it was last stable
    failed_starts: int = 0  # in a row
    restarts: int = 0
    cause: str | None = None
    restarting: bool = False  # it drains in order to be started again
    leaving: bool = False  # and has been told to end
    retired: bool = False  # nothing but an order of its owner starts it again
    resting: bool = False  # its owner wants no new work on it, in later lives either


# ---- events


class Start(msgspec.Struct, frozen=True):
    """Begin a life: at first, and when a back-off is over."""


class Spawned(msgspec.Struct, frozen=True):
    pid: int


class Progressed(msgspec.Struct, frozen=True):
    stage: str
    fraction: float


class Stirred(msgspec.Struct, frozen=True):
    """It said something, if only to its log."""


class Answers(msgspec.Struct, frozen=True):
    """Healthy, and EngineCore is up."""


class Clock(msgspec.Struct, frozen=True):
    """Time has passed."""

    stall_s: float


class Ended(msgspec.Struct, frozen=True):
    """All of its processes are gone."""

    exit: Exit


class Quiet(msgspec.Struct, frozen=True):
    """A process of it gives no sign of life. ``condition`` is what the operating system says of it."""

    who: str  # EngineCore, or API process
    quiet_s: float
    patience_s: float
    condition: Condition


class Lively(msgspec.Struct, frozen=True):
    """All of it gives signs of life."""


class Deaf(msgspec.Struct, frozen=True):
    """Alive, but it can't be talked to any more."""

    reason: str


class Drain(msgspec.Struct, frozen=True):
    """To take no new work."""


class Resume(msgspec.Struct, frozen=True):
    """To take work again; one that was given up is tried once more."""


class Restart(msgspec.Struct, frozen=True):
    """To be started again, once what it has begun is done."""


class Drained(msgspec.Struct, frozen=True):
    """Nothing is under way on it any more, or it has had time enough; then something is ``left``."""

    left: bool = False


class Retire(msgspec.Struct, frozen=True):
    """To end for good, in its own time."""


class Stop(msgspec.Struct, frozen=True):
    """To end for good, now."""


Event = (
    Start
    | Spawned
    | Progressed
    | Stirred
    | Answers
    | Clock
    | Ended
    | Quiet
    | Lively
    | Deaf
    | Drain
    | Resume
    | Restart
    | Drained
    | Retire
    | Stop
)


# ---- actions


class Spawn(msgspec.Struct, frozen=True):
    """Start the process of this life."""


class Kill(msgspec.Struct, frozen=True):
    """End all of its processes, after so many seconds."""

    after_s: float = 0.0


class TellStacks(msgspec.Struct, frozen=True):
    """Have its processes write into the log what their threads do."""


class Terminate(msgspec.Struct, frozen=True):
    """Ask its leader to end."""


class StartIn(msgspec.Struct, frozen=True):
    """Send ``Start`` after so many seconds."""

    delay_s: float


class Introduce(msgspec.Struct, frozen=True):
    """It can meet the others."""


Action = Spawn | Kill | TellStacks | Terminate | StartIn | Introduce
Result = tuple[Life, tuple[Action, ...]]


def step(life: Life, event: Event, now_ns: int) -> Result:
    """What becomes of a life. Events that have no meaning in its state change nothing."""
    match event:
        case Start() if life.state in (EngineState.STOPPED, EngineState.BACKOFF) and not life.retired:
            return _started(life, now_ns), (Spawn(),)
        case Spawned(pid) if life.state is EngineState.STARTING:
            return replace(life, pid=pid), ()
        case Spawned(pid) if life.state in (EngineState.STOPPED, EngineState.HUNG):  # while it was being spawned
            return replace(life, pid=pid), (Kill(),)
        case Progressed(stage, fraction) if life.state is EngineState.STARTING:
            return replace(life, stage=stage, progress=fraction, progress_ns=now_ns), ()
        case Stirred() if life.state is EngineState.STARTING:
            return replace(life, progress_ns=now_ns), ()
        case Answers() if life.state is EngineState.STARTING:
            return _ready(life, now_ns), (Introduce(),)
        case Clock(stall_s) if life.state is EngineState.STARTING and now_ns - life.progress_ns > stall_s * 1e9:
            cause = f"no progress for {stall_s:.0f} s while {life.stage or 'starting'}: see its log, or raise [engine] stall_s"
            return _hung(life, cause, now_ns)
        case Quiet() if life.state in IN_SERVICE:
            return _quiet(life, event, now_ns)
        case Lively() if life.state is EngineState.SUSPECT:
            return replace(life, state=EngineState.READY, since_ns=now_ns), ()
        case Deaf(reason) if life.state not in (EngineState.STOPPED, EngineState.HUNG) and life.pid is not None:
            return _hung(life, reason, now_ns)
        case Ended(exit) if life.state not in (EngineState.BACKOFF, EngineState.FAILED):
            return _ended(life, exit, now_ns)
        case Drain() if life.state in (EngineState.READY, EngineState.SUSPECT):
            return replace(life, state=EngineState.DRAINING, since_ns=now_ns, resting=True), ()
        case Resume() if life.state is EngineState.DRAINING and not life.leaving:
            return replace(life, state=EngineState.READY, since_ns=now_ns, restarting=False, resting=False), ()
        case Restart() if life.state in IN_SERVICE:
            return replace(life, state=EngineState.DRAINING, since_ns=now_ns, restarting=True, resting=False), ()
        case Resume() | Restart() if life.state in GIVEN_UP and life.pid is None:
            again = replace(
                life,
                state=EngineState.BACKOFF,
                since_ns=now_ns,
                deaths=0,
                failed_starts=0,
                resting=False,
                retired=False,
            )
            return again, (StartIn(0.0),)
        case Drained(left) if life.state is EngineState.DRAINING and life.restarting:
            # Asked to end, vLLM would end what is left as if it were complete; killed, it is gone on with elsewhere.
            return replace(life, leaving=True), (Kill(),) if left else (Terminate(), Kill(TERMINATION_S))
        case Retire():  # one that still loads has nothing to finish
            return _stopped(life, Kill() if life.served_ns is None else Terminate(), now_ns)
        case Stop():
            return _stopped(life, Kill(), now_ns)
        case _:
            return life, ()


def _started(life: Life, now_ns: int) -> Life:
    return replace(
        life,
        state=EngineState.STARTING,
        since_ns=now_ns,
        epoch=life.epoch + 1,
        restarts=life.restarts + (life.epoch > 0),
        pid=None,
        served_ns=None,
        stage="starting its process",
        progress=0.0,
        progress_ns=now_ns,
    )


def _ready(life: Life, now_ns: int) -> Life:
    return replace(
        life,
        state=EngineState.DRAINING if life.resting else EngineState.READY,
        since_ns=now_ns,
        served_ns=now_ns,
        proven=True,
        stage=None,
        progress=None,
        failed_starts=0,
    )


def _quiet(life: Life, event: Quiet, now_ns: int) -> Result:
    """Hung, suspect, or neither yet. What is stopped is known to do nothing; what is busy may come to an end."""
    patience_s = event.patience_s
    if (
        event.condition is Condition.GONE
    ):  # that is no hanging: how it ended is told by the end of all of it, which is near
        return replace(_suspected(life, now_ns), cause=GONE), ()
    if event.condition is Condition.STOPPED:
        patience_s = PATIENCE_S
    elif event.condition is Condition.BUSY:
        patience_s = max(BUSY_PATIENCE_S, patience_s)
    if event.quiet_s > patience_s:
        cause = f"its {event.who} gave no sign of life for {event.quiet_s:.1f} s ({event.condition}): its log has the stacks"
        return _hung(life, cause, now_ns)
    return _suspected(life, now_ns), ()


def _suspected(life: Life, now_ns: int) -> Life:
    """It gets no new work. One that drains gets none anyway."""
    return replace(life, state=EngineState.SUSPECT, since_ns=now_ns) if life.state is EngineState.READY else life


def _hung(life: Life, cause: str, now_ns: int) -> Result:
    return replace(life, state=EngineState.HUNG, since_ns=now_ns, cause=cause), (TellStacks(), Kill(STACKS_S))


def _ended(life: Life, exit: Exit, now_ns: int) -> Result:
    dead = replace(life, pid=None, since_ns=now_ns, stage=None, progress=None)
    if life.state is EngineState.STOPPED:
        return dead, ()
    if life.restarting:
        return replace(dead, state=EngineState.BACKOFF, restarting=False, leaving=False, cause=None), (StartIn(0.0),)
    cause = life.cause if life.state is EngineState.HUNG else exit.cause
    starting = life.served_ns is None
    stable = life.served_ns is not None and now_ns - life.served_ns >= STABLE_NS
    failed_starts = life.failed_starts + 1 if starting else 0
    deaths = 1 if stable else life.deaths + 1
    dead = replace(dead, cause=cause, failed_starts=failed_starts, deaths=deaths)
    if starting and not life.proven and (exit.terminal or failed_starts >= FAILED_STARTS):
        return replace(dead, state=EngineState.FAILED), ()
    if deaths >= FLAPS:
        said = f"it ended {deaths} times and was never ready for {STABLE_NS / 1e9:.0f} s in between, the last time: {cause}"
        return replace(dead, state=EngineState.FAILED, cause=said), ()
    delay_s = BACKOFF_S[min(deaths, len(BACKOFF_S)) - 1]
    return replace(dead, state=EngineState.BACKOFF), (StartIn(delay_s),)


def _stopped(life: Life, how: Kill | Terminate, now_ns: int) -> Result:
    stopped = replace(life, state=EngineState.STOPPED, since_ns=now_ns, stage=None, progress=None, retired=True)
    if life.pid is None:
        return stopped, ()
    return replace(stopped, cause=None), (how,)
