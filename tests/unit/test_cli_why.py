"""``pd-appliance why``: which request is meant, and how it is shown."""

from __future__ import annotations

import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_why import OTHERS, request, stage, verdict
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
import page_states as made

from appliance.cli import app
from appliance.cli.live.requests import shortened
from appliance.cli.waterfall import waterfall
from appliance.cli.why import beginning_with, explained_by
from appliance.errors import ActionError
from appliance.records import NodeSnapshot, Timeline

SLOW = msgspec.structs.replace(request(0, stage("queue", 3100)), id="5107", arrived=request(3).arrived)


def snapshot() -> NodeSnapshot:
    held = verdict("prefill_saturated", "prefill", "e0", "e1")
    return msgspec.structs.replace(made.empty(0), time=SLOW.arrived + 60, verdict=held)


class Node(http.server.BaseHTTPRequestHandler):
    kept: list[Timeline] = []

    def do_GET(self) -> None:
        path, body, status = self.path.partition("?")[0], b"", 200
        one = next((timeline for timeline in self.kept if path == f"/api/requests/{timeline.id}"), None)
        if path == "/api/node":
            body = msgspec.json.encode(snapshot())
        elif path == "/api/requests":
            body = msgspec.json.encode(self.kept)
        elif one is not None:
            body = msgspec.json.encode(one)
        else:
            status, body = 404, b'{"error": {"message": "There is none."}}'
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(Node, "kept", [SLOW, *OTHERS])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["why", *arguments])


def test_a_beginning_is_enough(url: str) -> None:
    for name in ("5107", "51"):
        done = run(name, "--url", url)
        assert done.exit_code == 0, done.exception
        assert "It waited 3.1 s of the 3.3 s to its first token in the queue" in done.stdout


def test_a_whole_id_is_that_request_though_others_begin_so(url: str) -> None:
    assert "r1 ·" in run("r1", "--url", url).stdout


def test_the_slowest(url: str) -> None:
    assert run("--slowest", "--url", url).stdout.startswith("5107 ·")


def test_of_a_simulated_node_it_is_said_first(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = msgspec.structs.replace(snapshot(), simulated=True)
    monkeypatch.setattr(sys.modules[__name__], "snapshot", lambda: simulated)
    assert run("--slowest", "--url", url).stdout.startswith("SIMULATED\n5107 ·")
    assert run("--url", url).stdout.startswith("SIMULATED\nThe slowest")


def test_json_has_the_sentence_and_what_it_stands_on(url: str) -> None:
    found = json.loads(run("51", "--json", "--url", url).stdout)
    assert found["held_by"] == "queue"
    assert found["fits"] is True
    assert found["timeline"]["id"] == "5107"
    assert len(json.loads(run("--json", "--url", url).stdout)["newest"]) == 15


def test_without_an_id_some_are_listed_to_choose_from(url: str) -> None:
    done = run("--url", url)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "The slowest to their first token, of 41 that are kept:"
    assert lines[2].split()[0] == "5107"
    assert "pd-appliance why 5107" in lines[-1]


def test_nothing_to_list(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "kept", [])
    assert run("--url", url).stdout == "The node has had no request yet.\n"
    with pytest.raises(ActionError, match="has had none yet"):
        beginning_with("x", [])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("r", r"40 requests begin with 'r': .*…; write more"),
        ("x", r"no request 'x' among the 41 newest.*recent_requests.*x-request-id"),
        ("../node", r"no request '\.\./node'"),
    ],
)
def test_what_is_not_one_request_is_an_error_with_what_to_do(url: str, name: str, says: str) -> None:
    done = run(name, "--url", url)
    assert isinstance(done.exception, ActionError)
    assert re.search(says, str(done.exception))


def test_of_two_with_one_id_the_newest() -> None:
    old = msgspec.structs.replace(SLOW, arrived=1.0)
    assert beginning_with("5107", [SLOW, old]) is SLOW


def test_ids_are_as_short_as_they_differ() -> None:
    assert shortened(["a" * 32, "b" * 32]) == {"a" * 32: "a" * 8, "b" * 32: "b" * 8}
    assert set(shortened(["load-0001-x", "load-0002-x"]).values()) == {"load-0001", "load-0002"}
    assert shortened([]) == {}
    assert shortened(["abc"]) == {"abc": "abc"}


def test_the_waterfall() -> None:
    lines = [line.plain for line in waterfall(explained_by(SLOW, OTHERS, snapshot()), 80)]
    assert all(len(line) <= 80 for line in lines)
    assert all(line == line.rstrip() for line in lines)
    at = lines.index("  stage              time share    usual")
    assert lines[at + 1 : at + 12] == [
        "▶ queue            3.10 s   94%   2.0 ms  ████████████████████████████████████",
        "  prefill wait     8.0 ms    0%   8.0 ms                                      ▏",
        "  prefill          150 ms    5%   150 ms                                      ██",
        "  hand-off wait     10 ms    0%    10 ms                                       ▏",
        "  transfer         5.0 ms    0%   5.0 ms                                       ▏",
        "  decode wait      5.0 ms    0%   5.0 ms                                       ▏",
        "  first step        20 ms    1%    20 ms                                       ▏",
        "  first token      3.30 s         200 ms  target 2.00 s, 1.30 s late",
        "  answer           2.00 s",
        "  each piece        20 ms          20 ms  target 50 ms",
        "  all of it        5.30 s",
    ]
    assert "  hand-off   e0 → e2, 50 MB, 10.0 GB/s (usual 10.0 GB/s)" in lines


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_every_kind_of_request_fits(width: int) -> None:
    kinds = [*made.busy(40).recent, *made.whole(0).recent, request(0, ()), SLOW]
    for timeline in kinds:
        lines = waterfall(explained_by(timeline, kinds, snapshot()), width)
        assert all("None" not in line.plain for line in lines)
        if width >= 80:
            assert all(line.cell_len <= width for line in lines), [line.plain for line in lines]
