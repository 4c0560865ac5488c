"""What comes of a command whose output nobody can have, or that is interrupted while it waits."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_node import MODEL, ROOT, Node, command, node

FULL = "pd-appliance: standard output can't be written to (No space left on device)\n"
HELP = ("--help",)
ASKING = [("diagnose",), ("top", "--once"), ("why",), ("incidents",), ("remedy", "list"), ("sim", "faults")]


@pytest.fixture(scope="module")
def there() -> Iterator[Node]:
    arguments = ("--engine", "sim", "--model", str(MODEL), "--topology", "2b")
    with (
        tempfile.TemporaryDirectory(prefix="pd-", dir="/tmp") as directory,
        node(Path(directory), *arguments) as found,
    ):
        yield found


def begun(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "appliance", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


@pytest.mark.parametrize("arguments", [HELP, *ASKING], ids=" ".join)
def test_output_that_can_not_be_written_is_one_line(there: Node, arguments: tuple[str, ...]) -> None:
    url = () if arguments is HELP else ("--url", there.url)
    with Path("/dev/full").open("w") as full, begun(*arguments, *url, stdout=full) as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, FULL)


def test_so_it_is_where_there_is_no_standard_output(there: Node) -> None:
    shell = f"{sys.executable} -m appliance diagnose --url {there.url} >&-"
    done = subprocess.run(["/bin/sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "pd-appliance: standard output is closed; open it, or send it to /dev/null\n",
    )


def test_what_can_not_be_complained_of_has_its_exit_code(there: Node) -> None:
    for arguments, code in ((("diagnose", "--url", "http://127.0.0.1:1"), 2), (("diagnose", "--url", there.url), 0)):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "appliance", *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=full,
                timeout=60,
                check=False,
            )
        assert done.returncode == code


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_a_reader_that_leaves_changes_nothing(there: Node, arguments: tuple[str, ...]) -> None:
    """Not even the code of ``diagnose``, by which scripts go."""
    reader, writer = os.pipe()
    os.close(reader)
    with begun(*arguments, "--url", there.url, stdout=writer) as process:
        os.close(writer)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_a_watch_ends_when_nobody_reads_it(there: Node) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with begun("diagnose", "--watch", "--url", there.url, stdout=writer) as process:
        os.close(writer)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_ordered_and_the_way_back_are_told_before_it_is_waited_for(there: Node, number: int) -> None:
    """Also when the wait is ended, twice at once, as ``timeout`` does."""
    arguments = ("remedy", "weight", "e0", "3" if number == signal.SIGINT else "2", "--wait", "--url", there.url)
    with begun(*arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 20)
        assert ready, "it is written at once, and not after half a minute"
        found = re.search(
            r"back: (pd-appliance remedy undo r\S+)", process.stdout.readline() + process.stdout.readline()
        )
        process.send_signal(number)
        process.send_signal(number)
        said, complaint = process.communicate(timeout=20)
    assert found
    assert process.returncode == 128 + number
    assert said == ""
    assert "the order stands" in complaint and f"{found[1]} --url {there.url} takes it back" in complaint
    assert complaint.count("\n") == 1
    assert command("remedy", "undo", found[1].split()[-1], "--url", there.url).returncode == 0


def test_an_order_that_can_not_be_told_stands_and_can_be_taken_back(there: Node) -> None:
    arguments = ("remedy", "weight", "e1", "2", "--url", there.url)
    with Path("/dev/full").open("w") as full, begun(*arguments, stdout=full) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    found = re.search(r"but the order stands: .*; pd-appliance remedy undo (r\S+) --url", said)
    assert found and command("remedy", "undo", found[1], "--url", there.url).returncode == 0


def test_serving_depends_on_nobody_who_listens(short: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance", "serve", "--engine", "sim", "--model", str(MODEL), "--port", "0"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "RUNTIME_DIRECTORY": str(short / "run"),
                "STATE_DIRECTORY": str(short / "state"),
            },
            stdout=full,
            stderr=subprocess.PIPE,
        )
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(8)
            process.terminate()
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, said) == (0, b"")
