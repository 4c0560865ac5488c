"""Bad configuration: one clear line with the remedy, exit code 2, no traceback; and nothing is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def serve(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "STATE_DIRECTORY": str(tmp_path / "state"), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
    )


def processes_of(directory: Path) -> list[psutil.Process]:
    """Those whose command line names something in the directory, or that work there."""
    return [
        p for p in psutil.process_iter(["cmdline", "cwd"]) if str(directory) in f"{p.info['cmdline']} {p.info['cwd']}"
    ]


def expect_one_line(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("pd-appliance: ")
    assert all(part in lines[0] for part in says), lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "1p"], ["'1p'", "NpMd"]),
        (["--topology", "1p1d@tp1:tp4"], ["6 heads and 2 KV heads", "4 ranks can't share", "possible are 1, 2"]),
        (["--topology", "60b"], ["60 engines need", "use fewer engines"]),
        (["--model", "./nothing"], ["./nothing", "no such directory"]),
        (["--engine", "warp"], ["warp", "auto, vllm or sim"]),
        (["--engine", "sim", "--model", "org/model"], ["org/model", "needs its config.json", "--scenario"]),
        (["--scenario", "x.toml"], ["scenario x.toml can't be read: No such file or directory"]),
        (["--config", "nothing.toml"], ["nothing.toml", "does not exist"]),
        (["--port", "99999"], ["server.port", "--port", "65535"]),
        (["--host", "256.1.1.1", "--port", "0"], ["256.1.1.1", "--host"]),
    ],
)
def test_a_flag_that_can_not_work(tmp_path: Path, arguments: list[str], says: list[str]) -> None:
    expect_one_line(serve(tmp_path, "serve", *arguments), *says)


def test_an_unknown_key_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[server]\nprot = 1\n")
    expect_one_line(serve(tmp_path, "serve", "--config", "c.toml"), "server.prot", "c.toml", "server.port")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expect_one_line(serve(tmp_path, "serve", "--port", str(port)), str(port), "choose another")


def test_a_state_directory_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = serve(tmp_path, "serve", "--port", "0", "--state-dir", str(tmp_path / "file" / "x"))
    expect_one_line(done, "server.state_dir", "can't be made")


def test_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    done = serve(tmp_path, "serve", "--warp", "9")
    assert done.returncode == 2
    assert "--warp" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version(tmp_path: Path) -> None:
    done = serve(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pd-appliance ")


def test_no_engine_can_start(tmp_path: Path, short: Path) -> None:
    """vLLM refuses an argument: the cause and the remedy in the last line, exit code 3, no process left."""
    (tmp_path / "c.toml").write_text('[engine]\nargs = ["--no-such-argument"]\n[topology]\nlayout = "1b"\n')
    done = serve(tmp_path, "serve", "--config", "c.toml", "--port", "0", RUNTIME_DIRECTORY=str(short))
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "no engine can start" in last
    assert "--no-such-argument" in last
    assert "correct [engine] args" in last
    assert "Traceback" not in done.stderr
    assert not list(short.iterdir()), "the runtime directory went with it"
    assert not processes_of(tmp_path), "no process is left, and engines work where the supervisor did"
