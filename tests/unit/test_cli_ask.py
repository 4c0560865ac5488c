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
from appliance.cli.ask import ask, fetch, is_here, target
from appliance.errors import ActionError

VERDICT = {
    "state": "ok", "summary": "No bottleneck.", "since": 1_700_000_000.0, "engine": None, "link": None, "cause": None, "confidence": None,
    "evidence": [], "action": None, "next": None,
}  # fmt: skip


class Node(http.server.BaseHTTPRequestHandler):
    """Answers each path with what the server has for it."""

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        status, body = self.server.answers.get(self.path, (404, {}))  # type: ignore[attr-defined]
        self.send_response(status)
        if self.server.simulated:  # type: ignore[attr-defined]
            self.send_header("x-simulated", "true")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def node() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node) as server:
        server.answers, server.asked, server.simulated = {}, [], False  # type: ignore[attr-defined]
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


def test_what_a_simulated_node_says_is_marked(node: Any) -> None:
    node.answers["/api/diagnosis"] = (200, VERDICT)
    node.simulated = True
    done = CliRunner().invoke(app, ["diagnose", "--url", url(node)])
    assert done.stdout.startswith("SIMULATED: No bottleneck.\n")
    held = {**VERDICT, "state": "bottleneck", "cause": "frontend_bound", "confidence": 0.9}
    node.answers["/api/diagnosis"] = (200, held)
    assert CliRunner().invoke(app, ["diagnose", "--url", url(node)]).stdout.startswith("SIMULATED: BOTTLENECK the node")


@pytest.mark.parametrize("body", [[], {}, "text"])
def test_what_is_no_verdict_is_said_to_be_none(node: Any, body: Any) -> None:
    node.answers["/api/diagnosis"] = (200, body)
    done = CliRunner().invoke(app, ["diagnose", "--url", url(node)])
    assert isinstance(done.exception, ActionError)
    assert "not as a node of this version does" in str(done.exception)


def test_a_node_that_serves_nobody_is_not_called_well(node: Any) -> None:
    node.answers["/api/diagnosis"] = (200, VERDICT)
    node.answers["/ready"] = (503, {"status": "not ready", "reason": "e0 is loading its model."})
    done = CliRunner().invoke(app, ["diagnose", "--url", url(node)])
    assert (done.exit_code, done.stdout) == (11, "NOT SERVING: e0 is loading its model.\n")
    node.answers["/ready"] = (200, {"status": "ready"})
    assert CliRunner().invoke(app, ["diagnose", "--url", url(node)]).exit_code == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"engine": "e1", "engines": ["e1", "e2"], "cause": "prefill_saturated"},
            "BOTTLENECK e1, e2: prefill_saturated (since ",
        ),
        ({"link": ["e0", "e4"], "cause": "handoff_link_slow"}, "BOTTLENECK e0 to e4: handoff_link_slow (since "),
        ({"cause": "frontend_bound"}, "BOTTLENECK the node: frontend_bound (since "),
    ],
)
def test_what_holds_it_back_is_told_with_where_and_since_when(node: Any, more: dict[str, Any], says: str) -> None:
    node.answers["/api/diagnosis"] = (200, {**VERDICT, "state": "bottleneck", **more})
    done = CliRunner().invoke(app, ["diagnose", "--url", url(node)])
    assert done.stdout.startswith(says)
    assert "sure" not in done.stdout, "a confidence that is not told is not made up"


def test_what_an_engine_says_of_itself_is_shown_and_not_obeyed(node: Any) -> None:
    evidence = [{"measured": 1.0, "expected": None, "unit": "", "sentence": "e1 said: \x1b]0;pwned\x07\r\nlost"}]
    node.answers["/api/diagnosis"] = (200, {**VERDICT, "state": "unknown", "evidence": evidence})
    done = CliRunner().invoke(app, ["diagnose", "--url", url(node)])
    assert "  - e1 said: \N{REPLACEMENT CHARACTER}]0;pwned\N{REPLACEMENT CHARACTER}  lost\n" in done.stdout


def watched(
    node: Any, monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, Any], options: tuple[str, ...] = ()
) -> Any:
    """What ``--watch`` says of these answers, one after the other."""
    left = list(answers)

    def pause(_: float) -> None:
        if not left:
            raise KeyboardInterrupt
        node.answers["/api/diagnosis"] = left.pop(0)

    node.answers["/api/diagnosis"] = left.pop(0)
    monkeypatch.setattr("appliance.cli.diagnose.time.sleep", pause)
    return CliRunner().invoke(app, ["diagnose", "--watch", "--url", url(node), *options])


def test_a_watch_says_what_changes_with_the_time_and_outlasts_a_restart(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {**VERDICT, "state": "bottleneck", "cause": "handoff_link_slow", "link": ["e0", "e4"]}
    other = {**slow, "link": ["e0", "e5"]}
    gone = (500, {})
    done = watched(
        node, monkeypatch, (200, VERDICT), (200, VERDICT), (200, slow), gone, gone, (200, slow), (200, other)
    )
    said = [line for line in done.stdout.splitlines() if line[:2].isdigit()]
    assert [line[10:].split(" (")[0][:33] for line in said] == [
        "No bottleneck.",
        "BOTTLENECK e0 to e4: handoff_link",
        f"NO ANSWER: {url(node)}api/dia"[:33],
        "BOTTLENECK e0 to e4: handoff_link",
        "BOTTLENECK e0 to e5: handoff_link",
    ]
    assert done.exit_code == 10, "as of the last one"


def test_lines_of_a_watch_in_json_are_verdicts_only(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = watched(node, monkeypatch, (200, VERDICT), (500, {}), (200, VERDICT), options=("--json",))
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["ok", "ok"]
    assert "NO ANSWER" in done.stderr
    assert done.exit_code == 0


def test_a_proxy_is_not_asked_for_what_is_on_this_machine(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    node.answers["/api/node"] = (200, {"a": 1})
    assert ask(url(node), "GET", "api", "node") == {"a": 1}
    with pytest.raises(ActionError, match="Connection refused"):
        ask("http://node.invalid", "GET", "api", "node")


@pytest.mark.parametrize(
    ("host", "here"), [("localhost", True), ("127.0.0.9", True), ("::1", True), ("10.0.0.1", False), ("gpu-7", False)]
)
def test_what_is_on_this_machine(host: str, here: bool) -> None:
    assert is_here(host) is here


def test_a_node_can_be_named_without_a_scheme(node: Any) -> None:
    node.answers["/api/node"] = (200, {"a": 1})
    assert ask(f"127.0.0.1:{node.server_address[1]}", "GET", "api", "node") == {"a": 1}


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "--url '' is empty: write the node's address, as in http://127.0.0.1:8000"),
        ("http://", "'http://' names no host"),
        ("http://:8000", "'http://:8000' names no host"),
        ("http://127.0.0.1:99999", "has no port of a node (99999): there are 1 to 65535"),
        ("127.0.0.1:99999", "has no port of a node (99999): there are 1 to 65535"),
        ("http://127.0.0.1:0", "has no port of a node (0)"),
        ("http://127.0.0.1:http", "has no port of a node (http)"),
        ("ftp://127.0.0.1:8000", "is of ftp, and nodes speak http or https"),
        ("http://[::1:8000", "is no address (Invalid IPv6 URL)"),
        ("http://127.0.0.1:8000/api", "says more than where the node is: write --url http://127.0.0.1:8000"),
        ("127.0.0.1:8000/v1/models", "write --url http://127.0.0.1:8000"),
        ("https://gpus.example/node-1/api/node/", "write --url https://gpus.example/node-1"),
        ("http://127.0.0.1:8000/?since=1", "write --url http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/#top", "write --url http://127.0.0.1:8000"),
    ],
)
@pytest.mark.parametrize("command", [("diagnose",), ("incidents",), ("top",), ("sim", "faults")], ids=" ".join)
def test_what_can_be_no_nodes_address_is_refused_at_once(command: tuple[str, ...], address: str, says: str) -> None:
    done = CliRunner().invoke(app, [*command, "--url", address])
    assert isinstance(done.exception, ActionError)
    assert says in str(done.exception)
    assert "no node answers" not in str(done.exception) and "--state-dir" not in str(done.exception)


def test_a_node_may_be_below_a_path() -> None:
    assert target("https://gpus.example/node-1/", "api", "node") == "https://gpus.example/node-1/api/node"
    assert target("http://[::1]:8000", "ready") == "http://[::1]:8000/ready"
    assert target("gpu-7:8000", "ready", query="?a=1") == "http://gpu-7:8000/ready?a=1"


def test_why_nobody_answers_is_told_in_the_systems_words() -> None:
    with pytest.raises(ActionError, match=r"no node answers at http://127\.0\.0\.1:1 \(Connection refused\); name"):
        ask("http://127.0.0.1:1", "GET", "api", "node")


def test_an_answer_that_breaks_off_is_told_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def half() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
            connection.close()

        threading.Thread(target=half, daemon=True).start()
        with pytest.raises(ActionError, match="IncompleteRead"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}", "GET", "api", "incidents", "a", "bundle")


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


# ---- orders


ADVISED = {
    **VERDICT, "state": "bottleneck", "cause": "prefill_skew", "engine": "e1", "summary": "e1 has too little to do.",
    "action": {
        "sentence": "Give e1 more.", "call": "POST /api/engines/e1/weight", "setting": None,
        "order": {"kind": "weight", "engine": "e1", "weight": 2.0},
    },
}  # fmt: skip


def test_an_order_that_nobody_confirms_is_not_given_and_that_is_said(node: Any) -> None:
    node.answers["/api/diagnosis"] = (200, ADVISED)
    done = CliRunner().invoke(app, ["remedy", "advised", "--url", url(node)], input="")
    assert done.stdout.endswith("POST /api/engines/e1/weight? [y/N]: \n")
    assert isinstance(done.exception, ActionError), "exit code 2"
    assert "nothing was ordered; --yes orders it without asking" in str(done.exception)
    done = CliRunner().invoke(app, ["remedy", "advised", "--url", url(node)], input="n\n")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "Nothing was ordered.")
    assert not [one for one in node.asked if one.startswith("POST")]


@pytest.mark.parametrize("weight", ["nan", "inf", "0", "101"])
def test_a_weight_that_no_engine_can_have_is_refused_with_the_range(node: Any, weight: str) -> None:
    done = CliRunner().invoke(app, ["remedy", "weight", "e0", weight, "--url", url(node)])
    assert isinstance(done.exception, ActionError)
    assert f"weight {weight} is not from 0.01 to 100" in str(done.exception)
    assert node.asked == []
