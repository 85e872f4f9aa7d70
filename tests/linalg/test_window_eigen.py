"""A window's directions: the eigenvectors of its matrix, small eigenvalues last, whatever must be kept first."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.errors import RangeError
from inrfast.linalg.window_eigen import WindowEigen


@given(st.integers(1, 40), st.floats(0.0, 3.0), st.booleans(), st.integers(0, 2**31))
def test_directions_diagonalise_their_matrix(count, delay, last, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, count, generator=generator, dtype=torch.float64)
    matrix = drawn + drawn.t()
    found = WindowEigen(matrix).take(delay, last)
    size = float(matrix.abs().max()) * count
    unit = torch.eye(count, dtype=torch.float64)
    assert float((found.basis.t() @ found.basis - unit).abs().max()) <= 1e-13 * count
    turned = found.basis.t() @ matrix @ found.basis
    assert float((turned - torch.diag(found.pivots)).abs().max()) <= 1e-13 * size
    assert torch.equal(found.values, found.pivots)
    large = int((found.values.abs() >= delay).sum())
    if last:
        assert found.kept == count
    else:  # every large one, and at least half of all, the larger ones
        assert found.kept >= count // 2
        assert found.kept == large or (found.kept > large and large < count // 2)
        sizes = found.values.abs()
        assert not found.kept or bool((sizes[found.kept :] <= sizes[: found.kept].min()).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_eigenvalues_of_numbers_that_are_none(bad):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[2, 1] = bad
    with pytest.raises(RangeError, match="NaN or Inf"):
        WindowEigen(matrix).take(0.1, True)
