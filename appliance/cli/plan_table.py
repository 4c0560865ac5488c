"""What ``plan`` prints: what is asked, a table of layouts that fits the terminal, and what to take. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from appliance.cli.asked import Asked, clipped, nearest, preset_layout
from appliance.planner.node import Targets
from appliance.planner.wanted import Placed, Placement

_COUNTS: Final = re.compile(r"\d+(?=[pdb])")  # of engines: the rest of a layout's name is its shape
_REASONS_WIDTH: Final = 24  # of a column, below which reasons are lines of their own
_LEAST: Final = ("in time", "requests at once", "per token")  # of the figures, in the order in which they are left out
_ANY_WIDTH: Final = 1000  # for measuring


def heading(asked: Asked, targets: Targets) -> str:
    names = [card.name for card in asked.inventory.cards]
    there = " and ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    where = f"{escape(there)}{' (not here)' if asked.inventory.given else ''}"
    traffic = asked.traffic
    share = f"{targets.share:.0%} of requests"
    return (
        f"[b]{escape(asked.model.name)}[/b]: {asked.shape.parameters / 1e9:.1f} billion parameters, "
        f"{asked.shape.weight_bytes() / 1e9:.0f} GB of weights; on {where}\n"
        f"for {traffic.rate:g} requests/s of {traffic.prompt:g} prompt and {traffic.output:g} output tokens, requests of up to "
        f"{asked.context:,}; targets: first token in {targets.ttft_s:g} s, {targets.itl_s * 1e3:g} ms per token, {share}"
    )


def shown(asked: Asked, placed: Placed, *, everything: bool) -> list[Placement]:
    """The feasible ones, those first that go farthest; of each shape (roles, and GPUs per engine) the best, and the preset's own."""
    found = sorted((one for one in placed.placements if one.feasible), key=lambda one: one.most_rate_s, reverse=True)
    best: dict[str, str] = {}
    for one in found:
        best.setdefault(_COUNTS.sub("", one.layout), one.layout)
    kept = {*best.values(), placed.best, *(_given(asked) or ())[1:]}
    return [one for one in found if everything or one.layout in kept]


def tables(
    placed: Placed, rows: Sequence[Placement], console: Console, *, everything: bool
) -> Iterator[RenderableType]:
    """One, with the reasons in it where there is the width; else with as many figures as there is, none of them cut, and reasons below."""
    without = [("why", *_LEAST[:count]) for count in range(len(_LEAST) + 1)]
    narrow = [_table(placed, rows, everything=False, without=less) for less in without]
    widths = [console.measure(one, options=console.options.update(width=_ANY_WIDTH)).maximum for one in narrow]
    if widths[0] + _REASONS_WIDTH <= console.width:
        yield _table(placed, rows, everything=everything)
        return
    yield next((one for one, width in zip(narrow, widths, strict=True) if width <= console.width), narrow[-1])
    for one in rows:
        yield f"[b]{one.layout}[/b]: {_why(one)}"
    for reason, layouts in _infeasible(placed).items() if everything else ():
        yield f"[dim]✕ {', '.join(layouts)}: {escape(reason)}[/dim]"


def _table(placed: Placed, rows: Sequence[Placement], *, everything: bool, without: Sequence[str] = ()) -> Table:
    table = Table(title="PREDICTED by a cost model (docs/costs.md, docs/planner.md)", title_justify="left")
    columns = [name for name in _COLUMNS if name.replace("\n", " ") not in without]
    for name in columns:
        left = name in ("", "layout", "why")
        table.add_column(
            name,
            justify="left" if left else "right",
            no_wrap=name != "why",
            min_width=_REASONS_WIDTH if name == "why" else None,
        )
    for one in rows:
        cells = _cells(one, placed.best)
        table.add_row(*(cells[name] for name in columns))
    if everything:
        for reason, layouts in _infeasible(placed).items():
            cells = {"": "✕", "layout": "\n".join(layouts), "why": escape(reason)}
            table.add_row(*(cells.get(name, "—") for name in columns), style="dim")
    return table


_COLUMNS: Final = (
    *("", "layout", "KV tokens\nof each", "requests\nat once", "TTFT", "per\ntoken", "in\ntime", "highest\nrate/s"),
    "why",
)


def _infeasible(placed: Placed) -> dict[str, list[str]]:
    """Layouts, by what stands against them."""
    found: dict[str, list[str]] = {}
    for one in placed.placements:
        if not one.feasible:
            found.setdefault(one.reason, []).append(one.layout)
    return found


def _cells(one: Placement, best: str | None) -> dict[str, str]:
    """By column."""
    predicted = one.plan.predicted if one.plan else None
    if predicted is None:
        figures = ["—", "—", "—", "—"]
    else:
        ttft = "—" if predicted.ttft_s is None else f"{predicted.ttft_s:.2f} s"
        figures = [ttft, f"{predicted.itl_s * 1e3:.0f} ms", f"{predicted.good:.0%}", f"{predicted.most_rate_s:.3g}"]
    cells = [
        "→" if one.layout == best else "",
        one.layout,
        "—" if one.kv_tokens is None else f"{one.kv_tokens:,}",
        "—" if one.requests is None else f"{one.requests:.0f}",
        *figures,
        _why(one),
    ]
    return dict(zip(_COLUMNS, cells, strict=True))


def _why(one: Placement) -> str:
    return escape("; ".join((one.reason, *one.remarks)))


def closing(asked: Asked, placed: Placed, rows: Sequence[Placement], *, everything: bool) -> list[str]:
    feasible = sum(1 for one in placed.placements if one.feasible)
    hidden, worse = len(placed.placements) - feasible, feasible - len(rows)
    lines = [
        f"Take [b]{placed.best}[/b]: {escape(placed.why)}."
        if placed.best
        else escape(f"{asked.model.name} fits on none of these GPUs: {nearest(placed)}.")
    ]
    if cut := clipped(asked):
        lines.append(
            f"{cut:.0%} of the prompts, or of the answers, would be longer than the longest request of {asked.context:,} tokens "
            "(--context): they are predicted as if they were cut to that."
        )
    lines += [escape(f"Not used: {one}.") for one in placed.unused]
    if worse:
        lines.append(
            f"{worse} more layouts fit, of shapes that are there with other numbers of engines; --all shows them."
        )
    if hidden and not everything:
        lines.append(f"{hidden} {'layouts do' if hidden > 1 else 'layout does'} not fit; --all shows why.")
    if given := _given(asked):
        lines.append(f"The preset has {given[1]} for {given[0]}.")
    return lines


def _given(asked: Asked) -> tuple[str, str] | None:
    """What the preset calls so many of these GPUs, and its layout for them."""
    return preset_layout(asked.preset, len(asked.inventory.cards), asked.gpu) if asked.preset and asked.gpu else None
