"""Matrices whose spectrum is known by construction: decaying, clustered, of deficient rank, flat."""

import torch
from hypothesis import strategies as st

from inrfast.linalg.operators import DenseOperator


def matrix_with(values, seed):
    """A symmetric matrix with the given eigenvalues and random eigenvectors."""
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = (q * values.double()) @ q.t()
    return (matrix + matrix.t()) / 2


def operator_with(values, seed):
    """The same as an operator; its stated error covers the rounding of its making."""
    matrix = matrix_with(values, seed)
    return DenseOperator(matrix, 4 * len(values) * 2.2e-16 * float(values.max()))


@st.composite
def spectra(draw, most=200):
    """Eigenvalues, descending, the largest 1 (times any scale)."""
    n = draw(st.integers(1, most))
    kind = draw(st.sampled_from(["power", "exponential", "clustered", "deficient", "flat"]))
    index = torch.arange(1, n + 1, dtype=torch.float64)
    if kind == "power":
        values = index ** -draw(st.floats(0.5, 6))
    elif kind == "exponential":
        values = 10.0 ** (-draw(st.floats(1, 14)) * (index - 1) / max(n - 1, 1))
    elif kind == "clustered":
        levels = torch.tensor([1.0, 3e-2, 2e-4, 5e-7, 3e-9], dtype=torch.float64)
        values = levels[(index.long() - 1) * len(levels) // n]
    elif kind == "deficient":
        values = torch.where(index <= max(1, n // draw(st.integers(2, 10))), index**-2.0, 0.0)
    else:
        values = torch.ones(n, dtype=torch.float64)
    return values * 10.0 ** draw(st.integers(-8, 8))
