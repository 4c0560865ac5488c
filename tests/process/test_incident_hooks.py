"""The owner's command and webhook: real processes, a real server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from aiohttp import web

from appliance.config import IncidentsConfig, load
from appliance.errors import ConfigError
from appliance.incidents import hooks
from appliance.incidents.hooks import Hooks, origin, text
from appliance.incidents.tracker import EventKind
from appliance.records import Incident, IncidentState
from appliance.supervisor.process import adopt_orphans

ONE = Incident(id="261126-1432", opened=1000.0, engine="e1", cause="decode_straggler_gpu", summary="e1 is slow.")
OVER = Incident(
    id="261126-1432", opened=1000.0, closed=1060.0, state=IncidentState.CLOSED, ended="well again", late=12, failed=3,
    engine="e1", cause="decode_straggler_gpu", summary="e1 is slow.", simulated=True,
)  # fmt: skip
SECRET = "T0KEN-fit-for-nobody"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(hooks, "_TERM_S", 0.3)


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


async def told(config: IncidentsConfig, *events: tuple[EventKind, Incident], within_s: float = 20.0) -> int:
    """Until all is over, and no process is left. How many notices did not arrive."""
    made = Hooks(config, {**os.environ, "PD_APPLIANCE_INCIDENTS_WEBHOOK": SECRET, "NOTIFY_SOCKET": "x"}, (0.05, 0.05))
    for event, incident in events:
        made.tell(event, incident)
    await made.finish(within_s, asyncio.Event())
    assert not psutil.Process().children(recursive=True)
    return made.untold


OPENED, CLOSED = (EventKind.OPENED, ONE), (EventKind.CLOSED, OVER)

# ---- the command


async def test_a_command_is_told_on_its_input_and_in_its_environment(tmp_path: Path) -> None:
    script = f"""
import json, os, sys
told = json.load(sys.stdin)
own = {{name: value for name, value in os.environ.items() if name.startswith(("PD_APPLIANCE_", "NOTIFY"))}}
session = os.getsid(0) == os.getpid()
open({str(tmp_path / "log")!r}, "a").write(json.dumps([told, own, session]) + "\\n")
"""
    assert await told(IncidentsConfig(command=python(script)), OPENED, CLOSED) == 0
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (first[0]["event"], second[0]["event"]) == ("opened", "closed"), "in order"
    assert first[0]["incident"]["engine"] == "e1"
    assert first[1] == {
        "PD_APPLIANCE_EVENT": "opened",
        "PD_APPLIANCE_INCIDENT": "261126-1432",
        "PD_APPLIANCE_ENGINE": "e1",
        "PD_APPLIANCE_CAUSE": "decode_straggler_gpu",
        "PD_APPLIANCE_TEXT": "Incident 261126-1432 is open: e1 is slow.",
    }, "and none of our own settings"
    assert first[2], "a session of its own"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("/no/such/command",), "can't be run: No such file"),
        (python("import sys; print('out of paper'); sys.exit(7)"), "exit status 7, and said: out of paper"),
        (python("import os; os.kill(os.getpid(), 9)"), "ended with signal 9"),
        (python("import time; print('on it', flush=True); time.sleep(60)"), "did not end within 1 s, and said: on it"),
        (python("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"), "did not end within 1 s"),
        (("/bin/sh", "-c", "exit 3"), "exit status 3"),
    ],
)
async def test_what_goes_wrong_is_logged_with_what_it_said(
    caplog: pytest.LogCaptureFixture, command: tuple[str, ...], says: str
) -> None:
    timeout_s = 1.0 if "within" in says else 20.0
    assert await told(IncidentsConfig(command=command, command_timeout_s=timeout_s), OPENED) == 1
    [record] = caplog.records
    assert says in record.getMessage()
    assert "told that 261126-1432 was opened" in record.getMessage()


@pytest.mark.parametrize("script", ["exit 0", "cat >/dev/null; sleep 0.2", "exec 0<&-; sleep 0.2", "echo a; sleep 60"])
def test_so_it_is_on_the_loop_that_the_appliance_runs_on(caplog: pytest.LogCaptureFixture, script: str) -> None:
    """uvloop's processes and pipes have manners of their own."""
    uvloop.run(told(IncidentsConfig(command=("/bin/sh", "-c", script), command_timeout_s=1.0), OPENED, CLOSED))
    assert len(caplog.records) == (2 if "60" in script else 0)


async def test_one_that_talks_without_end_neither_waits_nor_fills_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    script = "import sys; sys.stdout.write('x' * 20_000_000 + 'the end'); sys.exit(1)"
    await told(IncidentsConfig(command=python(script)), OPENED)
    [record] = caplog.records
    assert record.getMessage().endswith("the end")
    assert len(record.getMessage()) < 5000


async def test_one_that_never_stops_talking_leaves_the_loop_to_others() -> None:
    taken = 0.0

    async def measure() -> None:
        nonlocal taken
        before = time.thread_time()
        await asyncio.sleep(1.5)
        taken = time.thread_time() - before

    async with asyncio.TaskGroup() as group:
        group.create_task(told(IncidentsConfig(command=("/usr/bin/yes",), command_timeout_s=2.0), OPENED))
        group.create_task(measure())
    assert taken < 0.5, "seconds of this thread, of one and a half"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_daemon_that_keeps_the_output_keeps_no_descriptor_of_ours(run: Any) -> None:
    async def count() -> tuple[int, int]:
        me = psutil.Process()
        await told(IncidentsConfig(command=("/bin/true",)), OPENED)
        before = me.num_fds()
        command = ("/bin/sh", "-c", "setsid sleep 8 & exit 0")  # beyond the session that is ended
        for _ in range(3):
            await told(IncidentsConfig(command=command, command_timeout_s=0.5), OPENED)
        return before, me.num_fds()

    before, after = run(count())
    assert after == before


async def test_what_it_says_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await told(IncidentsConfig(command=("/bin/sh", "-c", "printf 'a\\033[2Jb\\nERROR forged\\n'; exit 1")), OPENED)
    [record] = caplog.records
    assert record.getMessage().endswith("and said: a [2Jb ERROR forged")


async def test_what_it_leaves_behind_may_finish_until_the_deadline(tmp_path: Path) -> None:
    late, never = tmp_path / "late", tmp_path / "never"
    script = f"(sleep 0.3; touch {late}) & (sleep 60; touch {never}) >/dev/null 2>&1 & exit 0"
    await told(IncidentsConfig(command=("/bin/sh", "-c", script), command_timeout_s=1.5), OPENED)
    assert late.exists() and not never.exists()


def named(marker: str) -> list[psutil.Process]:
    """Processes of which that stands on the command line, or, of those that have ended, our own."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid", "status"]):
        zombie = process.info["status"] == psutil.STATUS_ZOMBIE and process.info["ppid"] == os.getpid()
        if zombie or marker in (process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.fixture
def adopting() -> Iterator[None]:
    """As the appliance does: whoever loses his parent is ours."""
    adopt_orphans()
    yield
    adopt_orphans(False)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(
    "script",
    [
        "setsid sleep {0} & exit 0",
        "(setsid sh -c 'trap \"\" TERM; sleep {0}; sleep {0}' &) ; exit 0",
        "setsid sh -c 'setsid sh -c \"setsid sleep {0} & exit 0\" & exit 0' & sleep 0.2",
        "setsid true & (setsid true &); sleep 0.1",
        "exec setsid --wait sleep {0}",
    ],
)
def test_whatever_it_starts_ends_with_it_in_whatever_session_and_leaves_no_zombie(
    run: Any, script: str, adopting: None, caplog: pytest.LogCaptureFixture
) -> None:
    marker = f"99{os.getpid()}"
    command = ("/bin/sh", "-c", script.replace("{0}", marker))
    run(told(IncidentsConfig(command=command, command_timeout_s=1.0), OPENED))
    assert not named(marker)
    assert ["did not end" in record.getMessage() for record in caplog.records] == [True] * script.startswith("exec")


def test_whatever_it_has_started_ends_when_the_appliance_is_killed(tmp_path: Path) -> None:
    marker = f"98{os.getpid()}"
    script = f"""
import asyncio, os
from appliance.config import IncidentsConfig
from appliance.incidents.hooks import run_command
command = ("/bin/sh", "-c", "setsid sleep {marker} & touch {tmp_path}/on; sleep {marker}")
asyncio.run(run_command(command, b"", dict(os.environ), 60.0))
"""
    with subprocess.Popen([sys.executable, "-c", script]) as appliance:
        eventually(lambda: (tmp_path / "on").exists() and len(named(marker)) == 2)
        appliance.kill()
    eventually(lambda: not named(marker))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def logging_to(path: Path, before: str = "") -> tuple[str, ...]:
    """A command that writes down what it was told of."""
    line = 'echo "$PD_APPLIANCE_INCIDENT $PD_APPLIANCE_EVENT"'
    return ("/bin/sh", "-c", f"{before} {line} >> {path}")


async def test_one_at_a_time_and_in_the_order_of_events(tmp_path: Path) -> None:
    log = tmp_path / "log"
    events = [(EventKind.OPENED, Incident(id=f"i{number}", opened=0.0)) for number in range(6)]
    before = f"mkdir {tmp_path}/on || exit 1; case $PD_APPLIANCE_INCIDENT in i0) sleep 0.5;; esac; rmdir {tmp_path}/on;"
    assert await told(IncidentsConfig(command=logging_to(log, before)), *events) == 0
    assert log.read_text().splitlines() == [f"i{number} opened" for number in range(6)]


async def test_too_many_that_wait_are_not_told_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    events = [(EventKind.OPENED, Incident(id=f"i{number}", opened=0.0)) for number in range(70)]
    await told(IncidentsConfig(command=("/no/such/command",)), *events)
    assert sum("64 notices wait" in record.getMessage() for record in caplog.records) == 6


async def test_at_the_end_of_the_appliance_what_still_runs_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    slow = IncidentsConfig(command=python("import time; time.sleep(60)"))
    began = time.monotonic()
    assert await told(slow, OPENED, CLOSED, within_s=0.5) == 2
    assert time.monotonic() - began < 10
    assert "[incidents] command: 2 notices are given up" in caplog.text
    made = Hooks(slow, os.environ)
    made.tell(*OPENED)
    hurry = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, hurry.set)
    began = time.monotonic()
    await made.finish(60.0, hurry)
    assert time.monotonic() - began < 10
    assert not psutil.Process().children(recursive=True)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_at_the_end_one_that_hangs_leaves_time_for_those_after_it(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    command = logging_to(log, "case $PD_APPLIANCE_EVENT in opened) sleep 60;; esac;")
    began = time.monotonic()
    assert run(told(IncidentsConfig(command=command), OPENED, CLOSED, within_s=6.0)) == 1
    assert time.monotonic() - began < 15
    assert log.read_text() == "261126-1432 closed\n"
    [record] = caplog.records
    assert "command: 1 notice is given up, for the appliance ends: 261126-1432 was opened" in record.getMessage()


async def test_without_either_nothing_is_done() -> None:
    made = Hooks(IncidentsConfig(), os.environ)
    made.tell(*OPENED)
    assert len(asyncio.all_tasks()) == 1
    await made.finish(1.0, asyncio.Event())


# ---- the webhook


class Hooked:
    """A server that answers as it is told to."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.got: list[dict[str, Any]] = []

    async def take(self, request: web.Request) -> web.Response:
        self.got.append(await request.json())
        status = self.answers.pop(0) if self.answers else 200
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
        if status == 1:
            await asyncio.sleep(60)
        return web.Response(status=status or 200, headers={"location": "/elsewhere"}, text=f"no: {request.path_qs}")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self.take)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield f"http://owner:{SECRET}@127.0.0.1:{port}/services/{SECRET}?key={SECRET}"
        finally:
            await runner.cleanup()


async def test_a_webhook_is_told_of_both_in_order() -> None:
    hooked = Hooked(200, 204)
    async with hooked.served() as url:
        await told(IncidentsConfig(webhook=url), OPENED, CLOSED)
    assert [one["event"] for one in hooked.got] == ["opened", "closed"]
    assert hooked.got[0]["text"] == "Incident 261126-1432 is open: e1 is slow."
    assert hooked.got[1]["incident"]["closed"] == 1060.0


@pytest.mark.parametrize("answers", [(503, 200), (429, 0, 200), (500, 500, 200)])
async def test_what_may_end_better_is_tried_again(answers: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    hooked = Hooked(*answers)
    async with hooked.served() as url:
        await told(IncidentsConfig(webhook=url), OPENED)
    assert len(hooked.got) == len(answers)
    assert not caplog.records


@pytest.mark.parametrize(
    ("answers", "tries", "says"),
    [
        ((500, 500, 500), 3, "it answered 500"),
        ((404,), 1, "it answered 404"),
        ((302,), 1, "it answered 302, which is not followed"),
        ((0, 0, 0), 3, "it can't be told"),
        ((1, 1, 1), 3, "did not answer within 0.2 s"),
    ],
)
async def test_what_fails_is_logged_and_no_secret_with_it(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    answers: tuple[int, ...],
    tries: int,
    says: str,
) -> None:
    if answers[0] == 1:
        monkeypatch.setattr(hooks, "_ANSWER_S", 0.2)
    hooked = Hooked(*answers)
    async with hooked.served() as url:
        assert await told(IncidentsConfig(webhook=url), OPENED) == 1
    assert len(hooked.got) == tries
    [record] = caplog.records
    assert says in record.getMessage()
    assert "http://127.0.0.1:" in record.getMessage()
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url", [f"http://127.0.0.1:1/{SECRET}", f"http://no-such-host.invalid/{SECRET}", f"http://:99999999/{SECRET}"]
)
async def test_what_can_not_be_reached_is_logged_without_its_secret(caplog: pytest.LogCaptureFixture, url: str) -> None:
    await told(IncidentsConfig(webhook=url), OPENED)
    assert len(caplog.records) == 1
    assert SECRET not in caplog.text


async def test_a_command_that_fails_does_not_keep_the_webhook_from_being_told() -> None:
    hooked = Hooked()
    async with hooked.served() as url:
        await told(IncidentsConfig(webhook=url, command=("/no/such/command",)), OPENED)
    assert len(hooked.got) == 1


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of one that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/{SECRET}"


async def test_a_webhook_that_hangs_delays_no_command(
    silent: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    made = Hooks(IncidentsConfig(webhook=silent, command=logging_to(log)), os.environ)
    for event in (OPENED, CLOSED, OPENED):
        made.tell(*event)
    async with asyncio.timeout(8):  # less than one try of the webhook takes
        while not log.exists() or log.read_text().count("\n") < 3:
            await asyncio.sleep(0.05)
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["opened", "closed", "opened"]
    await made.finish(0.5, asyncio.Event())
    assert made.untold == 3
    [record] = caplog.records
    assert f"webhook at {origin(silent)}: 3 notices are given up" in record.getMessage()
    assert SECRET not in caplog.text
    assert len(asyncio.all_tasks()) == 1, "nothing is left but this"


async def test_a_command_that_hangs_delays_no_webhook(caplog: pytest.LogCaptureFixture) -> None:
    hooked = Hooked()
    async with hooked.served() as url:
        assert await told(IncidentsConfig(webhook=url, command=("/bin/sleep", "60")), OPENED, CLOSED, within_s=1.0) == 2
    assert [one["event"] for one in hooked.got] == ["opened", "closed"]
    [record] = caplog.records
    assert "[incidents] command: 2 notices are given up" in record.getMessage()


async def test_at_the_end_the_command_is_told_beside_a_webhook_that_hangs(silent: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert await told(IncidentsConfig(webhook=silent, command=logging_to(log)), OPENED, CLOSED, within_s=6.0) == 2
    assert log.read_text() == "261126-1432 opened\n261126-1432 closed\n"


async def test_at_the_end_a_try_that_hangs_leaves_time_for_the_notices_after_it() -> None:
    hooked = Hooked(1, 200)
    async with hooked.served() as url:
        assert await told(IncidentsConfig(webhook=url), OPENED, CLOSED, within_s=4.0) == 1
    assert [one["event"] for one in hooked.got] == ["opened", "closed"]


def test_an_address_that_is_none_is_refused_at_the_start_and_not_repeated(tmp_path: Path) -> None:
    for bad in (f"ftp://{SECRET}", f"hooks.example/{SECRET}", f"https:///{SECRET}", f"https://a b/{SECRET}"):
        with pytest.raises(ConfigError, match=r"incidents\.webhook") as caught:
            load(None, {"PD_APPLIANCE_INCIDENTS_WEBHOOK": bad}, {})
        assert SECRET not in str(caught.value)
    good = load(None, {"PD_APPLIANCE_INCIDENTS_WEBHOOK": "https://hooks.example:8443/a/b?c=d"}, {}).config
    assert origin(good.incidents.webhook) == "https://hooks.example:8443"


def test_the_line_that_people_read() -> None:
    assert text(*CLOSED) == (
        "Incident 261126-1432 (simulated) is over after 60 s: well again; about 12 first tokens were late, 3 requests failed. "
        "It was: e1 is slow."
    )
