"""`make`: what it takes for a failure, and two of them at once. Everything that they start is a stand-in."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# ---- make test


@pytest.fixture
def make_test(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``make test`` with a pytest that exits as told for each suite: quick, browser, engine, fault."""
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)

    def run(exits: tuple[int, int, int, int], args: str) -> subprocess.CompletedProcess[str]:
        known = dict(zip(("tests/unit", "tests/browser", "tests/engine", "tests/fault"), exits, strict=True))
        cases = "".join(f"*{suite}*) exit {code};; " for suite, code in known.items())
        (tmp_path / "pytest.sh").write_text(f'echo "ran: $*"; case "$*" in {cases} esac')
        command = ["make", "-s", "-o", "lint", "test", "PYTEST=sh ./pytest.sh", f"ARGS={args}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)

    return run


@pytest.mark.parametrize(
    ("exits", "args", "ends_well"),
    [
        ((0, 0, 0, 0), "", True),
        ((0, 0, 5, 0), "", False),
        ((5, 0, 0, 0), "", False),
        ((0, 5, 5, 5), "-k some", True),
        ((5, 5, 5, 0), "-k 'one or other'", True),
        ((5, 5, 5, 5), "-k none", False),
        ((1, 0, 0, 0), "-k some", False),
        ((0, 5, 1, 0), "-k some", False),
        ((0, 5, 2, 0), "-k some", False),
        ((0, 0, 0, 1), "", False),
    ],
)
def test_a_suite_without_a_selected_test_is_no_failure_unless_all_are(
    make_test: Callable[..., subprocess.CompletedProcess[str]],
    exits: tuple[int, int, int, int],
    args: str,
    ends_well: bool,
) -> None:
    done = make_test(exits, args)
    assert (done.returncode == 0) is ends_well, done.stdout + done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran: ")]
    assert len(ran) == next((n for n, code in enumerate(exits, 1) if code not in ((0, 5) if args else (0,))), 4)
    assert all(line.endswith(args.replace("'", "")) for line in ran)


# ---- set-up

PYTHON = """#!/bin/sh
echo "$@" >>"$LOG"
case "$*" in
"-m venv"*)
    until [ -e "$GO" ]; do sleep 0.02; done
    mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


@pytest.mark.skipif(shutil.which("flock") is None, reason="without flock(1) set-ups don't wait for each other")
def test_two_first_set_ups_at_once_wait_for_each_other(tmp_path: Path) -> None:
    checkout, log, go = tmp_path / "checkout", tmp_path / "log", tmp_path / "go"
    shutil.copytree(ROOT / "requirements", checkout / "requirements")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    python = tmp_path / "python3.11"
    python.write_text(PYTHON)
    python.chmod(0o755)
    log.touch()
    environment = {**os.environ, "PYTHON": str(python), "LOG": str(log), "GO": str(go)}

    def set_up() -> subprocess.Popen[str]:
        command = ["requirements/setup.sh", "serve"]
        return subprocess.Popen(command, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True)

    with set_up() as first:
        _until(lambda: "-m venv" in log.read_text())
        with set_up() as second:
            assert second.stderr is not None
            said = second.stderr.readline()
            go.touch()
            assert (first.wait(30), second.wait(30)) == (0, 0)
    assert "waiting for another set-up" in said
    assert log.read_text().count("-m venv") == 1


NVIDIA_SMI = """#!/bin/sh
case "$1" in
-L) [ "$CUDA_VERSION" ] && echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)" || { echo "No devices were found"; exit 6; } ;;
*) echo "| NVIDIA-SMI 580.82.07     Driver Version: 580.82.07     CUDA Version: $CUDA_VERSION     |" ;;
esac
"""
ANY_PYTHON = """#!/bin/sh
echo "$@" >>"$LOG"
case "$*" in
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


@pytest.fixture
def set_up(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """What set-up says and installs on a machine with such a driver; empty: with one and no GPU, None: without."""
    checkout, bin_, log = tmp_path / "checkout", tmp_path / "bin", tmp_path / "log"
    shutil.copytree(ROOT / "requirements", checkout / "requirements")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    bin_.mkdir()
    for name, text in (("python3.11", ANY_PYTHON), ("nvidia-smi", NVIDIA_SMI)):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)

    def run(cuda: str | None, **more: str) -> tuple[str, str]:
        log.write_text("")
        names = {"PYTHON": str(bin_ / "python3.11"), "LOG": str(log), "CUDA_VERSION": cuda or "", **more}
        path = f"{bin_}:{os.environ['PATH']}" if cuda is not None else os.environ["PATH"]
        environment = {**os.environ, "PATH": path, **names}
        done = subprocess.run(
            ["requirements/setup.sh", "serve"],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr, log.read_text()

    return run


@pytest.mark.parametrize(
    ("cuda", "more", "lock"),
    [
        (None, {}, "cpu.lock"),
        ("", {}, "cpu.lock"),
        ("13.0", {}, "cuda.lock"),
        ("14.1", {}, "cuda.lock"),
        ("12.9", {}, "cpu.lock"),
        ("13.0", {"CPU": "1"}, "cpu.lock"),
    ],
)
def test_vllm_is_installed_for_what_the_machine_has(
    set_up: Callable[..., tuple[str, str]], cuda: str | None, more: dict[str, str], lock: str
) -> None:
    said, installed = set_up(cuda, **more)
    [told] = [line for line in installed.splitlines() if line.endswith(f" -r requirements/{lock}")]
    assert "--no-deps" in told
    assert ("torch==" in installed) == (lock == "cpu.lock")
    assert ("runs CUDA up to 12.9, and vLLM for GPUs needs 13" in said) == (cuda == "12.9")
    assert set_up(cuda, **more)[1] == "", "a second time there is nothing to do"


def test_where_a_gpu_has_come_the_environment_is_made_again(set_up: Callable[..., tuple[str, str]]) -> None:
    set_up(None)
    said, installed = set_up("13.0")
    assert "vLLM's cpu build is installed, and this machine is for the cuda build" in said
    assert "requirements/cuda.lock" in installed


def _until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
