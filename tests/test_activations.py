"""Every activation's derivative against automatic differentiation, its value against its formula."""

import math

import pytest
import torch

from inrfast.activations import ACTIVATIONS, activation

FORMULAS = {
    "identity": lambda u, w: u,
    "relu": lambda u, w: max(u, 0.0),
    "sine": lambda u, w: math.sin(w * u),
    "gaussian": lambda u, w: math.exp(-((w * u) ** 2)),
    "finer": lambda u, w: math.sin(w * (abs(u) + 1) * u),
    "tanh": lambda u, w: math.tanh(u),
    "gelu": lambda u, w: 0.5 * u * (1 + math.erf(u / math.sqrt(2))),
    "softplus": lambda u, w: math.log1p(math.exp(u)),
}


def test_the_table_is_complete():
    assert set(FORMULAS) == set(ACTIVATIONS)
    assert len({entry.kernel_id for entry in ACTIVATIONS.values()}) == len(ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_value_and_derivative(name, omega):
    u = torch.linspace(-3, 3, 101, dtype=torch.float64, requires_grad=True)
    entry = activation(name)
    value = entry.value(u, omega)
    expected = torch.tensor([FORMULAS[name](float(x), omega) for x in u.detach()], dtype=torch.float64)
    torch.testing.assert_close(value.detach(), expected)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    torch.testing.assert_close(entry.derivative(u.detach(), omega), gradient)


def test_relu_has_derivative_zero_at_zero():
    assert float(activation("relu").derivative(torch.zeros(1), 1.0)) == 0


def test_unknown_names_get_the_nearest_match():
    with pytest.raises(ValueError, match="Did you mean 'sine'"):
        activation("sin")
