"""``pd-appliance tune`` over a node that answers as told: what it sends, what it finds, and what it says."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.cli import tune as module


class Node(http.server.ThreadingHTTPServer):
    """One engine, whose steps take what ``seconds`` says. It does not wait for so long."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seconds: Callable[[int], float] = lambda tokens: max(0.02, tokens * 4e-5)
        self.budget, self.roles, self.steps, self.bodies = 8192, ("prefill", "decode"), [], []
        self.simulated, self.lately = True, None
        self.refused = 1 << 30  # tokens, from which on it refuses

    def node(self) -> dict[str, Any]:
        engines = [
            {"name": f"e{number}", "role": role, "state": "ready", "token_budget": self.budget}
            for number, role in enumerate(self.roles)
        ]
        return {"model": "demo", "simulated": self.simulated, "engines": engines, "lately": self.lately}

    def prompt(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        left = len(body["prompt"])
        self.bodies.append(body)
        if left >= self.refused:
            return 400, {"error": {"message": "too long"}}
        while left > 0:
            tokens = min(left, self.budget)
            left -= tokens
            made = {"prompt_tokens": tokens, "decode_tokens": 0, "context_tokens": len(body["prompt"]) - left}
            self.steps.append({"number": len(self.steps) + 1, "seconds": self.seconds(tokens), **made})
        return 200, {"choices": []}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Node

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: int(values[0]) for name, values in parse_qs(url.query).items()}
        if url.path == "/api/node":
            return self._answer(200, self.server.node())
        since = query.get("since", 0)
        steps = [one for one in self.server.steps if one["number"] > since] if "/e0/" in url.path else []
        self._answer(200, {"steps": steps[-query.get("limit", 1000) :]})

    def do_POST(self) -> None:
        assert self.headers["content-type"] == "application/json", "vLLM asks for it"
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._answer(*self.server.prompt(body))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EACH", 4)


def tune(node: Node, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["tune", "--url", f"http://127.0.0.1:{node.server_address[1]}", *arguments])


def test_it_finds_the_knee_and_marks_it_among_the_sizes(node: Node) -> None:
    done = tune(node)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("SIMULATED: demo on e0, ")
    sizes = [int(line.split("│")[0].replace(",", "")) for line in lines if "│" in line]
    marked = [int(line.split("│")[0]) for line in lines if "◄ knee" in line]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (16, 8192)
    assert marked[0] == pytest.approx(450, rel=0.1)
    assert "Leave --max-num-batched-tokens at 8,192" in done.stdout
    assert "mean TTFT" in done.stdout


def test_real_figures_are_not_called_simulated(node: Node) -> None:
    node.simulated = False
    assert "SIMULATED" not in tune(node).stdout


def test_prompts_are_fresh_and_sizes_come_in_random_order(node: Node) -> None:
    tune(node)
    sweep = [len(body["prompt"]) for body in node.bodies[19:]]
    assert sweep[:19] != sorted(sweep[:19])
    assert set(map(len, (tuple(body["prompt"]) for body in node.bodies))) == set(sweep)
    assert all(sweep.count(size) == 4 for size in set(sweep))
    starts = {tuple(body["prompt"][:16]) for body in node.bodies}
    assert len(starts) == len(node.bodies), "no prefix cache could have any of them"
    assert all(body["max_tokens"] == 1 for body in node.bodies)


def test_json_has_all_of_it(node: Node) -> None:
    node.lately = {"prompt_tokens": 700.0}
    found = json.loads(tune(node, "--json").stdout)
    assert found["simulated"] is True
    assert found["knee"]["low"] <= found["knee"]["tokens"] <= found["knee"]["high"]
    assert (found["missing"], found["budget"], found["engines"]) == (None, 8192, ["e0"])
    assert [one["prompt_tokens"] for one in found["expected"]] == [700.0] * 3
    assert found["expected"][0]["ttft_s"] < found["expected"][2]["ttft_s"]
    assert json.loads(tune(node, "--json", "--prompt-tokens", "90").stdout)["expected"][0]["prompt_tokens"] == 90


def test_a_budget_so_small_that_the_knee_is_out_of_sight_is_said(node: Node) -> None:
    node.budget = 256
    done = tune(node)
    assert done.exit_code == 11
    assert "No knee: the rate still rises at 256 tokens" in done.stdout
    assert "Set --max-num-batched-tokens, which is 256, to 16,384 for the time of another sweep." in done.stdout


def test_a_budget_beyond_what_helps_is_to_be_lowered(node: Node) -> None:
    node.budget = 16_384
    node.seconds = lambda tokens: max(0.02, tokens * 4e-5) + 4e-9 * tokens * tokens
    done = tune(node)
    assert done.exit_code == 0
    assert '[engine.prefill] args = ["--max-num-batched-tokens", "' in done.stdout
    assert "make others wait" in done.stdout
    node.roles = ("both",)
    assert '\nWhat to do: [engine] args = ["--max-num-batched-tokens", "' in tune(node).stdout


def test_a_context_that_is_shorter_than_the_budget_ends_the_sweep(node: Node) -> None:
    node.refused = 3000
    found = json.loads(tune(node, "--json").stdout)
    assert found["sizes"][-1][0] == 2896
    assert found["knee"] is not None


def test_a_node_that_refuses_everything_or_has_nothing_ready(node: Node) -> None:
    node.refused = 1
    done = tune(node)
    assert "too long" in str(done.exception)
    node.roles = ("decode",)
    assert "no engine that prefills is ready" in str(tune(node).exception)


@pytest.mark.parametrize("tokens", ["inf", "nan", "0", "1e9"])
def test_prompts_of_no_length_that_there_can_be_are_refused(node: Node, tokens: str) -> None:
    done = tune(node, "--prompt-tokens", tokens)
    assert (done.exit_code, node.bodies) == (2, [])
    assert "--prompt-tokens" in done.output
