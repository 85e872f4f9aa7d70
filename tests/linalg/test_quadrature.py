"""Counts by quadrature: error bars that hold the truth, and refusals where the steps resolve nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, operator_with, spectra

from inrfast.errors import ResolutionError
from inrfast.linalg.operators import DenseOperator
from inrfast.linalg.partition import Whole
from inrfast.linalg.quadrature import quadrature_counts


@settings(max_examples=15)
@given(spectra(most=300), st.integers(0, 10**6))
def test_brackets_hold_the_count_at_every_level(values, seed):
    counts = quadrature_counts(operator_with(values, seed), probes=6, steps=20, seed=seed)
    assert (counts.weights.sum(1) - 1).abs().max() <= 1e-10
    assert counts.largest <= float(values[0]) * (1 + 1e-9)
    levels = [float(values[0]) * 10.0**-exponent for exponent in (0.5, 1, 2, 4, 7)]
    for level in levels:
        lower, upper = counts.bracket(level)
        assert (values > level * 1.001).sum() <= upper + 1e-6
        assert (values > level / 1.001).sum() >= lower - 1e-6


def test_many_eigenvalues_are_counted_closely_and_deep_levels_refused():
    n = 3000
    values = torch.logspace(0, -8, n, dtype=torch.float64)
    operator = ScaledIdentity(values)
    counts = quadrature_counts(operator, probes=8, steps=60)
    smallest = counts.smallest_rtol()
    assert 60.0**-2 / 8 <= smallest <= 60.0**-2 * 32
    found = counts.count(smallest)
    truth = int((values > smallest).sum())
    assert truth in found
    assert found.upper - found.lower <= 0.9 * truth
    with pytest.raises(ResolutionError, match="smallest resolved"):
        counts.count(1e-7)


def test_converged_eigenvalues_are_not_counted_twice():
    """Without reorthogonalisation 150 steps would show the isolated eigenvalues again and again."""
    values = torch.cat([torch.linspace(1, 0.1, 7, dtype=torch.float64), torch.full((293,), 1e-9, dtype=torch.float64)])
    counts = quadrature_counts(operator_with(values, 1), probes=20, steps=150, seed=3)
    lower, upper = counts.bracket(1e-2)
    assert lower <= 7 <= upper
    assert (counts.nodes > 1e-2).sum(1).amax() <= 7


def test_the_same_seed_gives_the_same_counts():
    operator = ScaledIdentity(torch.logspace(0, -8, 100, dtype=torch.float64))
    first, second = (quadrature_counts(operator, probes=2, steps=10, seed=4) for _ in range(2))
    assert torch.equal(first.nodes, second.nodes)


def test_a_nonsymmetric_operator_is_named():
    matrix = matrix_with(torch.logspace(0, -3, 60), 0)
    matrix[:, :30] *= 1.01
    with pytest.raises(ValueError, match="not symmetric"):
        quadrature_counts(DenseOperator(matrix), steps=10)


class ScaledIdentity:
    """A diagonal operator: the quadrature does not look at the basis."""

    def __init__(self, values):
        self.values, self.shape, self.device = values, (len(values), len(values)), values.device
        self.matrix_error = 1e-15
        self.partition = Whole(len(values))

    def diagonal(self):
        return self.values

    def __matmul__(self, V):
        return self.values.unsqueeze(1) * V
