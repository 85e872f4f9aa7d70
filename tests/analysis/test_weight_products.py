"""Products of weights against NumPy in fp64 and in long double."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import networks
from torch import nn

import inrfast as inr
from inrfast.analysis.weight_products import weight_products

RTOLS = (1e-1, 1e-3, 1e-6)


@settings(max_examples=10)
@given(net=networks(max_width=20, max_depth=5), head=st.booleans())
def test_the_spectra_are_those_of_the_dense_products(net, head):
    layers = list(net.layers)[: None if head else -1]
    weights = [layer.weight.detach().double().numpy().astype(np.longdouble) for layer in layers]
    found = weight_products(net, head, RTOLS)
    assert len(found) == len(layers) - 1
    for k, product in enumerate(found):
        assert product.factors == tuple(f"layers.{j}" for j in reversed(range(k, len(layers))))
        exact = weights[-1]
        for weight in reversed(weights[k:-1]):
            exact = exact @ weight
        values = np.linalg.svd(exact.astype(np.float64), compute_uv=False)
        spectrum, known = product.spectrum, np.array(product.spectrum.singular_values)
        off = (spectrum.floor + 1e-13) * values[0]
        assert (spectrum.rows, spectrum.columns) == exact.shape
        assert np.all(np.abs(known - values[: len(known)]) <= off)
        assert np.all(values[len(known) :] <= 2 * off)
        counts = [int((values > rtol * values[0]).sum()) for rtol in RTOLS]
        assert all(count in rank for count, rank in zip(counts, spectrum.ranks, strict=True))
    if not head and net.hidden_layers > 1:
        assert [w.factors for w in found] == [
            w.factors
            for w in inr.diagnose(net, torch.zeros(3, net.in_features), ntk_points=0, jacobian_pixels=0).weight_products
        ]


def test_a_product_that_loses_its_digits_is_a_wide_interval_and_no_number():
    net = inr.INR(2, 1, width=16, hidden_layers=150)
    longest = weight_products(net)[0].spectrum
    assert longest.ranks[-1].lower < longest.ranks[-1].upper
    assert all(1 in rank for rank in longest.ranks)  # such a product is next to a rank-one matrix


def test_a_chain_is_needed():
    assert weight_products(inr.INR(2, 1, width=4, hidden_layers=1)) == ()
    for net, reason in ((nn.Linear(2, 1), "a Linear"), ("net", "no torch.nn.Module")):
        with pytest.raises(TypeError, match=f"net must be an inrfast.INR.*{reason}"):
            weight_products(net)
    with pytest.raises(TypeError, match="rtols"):
        weight_products(inr.INR(2, 1, width=4), rtols=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    for index, name in enumerate(("layers.0", "layers.1", "layers.2")):
        net = inr.INR(2, 1, width=4, hidden_layers=3)
        with torch.no_grad():
            net.layers[index].weight[0, 0] = value
        with pytest.raises(ValueError, match=rf"the weight of '{name}' must be finite"):
            weight_products(net)
