"""The interval of the largest eigenvalue holds it, and is narrow with and without a gap."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, spectra

import inrfast as inr
from inrfast.linalg import largest_eigenvalue as module
from inrfast.linalg.largest_eigenvalue import largest_eigenvalue
from inrfast.linalg.operators import DenseOperator
from inrfast.tangent.kernel_operator import KernelOperator

BUDGET = 1 << 30


def of(values, seed=0, budget=BUDGET):
    """The interval for a matrix with the given eigenvalues, up to the rounding of its making."""
    largest = float(values.abs().max())
    error = 4e-16 * len(values) * largest
    return largest_eigenvalue(DenseOperator(matrix_with(values, seed), error), budget, seed)


@settings(max_examples=40)
@given(spectra(most=150), st.integers(-100, 100), st.integers(0, 10**6))
def test_the_interval_holds_the_largest_eigenvalue(values, exponent, seed):
    values = values / values.max() * 10.0**exponent
    low, high = of(values, seed)
    assert low <= float(values.max()) <= high
    assert high - low <= 1e-6 * high


@pytest.mark.parametrize(
    "values",
    [
        torch.ones(300),
        torch.eye(300)[0],
        torch.cat([torch.ones(2), torch.linspace(0, 0.4, 298)]),
        torch.cat([torch.tensor([1.0, 1 - 1e-9]), torch.linspace(0, 0.9, 298)]),
        torch.linspace(0.99, 1, 300),
        torch.linspace(-3, 1, 300),
        torch.ones(1),
    ],
    ids=["identity", "rank one", "double", "nearly double", "flat", "indefinite", "order 1"],
)
def test_spectra_without_a_gap(values):
    low, high = of(values.double())
    assert low <= float(values.double().max()) <= high
    assert high - low <= 2e-4 * high


def test_zero_is_zero():
    assert largest_eigenvalue(DenseOperator(torch.zeros(100, 100)), BUDGET) == (0, 0)


def test_without_room_for_a_factor_the_interval_is_wider(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 2)
    values = torch.linspace(0, 1, 400, dtype=torch.float64)
    low, high = of(values, budget=1000)
    assert low <= 1 <= high
    assert high > 1.1


def test_a_kernel_takes_products_of_few_vectors(monkeypatch):
    net = inr.INR(2, 1, width=32, hidden_layers=2, activation="sine", omega=30.0, seed=0)
    kernel = inr.ntk(net, inr.grid((20, 20)), precision="highest")
    taken = []
    product = KernelOperator.__matmul__
    monkeypatch.setattr(KernelOperator, "__matmul__", lambda self, V: taken.append(V.shape[1]) or product(self, V))
    low, high = largest_eigenvalue(KernelOperator(kernel), BUDGET)
    exact = float(torch.linalg.eigvalsh(kernel.to_dense())[-1])
    assert low <= exact * (1 + 1e-13)
    assert high >= exact * (1 - 1e-13)
    assert high - low <= 1e-7 * high
    assert sum(taken) <= 120
