"""Trained polynomial encodings: the kernel of their coefficients at every step, which stay non-negative."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import random_coords

import inrfast as inr
from inrfast.testing import check_encoding

COEFFICIENTS = st.lists(st.floats(0.0, 4.0), min_size=1, max_size=5)


@given(COEFFICIENTS, st.integers(1, 3))
def test_a_trained_one_keeps_the_contract(coefficients: list[float], d: int) -> None:
    check_encoding(inr.Polynomial(len(coefficients) - 1, coefficients, trainable=True), d)


@given(COEFFICIENTS, st.integers(1, 3), st.integers(0, 100))
def test_it_starts_as_the_fixed_one_and_stays_the_kernel_of_its_coefficients(
    coefficients: list[float], d: int, seed: int
) -> None:
    """Whatever an optimiser does to the parameter: a_k >= 0, and inner products are sum_k a_k (x . x')^k."""
    degree = len(coefficients) - 1
    x = random_coords(6, d, seed).double()
    kinds = [inr.Polynomial(degree, coefficients, trainable) for trainable in (False, True)]
    fixed, trained = (inr.INR(d, 1, width=4, encoding=kind, dtype=torch.float64).encoding for kind in kinds)
    torch.testing.assert_close(trained(x), fixed(x))
    with torch.no_grad():
        trained.roots.add_(torch.randn(degree + 1, generator=torch.Generator().manual_seed(seed)))
    now = trained.coefficients
    assert min(now) >= 0
    assert trained.config()["coefficients"] == coefficients
    z = trained(x)
    torch.testing.assert_close(z @ z.mT, sum(a * (x @ x.mT) ** k for k, a in enumerate(now)))


def test_a_coefficient_of_zero_is_found_by_a_fit() -> None:
    """The target is x^3, whose coefficient starts at 0; the linear one is not needed, and shrinks."""
    coords = inr.grid(64)
    net = inr.INR(1, 1, width=32, hidden_layers=1, encoding=inr.Polynomial(3, [1, 1, 0, 0], trainable=True))
    before = net.encoding.coefficients
    result = inr.fit(net, coords, coords**3, steps=400, lr=1e-2)
    after = net.encoding.coefficients
    assert before[3] == 0 < after[3]
    assert min(after) >= 0
    assert result.losses[-1] < 1e-2 * result.losses[0]
