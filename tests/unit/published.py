"""Figures that others have published, what the roofline says to them, and the table of both in ``docs/costs.md``.

``PYTHONPATH=. python tests/unit/published.py`` writes the errors of ``published.toml`` and the table anew.
"""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path

import msgspec

from appliance.costs.closed import steady_output_tokens_s, steady_step_s
from appliance.costs.formats import Format
from appliance.costs.gpus import Gpu, Peak, gpu
from appliance.costs.huggingface import read
from appliance.costs.memory import Memory
from appliance.costs.roofline import DEFAULT, Batch, Efficiency, Roofline
from appliance.costs.shape import ModelShape
from appliance.planner.node import Settings
from appliance.planner.room import Room, room

HERE = Path(__file__).parent
ROWS, DOCUMENT = HERE / "published.toml", HERE.parents[1] / "docs" / "costs.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"
UNITS = {"prefill": "ms", "decode": "ms", "closed": "ms", "static": "tok/s", "full": "tok/s"}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure; ``published.toml`` says what the kinds mean."""

    source: str
    gpu: str
    model: str
    tp: int
    kind: str
    figure: float
    error_percent: int
    sequences: int = 1
    prompt: int = 0
    context: int = 0
    output: int = 0
    limit: int = 2048
    kv: Format | None = None
    note: str = ""


class Core(msgspec.Struct, frozen=True):
    """One CPU core in a GPU's place."""

    matrix_flops_s: float
    memory_bytes_s: float
    step_s: float


class Published(msgspec.Struct, frozen=True):
    sources: dict[str, str]
    notes: dict[str, str]
    core: Core
    rows: tuple[Row, ...]


def load() -> Published:
    return msgspec.toml.decode(ROWS.read_bytes(), type=Published)


def predicted(row: Row, core: Core) -> float:
    """In the figure's own unit."""
    shape = read(HERE / "configs" / row.model, kv_format=row.kv)
    on, efficiency = (_core(core), _core_efficiency(core)) if row.gpu == "core" else (gpu(row.gpu), DEFAULT)
    roofline, count = Roofline(shape, on, row.tp, efficiency), row.sequences
    if row.kind == "prefill":
        return 1e3 * roofline.step(Batch([(row.prompt, 0)] * count)).total_s
    if row.kind == "decode":
        return 1e3 * roofline.step(Batch((), count, count * row.context)).total_s
    if row.kind == "static":
        return _static(roofline, row) / row.tp
    if row.kind == "closed":
        return 1e3 * steady_step_s(roofline, count, row.prompt, row.output)
    count = min(row.limit, _most(shape, on, row))
    return steady_output_tokens_s(roofline, count, row.prompt, row.output) / row.tp


def error_percent(row: Row, core: Core) -> float:
    return 100 * (predicted(row, core) / row.figure - 1)


def table(published: Published) -> str:
    """Markdown, and in a sentence how far off it is."""
    head = "| source | GPU | model | what | figure | predicted | error | |\n|---|---|---|---|---|---|---|---|\n"
    lines = [_line(row, published) for row in published.rows]
    marks = "".join(f"- **{name}**: {text}\n" for name, text in published.notes.items())
    sources = "".join(f"- **{name}**: {text}\n" for name, text in published.sources.items())
    return f"{_summary(published)}\n\n{head}{''.join(lines)}\nReasons, as far as we know them:\n\n{marks}\nSources:\n\n{sources}"


def _most(shape: ModelShape, on: Gpu, row: Row) -> int:
    """Sequences that memory has room for."""
    length, settings = row.prompt + row.output, Settings(token_budget=8192, places=256)
    found = room(Memory(shape), 0.9 * on.usable_bytes, row.tp, settings, length, length)
    assert isinstance(found, Room)
    return int(found.requests)


def _static(roofline: Roofline, row: Row) -> float:
    prefill_s = roofline.step(Batch([(row.prompt, 0)] * row.sequences)).total_s
    context = row.sequences * (row.prompt + row.output / 2)
    decode_s = row.output * roofline.step(Batch((), row.sequences, context)).total_s
    return row.sequences * row.output / (prefill_s + decode_s)


def _core(core: Core) -> Gpu:
    return Gpu(
        name="one CPU core",
        bf16=Peak(core.matrix_flops_s, 1.0),
        memory_bytes=1 << 34,
        memory_bytes_s=core.memory_bytes_s,
        nvlink_bytes_s=core.memory_bytes_s,
        pcie_bytes_s=core.memory_bytes_s,
        multiprocessors=1,
        power_w=100,
        clock_hz=2.6e9,
        source="measured",
    )


def _core_efficiency(core: Core) -> Efficiency:
    return Efficiency(memory=1.0, layer_s=0.0, moe_layer_s=0.0, step_s=core.step_s)


def _summary(published: Published) -> str:
    rows = [row for row in published.rows if row.gpu != "core"]
    errors = [abs(row.error_percent) for row in rows]
    within = sum(error <= 20 for error in errors)
    kinds = ", ".join(f"{kind} {_median(rows, kind):.0f} %" for kind in UNITS)
    return (
        f"{len(rows)} figures of GPUs: half of them are within {statistics.median(errors):.0f} %, {within} within 20 %;"
        f" medians of |error| by kind: {kinds}."
    )


def _median(rows: list[Row], kind: str) -> float:
    return statistics.median(abs(row.error_percent) for row in rows if row.kind == kind)


def _line(row: Row, published: Published) -> str:
    unit = UNITS[row.kind]
    name = f"{row.gpu} × {row.tp}" if row.tp > 1 else row.gpu
    value = predicted(row, published.core)
    cells = [
        row.source,
        name,
        row.model,
        _what(row),
        f"{_digits(row.figure)} {unit}",
        _digits(value),
        f"{row.error_percent:+d} %",
    ]
    return f"| {' | '.join([*cells, row.note])} |\n"


def _what(row: Row) -> str:
    if row.kind == "prefill":
        return f"prefill {row.sequences if row.sequences > 1 else ''}{'×' if row.sequences > 1 else ''}{row.prompt}"
    if row.kind == "decode":
        return f"decode {row.sequences} at {row.context}"
    how = {
        "static": f"batch {row.sequences}",
        "closed": f"{row.sequences} client{'s' if row.sequences > 1 else ''}",
        "full": "memory full",
    }[row.kind]
    return f"{row.prompt} → {row.output}, {how}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _rewrite() -> None:
    published = load()
    errors = iter([round(error_percent(row, published.core)) for row in published.rows])
    text = re.sub(
        r"error_percent = -?\d+", lambda _: f"error_percent = {next(errors)}", ROWS.read_text(encoding="utf-8")
    )
    ROWS.write_text(text, encoding="utf-8")
    before, after = (
        DOCUMENT.read_text(encoding="utf-8").split(BEGIN)[0],
        DOCUMENT.read_text(encoding="utf-8").split(END)[1],
    )
    DOCUMENT.write_text(f"{before}{BEGIN}{table(load())}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    _rewrite()
    sys.stdout.write(_summary(load()) + "\n")
