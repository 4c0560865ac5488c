"""Commands that ask a node: what they say of it, and what they say where there is none."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.cli.ask import ask
from appliance.errors import ActionError

VERDICT = {
    "state": "ok", "summary": "No bottleneck.", "engine": None, "link": None, "cause": None, "confidence": None,
    "evidence": [], "action": None, "next": None,
}  # fmt: skip


class Node(http.server.BaseHTTPRequestHandler):
    """Answers each path with what the server has for it."""

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        status, body = self.server.answers.get(self.path, (404, {}))  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def node() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node) as server:
        server.answers, server.asked = {}, []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url(node: Any) -> str:
    return f"http://127.0.0.1:{node.server_address[1]}/"


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("bottleneck", 10), ("unknown", 11)])
def test_scripts_can_tell_verdicts_by_the_exit_code(node: Any, state: str, code: int) -> None:
    node.answers["/api/diagnosis"] = (200, {**VERDICT, "state": state, "confidence": 0.9, "engine": "e1"})
    done = CliRunner().invoke(app, ["diagnose", "--url", url(node)])
    assert done.exit_code == code
    assert "No bottleneck." in done.stdout
    done = CliRunner().invoke(app, ["diagnose", "--url", url(node), "--json"])
    assert json.loads(done.stdout)["state"] == state


@pytest.mark.parametrize("body", [[], {}, "text"])
def test_what_is_no_verdict_is_said_to_be_none(node: Any, body: Any) -> None:
    node.answers["/api/diagnosis"] = (200, body)
    done = CliRunner().invoke(app, ["diagnose", "--url", url(node)])
    assert isinstance(done.exception, ActionError)
    assert "not as a node does" in str(done.exception)


def test_what_the_node_says_is_the_error(node: Any) -> None:
    node.answers["/api/sim/engines/e9/fault"] = (404, {"error": {"message": "there is no engine 'e9'"}})
    with pytest.raises(ActionError, match="there is no engine 'e9'"):
        ask(url(node), "POST", "api", "sim", "engines", "e9", "fault", body={})


def test_names_are_quoted(node: Any) -> None:
    done = CliRunner().invoke(app, ["sim", "mend", "e 0/../x", "--kind", "a&b", "--url", url(node)])
    assert isinstance(done.exception, ActionError)
    assert node.asked == ["DELETE /api/sim/engines/e%200%2F..%2Fx/fault?kind=a%26b"]


def test_whatever_is_no_node_is_told_with_the_remedy() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ActionError, match="name the right one with --url"):
            ask(address, "GET", "api")
        server.listen()

        def banner() -> None:
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.close()

        threading.Thread(target=banner, daemon=True).start()
        with pytest.raises(ActionError, match="name the right one with --url"):
            ask(address, "GET", "api")


@pytest.mark.parametrize(
    ("severity", "says"),
    [
        ("0.5", "e0: clocks, 50% lost. pd-appliance sim mend e0 ends it.\n"),
        ("0", "e0: clocks mended.\n"),
    ],
)
def test_a_fault_that_is_begun_or_ended_is_said_to_be(node: Any, severity: str, says: str) -> None:
    node.answers["/api/sim/engines/e0/fault"] = (200, {})
    command = ["sim", "fault", "e0", "--kind", "clocks", "--severity", severity, "--url", url(node)]
    assert CliRunner().invoke(app, command).output == says


def test_a_severity_that_is_no_number_is_refused_in_words() -> None:
    command = ["sim", "fault", "e0", "--kind", "clocks", "--severity", "nan"]
    with pytest.raises(ActionError, match="severity nan is not from 0 to 1"):
        CliRunner().invoke(app, command, catch_exceptions=False)
