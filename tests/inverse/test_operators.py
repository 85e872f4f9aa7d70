"""Forward operators: adjoints, forms of signals, compositions, losses, and what the doors refuse."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inrfast.inverse import Blur, Downsample, Mask, Operator, check_adjoint

SIDES = st.integers(1, 9)


def dense(operator: Operator) -> Tensor:
    """The matrix of an operator, a column per unit vector."""
    count = math.prod(operator.shape_in)
    dtype = torch.complex128 if operator.complex_in else torch.float64
    units = torch.eye(count, dtype=dtype).reshape(*operator.shape_in, count)
    return operator(units).reshape(-1, count)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)), dtype=torch.float64)


@st.composite
def operators(draw) -> Operator:
    shape = tuple(draw(st.lists(SIDES, min_size=1, max_size=3)))
    seed = draw(st.integers(0, 2**31))
    kind = draw(st.sampled_from(["mask", "blur", "downsample", "bicubic", "product"]))
    generator = torch.Generator().manual_seed(seed)
    if kind == "mask":
        known = torch.rand(shape, generator=generator) < 0.6
        known.flatten()[-1] = True
        return Mask(known)
    if kind in ("blur", "product"):
        boundary = draw(st.sampled_from(["zero", "edge", "mirror", "wrap"]))
        most = [2 * n - 1 if boundary == "mirror" else 2 * n for n in shape]
        size = [draw(st.integers(1, min(6, own))) for own in most]
        blur = Blur(shape, torch.randn(size, generator=generator), boundary)
        return blur if kind == "blur" else Mask.random(shape, 1.0) @ blur
    if kind == "bicubic":
        shape = (draw(SIDES), draw(SIDES))
    factors = [draw(st.integers(1, 3)) for _ in shape]
    sizes = [n * factor for n, factor in zip(shape, factors, strict=True)]
    return Downsample(sizes, factors, "bicubic" if kind == "bicubic" else "area")


@settings(max_examples=120, deadline=None)
@given(operators(), st.integers(1, 3))
def test_adjoints_are_the_transposed_matrices(operator, channels):
    assert check_adjoint(operator, draws=2, channels=channels) < 1e-13
    matrix = dense(operator)
    close = {"rtol": 1e-11, "atol": 1e-11}
    y = random(*operator.shape_out, channels)
    for values in (y, torch.complex(y, y.flip(0))):
        expected = matrix.mT.to(values.dtype) @ values.reshape(-1, channels)
        torch.testing.assert_close(operator.adjoint(values).reshape(-1, channels), expected, **close)
    x = random(*operator.shape_in, channels)
    for values in (x, torch.complex(x, x.flip(0))):
        expected = matrix.to(values.dtype) @ values.reshape(-1, channels)
        torch.testing.assert_close(operator(values).reshape(-1, channels), expected, **close)
