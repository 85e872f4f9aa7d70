"""Schedules have their formulas; the optimiser is torch's Adam."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inrfast.training.optimizers import SCHEDULES, Adam, learning_rates


@given(steps=st.integers(1, 500), lr=st.floats(1e-6, 1.0), data=st.data())
def test_schedules_start_at_the_rate_and_never_grow(steps: int, lr: float, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1))
    exact = {
        "constant": 1.0,
        "cosine": math.cos(math.pi * step / (2 * steps)) ** 2,
        "exponential": 10 ** (-step / steps),
    }
    assert set(exact) == set(SCHEDULES)
    for name, factor in exact.items():
        rates = learning_rates(lr, name, steps)
        assert rates(0) == pytest.approx(lr)
        assert rates(step) == pytest.approx(lr * factor)
        assert rates(step + 1) <= rates(step)


def test_a_callable_schedule_gives_the_factor() -> None:
    assert learning_rates(0.5, lambda step: 1 / (1 + step), 10)(3) == 0.125


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_a_bad_factor_names_its_step(factor: float) -> None:
    with pytest.raises(ValueError, match=r"schedule\(4\)"):
        learning_rates(1.0, lambda step: factor, 10)(4)


def test_an_unknown_schedule_gets_the_nearest_match() -> None:
    with pytest.raises(ValueError, match="'cosine'"):
        learning_rates(1.0, "cosin", 10)
    with pytest.raises(TypeError, match="schedule"):
        learning_rates(1.0, 3, 10)


def test_adam_is_that_of_the_formula() -> None:
    """Kingma and Ba, Algorithm 1, in fp64."""
    rng = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, generator=rng, dtype=torch.float64))
    expected, m, v = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = Adam([weight], 1e-2)
    for t in range(1, 6):
        gradient = torch.randn(3, 4, generator=rng, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected = expected - 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-10, atol=1e-12)
