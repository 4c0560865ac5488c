"""What steps take, learnt from steps."""

from __future__ import annotations

import random

import pytest

from appliance.costs.fitted import CopyModel, StepModel


def seconds(prompt: int, decode: int, context: int) -> float:
    return 0.004 + 6e-6 * (prompt + decode) + 3e-8 * context


def taught(count: int = 3000, slow: float = 1.0) -> StepModel:
    chance, model = random.Random(1), StepModel()
    for _ in range(count):
        prompt, decode = chance.choice([0, 0, 300, 1500, 4000]), chance.randrange(1, 200)
        context = decode * chance.randrange(100, 2000) + prompt
        noise = chance.gauss(1, 0.02)
        model.learn(prompt, decode, context, slow * noise * seconds(prompt, decode, context))
    return model


@pytest.mark.parametrize("batch", [(0, 50, 50_000), (1500, 100, 90_000), (4000, 20, 30_000)])
def test_a_batch_like_those_seen_takes_what_they_took(batch: tuple[int, int, int]) -> None:
    assert taught().expected_s(*batch) == pytest.approx(seconds(*batch), rel=0.05)
    assert taught(slow=2.0).expected_s(*batch) == pytest.approx(2 * seconds(*batch), rel=0.05)


def test_of_a_batch_unlike_those_seen_nothing_is_expected() -> None:
    assert taught().expected_s(400_000, 5000, 90_000_000) is None
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
