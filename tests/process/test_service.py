"""The product under a service manager: a stand-in that acts on our unit, over simulated engines that misbehave."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
from itertools import pairwise
from pathlib import Path

import aiohttp
import psutil
import pytest
from service_manager import Life, ServiceManager, environment

HERE = Path(__file__).parent
UNIT = HERE.parents[1] / "systemd" / "pd-appliance.service"
MODEL = HERE.parent / "unit" / "configs" / "llama-3.1-8b"
COMMAND = [sys.executable, str(HERE / "scripted_appliance.py"), "serve", "--port", "0"]
COMMAND += ["--engine", "sim", "--model", str(MODEL)]
SERVES = "serving m as 1p1d: 2 of 2 engines are ready"


def manager(directory: Path, *arguments: str, script: str = "", **instead: str) -> ServiceManager:
    more = {"SCRIPT": script, "PAUSE": "0.2", "PD_APPLIANCE_MODEL_NAME": "m"}
    more["SPT_NOENV"] = "1"  # then a process's title leaves alone what /proc shows of its environment
    return ServiceManager(UNIT, [*COMMAND, *arguments], environment(directory, **more), directory, **instead)


def address(service: ServiceManager) -> str:
    """Of the last life."""
    return re.findall(r" on (http://\S+)", service.log.read_text())[-1]


async def status_of(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status


async def engines(url: str) -> list[dict[str, object]]:
    async with aiohttp.ClientSession() as session, session.get(url + "/api/node") as answer:
        found: list[dict[str, object]] = (await answer.json())["engines"]
        return found


async def all_serve(service: ServiceManager, life: Life) -> None:
    await service.until(lambda: life.status == SERVES)


async def serves_again_and_nothing_is_left(service: ServiceManager, old: Life, directory: Path) -> None:
    new = await service.until_ready(2)
    await all_serve(service, new)
    url = address(service)
    assert await status_of(url + "/ready") == 200
    assert await status_of(url + "/v1/models") == 200, "an engine answers"
    assert not old.alive()
    assert not psutil.pid_exists(old.pid)
    assert len(old.members) >= 2, "the test knew the engines"
    pids = {engine["pid"] for engine in await engines(url)}
    assert pids <= {process.pid for process in new.members}
    assert len(list((directory / "run").iterdir())) == 1, "the old one's sockets went"


async def test_ready_comes_when_it_serves_and_not_before(short: Path) -> None:
    async with manager(short, script="slow") as service:
        await service.until(lambda: "pretending" in service.life.status)
        life = service.life
        assert not life.ready
        url = address(service)
        assert (await status_of(url), await status_of(url + "/ready")) == (200, 503), "the page answers meanwhile"
        assert life.status.startswith("starting m as 1p1d: e0 is starting (")
        await service.until_ready()
        assert await status_of(url + "/ready") == 200
        await all_serve(service, life)
        says = [fields["STATUS"] for fields in life.said if "STATUS" in fields]
        assert all(one != other for one, other in pairwise(says)), "told only when it changes"
        assert sum("READY" in fields for fields in life.said) == 1


async def test_an_abstract_socket(short: Path) -> None:
    command = [*COMMAND, "--topology", "1b"]
    async with ServiceManager(UNIT, command, environment(short), short, abstract=True) as service:
        await service.until_ready()


async def test_a_start_that_gets_on_has_more_time_than_the_unit_gives(short: Path) -> None:
    async with manager(short, script="slow") as service:
        life = service.life
        given = life.deadline
        await service.until(lambda: life.said)
        assert life.deadline > given, "asked for at once"
        await service.until_ready()
        asked = [fields for fields in life.said if "EXTEND_TIMEOUT_USEC" in fields]
        assert len(asked) > 1
        assert asked[-1]["EXTEND_TIMEOUT_USEC"] == str(150 * 10**6)


async def test_a_start_that_does_not_get_on_asks_for_no_more(short: Path) -> None:
    async with manager(short, script="silent") as service:
        life = service.life
        given = life.deadline
        await service.until(lambda: life.deadline > given)
        await service.until(lambda: life.deadline - time.monotonic() < 148)  # interpreters that start move bytes, too
        assert not life.ready
        life.deadline = time.monotonic()
        await service.until(lambda: life.result)
        assert life.result == "timeout"


async def test_an_engine_that_is_lost_is_said_in_words(short: Path) -> None:
    async with manager(short) as service:
        life = await service.until_ready()
        await all_serve(service, life)
        os.kill(int(str((await engines(address(service)))[1]["pid"])), signal.SIGKILL)
        await service.until(lambda: "1 of 2 engines is ready; e1 " in life.status)
        await all_serve(service, life)
        says = " ".join(fields.get("STATUS", "") for fields in life.said)
        assert "e1 has died and is started again: " in says
        assert len(service.lives) == 1


async def test_engines_know_nothing_of_the_service_manager(short: Path) -> None:
    async with manager(short) as service:
        await service.until_ready()
        for engine in await engines(address(service)):
            variables = Path(f"/proc/{engine['pid']}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in variables and b"WATCHDOG_" not in variables
            assert b"RUNTIME_DIRECTORY" in variables, "the test can tell"


async def test_sigterm_is_a_stop_on_purpose(short: Path) -> None:
    async with manager(short) as service:
        life = await service.until_ready()
        await service.stop()
        assert (life.result, life.process.returncode, len(service.lives)) == ("success", 0, 1)
        [stop] = [fields for fields in life.said if "STOPPING" in fields]
        assert stop["STATUS"] == "stopping: no answer is under way, and the engines end"
        assert int(stop["EXTEND_TIMEOUT_USEC"]) >= 30e6, "as long as answers may take"
        assert life.left == [], "nothing was left to kill"
        assert not list((short / "run").iterdir())


async def test_a_sigterm_from_elsewhere_is_one_too(short: Path) -> None:
    async with manager(short, RestartSec="0.1") as service:
        life = await service.until_ready()
        os.kill(life.pid, signal.SIGTERM)
        await service.until(lambda: life.result)
        assert life.result == "success"
        await asyncio.sleep(0.5)
        assert len(service.lives) == 1


@pytest.mark.parametrize(
    ("arguments", "script", "code", "says"),
    [
        (["--topology", "1p"], "", 2, "'1p'"),
        ([], "bad-argument", 3, "no engine can start: e0, e1: "),
    ],
)
async def test_what_only_the_owner_can_mend_is_not_started_again(
    short: Path, arguments: list[str], script: str, code: int, says: str
) -> None:
    async with manager(short, *arguments, script=script, RestartSec="0.1") as service:
        await service.until(lambda: service.life.result)
        await asyncio.sleep(0.5)
        assert (service.life.process.returncode, len(service.lives)) == (code, 1)
        assert says in service.life.status, "systemctl status shows why"


async def test_a_supervisor_that_stands_still_is_replaced(short: Path) -> None:
    async with manager(short, WatchdogSec="3", RestartSec="0.1") as service:
        old = await service.until_ready()
        await all_serve(service, old)
        await asyncio.sleep(3.5)
        assert not old.result, "the watchdog was fed"
        os.kill(old.pid, signal.SIGSTOP)
        await service.until(lambda: old.result == "watchdog")
        await serves_again_and_nothing_is_left(service, old, short)
        assert "Fatal Python error: Aborted" in service.log.read_text(), "the journal has its stacks"


async def test_a_supervisor_that_is_killed_is_replaced(short: Path) -> None:
    async with manager(short, RestartSec="0.1") as service:
        old = await service.until_ready()
        await all_serve(service, old)
        os.kill(old.pid, signal.SIGKILL)
        await service.until(lambda: old.result == "signal")
        await serves_again_and_nothing_is_left(service, old, short)


async def test_sighup_is_no_stop(short: Path) -> None:
    async with manager(short) as service:
        life = await service.until_ready()
        os.kill(life.pid, signal.SIGHUP)
        await asyncio.sleep(0.5)
        assert life.alive()
        assert await status_of(address(service) + "/ready") == 200


async def test_what_can_not_be_had_now_is_asked_for_again(short: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with manager(short, "--port", str(taken.getsockname()[1]), RestartSec="0.2") as service:
            await service.until(lambda: len(service.lives) > 1)
            assert service.lives[0].process.returncode == 75
            assert "can't be listened on" in service.lives[0].status
            taken.close()
            await service.until(lambda: any(life.status == SERVES for life in service.lives))
