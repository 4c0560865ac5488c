"""History in the API: which questions it takes, and what an answer holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from starlette.testclient import TestClient

from appliance.errors import RequestError
from appliance.records import Change, ChangeKind, History, Incident, NodeSnapshot
from appliance.remedies.apply import Remedies
from web import views
from web.app import create_app
from web.history import Told, encoded, moment, span
from web.overview import Overview
from web.ports import HistoryView, InferenceRequest, Reply
from web.views import Asked

sys.path.append(str(Path(__file__).parents[1] / "browser"))
from page_states import FakeNode, NoActions

NOW = 1_800_000_000.0


class Router:
    async def serve(self, request: InferenceRequest, reply: Reply) -> None:
        raise RequestError(404, "No such route.")


class Past:
    """Implements ``HistoryView`` and ``MarkView``."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float, int, list[str]]] = []

    def sample(self, snapshot: NodeSnapshot) -> dict[str, float | None]:
        return {"queue_depth": 1.5, "ttft_s": None}

    async def read(self, since: float, until: float, points: int, series: Sequence[str]) -> History:
        self.asked.append((since, until, points, list(series)))
        values: list[float | None] = [1.0, None]
        return History(
            since=since,
            until=until,
            step_s=10,
            resolution_s=10,
            time=(0, 10),
            series={"a": values},
            highest={"a": values},
        )

    async def between(self, since: float, until: float, limit: int) -> tuple[Sequence[Change], Sequence[Incident]]:
        incident = Incident(id="261126-1432", opened=since, cause="decode_kv_full", summary="full", engine="e1", late=9)
        return [Change(time=since, kind=ChangeKind.ROLE, sentence="another role", engine="e1")], [incident]


@pytest.fixture
def past() -> Past:
    return Past()


def client(history: HistoryView | None, marks: Past | None = None) -> TestClient:
    node = FakeNode("busy")
    latest = node.latest()
    node.latest = lambda: latest  # type: ignore[method-assign]
    return TestClient(
        create_app(
            inference=Router(),
            node=node,
            actions=Remedies(node, node.latest),
            history=history,
            marks=marks,
            max_body_bytes=1000,
            max_held_bytes=10_000,
            metrics=lambda snapshot: b"",
            bound_to="0.0.0.0",
        )
    )


def test_an_answer_has_columns_and_what_happened_meanwhile(past: Past) -> None:
    answer = client(past, past).get("/api/history?from=-6h&points=50&series=ttft_s,*.kv_usage")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    told = answer.json()
    assert told["history"]["series"] == told["history"]["highest"] == {"a": [1.0, None]}
    assert told["history"]["lowest"] == {}
    assert (told["slo_ttft_s"], told["slo_itl_s"], told["simulated"]) == (2.0, 0.05, False)
    [change], [incident] = told["changes"], told["incidents"]
    assert (change["kind"], change["sentence"]) == ("role", "another role")
    assert incident == {
        "id": "261126-1432",
        "opened": told["now"] - 6 * 3600,
        "closed": None,
        "summary": "full",
        "cause": "decode_kv_full",
        "engine": "e1",
    }
    assert past.asked == [(told["now"] - 6 * 3600, told["now"], 50, ["ttft_s", "*.kv_usage"])]


def test_an_answer_is_the_same_though_it_is_made_in_pieces() -> None:
    history = History(
        since=0.0, until=9.0, step_s=1, resolution_s=1, time=(0.0, 1.0), series={"a": [0.5, None], "é\"b": []}, highest={"a": [1.0, 2.0]}
    )  # fmt: skip
    told = Told(now=1.0, simulated=False, slo_ttft_s=2.0, slo_itl_s=0.05, history=history, changes=(), incidents=())
    assert msgspec.json.decode(encoded(told)) == msgspec.json.decode(msgspec.json.encode(told))


def test_an_hour_of_the_nodes_own_series_where_nothing_is_asked(past: Past) -> None:
    told = client(past).get("/api/history").json()
    assert past.asked == [(told["now"] - 3600, told["now"], 600, ["*"])]
    assert (told["changes"], told["incidents"]) == ([], [])


def test_without_history_there_is_none() -> None:
    answer = client(None).get("/api/history")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("from=yesterday", "from"),
        ("from=-1x", "from"),
        ("from=-9999999999d", "from"),
        ("from=1e9", "from"),
        ("from=nan", "from"),
        ("from=-99999d", "from"),
        ("to=soon", "to"),
        ("from=-1h&to=-2h", "from"),
        ("from=now", "from"),
        ("from=%D9%A1%D9%A2", "from"),
        ("from=-%D9%A1h", "from"),
        ("points=1", "points"),
        ("points=9999", "points"),
        ("points=-5", "points"),
        ("points=%C2%B2", "points"),
        ("series=", "series"),
        ("series=a,,b", "series"),
        ("series=" + "a," * 300, "series"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_with_its_name(past: Past, query: str, param: str) -> None:
    answer = client(past).get(f"/api/history?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert past.asked == []


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("now", NOW),
        ("-90s", NOW - 90),
        ("-1.5h", NOW - 5400),
        ("-7d", NOW - 604_800),
        ("1799999000.5", 1_799_999_000.5),
    ],
)
def test_times_are_unix_seconds_or_back_from_now(text: str, time: float) -> None:
    assert moment(text, "from", NOW) == time


def test_what_is_to_come_is_not_asked_for() -> None:
    assert span("-1h", str(int(NOW + 500)), NOW) == (NOW - 3600, NOW)


def test_the_live_stream_tells_the_charts_their_newest_values(past: Past) -> None:
    view = Overview(NoActions(), past).view(Asked())
    sent = views.fragments(view, FakeNode("busy").latest())["sample"].decode()
    assert '"queue_depth": 1.5' in sent
    assert '"ttft_s": null' in sent
