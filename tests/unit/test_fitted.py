"""What steps take, learnt from steps."""

from __future__ import annotations

import math
import random

import pytest

from appliance.costs import line
from appliance.costs.fitted import CopyModel, StepModel


def seconds(prompt: int, decode: int, context: int) -> float:
    return 0.004 + 6e-6 * (prompt + decode) + 3e-8 * context


def taught(count: int = 3000, slow: float = 1.0) -> StepModel:
    chance, model = random.Random(1), StepModel()
    for _ in range(count):
        prompt, decode = chance.choice([0, 0, 300, 1500, 4000]), chance.randrange(1, 200)
        context = decode * chance.randrange(100, 2000) + prompt
        noise = chance.gauss(1, 0.02)
        took_s = slow * noise * seconds(prompt, decode, context)
        model.learn(prompt, decode, context, took_s, prompt * prompt // 2)
    return model


@pytest.mark.parametrize("batch", [(0, 50, 50_000), (1500, 100, 90_000), (4000, 20, 30_000)])
def test_a_batch_like_those_seen_takes_what_they_took(batch: tuple[int, int, int]) -> None:
    attended = batch[0] * batch[0] // 2
    assert taught().expected_s(*batch, attended) == pytest.approx(seconds(*batch), rel=0.05)
    assert taught(slow=2.0).expected_s(*batch, attended) == pytest.approx(2 * seconds(*batch), rel=0.05)


def test_of_a_batch_unlike_those_seen_nothing_is_expected() -> None:
    assert taught().expected_s(400_000, 5000, 90_000_000, 8 * 10**10) is None
    assert StepModel().expected_s(0, 1, 100) is None


def test_a_hundred_thousand_steps_leave_it_well() -> None:
    assert taught(100_000).expected_s(0, 50, 50_000) == pytest.approx(seconds(0, 50, 50_000), rel=0.05)


def test_hand_offs_are_compared_by_their_size() -> None:
    chance, model = random.Random(2), CopyModel()
    for _ in range(500):
        size = chance.randrange(10**7, 10**9)
        model.learn(size, 5e-5 + size / 4e11)
    assert model.expected_s(5 * 10**8) == pytest.approx(5e-5 + 5e8 / 4e11, rel=0.02)


@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.4])
def test_what_is_expected_is_the_mean_however_much_steps_scatter(sigma: float) -> None:
    chance, model = random.Random(3), StepModel()
    took = should = 0.0
    for number in range(6000):
        decode = chance.randrange(1, 200)
        seconds_ = seconds(0, decode, decode * 500) * chance.lognormvariate(0, sigma)
        expected = model.expected_s(0, decode, decode * 500)
        if expected is not None and number > 2000:
            took, should = took + seconds_, should + expected
        model.learn(0, decode, decode * 500, seconds_)
    assert took / should == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("place", [5, 2000])
@pytest.mark.parametrize("odd_s", [5e-5, 30.0])
def test_one_odd_step_spoils_nothing(place: int, odd_s: float) -> None:
    """One as short as where two results were ready at once, or one in which a kernel was compiled."""
    chance, model = random.Random(4), StepModel()
    for number in range(3000):
        decode = chance.randrange(1, 200)
        model.learn(0, decode, decode * 500, odd_s if number == place else seconds(0, decode, decode * 500))
    assert model.expected_s(0, 50, 25_000) == pytest.approx(seconds(0, 50, 25_000), rel=0.03)


def test_beyond_what_was_seen_an_estimate_goes_on_and_says_how_uncertain_it_is() -> None:
    model = taught()
    within, beyond = model.estimate([(1500, 0)], 100, 90_000), model.estimate((), 1000, 900_000)
    assert within is not None
    assert beyond is not None
    assert within[0] == pytest.approx(seconds(1500, 100, 91_500), rel=0.05)
    assert beyond[0] == pytest.approx(seconds(0, 1000, 900_000), rel=0.15)
    assert within[1] < 0.05 < beyond[1]


def test_of_nothing_seen_nothing_is_estimated() -> None:
    assert StepModel().estimate((), 1, 100) is None
    assert CopyModel().estimate(1e9) is None


def test_experts_of_which_ever_more_are_read_are_followed_beyond_what_was_seen() -> None:
    """A mixture: seen with 1 to 24 sequences, asked for 128."""

    def mixture_s(sequences: int) -> float:
        return 0.003 + 0.02 * (1 - (1 - 4 / 128) ** sequences)

    chance, model = random.Random(2), StepModel()
    for _ in range(3000):
        sequences = chance.randrange(1, 25)
        model.learn(0, sequences, 500 * sequences, chance.gauss(1, 0.02) * mixture_s(sequences))
    found = model.estimate((), 128, 64_000)
    assert found is not None
    assert found[0] == pytest.approx(mixture_s(128), rel=0.15)


def test_of_a_mixture_of_experts_little_and_much_to_do_are_not_told_by_each_other() -> None:
    """Between few sequences and many, steps bend: a line through the few figures would call an engine quick that is twice as slow."""

    def mixture_s(sequences: int) -> float:
        return 0.003 + 0.008 * (1 - math.exp(-sequences / 32))

    chance, model, dense = random.Random(2), StepModel(experts=True), StepModel()
    for _ in range(4000):
        sequences = chance.choice([chance.randrange(1, 5), chance.randrange(80, 200)])
        took_s = chance.gauss(1, 0.02) * mixture_s(sequences)
        for one in (model, dense):
            one.learn(0, sequences, 500 * sequences, took_s)
    told = [model.expected_s(0, sequences, 500 * sequences) for sequences in (2, 32, 150)]
    assert told == [
        None if one is None else pytest.approx(mixture_s(n), rel=0.15)
        for one, n in zip(told, (2, 32, 150), strict=True)
    ]
    assert told[0] is not None and told[2] is not None
    assert dense.expected_s(0, 32, 16_000) != pytest.approx(mixture_s(32), rel=0.15)
    again = StepModel(model.kept(), experts=True)
    assert again.expected_s(0, 2, 1000) == pytest.approx(told[0], rel=1e-6)


def test_prompts_many_times_as_long_as_those_seen_take_no_less_than_in_proportion() -> None:
    chance, model = random.Random(3), StepModel()
    for _ in range(500):
        model.learn(
            256, 0, 256, chance.gauss(1, 0.02) * 0.02, 256 * 128
        )  # nothing tells what is the step's and what the tokens'
    found = model.estimate([(8192, 0)], 0, 0)
    assert found is not None
    assert found[0] == pytest.approx(32 * 0.02, rel=0.1)
    assert found[1] > 0.5


def test_a_hand_off_of_any_size_has_an_estimate() -> None:
    chance, model = random.Random(4), CopyModel()
    for _ in range(300):
        size = chance.randrange(10**6, 10**8)
        model.learn(size, chance.gauss(1, 0.02) * (1e-3 + size / 2e10))
    found = model.estimate(1e9)
    assert found is not None
    assert found[0] == pytest.approx(1e-3 + 1e9 / 2e10, rel=0.05)


def test_how_more_sequences_would_fare_than_were_ever_seen_is_guessed_with_a_wide_error() -> None:
    chance, model = random.Random(5), StepModel()
    for _ in range(500):
        model.learn(0, 1, chance.randrange(400, 600), chance.gauss(1, 0.02) * 0.01)
    found = model.estimate((), 32, 16_000)
    assert found is not None
    assert 0.01 <= found[0] <= 0.05
    assert found[1] > 0.5


def test_what_was_kept_also_tells_what_other_batches_would_take() -> None:
    model = taught()
    again = StepModel(model.kept())
    assert again.estimate((), 1000, 900_000) == pytest.approx(model.estimate((), 1000, 900_000), rel=1e-6)


def test_what_was_usual_first_bounds_what_comes_to_be_expected_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_HALF_LIFE", 1_000)
    model = taught()
    model.establish(7.0)
    assert model.drift is None
    chance = random.Random(8)
    for _ in range(6_000):
        decode = chance.randrange(1, 200)
        model.learn(0, decode, decode * 500, 1.3 * seconds(0, decode, decode * 500))
    assert model.expected_s(0, 50, 25_000) == pytest.approx(1.05 * seconds(0, 50, 25_000), rel=0.02)
    assert model.drift == pytest.approx(1.3, abs=0.05)
    found = model.estimate((), 50, 25_000)
    assert found is not None
    assert found[0] == pytest.approx(1.3 * seconds(0, 50, 25_000), rel=0.05), "a plan is of what there is"
    assert StepModel(model.kept()).expected_s(0, 50, 25_000) == model.expected_s(0, 50, 25_000)


def test_what_was_usual_with_little_to_do_bounds_nothing_of_what_was_never_seen_then() -> None:
    """A GPU at full work is held by its power limit: what such steps take is not told by those before."""
    model, chance = StepModel(), random.Random(8)

    def work(least: int, most: int, slow: float) -> None:
        for _ in range(4_000):
            decode = chance.randrange(least, most)
            model.learn(0, decode, decode * 500, chance.gauss(1, 0.02) * slow * seconds(0, decode, decode * 500))

    work(1, 12, 1.0)
    model.establish(7.0)
    work(150, 250, 1.3)
    expected = model.expected_s(0, 200, 100_000)
    assert expected == pytest.approx(1.3 * seconds(0, 200, 100_000), rel=0.05)


def test_a_batch_that_has_grown_because_its_engine_is_slow_is_still_like_those_that_were_seen() -> None:
    """An engine that nobody can be compared with: as soon as it is slow, more requests than ever are under way in it."""
    chance, model = random.Random(9), StepModel()
    for _ in range(6000):
        decode = chance.randrange(12, 36)
        context = decode * chance.randrange(1400, 1600)
        model.learn(0, decode, context, chance.gauss(1, 0.02) * seconds(0, decode, context))
    assert model.expected_s(0, 90, 90 * 1500) == pytest.approx(seconds(0, 90, 90 * 1500), rel=0.1)
