"""``pd-appliance tune``: how many tokens a step must have to saturate a node's prefill engines, measured by a sweep."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from appliance.cli.ask import URL, ask
from appliance.costs import knee
from appliance.costs.knee import Advice, Knee, StepSeen
from appliance.errors import ActionError

EXIT_FOUND, EXIT_UNKNOWN = 0, 11
_LEAST: Final = 16  # tokens
_MOST: Final = 16_384
_EACH: Final = 20  # steps of a size
_SHARE: Final = 1 / 40  # of the time, that one prompt may take
_IDS: Final = (5, 250)  # that every vocabulary has; at random, so that no prefix cache knows them
_LOADS: Final = (0.3, 0.6, 0.8)
_PROMPT: Final = 1000.0  # tokens, where the node has seen none lately
_LONGEST: Final = 10_000_000  # tokens; no model takes so many, nor does infinity
_BAR: Final = 44


class Engine(msgspec.Struct, frozen=True):
    """One that prefills."""

    name: str
    budget: int  # tokens per step


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Mean TTFT on one engine; None where more would come than it can do. ``load``: of the highest rate."""

    load: float
    requests_s: float
    prompt_tokens: float
    ttft_s: float | None  # with the budget that is set
    ttft_knee_s: float | None  # with the knee as the budget


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    simulated: bool
    model: str
    engines: tuple[str, ...]
    budget: int
    seconds: float  # that it took
    sizes: tuple[tuple[int, float, int], ...]  # tokens, median seconds, steps
    knee: Knee | None
    missing: str | None
    advice: Advice | None
    setting: str | None
    expected: tuple[Expected, ...]


def tune(
    url: Annotated[str, typer.Option(help="Of the node.")] = URL,
    seconds: Annotated[float, typer.Option(min=5, max=3600, help="The longest that it may take.")] = 90.0,
    prompt_tokens: Annotated[
        float | None,
        typer.Option(
            min=1, max=_LONGEST, help="Of the prompts that you expect; what the node has seen lately, else 1000."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the smallest prefill batch that saturates the engines, by prompts of many sizes that no cache knows.

    Exit code: 0 found, 11 not found, 2 no answer. Whoever uses the node meanwhile waits a little longer.
    """
    tuned = measured(url, seconds, prompt_tokens)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(tuned)).decode() + "\n")
    else:
        Console(highlight=False).print(text(tuned), soft_wrap=True)
    raise typer.Exit(EXIT_FOUND if tuned.knee else EXIT_UNKNOWN)


def measured(url: str, seconds: float, prompt_tokens: float | None) -> Tuned:
    """Raises ``ActionError`` where there is nothing to be measured."""
    node = ask(url, "GET", "api", "node")
    engines, budget = _engines(node)
    began_s = time.monotonic()
    seen = _swept(url, node, engines, budget, seconds)
    found = knee.find(seen, random.Random(1))
    advice = knee.advice(found, budget) if found else None
    prompt = prompt_tokens or (node.get("lately") or {}).get("prompt_tokens") or _PROMPT
    return Tuned(
        simulated=node["simulated"],
        model=node["model"],
        engines=tuple(engine.name for engine in engines),
        budget=budget,
        seconds=time.monotonic() - began_s,
        sizes=_sizes(seen),
        knee=found,
        missing=knee.missing(seen),
        advice=advice,
        setting=_setting(node, advice),
        expected=_expected(found, budget, prompt) if found else (),
    )


# ---- the sweep


def _engines(node: dict[str, Any]) -> tuple[list[Engine], int]:
    """Those that prefill, and the budget that all of them have at least."""
    if "engines" not in node:
        raise ActionError("what answers is no node: name the right one with --url")
    ready = [
        one for one in node["engines"] if one["role"] != "decode" and one["state"] == "ready" and one["token_budget"]
    ]
    if not ready:
        raise ActionError("no engine that prefills is ready; try again when one is")
    engines = [Engine(one["name"], one["token_budget"]) for one in ready]
    return engines, min(engine.budget for engine in engines)


def _swept(url: str, node: dict[str, Any], engines: Sequence[Engine], budget: int, seconds: float) -> list[StepSeen]:
    """Steps of all sizes up to the budget, as engines have told them: in random order, so that what drifts is not taken for a size's."""
    chance, until_s = random.Random(), time.monotonic() + seconds
    last = {engine.name: _number(url, engine.name) for engine in engines}
    seen: list[StepSeen] = []
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("finding sizes", total=None)
        sizes = list(_affordable(url, node["model"], budget, chance, seconds))
        bar.update(
            task, description=f"{len(sizes)} sizes up to {max(sizes):,} tokens", total=_EACH * len(sizes) * len(engines)
        )
        for _ in range(_EACH * len(engines)):
            for size in chance.sample(sizes, len(sizes)):
                if time.monotonic() > until_s:
                    break
                _prompt(url, node["model"], size, chance)
                bar.advance(task)
            for engine in engines:
                seen += _told(url, engine.name, last)
    time.sleep(0.2)  # the last ones are told of by another way than they are answered
    for engine in engines:
        seen += _told(url, engine.name, last)
    return [one for one in seen if one.prompt_tokens >= _LEAST]


def _affordable(url: str, model: str, budget: int, chance: random.Random, seconds: float) -> Iterator[int]:
    """Half an octave apart, up to the budget or to what takes too long. Each is tried: so that all is warm, too."""
    place = 0
    while (size := min(budget, round(_LEAST * 2 ** (place / 2)))) <= _MOST:
        began_s = time.monotonic()
        try:
            _prompt(url, model, size, chance)
        except ActionError:
            if place < 4:  # it is not the size that is wrong
                raise
            return
        yield size
        place += 1
        if size >= budget or time.monotonic() - began_s > _SHARE * seconds:
            return


def _prompt(url: str, model: str, tokens: int, chance: random.Random) -> None:
    prompt = chance.choices(range(*_IDS), k=tokens)
    ask(url, "POST", "v1", "completions", body={"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0})


def _number(url: str, engine: str) -> int:
    """Of its latest step."""
    found = ask(url, "GET", "api", "engines", engine, "steps", query="?limit=1")["steps"]
    return int(found[-1]["number"]) if found else 0


def _told(url: str, engine: str, last: dict[str, int]) -> list[StepSeen]:
    """Its steps since the last time."""
    found = ask(url, "GET", "api", "engines", engine, "steps", query=f"?since={last[engine]}")["steps"]
    last[engine] = max((one["number"] for one in found), default=last[engine])
    fields = StepSeen.__struct_fields__
    return [StepSeen(*(one[field] for field in fields)) for one in found]


# ---- what it comes to


def _sizes(seen: Sequence[StepSeen]) -> tuple[tuple[int, float, int], ...]:
    by_size: dict[int, list[float]] = {}
    for step in seen:
        if knee.usable(step):
            by_size.setdefault(step.prompt_tokens, []).append(step.seconds)
    enough = {size: seconds for size, seconds in by_size.items() if len(seconds) >= 3}
    return tuple((size, statistics.median(seconds), len(seconds)) for size, seconds in sorted(enough.items()))


def _setting(node: dict[str, Any], advice: Advice | None) -> str | None:
    if advice is None:
        return None
    section = "engine.prefill" if any(one["role"] == "prefill" for one in node["engines"]) else "engine"
    return f'[{section}] args = ["--max-num-batched-tokens", "{advice.budget}"]'


def _expected(found: Knee, budget: int, prompt: float) -> tuple[Expected, ...]:
    return tuple(
        Expected(
            load=load,
            requests_s=load * found.best_tokens_s / prompt,
            prompt_tokens=prompt,
            ttft_s=knee.ttft_s(found.curve, budget, prompt, load * found.best_tokens_s / prompt),
            ttft_knee_s=knee.ttft_s(found.curve, found.tokens, prompt, load * found.best_tokens_s / prompt),
        )
        for load in _LOADS
    )


def text(tuned: Tuned) -> Text:
    """For people."""
    lines = Text()
    head = f"{'SIMULATED: ' if tuned.simulated else ''}{tuned.model} on {', '.join(tuned.engines)}, {tuned.seconds:.0f} s of sweep\n"
    lines.append(head, style="bold")
    lines.append(_plot(tuned))
    if tuned.knee is None:
        return lines.append(f"No knee: {tuned.missing}.\n{_instead(tuned)}")
    found = tuned.knee
    lines.append(
        f"\nKnee: {found.tokens:,} tokens per step ({found.low:,} to {found.high:,} with 95 %), ", style="bold"
    )
    lines.append(f"{found.tokens_s:,.0f} of at most {found.best_tokens_s:,.0f} tokens/s, from {found.steps:,} steps.\n")
    if found.limit_tokens is not None:
        lines.append(f"Beyond {found.limit_tokens:,} tokens a step does less per second again: attention grows.\n")
    lines.append(_advised(tuned))
    for one in tuned.expected:
        lines.append(_promise(one, tuned.budget))
    return lines


def _instead(tuned: Tuned) -> str:
    """What to do where it has not been found."""
    if tuned.sizes and tuned.sizes[-1][0] >= tuned.budget:
        return f"Set --max-num-batched-tokens, which is {tuned.budget:,}, to {_MOST:,} for the time of another sweep.\n"
    return "Give the sweep more time with --seconds.\n"


def _plot(tuned: Tuned) -> Text:
    """Tokens against tokens per second: a bar for each size, and the knee among them."""
    highest = max((size / seconds for size, seconds, _ in tuned.sizes), default=1.0)
    rows = [(size, size / seconds, "cyan", "") for size, seconds, _ in tuned.sizes]
    if tuned.knee:
        rows.append((tuned.knee.tokens, tuned.knee.tokens_s, "bold green", "  ◄ knee"))
    lines = Text()
    for size, rate, style, mark in sorted(rows):
        bar = "█" * max(1, round(_BAR * min(1.0, rate / highest)))
        lines.append(f"{size:>7,} │").append(f"{bar:<{_BAR}}", style=style).append(f" {rate:>9,.0f} tokens/s{mark}\n")
    return lines


def _advised(tuned: Tuned) -> str:
    if tuned.advice is None:
        return f"Leave --max-num-batched-tokens at {tuned.budget:,}: another one is not sure to bring more than {knee.ADVISED_GAIN:.0%}.\n"
    gain = f", {tuned.advice.gain:+.0%} tokens/s at least" if tuned.advice.gain else ""
    return f"What to do: {tuned.setting}\n  ({tuned.advice.why}{gain})\n"


def _promise(one: Expected, budget: int) -> str:
    line = f"  {one.requests_s:.2g} prompts of {one.prompt_tokens:,.0f} tokens per second and engine ({one.load:.0%}): "
    return line + f"mean TTFT {_time(one.ttft_s)} with {budget:,}, {_time(one.ttft_knee_s)} with the knee\n"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "without end"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
