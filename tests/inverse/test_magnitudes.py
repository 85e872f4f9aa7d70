"""Magnitudes: the smoothed loss against its formula and finite differences, and gradients where all is zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.inverse import FourierMagnitude, GaussianMagnitude


def made(kind: str, epsilon: float):
    if kind == "fourier":
        return FourierMagnitude((3, 4), 1.7, epsilon)
    return GaussianMagnitude((3, 4), 0.9, epsilon=epsilon)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["fourier", "gaussian"]), st.sampled_from([1e-3, 0.1, 0.0]), st.integers(0, 99))
def test_the_loss_is_its_formula_and_has_its_gradient(kind, epsilon, seed):
    operator = made(kind, epsilon)
    generator = torch.Generator().manual_seed(seed)
    truth, guess = (torch.randn(12, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    y = operator(truth).reshape(*operator.shape_out, 2)
    loss = operator.loss(y)
    found = operator(guess).reshape(y.shape)
    expected = ((found.square() + epsilon).sqrt() - (y.square() + epsilon).sqrt()).square().mean()
    torch.testing.assert_close(loss(guess), expected)
    assert torch.autograd.gradcheck(loss, guess.requires_grad_(), eps=1e-7, atol=1e-6)
    assert float(loss(truth)) < 1e-28


@pytest.mark.parametrize("kind", ["fourier", "gaussian"])
def test_its_gradient_at_zero_is_finite(kind):
    for epsilon in (0.0, 1e-3):
        operator = made(kind, epsilon)
        zeros = torch.zeros(12, 1, requires_grad=True)
        operator.loss(torch.ones(operator.shape_out))(zeros).backward()
        assert bool(torch.isfinite(zeros.grad).all())
