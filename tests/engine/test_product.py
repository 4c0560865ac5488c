"""The product as a newcomer meets it: the demo model, curl and the openai client, wrong requests, and the way it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import pytest_asyncio
from product import Server, appliance

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is prefill?"}]
ANSWER = "Prefill is the first half of a request."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with appliance(Path(name), Path("demo")) as running:
            yield running


async def test_curls_request_is_answered_by_two_engines(server: Server) -> None:
    answer = await server.post(CHAT, {"messages": QUESTION})
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"].startswith(ANSWER)
    assert (answer.headers["x-prefill-engine"], answer.headers["x-decode-engine"]) == ("e0", "e1"), answer.headers.get(
        "x-unsplit-reason"
    )
    stages = dict(stage.split(";dur=") for stage in answer.headers["server-timing"].split(", "))
    assert list(stages) == [
        *("queue", "prefill_wait", "prefill_compute", "handoff_wait", "transfer", "decode_wait", "first_step", "decode")
    ]
    assert float(stages["decode"]) > float(stages["first_step"]), "dozens of tokens against one"
    timeline = (await server.get(f"/api/requests/{answer.headers['x-request-id']}")).json
    assert sum(stage["duration_s"] for stage in timeline["stages"]) == pytest.approx(timeline["ttft_s"], abs=1e-9)


async def test_the_openai_client_streams_and_does_not(server: Server) -> None:
    client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    models = await client.models.list()
    assert [model.id for model in models.data] == ["m"]
    whole = await client.chat.completions.create(model="m", messages=QUESTION, temperature=0)  # type: ignore[arg-type]
    stream = await client.chat.completions.create(
        model="m",
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert len(pieces) > 10
    assert "".join(pieces) == whole.choices[0].message.content
    completion = await client.completions.create(model="m", prompt="Once upon a time", max_tokens=8, temperature=0)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 8
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="gpt-9", messages=QUESTION)  # type: ignore[arg-type]
    await client.close()


BAD = {
    "malformed JSON": (CHAT, b"{", 400),
    "not an object": (CHAT, b"[1]", 400),
    "not UTF-8": (CHAT, b'{"messages": "\xff"}', 400),
    "too deep": (CHAT, b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "wrong type": (CHAT, {"messages": "hello"}, 400),
    "no messages": (CHAT, {"model": "m"}, 400),
    "empty messages": (CHAT, {"messages": []}, 400),
    "unknown role": (CHAT, {"messages": [{"role": "wizard"}]}, 400),
    "unknown model": (CHAT, {"model": "gpt-9", "messages": QUESTION}, 404),
    "prompt too long": ("/v1/completions", {"prompt": [5] * 5000}, 400),
    "absurd max_tokens": ("/v1/completions", {"prompt": "a", "max_tokens": 10**12}, 400),
    "negative max_tokens": ("/v1/completions", {"prompt": "a", "max_tokens": -1}, 400),
    "n is text": ("/v1/completions", {"prompt": "a", "n": "two"}, 400),
    "n is absurd": ("/v1/completions", {"prompt": "a", "n": 10**9, "temperature": 1}, 400),
    "temperature": ("/v1/completions", {"prompt": "a", "temperature": -4}, 400),
    "token out of range": ("/v1/completions", {"prompt": [10**6]}, 400),
    "broken schema": (
        CHAT,
        {
            "messages": QUESTION,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}},
        },
        400,
    ),
    "own KV parameters": ("/v1/completions", {"prompt": "a", "kv_transfer_params": {"do_remote_prefill": True}}, 400),
    "KV parameters in xargs": ("/v1/completions", {"prompt": "a", "vllm_xargs": {"kv_transfer_params": "x"}}, 400),
    "another's route": ("/inference/v1/generate", {"token_ids": [1]}, 404),
    "unknown route": ("/v1/nothing", {}, 404),
    "body over the limit": ("/v1/completions", b'{"prompt": "' + b"a" * (17 << 20) + b'"}', 413),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_answered_in_openais_shape(server: Server, name: str, stream: bool) -> None:
    path, body, status = BAD[name]
    answer = await server.post(path, {**body, "stream": True} if stream and isinstance(body, dict) else body)
    assert answer.status == status, answer.body[:500]
    error = answer.json["error"]
    assert error["message"]
    assert error.keys() >= {"message", "type", "param", "code"}


async def test_the_tokenizer_is_served(server: Server) -> None:
    tokens = (await server.post("/tokenize", {"model": "m", "prompt": "What is prefill?"})).json["tokens"]
    assert (await server.post("/detokenize", {"model": "m", "tokens": tokens})).json["prompt"].endswith("prefill?")


async def test_after_all_that_the_same_processes_serve(server: Server) -> None:
    """The next request is answered as the first was, and nothing was restarted or left behind."""
    node = await server.until_idle()
    assert [engine["restarts"] for engine in node["engines"]] == [0, 0]
    answer = await server.post(CHAT, {"messages": QUESTION})
    assert answer.json["choices"][0]["message"]["content"].startswith(ANSWER)


async def test_no_stray_files_outside_the_runtime_directory(server: Server) -> None:
    """vLLM leaves sockets and files in the temporary directory: engines have one of their own, which goes with them."""
    assert any(path.is_socket() for path in server.runtime.glob("e0-1/*")), "vLLM's between API process and EngineCore"
    pids = [engine["pid"] for engine in (await server.node())["engines"]]
    for process in (child for pid in pids for child in psutil.Process(pid).children(recursive=True)):
        outside = [file.path for file in process.open_files() if file.path.startswith(tempfile.gettempdir())]
        assert all(path.startswith(str(server.runtime)) for path in outside), outside


async def test_nothing_is_compiled_while_serving(server: Server) -> None:
    """vLLM compiles parts of its sampler when a request first wants them, and meanwhile no stream of that engine moves."""
    answer = await server.post(CHAT, {"messages": QUESTION, "max_tokens": 2, "logprobs": True, "top_p": 0.9})
    assert answer.status == 200
    assert not list(server.runtime.rglob("torchinductor*"))


async def test_the_page_metrics_and_events_answer(server: Server) -> None:
    page = await server.get("/")
    assert page.status == 200
    assert b"e0" in page.body
    assert b"e1" in page.body
    metrics = (await server.get("/metrics")).body.decode()
    assert "pd_appliance_" in metrics
    async with server.session.get(server.url + "/events") as events:
        line = b""
        while not line.startswith(b"data:"):
            line = await events.content.readline()
        assert json.loads(line[5:])["model"] == "m"


async def test_sigterm_lets_streams_finish_and_leaves_nothing(server: Server) -> None:
    """Runs last. A story is under way when the signal comes; it is told to its end."""
    leader = psutil.Process(server.process.pid)
    processes = leader.children(recursive=True)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me a story about a fox."}], "stream": True}
    async with server.session.post(server.url + CHAT, json=body) as stream:
        first = await stream.content.readany()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert (await _refused(server)) in (503, None)
        text = (first + await stream.content.read()).decode()
    assert text.rstrip().endswith("data: [DONE]")
    async with asyncio.timeout(30):
        assert await server.process.wait() == 0
    assert not [process for process in processes if process.is_running()]


async def _refused(server: Server) -> int | None:
    """The status of a new request; None if the connection is refused."""
    try:
        return (await server.post(CHAT, {"messages": QUESTION})).status
    except OSError:
        return None
