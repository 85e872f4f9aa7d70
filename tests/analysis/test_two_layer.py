"""The closed form of two-layer ReLU networks against sampled networks and against the variance of an INR."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import random_coords

import inrfast as inr
from inrfast.errors import RangeError


def sampled(x, width, scale, count, seed=0):
    """The variances, mean eigenvalues and off-diagonal parts of so many networks' kernels, from their gates."""
    rng = torch.Generator().manual_seed(seed)
    w = torch.randn(count, width, x.shape[1], generator=rng, dtype=torch.float64)
    gates = (w @ x.t() > 0).double()
    H = scale**2 / width * (x @ x.t()) * (gates.mT @ gates)
    diagonal = H.diagonal(dim1=1, dim2=2)
    whole = H.square().sum((1, 2)) / len(x) - diagonal.mean(1).square()
    return whole, diagonal.mean(1), whole - diagonal.var(1, correction=0)


@given(st.integers(1, 5), st.sampled_from([1, 2, 7, 50]), st.integers(2, 12), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_mean_over_networks_is_the_closed_form(d, width, n, scale):
    x = random_coords(n, d, n).double() * 2
    x[0] = x[-1] if n > 2 else x[0]  # a point given twice
    count = 4000
    found = inr.two_layer_variance(x, width, scale)
    parts = (found.variance, found.mean, found.off_diagonal)
    for values, expected in zip(sampled(x, width, scale, count), parts, strict=True):
        assert (
            abs(float(values.mean()) - expected) <= 5 * float(values.std()) / math.sqrt(count) + 1e-12 * found.variance
        )
    assert found.variance == pytest.approx(found.off_diagonal + found.diagonal, rel=1e-15)


def two_layer(d, width, scale, seed):
    """The model as an INR without biases, its head weights of one size and random signs."""
    net = inr.INR(d, 1, width=width, hidden_layers=1, bias=False, dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        first, head = net.layers[0].weight, net.layers[1].weight
        first.copy_(0.3 * torch.randn(first.shape, generator=rng, dtype=torch.float64))
        head.copy_(torch.randn(head.shape, generator=rng, dtype=torch.float64).sign() * scale / math.sqrt(width))
    return net


@pytest.mark.parametrize("mapping", [None, inr.PositionalEncoding(3)])
def test_exact_variances_of_networks_scatter_around_it(mapping):
    """By 5 standard errors of 60 networks, the similarities too: also behind an encoding."""
    coords, width, scale, seeds = inr.grid((9, 9), dtype=torch.float64), 40, 2.0, 60
    inputs = coords
    if mapping is not None:
        inputs = inr.INR(2, 1, width=4, encoding=mapping, dtype=torch.float64).encoding(coords)
    expected = inr.two_layer_variance(inputs, width, scale)
    found = [
        inr.variance(
            two_layer(inputs.shape[1], width, scale, seed), inputs, params=["layers.0.weight"], precision="highest"
        )
        for seed in range(seeds)
    ]
    for name in ("variance", "mean"):
        values = torch.tensor([getattr(own, name) for own in found], dtype=torch.float64)
        mean, scatter = getattr(expected, name), float(values.std()) / math.sqrt(seeds)
        assert abs(float(values.mean()) - mean) <= 5 * scatter + 1e-12 * mean  # mu does not scatter on a grid
    inner = torch.tensor([own.similarities.gate for own in found], dtype=torch.float64)
    assert float(inner.mean()) == pytest.approx(expected.gate, rel=0.05)
    layer = next(iter(found[0].layers.values()))
    assert layer.sensitivities == pytest.approx(found[0].similarities.gate, rel=1e-6)  # of equal head weights


def test_the_limit_of_infinite_width_and_the_rate_towards_it():
    x = random_coords(700, 3, 0).double()  # several tiles
    limit = inr.two_layer_variance(x, None)
    off = [inr.two_layer_variance(x, width) for width in (10, 1000)]
    rest = [own.variance - limit.variance for own in off]
    assert rest[0] == pytest.approx(100 * rest[1], rel=1e-9)  # 1/m exactly
    rho, q = x @ x.t(), x.square().sum(1)
    cosine = (rho / torch.outer(q, q).sqrt()).clamp(-1, 1)
    p = (math.pi - cosine.acos()) / (2 * math.pi)
    H = rho * p
    truth = float(torch.linalg.eigvalsh(H.fill_diagonal_(0) + torch.diag(q / 2)).var(correction=0))
    assert limit.variance == pytest.approx(truth, rel=1e-10)
    weights = torch.outer(q, q).fill_diagonal_(0)
    assert limit.input == pytest.approx(float((weights * cosine**2).sum() / weights.sum()), rel=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_of_points_only_scale_it(size):
    x = random_coords(20, 2, 0).double()
    plain, other = inr.two_layer_variance(x, 8), inr.two_layer_variance(size * x, 8)
    assert other.normalised == pytest.approx(plain.normalised, rel=1e-12)
    assert inr.two_layer_variance(x, 8, scale=-3.0).variance == pytest.approx(81 * plain.variance, rel=1e-12)


def test_points_at_zero_and_bad_arguments():
    found = inr.two_layer_variance(torch.zeros(3, 2), 4)
    assert found.mean == found.variance == 0 and math.isnan(found.normalised) and found.input is found.gate is None
    x = inr.grid((4, 4))
    for bad, error, words in (
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"width": 2.5}, TypeError, "width must be an integer"),
        ({"scale": math.inf}, ValueError, "scale must be finite"),
        ({"inputs": x[:1]}, ValueError, "at least 2 points"),
        ({"inputs": x * math.nan}, ValueError, "inputs must be finite"),
        ({"inputs": x.double() * 1e40}, RangeError, "fourth powers"),
        ({"progress": 1}, TypeError, "progress must be"),
    ):
        with pytest.raises(error, match=words):
            inr.two_layer_variance(**({"inputs": x, "width": 4} | bad))


@pytest.mark.parametrize(("scale", "length"), [(1e200, 1.0), (1e-90, 1.0), (1.0, 1e-90), (1.0, 1e60)])
def test_sizes_whose_fourth_powers_fp64_does_not_hold_are_refused(scale, length):
    points = length * torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(inr.errors.RangeError, match="fourth powers"):
        inr.two_layer_variance(points, 8, scale)
