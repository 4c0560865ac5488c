"""Incidents in the API."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from starlette.testclient import TestClient

from appliance.errors import RequestError
from appliance.records import Incident, IncidentState
from appliance.remedies.apply import Remedies
from web.app import create_app
from web.ports import IncidentView, InferenceRequest, Reply

sys.path.append(str(Path(__file__).parents[1] / "browser"))
from page_states import FakeNode

OPEN = Incident(id="261126-1432", opened=2.0, cause="decode_kv_full", engine="e1")
CLOSED = Incident(id="261126-1401", opened=1.0, state=IncidentState.CLOSED, closed=9.0)


class Kept:
    """Implements ``IncidentView``."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str | None]] = []

    async def incidents(self, limit: int, state: str | None) -> Sequence[Incident]:
        self.asked.append((limit, state))
        return [OPEN, CLOSED]

    async def incident(self, id: str) -> Incident | None:
        return next((one for one in (OPEN, CLOSED) if one.id == id), None)

    async def bundle(self, id: str) -> bytes | None:
        return b"\x1f\x8b" if await self.incident(id) else None


class Router:
    async def serve(self, request: InferenceRequest, reply: Reply) -> None:
        raise RequestError(404, "No such route.")


def client(incidents: IncidentView | None) -> TestClient:
    node = FakeNode("busy")
    return TestClient(
        create_app(
            inference=Router(),
            node=node,
            actions=Remedies(node, node.latest),
            incidents=incidents,
            max_body_bytes=1000,
            max_held_bytes=10_000,
            metrics=lambda snapshot: b"",
            bound_to="0.0.0.0",
        )
    )


def test_they_are_listed_as_the_records_are() -> None:
    kept = Kept()
    answer = client(kept).get("/api/incidents")
    assert msgspec.json.decode(answer.content, type=list[Incident]) == [OPEN, CLOSED]
    assert answer.headers["cache-control"] == "no-store"
    client(kept).get("/api/incidents?limit=3&state=open")
    assert kept.asked == [(50, None), (3, "open")]


def test_one_and_its_file() -> None:
    asked = client(Kept())
    assert msgspec.json.decode(asked.get("/api/incidents/261126-1432").content, type=Incident) == OPEN
    answer = asked.get("/api/incidents/261126-1432/bundle")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/gzip")
    assert answer.headers["content-disposition"] == 'attachment; filename="incident-261126-1432.pdi"'
    assert "content-encoding" not in answer.headers, "or a client would unpack it"


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("/api/incidents?limit=0", 400, "limit"),
        ("/api/incidents?limit=x", 400, "limit"),
        ("/api/incidents?state=over", 400, "state"),
        ("/api/incidents/none", 404, None),
        ("/api/incidents/none/bundle", 404, None),
        ("/api/incidents/%2e%2e%2fx/bundle", 404, None),
        ("/api/incidents/261126-1432/frames/nan", 400, "uptime_s"),
        ("/api/incidents/261126-1432/frames/" + "9" * 400, 400, "uptime_s"),
        ("/api/incidents/261126-1432/frames/soon", 400, "uptime_s"),
    ],
)
@pytest.mark.parametrize("incidents", [Kept(), None])
def test_errors_have_the_shape_of_all_others(path: str, status: int, param: str | None, incidents: Kept | None) -> None:
    answer = client(incidents).get(path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (set(error), error["param"]) == ({"message", "type", "param", "code"}, param)


def test_where_none_are_kept_there_are_none() -> None:
    assert client(None).get("/api/incidents").json() == []
    assert client(Kept()).post("/api/incidents").status_code == 405
