"""Errors stated of a factor pass against long double, which has eleven bits more."""

import math
from dataclasses import replace

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
from inrfast.rounding import SAFETY, pass_errors, selections_in_doubt
from inrfast.tangent.capture import Capture

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hinges_that_grid_points_lie_on_are_in_doubt_only_where_sums_round(dtype):
    """In one dimension the rank-expanding units switch exactly at grid points; nothing rounds there."""
    coords = inr.grid(48, dtype=dtype)
    K = inr.ntk(inr.INR(1, 1, width=48, init="rank_expanding", dtype=dtype), coords, precision="highest")
    assert K.jacobian_error <= 1e-13 * math.sqrt(K.trace())


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), width=st.integers(2, 24), side=st.integers(1, 4))
def test_hinges_in_the_middle_of_a_symmetric_grid_are_not_in_doubt(seed, width, side):
    """A batch norm calibrated there puts every hinge at the middle point, where ``b - mean`` is often exactly 0."""
    net = inr.INR(2, 1, width=width, hidden_layers=2, norm="batch", norm_position="pre", seed=seed)
    coords = inr.grid((2 * side + 1,) * 2)
    inr.calibrate_batchnorm_(net, coords)
    K = inr.ntk(net.eval(), coords, precision="highest")
    assert K.jacobian_error <= 1e-11 * math.sqrt(K.trace())


@settings(max_examples=10)
@given(d=st.integers(1, 2), depth=st.integers(1, 3), seed=st.integers(0, 1000))
def test_slopes_that_rounding_decides_are_in_the_error(d, depth, seed):
    """Hinges of an fp64 network through its points: whether ``fl(w x) + b`` is above 0 is chance."""
    coords = inr.grid((6,) * d, dtype=torch.float64)
    net = inr.INR(d, 2, width=12, hidden_layers=depth, seed=seed, dtype=torch.float64)
    first = net.layers[0]
    with torch.no_grad():
        first.bias.copy_(-(first.weight * coords[torch.arange(12) % len(coords)]).sum(1))
    exact = kernel(net, coords)
    truth, rest = eigenvalues(exact)
    s = inr.ntk(net, coords).spectrum(1e-10)
    lower, upper = (bound.numpy().astype(LONG) for bound in s.bounds())
    assert (lower - rest <= truth).all()
    assert (truth <= upper + rest).all()


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


# ---- selections --------------------------------------------------------------------------------------------------


def with_twins(norm, position, k, seed):
    """A network whose units are the same at points with two equal coordinates, in pairs, but for the order of a sum."""
    options = {"width": 8, "hidden_layers": 2, "activation": "tanh", "norm": [{"name": norm, "k": k}, None]}
    net = inr.INR(3, 2, **options, norm_position=position, seed=seed, dtype=torch.float64).eval()
    with torch.no_grad():
        weight, bias = net.layers[0].weight, net.layers[0].bias
        weight[1::2], bias[1::2] = weight[::2].flip(1), bias[::2]
    coords = random_coords(30, 3, seed).double()
    coords[:, 2] = coords[:, 0]
    return net, coords


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 3, 7]))
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("norm", ["topk", "topk_sphere"])
def test_which_unit_is_kept_is_in_doubt_where_rounding_says_it(norm, position, k, seed):
    """Of two units as large as the smallest that is kept, either or both may be: the Jacobians lie within the error."""
    net, coords = with_twins(norm, position, k, seed)
    capture = Capture(net, coords)
    layer, own = capture.mlp.hidden[0], capture.mlp
    u = coords @ layer.linear.weight.mT + layer.linear.bias
    kept = layer.norm.kept(u.tanh() if position == "post" else u).bool()
    order = u.abs()[:, ::2].argsort(1, descending=True)[:, (k - 1) // 2]
    pair = torch.stack([2 * order, 2 * order + 1], 1)
    error = capture.pass_errors(coords).jacobian.sum(1) * SAFETY**2
    for choice in ((True, False), (False, True), (True, True)):
        chosen = kept.clone().scatter_(1, pair, torch.tensor(choice).expand(30, 2))
        hidden = (replace(layer, norm=replace(layer.norm, chosen=chosen)), *own.hidden[1:])
        other = capture._closed_factors(replace(own, hidden=hidden), coords)
        rows, _ = squared_differences(*[[(z.numpy(), None if s is None else s.numpy()) for z, s in made]
                                        for made in (capture.exact(coords), other)])  # fmt: skip
        assert (rows <= error.numpy() * (1 + 1e-6) + 1e-20).all()
    with pytest.raises(ResolutionError):
        inr.ntk(net, coords, precision="highest").spectrum(rtol=1e-6).rank()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["topk", "topk_sphere"]),
    activation=st.sampled_from(["relu", "sine"]),
    width=st.integers(1, 60),
)
def test_no_selection_is_in_doubt_at_points_of_no_symmetry(seed, norm, activation, width):
    """And none where sums are exact: at 0 two units of opposite slopes are equally large, in any order of the sum."""
    points = random_coords(100, 2, seed).double()
    net = inr.INR(2, 1, width=width, hidden_layers=3, activation=activation, init="siren", norm=norm, seed=seed)
    mlp = Capture(net.double().eval(), points).mlp
    assert len(selections_in_doubt(mlp, lambda x: x, points)) == 0

    line = inr.INR(1, 1, width=2, hidden_layers=1, norm={"name": norm, "k": 1}, dtype=torch.float64)
    with torch.no_grad():
        line.layers[0].weight.copy_(torch.tensor([[0.3], [-0.3]]).double())
        line.layers[0].bias.copy_(torch.tensor([0.7, 0.7]).double())
    mlp, zero = Capture(line.eval(), torch.zeros(1, 1).double()).mlp, torch.zeros(1, 1).double()
    assert len(selections_in_doubt(mlp, lambda x: x, zero)) == 0
