"""The real app over made-up states, for looking at it.

``python tests/browser/demo_server.py --port 8099``, at the top of the checkout; ``/demo/<state>`` changes the state.
"""

from __future__ import annotations

import argparse

import page_history as past
import uvicorn
from made_up import FullNode
from page_kept import KNEE, FakeIncidents, FakePlanning
from page_states import STATES
from starlette.types import Receive, Scope, Send

from appliance.cli.why import explained_by
from appliance.errors import RequestError
from appliance.remedies.apply import Remedies
from appliance.telemetry import exposition
from web.app import Site, create_app
from web.ports import HistoryView, IncidentView, InferenceRequest, MarkView, Reply


class NoInference:
    """Refuses everything."""

    async def serve(self, request: InferenceRequest, reply: Reply) -> None:
        raise RequestError(503, "This is a demonstration of the page.", kind="unavailable", retry_after_s=1)


class Demo:
    """The site, with a door of its own for changing the state."""

    def __init__(
        self,
        node: FullNode,
        history: HistoryView | None = None,
        marks: MarkView | None = None,
        incidents: IncidentView | None = None,
    ) -> None:
        self.node = node
        node.knees = KNEE
        self.site: Site = create_app(
            inference=NoInference(),
            node=node,
            actions=Remedies(node, node.latest),
            history=history or past.history(None, node.latest().time),
            marks=marks,
            explain=explained_by,
            incidents=incidents or FakeIncidents(),
            planning=FakePlanning(node),
            max_body_bytes=1 << 20,
            max_held_bytes=1 << 24,
            metrics=exposition.render,
            bound_to="127.0.0.1",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/demo/"):
            state = scope["path"].removeprefix("/demo/")
            known = state in STATES
            if known:
                self.node.show(state)
            await send({"type": "http.response.start", "status": 204 if known else 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self.site(scope, receive, send)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--state", choices=STATES, default="busy")
    arguments = parser.parse_args()
    uvicorn.run(Demo(FullNode(arguments.state)), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
