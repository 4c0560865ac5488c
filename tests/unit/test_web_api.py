"""The JSON API, health, headers and errors of the whole app, over a made-up node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from appliance.errors import ActionError, RequestError
from appliance.records import NodeSnapshot, Plan, Plans, Timeline
from appliance.remedies.apply import Remedies
from web import assets, refused
from web.app import Site, create_app
from web.ports import InferenceRequest, Reply

sys.path.append(str(Path(__file__).parents[1] / "browser"))
from page_states import FakeNode


class Router:
    """Says which path it was asked for."""

    async def serve(self, request: InferenceRequest, reply: Reply) -> None:
        if request.path == "/v1/nothing":
            raise RequestError(404, "No such route.")
        await reply.start(200, [(b"content-type", b"text/plain")])
        await reply.send(f"{request.method} {request.path}".encode())
        await reply.end()


@pytest.fixture
def node() -> FakeNode:
    return FakeNode("busy")


@pytest.fixture
def site(node: FakeNode) -> Site:
    return made(node, bound_to="0.0.0.0")


def made(node: FakeNode, **door: Any) -> Site:
    return create_app(
        inference=Router(),
        node=node,
        actions=Remedies(node, node.latest),
        max_body_bytes=1000,
        max_held_bytes=10_000,
        metrics=lambda snapshot: b"metric 1\n",
        **door,
    )


@pytest.fixture
def client(site: Site) -> TestClient:
    return TestClient(site, raise_server_exceptions=False)


@pytest.mark.parametrize("path", ["/v1/models", "/tokenize", "/detokenize"])
def test_what_engines_answer_goes_to_the_router(client: TestClient, path: str) -> None:
    assert client.post(path, json={}).text == f"POST {path}"


def test_alive_whatever_the_engines_do(client: TestClient, node: FakeNode) -> None:
    node.show("failed")
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


def test_ready_says_why_it_is_not(client: TestClient, node: FakeNode) -> None:
    assert client.get("/ready").status_code == 200
    node.show("loading")
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "reason": "e0 and e1 are still starting."}
    assert int(answer.headers["retry-after"]) >= 1


def test_plans_are_predictions_of_each_layout_and_nobody_has_to_plan(node: FakeNode) -> None:
    class Planner:
        found: Plans | None = None

        def plans(self) -> Plans | None:
            return self.found

    planner = Planner()
    client = TestClient(made(node, bound_to="0.0.0.0", planning=planner), raise_server_exceptions=False)
    assert client.get("/api/plan").status_code == 503
    plan = Plan(layout="2b", feasible=False, reason="not known")
    planner.found = Plans(time=1.0, now="1p1d", layouts=(plan,))
    assert msgspec.json.decode(client.get("/api/plan").content, type=Plans) == planner.found
    assert TestClient(made(node, bound_to="0.0.0.0")).get("/api/plan").status_code == 404


def test_the_snapshot_is_the_record_as_it_is(client: TestClient, node: FakeNode) -> None:
    answer = client.get("/api/node")
    snapshot = msgspec.json.decode(answer.content, type=NodeSnapshot)
    assert [engine.name for engine in snapshot.engines] == ["e0", "e1"]
    assert {"time", "model", "simulated", "topology", "engines", "queue", "ledger", "verdict"} <= set(answer.json())
    assert answer.headers["cache-control"] == "no-store"


def test_timelines_newest_first_as_many_as_asked(client: TestClient, node: FakeNode) -> None:
    answer = client.get("/api/requests", params={"limit": 3})
    found = msgspec.json.decode(answer.content, type=list[Timeline])
    assert found == list(node.latest().recent[:3])
    assert len(client.get("/api/requests").json()) == len(node.latest().recent)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "", "1.5", "٣", "9" * 5000])
def test_a_bad_limit_is_a_400_in_openai_shape(client: TestClient, limit: str) -> None:
    answer = client.get("/api/requests", params={"limit": limit})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == ("limit", "invalid_request_error")


def test_one_timeline_or_a_404(client: TestClient, node: FakeNode) -> None:
    wanted = node.latest().recent[1]
    assert client.get(f"/api/requests/{wanted.id}").json()["id"] == wanted.id
    assert client.get("/api/requests/other").status_code == 404


def test_logs_as_json_and_as_text_or_a_404(client: TestClient) -> None:
    assert client.get("/api/engines/e1/logs").json() == {"engine": "e1", "lines": ["INFO e1 one", "ERROR e1 two"]}
    text = client.get("/api/engines/e1/logs?format=text")
    assert text.text == "INFO e1 one\nERROR e1 two\n"
    assert text.headers["content-type"].startswith("text/plain")
    assert client.get("/api/engines/e9/logs").status_code == 404


def test_steps_of_an_engine_after_a_number(client: TestClient) -> None:
    found = client.get("/api/engines/e1/steps?since=2&limit=2").json()
    assert (found["engine"], [one["number"] for one in found["steps"]]) == ("e1", [4, 5])
    assert found["steps"][0]["seconds"] == 0.02
    assert len(client.get("/api/engines/e1/steps").json()["steps"]) == 5
    assert client.get("/api/engines/e9/steps").status_code == 404
    for wrong in ("since=-1", "since=x", "limit=0", "limit=1001", "since=" + "9" * 40):
        answer = client.get(f"/api/engines/e1/steps?{wrong}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, wrong.partition("=")[0])


def test_what_an_engine_is_started_with(client: TestClient) -> None:
    assert client.get("/api/engines/e1/command").json()["command"][1:] == ["-m", "appliance.engine.main"]
    assert client.get("/api/engines/e9/command").status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/engines/e9", 404, "There is no engine &#39;e9&#39; on this node. It has e0 and e1."),
        ("/requests/none", 404, "There is no request &#39;none&#39;, or it is no longer kept."),
        ("/requests?show=odd", 400, "show must be one of"),
    ],
)
def test_a_page_that_there_is_not_is_said_in_the_frame(client: TestClient, path: str, status: int, says: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert says in answer.text
    assert 'id="strip"' in answer.text
    assert "hx-sse:connect" not in answer.text  # there is nothing to follow
    assert client.get(f"/live{path}").json()["error"]["message"]


def test_the_knee_of_an_engine(client: TestClient) -> None:
    assert client.get("/api/engines/e1/knee").json()["knee"]["tokens"] == 608
    assert client.get("/api/engines/e9/knee").status_code == 404


def test_metrics_are_what_the_exposition_made(client: TestClient) -> None:
    answer = client.get("/metrics")
    assert answer.text == "metric 1\n"
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    "path", ["/api/none", "/api/engines/e0", "/v1", "/v1/nothing", "/nowhere", "/live/none", "/static/none"]
)
def test_unknown_routes_are_404_in_openai_shape(client: TestClient, path: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/metrics", "/events", "/api/node", "/api/requests", "/live/"]
)
def test_a_wrong_method_is_405_and_names_the_right_ones(client: TestClient, path: str) -> None:
    answer = client.post(path)
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    assert "POST" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/events", "/live/"])
def test_the_head_of_a_stream_ends(client: TestClient, path: str) -> None:
    answer = client.head(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("path", ["/events", "/live/"])
def test_closed_streams_end(client: TestClient, site: Site, path: str) -> None:
    site.close_streams()
    assert client.get(path).status_code == 200


def test_v1_goes_to_the_router(client: TestClient) -> None:
    assert client.post("/v1/chat/completions", content=b"{}").text == "POST /v1/chat/completions"
    answer = client.post("/v1/completions", content=b"x" * 1001)
    assert (answer.status_code, "([server] max_body_bytes)" in answer.json()["error"]["message"]) == (413, True)


# ---- errors, looked at

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize("path", ["/nowhere", "/engines/e0/", "/incident", "/favicon.ico", "/v2/models", "/apis"])
def test_who_looks_for_what_is_not_there_gets_a_page_that_leads_on(client: TestClient, path: str) -> None:
    answer = client.get(path, headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert f"There is nothing at {path}." in answer.text
    assert 'class="detail">Look at the address. What has ended is kept for a while only;' in answer.text
    assert '<a href="/">To the overview</a>' in answer.text
    assert 'aria-label="Pages"' in answer.text
    assert "script-src 'self' 'sha256-" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1", {}),
        ("/v1/nothing", {}),
        ("/api/none", {}),
        ("/api/requests/none", {}),
        ("/metrics/none", {}),
        ("/live/none", {}),
        ("/static/none", {}),
        ("/nowhere", {"hx-request": "true"}),
        ("/nowhere", {"accept": "application/json"}),
        ("/nowhere", {"accept": "*/*"}),
    ],
)
def test_programs_get_errors_that_they_can_read(client: TestClient, path: str, more: dict[str, str]) -> None:
    answer = client.get(path, headers={**BROWSER, **more})
    assert (answer.status_code, set(answer.json())) == (404, {"error"})


def test_a_fault_is_a_page_where_somebody_looks_and_stands_alone_where_the_frame_fails(
    client: TestClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "timelines", lambda limit: 1 / 0)
    framed = client.get("/requests", headers=BROWSER)
    monkeypatch.setattr(node, "latest", lambda: 1 / 0)
    alone = client.get("/", headers=BROWSER)
    for answer in (framed, alone):
        assert (answer.status_code, answer.headers["content-type"]) == (500, "text/html; charset=utf-8")
        assert "The log of pd-appliance has the details." in answer.text
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert ('id="strip"' in framed.text, 'id="strip"' in alone.text) == (True, False)


def test_who_may_not_come_in_is_told_how_and_nothing_of_the_node(node: FakeNode) -> None:
    client = TestClient(made(node, bound_to="127.0.0.1"))
    answer = client.get("/", headers={**BROWSER, "host": "<b>evil"})
    assert (answer.status_code, answer.headers["content-type"]) == (403, "text/html; charset=utf-8")
    assert "&#39;&lt;b&gt;evil&#39;. If that is right, add it to allowed_hosts in [server]." in answer.text
    assert "To the overview" not in answer.text, "it would be refused again"
    assert node.latest().model not in answer.text


def test_a_wrong_method_is_said_to_who_looks(client: TestClient) -> None:
    answer = client.post("/", headers=BROWSER)
    assert (answer.status_code, "GET" in answer.headers["allow"]) == (405, True)
    assert "/ does not answer POST." in answer.text


def test_when_to_come_back_is_said_in_the_page_too() -> None:
    busy = RequestError(503, "Too many different pages are looked at.", retry_after_s=2.4)
    assert refused.refused(busy).step == "Reload the page in 3 s."


# ---- who may come in


@pytest.mark.parametrize("path", ["/", "/v1/models", "/api/node", "/live/", "/metrics", "/static/app.css"])
def test_a_name_that_is_not_ours_is_refused_on_every_route(node: FakeNode, path: str) -> None:
    client = TestClient(made(node, bound_to="127.0.0.1"))
    answer = client.head(path, headers={"host": "evil.example:8000"})
    assert answer.status_code == 403
    answer = client.get("/api/node", headers={"host": "evil.example:8000"})
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "allowed_hosts in [server]" in answer.json()["error"]["message"]
    assert client.head(path, headers={"host": "localhost:8000"}).status_code in (200, 405)


def test_a_page_of_another_site_may_look_but_not_send(node: FakeNode) -> None:
    client = TestClient(made(node, bound_to="127.0.0.1", allowed_hosts=["app.example"]), base_url="http://localhost:80")
    evil, friend, own = ({"origin": f"http://{name}"} for name in ("evil.example", "app.example", "localhost"))
    assert client.post("/v1/completions", headers=evil).status_code == 403
    assert client.post("/v1/completions", headers=friend).status_code == 200
    assert client.post("/v1/completions", headers=own).status_code == 200
    assert client.get("/v1/models", headers=evil).status_code == 200


def test_the_page_is_guarded(client: TestClient) -> None:
    for path in ("/", "/api/node", "/nowhere"):
        headers = client.get(path).headers
        assert "script-src 'self' 'sha256-" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_what_engines_answer_is_no_page_but_is_not_taken_for_one_either(node: FakeNode) -> None:
    client = TestClient(made(node, bound_to="127.0.0.1"), base_url="http://localhost")
    for path, host in (("/v1/models", "localhost"), ("/v1/nothing", "localhost"), ("/v1/models", "evil.example")):
        headers = client.get(path, headers={"host": host}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "content-security-policy" not in headers


@pytest.mark.parametrize(
    "path",
    ["/health", "/ready", "/metrics", "/api/node", "/api/requests", "/api/engines/e1/logs?format=text", "/api/remedies",
     "/api/incidents", "/api/none", "/api/requests?limit=x", "/nowhere", "/static/none", "/v1/nothing", "/v1", "/plan/curves",
     "/api/history", "/api/sim", "/engines/e9"],
)  # fmt: skip
def test_nothing_that_is_of_this_moment_is_kept_by_anybody(client: TestClient, path: str) -> None:
    assert client.get(path).headers["cache-control"] == "no-store"
    assert client.delete(path).headers["cache-control"] == "no-store" or path.startswith("/v1")


def test_a_fault_is_guarded_like_everything_else(
    client: TestClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "latest", lambda: 1 / 0)
    headers = client.get("/api/node").headers
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/{}", None),
        ("POST", "/{}", None),
        ("GET", "/api/engines/{}/logs", None),
        ("GET", "/api/requests/{}", None),
        ("GET", "/api/incidents/{}", None),
        ("GET", "/api/remedies/{}", None),
        ("GET", "/engines/{}", None),
        ("GET", "/api/engines/{}/knee", None),
        ("POST", "/api/remedies/{}/undo", None),
        ("POST", "/api/topology", {"{}": 1}),
        ("POST", "/api/remedies", {"kind": "{}"}),
    ],
)
def test_an_error_says_of_what_was_said_only_the_beginning(
    client: TestClient, method: str, path: str, body: dict[str, Any] | None
) -> None:
    long = "x" * 20_000
    content = json.dumps(body).replace("{}", long) if body else None
    answer = client.request(method, path.replace("{}", long), content=content)
    assert 400 <= answer.status_code < 500
    message = answer.json()["error"]["message"] if "json" in answer.headers["content-type"] else answer.text
    assert "x" * 300 not in message
    assert len(message) < 1100 or "<html" in message


def test_the_page_names_the_host_that_was_asked_and_no_other(client: TestClient) -> None:
    assert "http://gpu-1:8000/v1/" in client.get("/", headers={"host": "gpu-1:8000"}).text
    assert "http://[::1]:80/v1/" in client.get("/", headers={"host": "[::1]:80"}).text
    assert "https://testserver/v1/" in TestClient(client.app, base_url="https://testserver").get("/").text
    evil = client.get("/", headers={"host": "a';rm -rf /;'<script>"}).text
    assert "rm -rf" not in evil
    assert "http://127.0.0.1:8000/v1/" in evil


def test_no_markup_of_a_name_gets_through(client: TestClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = msgspec.structs.replace(node.latest(), model="<img src=x onerror=alert(1)>")
    monkeypatch.setattr(node, "latest", lambda: snapshot)
    assert "<img" not in client.get("/").text


def test_without_the_browser_libraries_the_page_says_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "vendor_present", lambda: False)
    text = client.get("/").text
    assert "Live updates are off" in text
    assert "vendor/" not in text
    assert "Serving 21 requests" in text


def test_static_files_may_be_kept_for_ever_by_their_fingerprint(client: TestClient) -> None:
    lasting = client.get(f"/static/app.css?v={assets.fingerprint()}")
    assert (lasting.status_code, lasting.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
    assert client.get("/static/app.css").headers["cache-control"] == "no-cache"
    assert client.get("/static/app.css?v=old").headers["cache-control"] == "no-cache"
    assert client.get("/static/..%2f..%2fpackage.json").status_code == 404


def test_a_fault_is_a_500_in_openai_shape(client: TestClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "latest", lambda: 1 / 0)
    answer = client.get("/api/node")
    assert answer.status_code == 500
    assert json.loads(answer.content)["error"]["type"] == "internal_server_error"


def test_assets_are_taken_from_the_wheel_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_HERE", tmp_path / "web")
    assert assets.directory("static") == tmp_path / "static"
    (tmp_path / "web" / "_assets" / "static").mkdir(parents=True)
    assert assets.directory("static") == tmp_path / "web" / "_assets" / "static"


# ---- actions


@pytest.mark.parametrize("verb", ["drain", "resume", "restart"])
def test_an_engine_is_told_what_to_do(client: TestClient, node: FakeNode, verb: str) -> None:
    answer = client.post(f"/api/engines/e1/{verb}")
    said = answer.json()
    assert (answer.status_code, said["engine"], said["asked"]) == (202, "e1", verb)
    assert said["restarts"] == (["e1"] if verb == "restart" else [])
    assert node.asked == [f"{verb} e1"]


def test_all_engines_are_restarted(client: TestClient, node: FakeNode) -> None:
    answer = client.post("/api/restart")
    assert (answer.status_code, answer.json()["restarts"], node.asked) == (202, ["e0", "e1"], ["restart"])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/remedies", {"kind": "restart", "engine": ""}, 404),
        ("/api/remedies", {"kind": "restart", "engin": "e0"}, 400),
        ("/api/restart", {"engine": "e0"}, 400),
        ("/api/remedies/r1/undo", {"engine": "e0"}, 400),
        ("/api/remedies", {"kind": "restart", "topology": "x" * 70_000}, 413),
    ],
)
def test_an_order_that_may_be_a_slip_is_none(
    client: TestClient, node: FakeNode, path: str, body: dict[str, str], status: int
) -> None:
    assert client.post(path, json=body).status_code == status
    assert node.asked == []


def test_an_order_that_is_too_long_is_told_of_the_limit_of_orders(client: TestClient) -> None:
    answer = client.post("/api/engines/e0/drain", content=b" " * 70_000)
    said = "The request's body is over the limit of 65,536 bytes (of any order; no setting changes it)."
    assert (answer.status_code, answer.json()["error"]["message"]) == (413, said)


def test_what_can_not_be_done_is_said(client: TestClient, node: FakeNode) -> None:
    answer = client.post("/api/engines/e9/drain")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert client.get("/api/engines/e1/drain").status_code == 405
    node.show("loading")
    answer = client.post("/api/engines/e1/drain")
    assert (answer.status_code, answer.json()["error"]["message"]) == (409, "e1 is starting")
    assert node.asked == []


def test_a_page_of_another_site_tells_engines_nothing(client: TestClient, node: FakeNode) -> None:
    assert client.post("/api/engines/e1/restart", headers={"origin": "http://evil.example"}).status_code == 403
    assert node.asked == []


# ---- simulated nodes


class Faults:
    """Implements ``web.ports.Simulation``."""

    title = "a scenario"

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def faults(self) -> dict[str, list[Any]]:
        return {}

    def fault(self, engine: str, kind: str, severity: float, peer: str | None = None) -> None:
        if engine == "e9":
            raise ActionError("there is no engine 'e9'", unknown=True)
        if kind == "rust":
            raise ActionError("rust is no fault", invalid=True)
        if kind == "hang":
            raise ActionError("it does not serve now")
        self.asked.append((engine, kind, severity, peer))

    def mend(self, engine: str, kind: str | None = None) -> None:
        self.asked.append((engine, kind))


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def simulated(node: FakeNode, faults: Faults) -> TestClient:
    return TestClient(made(node, bound_to="0.0.0.0", simulation=faults), raise_server_exceptions=False)


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/nothing", "/api/node", "/health", "/metrics", "/no-such"])
def test_every_answer_of_a_simulated_node_says_so_and_no_other_does(
    simulated: TestClient, client: TestClient, path: str
) -> None:
    assert simulated.get(path).headers.get_list("x-simulated") == ["true"]
    assert "x-simulated" not in client.get(path).headers


def test_faults_are_had_and_mended(simulated: TestClient, faults: Faults) -> None:
    answer = simulated.post("/api/sim/engines/e1/fault", json={"kind": "link", "severity": 0.25, "peer": "e0"})
    assert answer.status_code == 202
    assert answer.json() == {"engine": "e1", "asked": "fault", "kind": "link", "severity": 0.25, "peer": "e0"}
    assert simulated.delete("/api/sim/engines/e1/fault?kind=link").status_code == 202
    assert simulated.delete("/api/sim/engines/e1/fault").status_code == 202
    assert faults.asked == [("e1", "link", 0.25, "e0"), ("e1", "link"), ("e1", None)]
    assert simulated.get("/api/sim").json() == {"scenario": "a scenario", "faults": {}}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("e1", b"{}", 400),
        ("e1", b"nonsense", 400),
        ("e1", b'{"kind": "clocks", "strength": 1}', 400),
        ("e9", b'{"kind": "clocks"}', 404),
        ("e1", b'{"kind": "rust"}', 400),
        ("e1", b'{"kind": "hang"}', 409),
    ],
)
def test_a_fault_that_can_not_be_is_refused(simulated: TestClient, path: str, body: bytes, status: int) -> None:
    answer = simulated.post(f"/api/sim/engines/{path}/fault", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_real_node_has_no_faults_to_be_had(client: TestClient) -> None:
    for answer in (
        client.get("/api/sim"),
        client.post("/api/sim/engines/e1/fault", json={"kind": "clocks"}),
        client.delete("/api/sim/engines/e1/fault"),
    ):
        assert answer.status_code == 404
        assert "not simulated" in answer.json()["error"]["message"]


def test_an_engine_is_weighted(client: TestClient, node: FakeNode) -> None:
    answer = client.post("/api/engines/e1/weight", json={"weight": 0.5})
    said = answer.json()
    assert (answer.status_code, said["engine"], said["asked"]) == (202, "e1", "weight")
    assert said["remedy"]["sentence"] == "e1's weight in routing: 1 → 0.5"
    assert said["remedy"]["undo"] == {"kind": "weight", "engine": "e1", "weight": 1.0}
    assert node.asked == ["weight 0.5 e1"]
    for body in (b"", b"{}", b'{"weight": "much"}', b'{"weight": 1, "more": 2}'):
        assert client.post("/api/engines/e1/weight", content=body).status_code == 400


def test_roles_are_changed_of_one_engine_and_of_all(client: TestClient, node: FakeNode) -> None:
    assert client.post("/api/engines/e1/role", json={"role": "both"}).status_code == 202
    answer = client.post("/api/topology", json={"topology": "2b"})
    assert (answer.status_code, answer.json()["restarts"]) == (202, [])
    assert node.asked == ["role both e1", "topology 2b"]
    answer = client.post("/api/engines/e1/role", json={"role": "worker"})
    assert (answer.status_code, "worker" in answer.json()["error"]["message"]) == (400, True)


def test_what_a_verdict_advises_is_applied_as_it_stands_and_taken_back(client: TestClient, node: FakeNode) -> None:
    order = {"kind": "weight", "engine": "e1", "weight": 0.5}
    remedy = client.post("/api/remedies", json=order, headers={"user-agent": "pd-appliance/0"}).json()["remedy"]
    assert (remedy["by"], remedy["state"], remedy["order"]) == ("cli", "settling", order)
    back = client.post(f"/api/remedies/{remedy['id']}/undo", headers={"hx-request": "true"}).json()["remedy"]
    assert (back["by"], back["order"]["weight"]) == ("page", 1.0)
    assert node.asked == ["weight 0.5 e1", "weight 1 e1"]
    found = client.get("/api/remedies").json()
    assert [(one["state"], one["over"]) for one in found] == [
        ("settled", None),  # this node never changes
        ("unknown", f"it was taken back by {back['id']}"),
    ]
    assert client.get("/api/remedies?limit=1").json() == found[:1]
    assert client.get(f"/api/remedies/{back['id']}").json() == found[0]
    assert client.get("/api/remedies/r9").status_code == 404
    assert client.post(f"/api/remedies/{remedy['id']}/undo").status_code == 409
    assert client.post("/api/remedies/r9/undo").status_code == 404


def test_the_way_back_is_forced_where_that_has_a_meaning(client: TestClient, node: FakeNode) -> None:
    for order in ({"kind": "role", "engine": "e1", "role": "both"}, {"kind": "drain", "engine": "e1"}):
        given = client.post("/api/remedies", json=order).json()["remedy"]["id"]
        assert client.post(f"/api/remedies/{given}/undo", json={"force": True}).status_code == 202
    assert node.asked == ["role both e1", "forced role decode e1", "drain e1", "resume e1"]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"kind": "weight", "engine": "e1"}, "needs 'weight'"),
        ({"kind": "drain"}, "needs 'engine'"),
        ({"kind": "weight"}, "needs 'engine' and 'weight'"),
        ({"kind": "role", "role": "both"}, "needs 'engine'"),
        ({"kind": "topology"}, "needs 'topology'"),
        ({"kind": "drain", "engine": "e1", "weight": 2}, "has no 'weight'"),
        ({"kind": "topology", "topology": "2b", "engine": "e1"}, "leave 'engine' out"),
        ({"kind": "weight", "engine": "e1", "weight": 1, "force": True}, "can't be forced"),
        ({"kind": "role", "engine": "e1", "role": "both", "roles": {"e1": "both"}}, "has no 'roles'"),
        ({"kind": "dance", "engine": "e1"}, "'dance'"),
        ({"kind": "dance"}, "right: 'role', 'weight', 'drain', 'resume', 'restart', 'topology'"),
        ({"kind": "role", "engine": "e1", "role": "prefil"}, "right: 'prefill', 'decode', 'both'"),
        ({"kind": "topology", "topology": "2b", "roles": {"e1": "prefil"}}, "right: 'prefill', 'decode', 'both'"),
        ({"kind": "role", "engine": "e1", "role": "x" * 1000 + "`$.kind"}, "right: 'prefill', 'decode', 'both'"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(
    client: TestClient, node: FakeNode, order: dict[str, Any], said: str
) -> None:
    answer = client.post("/api/remedies", json=order)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True)
    assert node.asked == []


@pytest.mark.parametrize(
    ("path", "packed"),
    [("/", True), ("/static/app.css", True), ("/static/theme.js", False), ("/api/node", False), ("/metrics", False)],
)
def test_pages_and_their_files_are_packed_for_who_can_read_that_and_what_programs_poll_is_not(
    client: TestClient, path: str, packed: bool
) -> None:
    answer = client.get(path, headers={"accept-encoding": "gzip"})
    assert (answer.headers.get("content-encoding") == "gzip") is packed
    plain = client.get(path, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    if path.startswith("/static"):
        assert answer.content == plain.content
        assert packed is (answer.headers.get("vary") == "Accept-Encoding")
