"""Gaussian measurements: one matrix, kept or drawn again, its statistics, its gradients, its memory."""

from __future__ import annotations

import math

import pytest
import torch

from inrfast.errors import MemoryBudgetError
from inrfast.inverse import Gaussian, GaussianMagnitude, check_adjoint


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr("inrfast.inverse.gaussian.ENTRIES_PER_BLOCK", 7 * 30)


def dense(operator: Gaussian, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return operator(torch.eye(operator.points, dtype=dtype).reshape(*operator.shape_in, -1))


def test_kept_or_drawn_again_it_is_the_same_matrix(blocks):
    kept, drawn = Gaussian((5, 6), 0.9, seed=3), Gaussian((5, 6), 0.9, seed=3, memory_budget=12 * 7 * 30)
    assert kept.kept
    assert not drawn.kept
    assert kept.shape_out == (math.ceil(0.9 * 5) * math.ceil(0.9 * 6),)
    torch.testing.assert_close(dense(drawn), dense(kept), rtol=0, atol=0)
    torch.testing.assert_close(dense(kept, torch.float32).double(), dense(kept), rtol=0, atol=0)
    assert not torch.equal(dense(Gaussian((5, 6), 0.9, seed=4)), dense(kept))
    for operator in (kept, drawn):
        assert check_adjoint(operator) < 1e-13
        x = torch.randn(30, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda own, operator=operator: operator.apply(own.reshape(5, 6, 2)), x)
        y = torch.randn(*operator.shape_out, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(operator.apply_adjoint, y)


def test_the_default_dtype_changes_no_entry(blocks):
    x = torch.rand(5, 6, dtype=torch.float64)
    given = [{}, {"memory_budget": 12 * 7 * 30}]
    before = [Gaussian((5, 6), 0.9, **own)(x) for own in given]
    drawn_again = Gaussian((5, 6), 0.9, **given[1])
    torch.set_default_dtype(torch.float64)
    try:
        after = [Gaussian((5, 6), 0.9, **own) for own in given]
        for found in (after[0](x), after[1](x), drawn_again(x)):
            torch.testing.assert_close(found, before[0], rtol=1e-14, atol=1e-14)
        assert after[0](x.float()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_its_entries_are_normal_and_it_keeps_lengths():
    matrix = dense(Gaussian((20, 20), 1.0))
    scaled = matrix * math.sqrt(400)
    count = scaled.numel()
    assert abs(float(scaled.mean())) < 5 / math.sqrt(count)
    assert abs(float(scaled.square().mean()) - 1) < 5 * math.sqrt(2 / count)
    assert abs(float(scaled.pow(4).mean()) - 3) < 5 * math.sqrt(96 / count)
    correlations = matrix @ matrix.mT - torch.eye(400)  # rows independent of each other, across blocks too
    assert float(correlations.abs().max()) < 6.5 / math.sqrt(400)


def test_magnitudes_lose_the_sign_alone():
    operator = GaussianMagnitude((4, 5), measurements=31)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(operator(x), operator.inner(x).abs())
    torch.testing.assert_close(operator(-x), operator(x))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Gaussian((4, 4)), ValueError, "got neither"),
        (lambda: Gaussian((4, 4), 1.0, 16), ValueError, "got both"),
        (lambda: Gaussian((4, 4), 0.0), ValueError, "ratio must be above 0"),
        (lambda: Gaussian((4, 4), measurements=0), ValueError, "measurements must be at least 1"),
        (lambda: GaussianMagnitude((64, 64), 1.0, memory_budget=10**6), MemoryBudgetError, "a block of 1024 rows"),
    ],
)
def test_bad_input_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
