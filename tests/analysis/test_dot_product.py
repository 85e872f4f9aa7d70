"""Theorem 3.3 as code: encodings that turn one dot-product kernel into another, and those that do not exist."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inrfast as inr
from inrfast.analysis.dot_product import evaluated
from inrfast.analysis.power_series import power_series

F64 = torch.float64
C = torch.cos(torch.linspace(0, math.pi, 2001, dtype=F64)).clamp(-1, 1)


def polynomial(coefficients):
    """A dot-product kernel with these coefficients, of real and of complex c."""
    return lambda c: evaluated(torch.as_tensor(coefficients, dtype=F64), c)


def exponential(c):
    return torch.exp(c - 1)


def nngp(depth, bias=0.0):
    return lambda c: inr.infinite_ntk(depth, bias_variance=bias).of_cosine(c, "nngp")


KERNELS = {
    "exp": exponential,
    "ntk": inr.infinite_ntk(2),
    "ntk with biases": inr.infinite_ntk(3, bias_variance=0.4),
    "nngp": nngp(2),
    "polynomial": polynomial([0.0, 0.7, 0.1, 0.2]),
}


def of(kernel):
    return kernel.of_cosine if isinstance(kernel, inr.InfiniteNTK) else kernel


@settings(max_examples=8)
@given(
    name=st.sampled_from(sorted(KERNELS)),
    coefficients=st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
    tolerance=st.sampled_from([1e-2, 1e-5]),
)
def test_a_kernel_of_a_kernel_is_reached_and_its_coefficients_found(name, coefficients, tolerance):
    """K* = K o p with p >= 0 and p(1) = 1: then h is p, whose coefficients come out again."""
    p = np.array(coefficients) / sum(coefficients)
    K = of(KERNELS[name])
    inside = evaluated(torch.from_numpy(p), C)
    if float(inside.amin()) < -0.8:  # where the tangent kernel without biases falls
        return
    found = inr.dot_product_encoding(KERNELS[name], lambda c: K(polynomial(p)(c)), tolerance)
    assert found.exact and found.reached and found.negative == () and found.refused == 0
    series = np.zeros(65)
    series[: len(p)] = p
    allowed = np.maximum(8 * np.array(found.series_error), 1e-12)
    assert (np.abs(np.array(found.series) - series) <= allowed).all()
    measured = (K(found.inner_product(C)) - K(inside)).abs().amax()
    assert measured <= found.error * (1 + 1e-6) + 1e-12 and found.error < tolerance
    assert found.squared_length == pytest.approx(1, abs=1e-12)
    assert found.error <= found.bound + 1e-12  # K's modulus over twice the coefficients left out
    assert found.degree <= len(p) - 1


def test_a_network_behind_the_encoding_has_the_kernel():
    """End to end, with the vectors themselves, whose length is 1 times the root of their number of entries."""
    K = inr.infinite_ntk(2)
    target = polynomial([0.2, 0.5, 0.0, 0.3])
    found = inr.dot_product_encoding(K, lambda c: K.of_cosine(target(c)), 1e-6)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = x / x.norm(dim=1, keepdim=True)
    encoding = found.encoding.build(3, torch.Generator(), torch.device("cpu"), F64)
    columns = encoding(x)
    torch.testing.assert_close(columns.norm(dim=1), torch.ones(20, dtype=F64))
    kernel = K(columns * math.sqrt(columns.shape[1]))
    torch.testing.assert_close(kernel, K.of_cosine(target((x @ x.t()).clamp(-1, 1))), rtol=0, atol=2e-6)
    net = inr.INR(3, 1, width=16, encoding=found.encoding, dtype=F64)
    assert torch.equal(net.encoding(x), columns)


def test_known_series():
    """exp(s (c - 1)) from exp(c - 1) is h = 1 - s + s c; and log((1 + e^c) / (1 + e)) has Bernoulli's series."""
    half = inr.dot_product_encoding(exponential, lambda c: torch.exp((c - 1) / 2), 1e-9)
    assert half.degree == 1 and half.coefficients == pytest.approx((0.5, 0.5), abs=1e-14)
    assert half.lipschitz == pytest.approx(1, rel=1e-5) and half.paper_degree == 1

    def logistic(c):
        return (1 + torch.exp(c)) / (1 + math.e)

    with pytest.warns(RuntimeWarning, match="negative coefficients"):
        found = inr.dot_product_encoding(exponential, logistic, 1e-5, 12)
    # h = 1 + log((1 + e^c) / (1 + e)); log(1 + e^c) = log 2 + c/2 + c^2/8 - c^4/192 + c^6/2880 - ...
    known = [1 + math.log(2 / (1 + math.e)), 1 / 2, 1 / 8, 0, -1 / 192, 0, 1 / 2880, 0, -17 / 645120]
    assert found.series[:9] == pytest.approx(known, abs=1e-12)
    assert found.negative[:3] == (4, 8, 12) and not found.exact and found.bound == math.inf
    assert found.refused == pytest.approx(1 / 192 + 17 / 645120, rel=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_where_a_coefficient_is_negative_no_degree_helps_and_no_other_coefficients_do_better():
    """A tangent kernel cannot be made smooth. Random and descending searches in the simplex find nothing nearer."""
    K = inr.infinite_ntk(2)
    errors = [inr.dot_product_encoding(K, exponential, 1e-3, degree, normalize=True).error for degree in (4, 16)]
    assert max(errors) - min(errors) < 0.05 * max(errors) and min(errors) > 0.04 * 6
    top = float(K.of_cosine(torch.ones(1, dtype=F64)))
    wanted, draw = top * exponential(C), np.random.default_rng(0)

    def error(weights):
        return float((K.of_cosine(polynomial(weights)(C).clamp(-1, 1)) - wanted).abs().amax())

    best, least = np.ones(6) / 6, math.inf
    for step in range(600):
        trial = np.abs(best + draw.standard_normal(6) * 0.3 * 0.99**step)
        trial /= trial.sum()
        if (found := error(trial)) < least:
            best, least = trial, found
    assert least > 0.99 * errors[-1]


@pytest.mark.filterwarnings("ignore")
def test_no_target_with_a_finite_slope_is_reached_from_a_tangent_kernel():
    """h'(1) = K*'(1) / K'(1) = 0, and sum k a_k > 0: no target has a series without negative coefficients."""
    K = inr.infinite_ntk(2)
    assert inr.dot_product_encoding(K, K).lipschitz == math.inf
    for scale, power in ((1, 1), (4, 2)):
        found = inr.dot_product_encoding(
            K, lambda c, s=scale, p=power: torch.exp((c**p - 1) / s), 1e-3, 8, normalize=True
        )
        assert not found.exact and not found.reached


def test_lengths_and_ranges_are_told():
    K = inr.infinite_ntk(2)
    small = lambda c: 0.9 * K.of_cosine((1 + c) / 2)  # noqa: E731
    with pytest.warns(RuntimeWarning, match=r"squared length 0\.\d+, not 1"):
        found = inr.dot_product_encoding(exponential, lambda c: 0.9 * torch.exp((c - 1) / 2), 1e-3)
    assert found.squared_length == pytest.approx(1 + math.log(0.9), abs=1e-9)
    scaled = inr.dot_product_encoding(K, small, 1e-3, normalize=True)
    assert scaled.exact and scaled.squared_length == pytest.approx(1) and scaled.scale == pytest.approx(1 / 0.9)
    assert inr.infinite_ntk(2).of_cosine(C).amin() < inr.infinite_ntk(2).of_cosine(C[-1:]).item()  # no bijection
    assert scaled.increasing_from == pytest.approx(-0.85, abs=0.01)
    with pytest.raises(ValueError, match=r"values that kernel takes where it increases \(from c = -1 to 1\)"):
        inr.dot_product_encoding(exponential, polynomial([0, 1]))
    with pytest.raises(ValueError, match="must increase towards c = 1"):
        inr.dot_product_encoding(lambda c: -c, exponential)


def test_a_singularity_inside_the_disc_is_no_series():
    c = C.flip(0)
    series = power_series(lambda z: z, lambda z: torch.sqrt(z * z + 0.09) / 2, 0.15, 16, c, (c * c + 0.09).sqrt() / 2)
    assert not series.analytic and len(series.coefficients) == 0
    with pytest.warns(RuntimeWarning, match="a singularity inside the unit disc"):
        found = inr.dot_product_encoding(lambda z: z, lambda z: torch.sqrt(z * z + 0.09) / 1.09**0.5, 1e-3, 16)
    assert not found.exact and found.series == ()


BAD = {
    "no function": (lambda: inr.dot_product_encoding(3, exponential), "kernel must be a function of c"),
    "two arguments": (lambda: inr.dot_product_encoding(exponential, lambda x, y: x), "does not take them"),
    "another shape": (lambda: inr.dot_product_encoding(exponential, lambda c: c[:3]), "one number per c"),
    "NaN": (lambda: inr.dot_product_encoding(exponential, torch.log), "target must be real and finite"),
    "tolerance": (lambda: inr.dot_product_encoding(exponential, exponential, 0), "tolerance must be above 0"),
    "degree": (lambda: inr.dot_product_encoding(exponential, exponential, 1e-2, 1000), "must be at most 512, got 1000"),
    "negative at 1": (lambda: inr.dot_product_encoding(exponential, lambda c: -c, normalize=True), "positive at 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    call, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
