"""Errors stated of a factor pass against long double, which has eleven bits more."""

import math

import numpy as np
import pytest
import torch
from extended_precision import LONG, eigenvalues, factors, kernel, needs_long_double
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import mild, random_coords
from torch import nn

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.analysis.diagnosis import diagnose
from inrfast.errors import ResolutionError
from inrfast.rounding import SAFETY, pass_errors

pytestmark = needs_long_double


@st.composite
def deep_networks(draw):
    """Any activations; frequencies that amplify rounding up to chaos among them."""
    depth = draw(st.integers(1, 5))
    init = draw(st.sampled_from(["default", "kaiming", "siren"]))
    omega = draw(st.sampled_from([1.0, 5.0, 30.0]))
    names = draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=depth, max_size=depth))
    activation = [mild(name) for name in names]
    if draw(st.booleans()):
        activation = [activation[0]] * depth
    net = inr.INR(
        2,
        draw(st.integers(1, 3)),
        width=draw(st.sampled_from([3, 24, 96])),
        hidden_layers=depth,
        activation=activation,
        omega=omega,
        encoding=draw(st.sampled_from([None, None, inr.RandomFourier(6, 2.0)])),
        init=init,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
    )
    with torch.no_grad():
        net.layers[0].weight.mul_(draw(st.sampled_from([1.0, 1.0, 20.0])))
    return net


def squared_differences(one, other):
    """Return ``sum_n |s' z'^T - s z^T|^2`` of two sets of factors, and that of the features and sensitivities."""
    rows = np.zeros(len(one), LONG)
    single = np.zeros((2, len(one)), LONG)
    for layer, ((z, s), (z2, s2)) in enumerate(zip(one, other, strict=True)):
        dz = z2 - z
        single[0, layer] = (dz**2).sum()
        if s is None:
            rows[layer] = (dz**2).sum()
            continue
        ds = s2 - s
        single[1, layer] = (ds**2).sum()
        moved = ds[..., None] * z2[:, None, None] + s[..., None] * dz[:, None, None]
        rows[layer] = (moved**2).sum()
    return rows, single


@settings(max_examples=25)
@given(net=deep_networks(), seed=st.integers(0, 10**6))
def test_the_bound_holds_what_rounding_does_to_the_jacobian(net, seed):
    coords = random_coords(60, 2, seed).to(net.layers[0].weight.dtype)
    features, sensitivities = factors(net, coords)
    truth = list(zip(features, [*sensitivities, None], strict=True))
    K = inr.ntk(net, coords, precision="highest")
    found = [tuple(f if f is None else f.numpy().astype(LONG) for f in pair) for pair in K.capture.exact(coords)]
    rows, single = squared_differences(truth, found)
    rows[-1] *= net.out_features
    error = math.sqrt(float(rows.sum()))
    # Numbers of 1: what is far below one rounding of the Jacobian itself is luck.
    luck = 2.0**-53 * math.sqrt(K.trace())
    assert error <= K.jacobian_error
    assert K.jacobian_error <= 10_000 * max(error, luck)  # products of numbers of fp32 are exact, which nobody sees
    stated = pass_errors(K.capture.exact, coords, net.out_features)
    for kind, states in enumerate((stated.features, stated.sensitivities)):
        for true, squared in zip(single[kind], states.tolist(), strict=True):
            assert math.sqrt(float(true)) <= SAFETY * math.sqrt(squared) + 1e-300


NETWORKS = {
    "chaos": {"activation": "finer", "hidden_layers": 5},
    "sine": {"activation": "sine", "hidden_layers": 5},
    "siren": {"activation": "sine", "hidden_layers": 3, "init": "siren"},
    "relu": {"hidden_layers": 3},
}


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS)
def measured(request):
    net, coords = inr.INR(2, 1, width=48, **request.param), inr.grid((13, 13))
    exact = kernel(net, coords)
    return net, coords, exact, *eigenvalues(exact)


@pytest.mark.parametrize("method", ["dense", "cholesky", "lanczos"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
def test_claims_of_a_spectrum_hold_the_truth(measured, method, kept):
    """Also where factors are recomputed, so that a column and a product are not of the same kernel to the last bit."""
    net, coords, exact, truth, rest = measured
    K = inr.ntk(net, coords, precision="highest")
    if not kept:
        K.left.store.budget = 6 * K.left.store.bytes_per_point * 20
        assert not K.left.store.fits
    count = {"k": 12} if method == "lanczos" else {}
    s = K.spectrum(1e-9, method=method, eigenvectors=True, progress=False, **count)
    values = s.eigenvalues.numpy().astype(LONG)
    known = truth[: len(values)]
    assert (values - s.lower_error - rest <= known).all()
    assert (known <= values + s.upper_error + rest).all()
    lower, upper = (bound.numpy().astype(LONG) for bound in s.bounds())
    assert (lower - rest <= known).all()
    assert (known <= upper + rest).all()
    if len(values) < len(truth):
        assert truth[len(values)] <= s.beyond + rest
    vectors = s.eigenvectors.numpy().astype(LONG)
    residuals = np.linalg.norm((exact @ vectors - vectors * values[: vectors.shape[1]]).astype(float), axis=0)
    assert residuals.max() <= max(s.lower_error, s.upper_error) * (1 + 1e-9)
    for rtol in (1e-2, 1e-5, 1e-9):
        try:
            rank = s.rank(rtol)
        except ResolutionError:
            continue
        assert int((truth > rtol * truth[0]).sum()) in rank


def test_small_eigenvalues_are_known_better_than_the_largest():
    """The error of J moves a singular value by so much, and an eigenvalue by its root times as much."""
    net, coords = inr.INR(2, 1, width=48, activation="finer", hidden_layers=5), inr.grid((13, 13))
    s = inr.ntk(net, coords).spectrum(1e-9)
    lower, upper = s.bounds()
    assert float((upper - lower)[-1]) < 0.1 * (s.lower_error + s.upper_error)
    assert s.floor < 1e-3 * s.upper_error / float(s.eigenvalues[0])


def test_any_module_is_measured():
    """The same network by hooks and by closed form, within what a sample leaves open."""
    closed = inr.INR(2, 2, width=24, hidden_layers=3, activation="tanh")
    with torch.no_grad():
        closed.layers[1].weight.mul_(20)
    linear = list(closed.layers)
    hooked = nn.Sequential(*(module for layer in linear[:-1] for module in (layer, nn.Tanh())), linear[-1])
    errors = [inr.ntk(net, inr.grid((9, 9)), precision="highest").jacobian_error for net in (closed, hooked)]
    assert 1 / 3 < errors[0] / errors[1] < 3


def test_one_point_far_out_is_not_missed():
    coords = inr.grid((10, 10), dtype=torch.float64)
    coords[37] *= 1e8
    options = {"activation": "tanh", "encoding": inr.RandomFourier(8, 5.0), "dtype": torch.float64, "seed": 1}
    net = inr.INR(2, 1, width=16, hidden_layers=1, **options)
    truth, rest = eigenvalues(kernel(net, coords))
    s = inr.ntk(net, coords).spectrum(1e-10)
    assert (np.abs(s.eigenvalues.numpy().astype(LONG) - truth) <= s.upper_error + rest).all()


def test_of_what_fp64_cannot_compute_nothing_is_claimed():
    net = inr.INR(1, 1, width=3, hidden_layers=5, activation="sine", omega=30.0, init="xavier", seed=11)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.mul_(1000)
    s = inr.ntk(net, random_coords(30, 1, 0)).spectrum(1e-6)
    assert math.isinf(s.upper_error)
    with pytest.raises(ResolutionError, match="below the floor inf"):
        s.rank(0.5)


@settings(max_examples=8)
@given(scale=st.sampled_from([1.0, 3.0, 10.0]), seed=st.integers(0, 100))
def test_ranks_of_representations_contain_those_of_long_double(scale, seed):
    net = inr.INR(2, 1, width=12, hidden_layers=4, activation="sine", omega=10.0 * scale, seed=seed)
    coords = inr.grid((8, 8))
    report = diagnose(net, coords, rtols=(1e-2, 1e-4, 1e-6), ntk_points=16, progress=False)
    for found, z in zip(report.representations, factors(net, coords)[0], strict=True):
        squares, rest = eigenvalues(z.T @ z)
        for rank, rtol in zip(found.with_ones.ranks, (1e-2, 1e-4, 1e-6), strict=True):
            level = LONG(rtol) ** 2 * squares[0]
            assert rank.lower <= int((squares > level - rest).sum())
            assert int((squares > level + rest).sum()) <= rank.upper


@pytest.mark.parametrize("head", [1.0, 1e-12, 0.0])
@pytest.mark.parametrize("far", [1, 60])
@pytest.mark.parametrize("activation", [{"activation": "finer"}, {"activation": "sine", "init": "siren"}])
def test_points_where_a_network_amplifies_rounding_beyond_bounds_are_no_hinges(head, far, activation):
    """With a head of zeros such a point run alone repeats to the bit: nothing adds up in another order."""
    coords = (torch.arange(300) / 150 - 1)[:, None]
    coords[100 : 100 + far] = 1e6 * (1 + torch.arange(far)[:, None] / 7) * (1 if "init" not in activation else 1e6)
    for seed in range(3):
        net = inr.INR(1, 1, width=16, hidden_layers=1, omega=30.0, seed=seed, **activation)
        with torch.no_grad():
            net.layers[-1].weight *= head
        K = inr.ntk(net, coords, precision="highest")
        assert K.jacobian_error == math.inf
        with pytest.raises(ResolutionError):
            K.spectrum(1e-3, method="inertia")


def test_a_layer_whose_part_rounding_spoils_is_told_where_others_are_larger():
    """The first layer's part is tiny beside the head's, and noise: its error says so, that of the sum stays small."""
    net = inr.INR(1, 1, width=16, hidden_layers=1, activation="tanh", seed=0, dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].weight.fill_(1.0)
        net.layers[0].bias.fill_(17.5)  # 1 - tanh^2 keeps one or two digits
    K = inr.ntk(net, inr.grid((40,), dtype=torch.float64), precision="highest")
    assert K.jacobian_error <= 1e-9 * math.sqrt(K.trace())
    layer = K.layers["layers.0"]
    assert layer.jacobian_error >= 1e-3 * math.sqrt(layer.trace())
