"""Forward operators: adjoints, forms of signals, compositions, losses, and what the doors refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import inrfast as inr
from inrfast.inverse import (
    AdjointError,
    Blur,
    Downsample,
    Fourier,
    FourierMagnitude,
    Gaussian,
    GaussianMagnitude,
    LinearOperator,
    Mask,
    Operator,
    Radon,
    check_adjoint,
)

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
    kind = draw(st.sampled_from(["mask", "blur", "downsample", "bicubic", "product", "fourier", "gaussian", "radon"]))
    generator = torch.Generator().manual_seed(seed)
    if kind == "mask":
        known = torch.rand(shape, generator=generator) < 0.6
        known.flatten()[-1] = True
        return Mask(known)
    if kind == "fourier":
        known = torch.rand(shape, generator=generator) < 0.6
        known.flatten()[0] = True
        return Fourier(shape, known)
    if kind == "gaussian":
        return Gaussian(shape, measurements=draw(st.integers(1, 9)), seed=seed % 1000)
    if kind == "radon":
        return Radon(draw(SIDES), draw(st.integers(1, 5)), circle=draw(st.booleans()))
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
        dtype = torch.promote_types(values.dtype, matrix.dtype)
        expected = matrix.mH.to(dtype) @ values.to(dtype).reshape(-1, channels)
        torch.testing.assert_close(operator.adjoint(values).reshape(-1, channels), expected, **close)
    x = random(*operator.shape_in, channels)
    for values in (x, torch.complex(x, x.flip(0))):
        dtype = torch.promote_types(values.dtype, matrix.dtype)
        expected = matrix.to(dtype) @ values.to(dtype).reshape(-1, channels)
        torch.testing.assert_close(operator(values).reshape(-1, channels), expected, **close)


def test_an_operator_of_real_signals_and_complex_measurements_is_tested_in_real_parts():
    def forward(x):
        return torch.fft.fft(x, dim=0)

    def adjoint(y):
        return (torch.fft.ifft(y, dim=0) * y.shape[0]).real

    assert check_adjoint(LinearOperator(forward, adjoint, 7, 7, complex_out=True)) < 1e-13
    product = Fourier((4, 6), random(4, 6) > 0) @ Blur.gaussian((4, 6), 1.0)
    assert check_adjoint(product) < 1e-13
    assert product.linear
    assert not (GaussianMagnitude((4, 6), 1.0) @ Blur.gaussian((4, 6), 1.0)).linear


def test_a_wrong_adjoint_is_found_and_named():
    class Shift(Operator):
        def __init__(self):
            super().__init__((5, 4), (5, 4))

        def apply(self, x):
            return x.roll(1, 0)

        def apply_adjoint(self, y):
            return y.roll(1, 0)  # the wrong way

    with pytest.raises(AdjointError, match=r"adjoint of Shift\(\(5, 4\)") as caught:
        check_adjoint(Shift())
    assert caught.value.error > 1e-3
    assert isinstance(caught.value, ValueError)
    scaled = LinearOperator(lambda x: 2 * x, lambda y: (2 + 1e-6) * y, 9, 9, name="twice")
    with pytest.raises(AdjointError, match="twice"):
        check_adjoint(scaled)
    assert check_adjoint(scaled, rtol=1e-5) > 1e-9
    with pytest.raises(AdjointError, match="differ by nan"):
        check_adjoint(LinearOperator(lambda x: x * torch.nan, lambda y: y, 3, 3))
    with pytest.raises(TypeError, match="must be linear, and Four"):
        check_adjoint(FourierMagnitude((4, 4)))
    with pytest.raises(TypeError, match="got the class Mask"):
        check_adjoint(Mask)
    with pytest.raises(AdjointError, match="Shift"):  # at the door of a solver
        inr.inverse.net_gd(inr.INR(2, 1, width=4), None, Shift(), torch.ones(5, 4), steps=1)


def test_operators_of_the_user_may_write_into_what_they_get():
    """They get copies: the adjoint is tested at the signal, and the caller's numbers stay."""

    class Doubled(Operator):
        def apply(self, x):
            return x.mul_(2)

        def apply_adjoint(self, y):
            return y.mul_(1)

    class Doubling(Doubled):
        apply_adjoint = Operator.apply_adjoint

    def twice(x):
        return x.mul_(2)

    def once(y):
        return y.mul_(1)

    for wrong in (LinearOperator(twice, once, (8, 6), (8, 6)), Doubled((8, 6), (8, 6))):
        with pytest.raises(AdjointError):
            check_adjoint(wrong)
    buffer = torch.zeros(8, 6, 2, dtype=torch.float64)  # one for all results
    with pytest.raises(AdjointError):
        check_adjoint(LinearOperator(lambda x: buffer.copy_(2 * x), lambda y: buffer.copy_(y), (8, 6), (8, 6)))
    for right in (LinearOperator(twice, twice, (8, 6), (8, 6)), Doubling((8, 6), (8, 6))):
        assert check_adjoint(right) < 1e-13
        ones = torch.ones(8, 6, 1)
        assert bool((right(ones) == 2).all() and (right.adjoint(ones) == 2).all() and (ones == 1).all())
        prediction = torch.ones(48, 1, requires_grad=True)
        right.loss(2 * ones)(prediction * 1).backward()
        assert not bool(prediction.grad.any())
        assert right.loss(ones).relative(ones) == 1  # |2 - 1| / |1|, and the signal stays
        assert bool((ones == 1).all())
    same = LinearOperator(lambda x: x, lambda y: y, 4, 4)
    given = torch.ones(4)
    same(given).zero_()
    FourierMagnitude(2, 2.0).pad.adjoint(given).zero_()
    assert bool((given == 1).all())


@pytest.mark.parametrize("complex_in", [False, True])
def test_complex_operators_must_say_so(complex_in):
    """Only real parts were compared of them, and fitted to."""
    turned = LinearOperator(lambda x: x * (1 + 2j), lambda q: q * (1 + 5j), 4, 4, complex_in=complex_in)
    with pytest.raises(TypeError, match="complex measurements of real signals, and complex_out is False"):
        check_adjoint(turned)
    for call in (turned, turned.loss(torch.ones(4)).residual, (Blur(4, torch.ones(1)) @ turned).loss(torch.ones(4))):
        with pytest.raises(TypeError, match="complex_out is False"):
            call(torch.ones(4, 1))
    with pytest.raises(TypeError, match=r"the adjoint of LinearOperator.* is complex"):
        check_adjoint(LinearOperator(lambda x: x, lambda q: q * (1 + 5j), 4, 4, complex_in=complex_in))
    right = LinearOperator(lambda x: x * (1 + 2j), lambda q: q * (1 - 2j), 4, 4, complex_in=True, complex_out=True)
    assert check_adjoint(right) < 1e-13


def test_measurements_are_copied():
    y = torch.ones(2, 2)
    loss = Downsample((4, 4), 2).loss(y)
    y.zero_()
    assert float(loss(torch.ones(16, 1))) == 0


def test_signals_come_and_go_in_one_form():
    operator = Downsample((4, 6), 2)
    image = random(4, 6, 3)
    expected = operator(image)
    assert expected.shape == (2, 3, 3)
    torch.testing.assert_close(operator(image.reshape(24, 3)), expected.reshape(6, 3))
    torch.testing.assert_close(operator(image[..., 0]), expected[..., 0])
    torch.testing.assert_close(operator(image[..., 0].flatten()), expected[..., 0].flatten())
    torch.testing.assert_close(operator @ image.numpy(), expected)
    assert operator(image.float()).dtype == torch.float32
    for bad, message in [
        (random(5, 6), "must be the signal, of shape .4, 6."),
        (torch.full((4, 6), torch.nan), "must be finite"),
        (torch.full((4, 6), complex(0, torch.inf)), "must be finite"),
        (torch.ones(4, 6, dtype=torch.int64), "floating-point"),
        ([1.0], "must be a torch.Tensor"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            operator(bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex32])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_signals_of_16_bits_are_taken(dtype, axes):
    """By all operators alike, to the digits of the dtype: eps times the norms, a factor for the operators' own sums."""
    shape = (4, 6, 8)[:axes]
    made = [Mask.random(shape, 0.5), Downsample(shape, 2), Gaussian(shape, measurements=9), Fourier(shape)]
    made += [Blur(shape, torch.ones((3,) * axes) / 3**axes, boundary) for boundary in ("zero", "mirror", "wrap")]
    made += [FourierMagnitude(shape), GaussianMagnitude(shape, measurements=9), Fourier(shape) @ made[-1]]
    made += [Downsample(shape, 2, "bicubic"), *([Radon(6, 4)] if axes == 2 else [])]
    wide, eps = (torch.complex128 if dtype.is_complex else torch.float64), torch.finfo(dtype).eps
    for operator in made:
        x = random(*operator.shape_in).to(wide).to(dtype)
        found, expected = operator(x), operator(x.to(wide))
        assert float((found.to(expected) - expected).norm()) < 8 * eps * float(expected.norm()), operator
        if operator.linear:
            y = random(*operator.shape_out).to(wide).to(dtype)
            found, expected = operator.adjoint(y), operator.adjoint(y.to(wide))
            assert float((found.to(expected) - expected).norm()) < 8 * eps * float(expected.norm()), operator
    full = FourierMagnitude((300, 300), 1.0)(torch.ones(300, 300).half())
    assert float(full.max()) == 90_000  # above the largest number of fp16
    assert float(FourierMagnitude((300, 300), 1.0).loss(full)(torch.ones(90_000, 1).half())) < 1e-9


def test_products_want_matching_grids():
    with pytest.raises(ValueError, match="is not what the first takes"):
        Downsample((4, 4), 2) @ Downsample((4, 4), 2)
    with pytest.raises(TypeError, match="must be linear"):
        Downsample((8, 8), 2) @ FourierMagnitude((4, 4), 2.0)


@settings(max_examples=40, deadline=None)
@given(operators(), st.booleans())
def test_losses_are_weighted_means_and_their_gradients_go_through_the_adjoint(operator, weighted):
    truth, guess = random(*operator.shape_in, 2), random(*operator.shape_in, 2).flip(-1).cos()
    y = operator(truth)
    weight = random(*operator.shape_out).square() + 0.1 if weighted else None
    loss = operator.loss(y, weight)
    predictions = guess.reshape(-1, 2).requires_grad_()
    value = loss(predictions, None)
    difference = operator(guess) - y
    w = torch.ones(operator.shape_out, dtype=torch.float64) if weight is None else weight
    expected = (w[..., None] * difference.abs().square()).sum() / (2 * w.sum())
    torch.testing.assert_close(value, expected)
    (slope,) = torch.autograd.grad(value, predictions)
    back = operator.adjoint(w[..., None] * difference / w.sum()).reshape(-1, 2)
    torch.testing.assert_close(slope, back.real, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("measurements", "weight", "message"),
    [
        (torch.ones(3, 3), None, "must be those of Downsample"),
        (torch.full((2, 2), torch.nan), None, "must be finite"),
        (torch.ones(2, 2, dtype=torch.complex64), None, "must be real"),
        (torch.ones(2, 2), torch.ones(3), "weight must have shape"),
        (torch.ones(2, 2), torch.zeros(2, 2), "above zero somewhere"),
        (torch.ones(2, 2), -torch.ones(2, 2), "zero or more everywhere"),
    ],
)
def test_bad_measurements_are_refused(measurements, weight, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Downsample((4, 4), 2).loss(measurements, weight)


def test_fits_must_take_all_points_in_their_order():
    operator = Downsample((4, 4), 2)
    points, zeros = inr.grid((4, 4)), torch.zeros(16, 1)
    fit = {"steps": 1, "loss": operator.loss(torch.ones(2, 2)), "progress": False}
    net = inr.INR(2, 1, width=4)
    inr.fit(net, points, zeros, **fit)
    with pytest.raises(ValueError, match="fit without batch_size"):
        inr.fit(net, points, zeros, batch_size=8, **fit)
    with pytest.raises(ValueError, match="all 16 points with 1 channels"):
        inr.fit(inr.INR(2, 2, width=4), points, torch.zeros(16, 2), **fit)


def test_a_loss_follows_the_networks_dtype():
    operator = Mask.random((4, 4), 0.5)
    loss = operator.loss(np.ones(8))
    net = inr.INR(2, 1, width=4, dtype=torch.float32)
    result = inr.fit(net, inr.grid((4, 4)), torch.zeros(16, 1), steps=2, loss=loss, progress=False)
    assert math.isfinite(result.losses[-1])
