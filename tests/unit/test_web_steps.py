"""An engine's steps as they are drawn, and the table that says the same."""

from __future__ import annotations

from typing import Any

from appliance.records import KneeReading, StepReading
from web.steps import steps


def step(number: int, prompt: int = 0, decode: int = 0, seconds: float = 0.02, **more: Any) -> StepReading:
    return StepReading(
        number=number,
        prompt_tokens=prompt,
        decode_tokens=decode,
        context_tokens=prompt + decode,
        seconds=seconds,
        time=1000.0 + number,
        **more,
    )


def kinds(drawn: Any) -> dict[str, str]:
    return {one.kind: one.d for one in drawn}


def test_prompt_steps_are_uprights_and_decode_steps_dots() -> None:
    found = steps([step(1, prompt=100), step(2, decode=10)], None)
    assert found.durations is not None
    drawn = kinds(found.durations.drawn)
    assert "v8" in drawn["steps-prompt"]
    assert "h0" in drawn["steps-decode"]
    assert found.which == "the last 1 with prompt tokens, the last 1 without"


def test_a_step_with_both_is_a_prompt_step() -> None:
    assert steps([step(1, prompt=100, decode=4)], None).which == "the last 1, all with prompt tokens"


def test_without_steps_there_is_nothing_to_draw() -> None:
    found = steps([], None)
    assert (found.durations, found.ratios, found.sizes, found.ratio) == (None, None, (), "—")


def test_the_model_is_a_line_where_steps_were_made() -> None:
    known = [step(n, prompt=size, expected_s=size * 1e-4) for n, size in enumerate((100, 200, 400, 800))]
    found = steps(known, None)
    assert found.durations is not None
    assert kinds(found.durations.drawn)["expected-prompt"].count("L") == 3
    unknown = steps([step(n, prompt=size) for n, size in enumerate((100, 200, 400))], None)
    assert unknown.durations is not None
    assert "expected-prompt" not in kinds(unknown.durations.drawn)
    assert unknown.ratios is None


def test_steps_that_take_twice_what_they_should_are_told() -> None:
    found = steps([step(n, prompt=100, seconds=0.04, expected_s=0.02) for n in range(9)], None)
    assert (found.ratio, found.late) == ("2.00", True)
    assert found.ratios is not None
    assert "2.00 in the middle" in found.ratios.label
    assert found.ratios.x_ticks[-1].label == "0 s"
    assert not steps([step(1, prompt=100, expected_s=0.02)], None).late


def test_the_knee_is_a_band_with_its_interval_or_a_reason() -> None:
    made = [step(n, prompt=size) for n, size in enumerate((10, 1000))]
    known = steps(made, KneeReading(tokens=100, low=50, high=200, tokens_s=900.0, best_tokens_s=1000.0))
    assert known.durations is not None
    assert known.durations.band is not None
    assert float(known.durations.band.middle) == 500
    assert "Prompt steps of 100 tokens saturate it (50 to 200, 95 %)" in known.knee
    unknown = steps(made, KneeReading(missing="too few steps"))
    assert unknown.knee == "What saturates it is not known: too few steps."
    assert unknown.durations is not None
    assert unknown.durations.band is None
    assert "looked for" in steps(made, None).knee


def test_the_table_says_by_size_what_the_plot_shows() -> None:
    made = [step(1, prompt=100, seconds=0.02, expected_s=0.01), step(2, prompt=110, seconds=0.04, expected_s=0.02)]
    [prompts, decodes] = steps([*made, step(3, decode=8, seconds=0.005)], None).sizes
    assert (prompts.kind, prompts.tokens, prompts.steps, prompts.ratio) == ("prompt", "100–110", "2", "2.00")
    assert (decodes.kind, decodes.tokens, decodes.expected) == ("decode", "8", "—")


def test_two_thousand_steps_are_little_to_send() -> None:
    many = [step(n, decode=1 + n % 64, seconds=0.01 + (n % 7) * 1e-4, expected_s=0.01) for n in range(2000)]
    found = steps(many, None)
    assert found.durations is not None
    assert sum(len(one.d) for one in found.durations.drawn) < 10_000  # those on one another are one
