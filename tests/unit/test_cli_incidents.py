"""``pd-appliance incidents``: of a node that runs, of a state directory, and of a file."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from incident_scenes import NOON, TICK_S, bottleneck, crowded, diagnosed
from msgspec.structs import replace
from typer.testing import CliRunner

from appliance.cli import app
from appliance.errors import ActionError, IncidentError
from appliance.incidents.database import Batch, open_to_write
from appliance.incidents.frames import Chunk, Frame, packed
from appliance.records import Action, Change, ChangeKind, Evidence, Incident, IncidentState, Said

ONE = Incident(
    id="231114-2215", opened=NOON + 131, state=IncidentState.CLOSED, closed=NOON + 160, ended="well again",
    engine="e0", engines=("e0", "e2"), cause="prefill_saturated", stage="prefill", summary="e0 prefills all of the time.",
    severity=0.42, late=17, failed=2, simulated=True, version="0.1.0", model="m", topology="2p1d", slo_share=0.95,
    evidence=(Evidence(measured=1.0, expected=None, unit="", sentence="e0 is busy."),),
    action=Action(sentence="Send fewer.", call="POST /api/x", setting="[router] x"), next="Then the next.",
    changes=(Change(time=NOON + 100, kind=ChangeKind.WEIGHT, sentence="e0 got another weight."),),
    verdicts=(Said(time=NOON + 132, state="bottleneck", summary="At first.", engine="e0", cause="prefill_saturated"),),
)  # fmt: skip
LINK = Incident(id="231114-2301", opened=NOON + 2000, link=("e0", "e1"), cause="handoff_link_slow")


@pytest.fixture(autouse=True)
def greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def ran(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["incidents", *map(str, arguments)])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With one incident and what was seen around it, which the diagnoser judges as it says."""
    life = diagnosed([crowded(n * TICK_S, depth=40 if 260 <= n < 320 else 0) for n in range(400)])
    frames = tuple(Frame(one.uptime_s, packed(one, b"s" * 16)) for one in life)
    made = open_to_write(tmp_path)
    chunk = Chunk(incident=ONE.id, since_s=0.0, until_s=frames[-1].uptime_s, frames=frames)
    made.write(Batch(incidents=(ONE, LINK), chunks=(chunk,)), NOON)
    made.close()
    return tmp_path


def test_the_list_is_a_table(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.cli.incidents.time.time", lambda: LINK.opened + 10_000)
    done = ran("--state-dir", directory)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:6] == ["id", "opened", "(UTC)", "lasted", "where", "cause"]
    assert lines[1] == [
        "231114-2301",
        "2023-11-14",
        "22:46:40",
        "open,",
        "2.8",
        "h",
        "e0",
        "to",
        "e1",
        "handoff_link_slow",
        "—",
        "~0",
        "0",
    ]
    assert lines[2][3:] == ["29", "s", "e0,", "e2", "prefill_saturated", "(simulated)", "42%", "~17", "2"]
    done = ran("--state-dir", directory, "--json", "--state", "closed")
    assert msgspec.json.decode(done.stdout, type=list[Incident]) == [ONE]
    assert len(ran("--state-dir", directory, "--limit", "1").stdout.splitlines()) == 2


def test_one_is_shown_with_its_time_line(directory: Path) -> None:
    done = ran("show", ONE.id, "--state-dir", directory)
    text = done.stdout
    assert "Incident 231114-2215 (simulated), opened 2023-11-14 22:15:31 UTC, over after 29 s: well again" in text
    for part in (
        "e0, e2: prefill_saturated",
        "42% were late",
        "- e0 is busy.",
        "What to do: Send fewer.",
        "POST /api/x",
        "[router] x",
    ):
        assert part in text
    timeline = text.partition("Time line (UTC):\n")[2].splitlines()
    assert [line.split("  ")[-1] for line in timeline] == [
        "e0 got another weight.",
        "* it began",
        "! prefill_saturated of e0: At first.",
        "* it was over: well again",
    ]
    assert "-31.0 s" in timeline[0]
    assert msgspec.json.decode(ran("show", ONE.id, "--state-dir", directory, "--json").stdout, type=Incident) == ONE


def test_one_is_exported_and_replayed(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pdi"
    done = ran("export", ONE.id, "-o", path, "--state-dir", directory)
    assert (done.exit_code, str(path) in done.stdout) == (0, True)
    done = ran("replay", path)
    assert done.exit_code == 0
    assert "seen by pd-appliance 0.1.0: 400 snapshots" in done.stdout
    assert "+0.0 s  prefill_saturated of e0" in done.stdout
    assert "The diagnoser says what it said then" in done.stdout
    found = json.loads(ran("replay", path, "--json").stdout)
    assert (found["agrees"], found["incident"], found["snapshots"]) == (True, ONE.id, 400)


def test_a_file_can_go_through_a_pipe(directory: Path, tmp_path: Path) -> None:
    """As over ssh: nothing but the file is on standard output."""
    done = ran("export", ONE.id, "-o", "-", "--state-dir", directory)
    (tmp_path / "a.pdi").write_bytes(done.stdout_bytes)
    assert ran("replay", tmp_path / "a.pdi").exit_code == 0


def test_what_a_file_or_an_engine_says_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    bad = "\x1b]0;pwned\x07\nforged line"
    gone = Change(time=NOON, kind=ChangeKind.ENDED, sentence=bad)
    made = open_to_write(tmp_path)
    made.write(Batch(incidents=(replace(ONE, cause=bad, engine=bad, engines=(), summary=bad, changes=(gone,)),)), NOON)
    made.close()
    for done in (ran("--state-dir", tmp_path), ran("show", ONE.id, "--state-dir", tmp_path)):
        assert done.exit_code == 0
        assert "\x1b" not in done.stdout and "\x07" not in done.stdout
        assert not [line for line in done.stdout.splitlines() if line.startswith("forged")]


def test_scripts_can_tell_that_the_diagnoser_has_changed_its_mind(tmp_path: Path) -> None:
    life = diagnosed([crowded(n * TICK_S, depth=40 if 260 <= n < 320 else 0) for n in range(400)])
    other = [replace(one, verdict=bottleneck("decode_kv_full", "e1")) for one in life]
    frames = tuple(Frame(one.uptime_s, packed(one, b"s" * 16)) for one in other)
    made = open_to_write(tmp_path)
    made.write(Batch(incidents=(ONE,), chunks=(Chunk(incident=ONE.id, since_s=0, until_s=1, frames=frames),)), NOON)
    made.close()
    ran("export", ONE.id, "-o", tmp_path / "a.pdi", "--state-dir", tmp_path)
    done = ran("replay", tmp_path / "a.pdi")
    assert done.exit_code == 10
    assert "(then: decode_kv_full of e1)" in done.stdout
    assert "says something else than it said then" in done.stdout


def test_scripts_can_tell_that_nothing_could_be_judged(tmp_path: Path) -> None:
    life = diagnosed([crowded(100 + n * TICK_S, depth=0) for n in range(100)])
    frames = tuple(Frame(one.uptime_s, packed(one, b"s" * 16)) for one in life)
    made = open_to_write(tmp_path)
    made.write(Batch(incidents=(ONE,), chunks=(Chunk(incident=ONE.id, since_s=0, until_s=1, frames=frames),)), NOON)
    made.close()
    ran("export", ONE.id, "-o", tmp_path / "a.pdi", "--state-dir", tmp_path)
    done = ran("replay", tmp_path / "a.pdi")
    assert (done.exit_code, "Too few snapshots in a row" in done.stdout) == (11, True)
    done = ran("replay", tmp_path / "a.pdi", "--json")
    assert (done.exit_code, json.loads(done.stdout)["agrees"]) == (11, None)


def test_what_is_not_there_is_one_line(directory: Path, tmp_path: Path) -> None:
    for done, says in (
        (ran("show", "no-such", "--state-dir", directory), "there is no incident 'no-such'"),
        (ran("export", "no-such", "--state-dir", directory), "there is no incident 'no-such'"),
        (ran("--state-dir", tmp_path / "nothing"), "name a node's state directory"),
        (ran("replay", tmp_path / "nothing.pdi"), "can't be read"),
    ):
        assert isinstance(done.exception, IncidentError)
        assert says in str(done.exception)
    done = ran("export", ONE.id, "-o", tmp_path / "no" / "such" / "a.pdi", "--state-dir", directory)
    assert isinstance(done.exception, ActionError) and "name another file with -o" in str(done.exception)


def test_an_option_that_would_be_lost_is_refused(directory: Path) -> None:
    done = ran("--state-dir", directory, "show", ONE.id)
    assert isinstance(done.exception, ActionError)
    assert "--state-dir comes after the command: pd-appliance incidents show … --state-dir" in str(done.exception)


def test_without_a_node_the_state_directory_is_named_as_a_way() -> None:
    done = ran("--url", "http://127.0.0.1:1")
    assert isinstance(done.exception, ActionError)
    assert "--state-dir" in str(done.exception)


# ---- a node that runs


class Node(http.server.BaseHTTPRequestHandler):
    """Answers as a node would."""

    def do_GET(self) -> None:
        status, body = self.server.answers.get(self.path, (404, b'{"error": {"message": "There is no incident."}}'))  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node) as server:
        server.answers = {  # type: ignore[attr-defined]
            "/api/incidents?limit=50": (200, msgspec.json.encode([ONE])),
            "/api/incidents?limit=50&state=open": (200, b"[]"),
            f"/api/incidents/{ONE.id}": (200, msgspec.json.encode(ONE)),
            f"/api/incidents/{ONE.id}/bundle": (200, b"\x1f\x8bfile"),
        }
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_a_node_is_asked(url: str, tmp_path: Path) -> None:
    assert ONE.id in ran("--url", url).stdout
    assert ran("--url", url, "--state", "open").stdout == "none\n"
    assert "prefill_saturated" in ran("show", ONE.id, "--url", url).stdout
    assert ran("export", ONE.id, "-o", tmp_path / "a", "--url", url).exit_code == 0
    assert (tmp_path / "a").read_bytes() == b"\x1f\x8bfile"
    done = ran("export", "none", "-o", tmp_path / "b", "--url", url)
    assert str(done.exception) == "There is no incident."
    assert not (tmp_path / "b").exists()
