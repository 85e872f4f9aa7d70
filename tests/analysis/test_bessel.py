"""The Bessel series is the network: at any point within its bound, and on a grid bin by bin."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inrfast as inr
from inrfast.analysis.bessel import bessel_series
from inrfast.analysis.harmonics import input_mapping
from inrfast.errors import MemoryBudgetError


@st.composite
def sines(draw):
    """Small networks of two layers of sines, with and without biases, or of one behind an encoding."""
    d, m = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    seed, bias = draw(st.integers(0, 99)), draw(st.booleans())
    omegas = [draw(st.sampled_from([1.0, 9.0])), draw(st.sampled_from([0.5, 2.0]))]
    encodings = [None, inr.RandomFourier(1, 2.0), inr.PositionalEncoding(1)] if d == 1 else [None]
    encoding = draw(st.sampled_from(encodings))
    count = 2 if encoding is None else 1
    return inr.INR(d, m, width=draw(st.integers(1, 3)), hidden_layers=count, activation="sine", omega=omegas[-count:],
                   encoding=encoding, bias=bias, seed=seed, dtype=torch.float64)  # fmt: skip


@given(net=sines(), atol=st.sampled_from([1e-12, 1e-6, 1e-2]))
@settings(max_examples=30)
def test_the_series_is_the_network_within_its_bound(net, atol):
    series = bessel_series(net, atol=atol)
    coords = 4 * torch.rand(100, net.in_features, dtype=torch.float64) - 2
    with torch.no_grad():
        error = (series(coords) - net(coords)).abs().max().item()
    assert error <= series.error + 1e-13 and series.error <= atol


@given(seed=st.integers(0, 99), biases=st.booleans())
@settings(max_examples=15)
def test_its_coefficients_are_those_of_the_fft(seed, biases):
    """With whole frequencies, on [0, 1): the series has its own orders, the FFT knows none of them."""
    net = inr.INR(1, 1, width=3, hidden_layers=2, activation="sine", omega=[2 * math.pi, 1.0], bias=biases, seed=seed,
                  dtype=torch.float64)  # fmt: skip
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.tensor([[1.0], [3.0], [4.0]]))
        spectrum = torch.fft.fft(net(inr.grid(512, "exclusive", (0, 1), torch.float64))[:, 0]) / 512
    series = bessel_series(net, atol=1e-13)
    frequencies, coefficients = series.fourier()
    bins = torch.zeros(512, dtype=torch.complex128)
    bins.index_add_(0, frequencies[:, 0].round().long() % 512, coefficients[:, 0])
    assert (bins - spectrum).abs().max() < 1e-10
    assert len(frequencies) == len(frequencies.round().unique())
    if not biases:
        assert series.coefficients.imag.abs().max() < 1e-15


def test_without_biases_a_coefficient_is_the_product_of_equation_7():
    from scipy.special import jv

    net = inr.INR(1, 1, width=2, hidden_layers=2, activation="sine", omega=[5.0, 1.5], bias=False, dtype=torch.float64)
    series = bessel_series(net)
    inner, outer = 1.5 * net.layers[1].weight.detach().numpy(), net.layers[2].weight.detach().numpy()[0]
    for orders, found in list(zip(series.orders.tolist(), series.coefficients[:, 0].real.tolist(), strict=True))[::7]:
        known = sum(outer[m] * jv(orders[0], inner[m, 0]) * jv(orders[1], inner[m, 1]) for m in range(2))
        assert found == pytest.approx(known, abs=1e-15)


def test_a_series_without_room_tells_its_number_of_terms():
    net = inr.INR(1, 1, width=64, hidden_layers=2, activation="sine")
    with pytest.raises(MemoryBudgetError, match=r"a series of \d+ terms so far"):
        bessel_series(net, memory_budget=2**20)


@pytest.mark.parametrize(
    "net",
    [inr.INR(1, 1, hidden_layers=3, activation="sine"), inr.INR(1, 1, hidden_layers=2, activation=["sine", "relu"]),
     inr.INR(1, 1, hidden_layers=2, activation="sine", norm=[None, "batch"]), torch.nn.Linear(1, 1)],
)  # fmt: skip
def test_another_network_is_refused(net):
    with pytest.raises((ValueError, TypeError), match=r"^net must"):
        bessel_series(net)
    with pytest.raises(ValueError, match=r"^atol must"):
        bessel_series(inr.INR(1, 1, width=2, hidden_layers=2, activation="sine"), atol=0.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["layers.0.weight", "layers.1.weight", "layers.1.bias", "layers.2.weight"])
def test_weights_that_are_no_numbers_are_named(wrong, place):
    net = inr.INR(1, 1, width=2, hidden_layers=2, activation="sine", dtype=torch.float64)
    with torch.no_grad():
        net.get_parameter(place).view(-1)[0] = wrong
    for ask in (bessel_series, input_mapping):
        with pytest.raises(ValueError, match=f"^net holds NaN or Inf in '{place}'"):
            ask(net)
    mapped = inr.INR(1, 1, width=2, hidden_layers=1, activation="sine", encoding=inr.RandomFourier(frequencies=[[1.0]]))
    mapped.encoding.frequencies.data[0] = wrong
    with pytest.raises(ValueError, match=r"^net (must have finite frequencies|holds NaN or Inf)"):
        bessel_series(mapped)


@given(scale=st.floats(-300, 300), head=st.floats(-300, 250), width=st.sampled_from([1, 2, 40]), atol=st.floats(-12, 3))
@settings(max_examples=15)
def test_weights_of_any_size_end_in_a_series_or_a_refusal(scale, head, width, atol):
    net = inr.INR(1, 1, width=width, hidden_layers=2, activation="sine", dtype=torch.float64)
    with torch.no_grad():
        net.layers[1].weight.uniform_(-1, 1).mul_(10.0 ** (scale if scale < 2 else 6 + scale))
        net.layers[2].weight.uniform_(-1, 1).mul_(10.0**head)
    try:
        series = bessel_series(net, 10.0**atol, memory_budget=2**24)
    except MemoryBudgetError as error:
        assert "terms" in str(error)  # noqa: PT017
    else:
        assert series.error <= 10.0**atol and bool(series.coefficients.isfinite().all())
        assert len(repr(series).splitlines()) == 1
