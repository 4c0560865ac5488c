"""A process that is killed while it writes leaves a file that the next one can use, with all that it had been told was written."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.incidents.database import Batch, open_to_write, reading
from appliance.records import Incident, IncidentState

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from appliance.incidents.database import Batch, open_to_write
from appliance.incidents.frames import Chunk, Frame
from appliance.records import Incident
import os, zlib, msgspec

made = open_to_write(Path(sys.argv[1]))
made.end_open("open when the appliance ended")
number = len(made.ids())
while True:
    frame = Frame(float(number), zlib.compress(msgspec.msgpack.encode({"uptime_s": float(number), "noise": os.urandom(30_000)})))
    one = Incident(id=f"i{number:06}", opened=float(number))
    made.write(Batch(incidents=(one,), chunks=(Chunk(incident=one.id, since_s=0.0, until_s=1.0, frames=(frame,)),)), float(number))
    sys.stdout.write(f"{one.id}\\n")
    sys.stdout.flush()
    number += 1
"""


@pytest.mark.parametrize("seed", range(3))
def test_killed_in_mid_write(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    told: list[str] = []
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert writer.stdout is not None
        told.append(writer.stdout.readline().strip())
        time.sleep(dice.uniform(0.05, 0.5))
        writer.send_signal(signal.SIGKILL)
        told += [line.strip() for line in writer.stdout.read().splitlines() if line.endswith(tuple("0123456789"))]
        writer.wait()
        writer.stdout.close()
    with reading(tmp_path) as found:
        assert set(told) <= found.ids(), "what was said to be written is there"
        assert all(found.chunks(id) for id in told)
    made = open_to_write(tmp_path)
    left = made.end_open("open when the appliance ended")
    assert {one.id for one in left} >= {told[-1]}
    assert made.incidents(10_000, "open") == []
    assert not list(tmp_path.glob("*unreadable*"))
    made.write(Batch(incidents=(Incident(id="z", opened=1e9, state=IncidentState.CLOSED),)), 1e9)
    assert made.incidents(1)[0].id == "z"
    made.close()
