"""Gates and selections that rounding decides: found in every layer, and what they may do lies within stated errors."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from extended_precision import LONG, eigenvalues, kernel, layers, needs_long_double
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_networks import mild, networks, random_coords, registered
from test_rounding import squared_differences

import inrfast as inr
from inrfast import doubts, switches
from inrfast.activations import ACTIVATIONS, Activation
from inrfast.doubts import DIRECTION, GATE, in_doubt
from inrfast.errors import ResolutionError, UnsupportedModuleError
from inrfast.modes import own_modes
from inrfast.ops.factors import activation_slopes
from inrfast.rounding import SAFETY
from inrfast.tangent.capture import Capture

pytestmark = needs_long_double

FILTERS = [None, {"name": "fourier", "scale": 4.0}, {"name": "gabor", "scale": 4.0}]


@st.composite
def deep_networks(
    draw, names=("relu", "relu", "identity", "sine", "tanh"), norms=(None, "batch", "layer", "sphere", "topk")
):
    """Networks in fp64 with norms and filters, and points."""
    depth, d = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    some = st.lists(st.sampled_from(names), min_size=depth, max_size=depth)
    norm, filters = draw(st.sampled_from(norms)), st.lists(st.sampled_from(FILTERS), min_size=depth, max_size=depth)
    net = inr.INR(
        d,
        draw(st.integers(1, 2)),
        width=draw(st.sampled_from([3, 12, 40])),
        hidden_layers=depth,
        activation=[mild(name) for name in draw(some)],
        omega=draw(st.sampled_from([1.0, 5.0])),
        encoding=draw(st.sampled_from([None, None, inr.RandomFourier(6, 1.0)])),
        norm=norm,
        norm_position=draw(st.sampled_from(["pre", "post"])),
        bias=True,
        modulation=draw(st.just(None) | filters.filter(any)),
        seed=draw(st.integers(0, 10**6)),
        dtype=torch.float64,
    )
    coords = random_coords(24, d, draw(st.integers(0, 10**6))).double()
    if norm == "batch":
        inr.calibrate_batchnorm_(net, random_coords(50, d, 1).double())
    with torch.no_grad():
        for module in net.norms:
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return net.eval(), coords


@torch.no_grad()
def plant_(net, coords, places):
    """Move biases so that units are zero at points up to rounding: places (point, layer, unit), by layers."""
    z = coords if net.encoding is None else net.encoding(coords)
    for k in range(net.hidden_layers):
        layer, norm = net.layers[k], net.norms[k]
        shifted = net.norm_position == "pre" and hasattr(norm, "bias")
        for point, _, unit in [place for place in places if place[1] == k]:
            u = norm(layer(z)) if shifted else layer(z)
            (norm if shifted else layer).bias[unit] -= u[point, unit]
        z = net.modulated(k, net.activate(k, layer(z)), coords)


@st.composite
def planted(draw, most=3, **options):
    """Such networks with up to ``most`` units of ReLU layers at a hinge, at points that no probe looks at."""
    net, coords = draw(deep_networks(**options))
    relus = [k for k, act in enumerate(net.bound_activations) if act.name == "relu"]
    assume(relus)
    width = net.layers[0].out_features
    place = st.tuples(st.integers(3, 4), st.sampled_from(relus), st.integers(0, width - 1))
    places = draw(st.lists(place, min_size=1, max_size=most, unique_by=lambda own: own[1:]))
    plant_(net, coords, places)
    return net, coords


def found(net, coords):
    """The capture of a network's linear layers, and what is in doubt."""
    try:
        capture = Capture(net, coords, params=[f"layers.{k}" for k in range(net.hidden_layers + 1)])
    except UnsupportedModuleError:  # a hinge at a point where factors are compared with automatic differentiation
        assume(False)
        raise
    with own_modes():
        return capture, in_doubt(capture.modulated_mlp, capture.inputs, coords)


def true_gates(net, coords):
    """Which units of each layer are active, in long double, where it can tell (which is asked for)."""
    u = [given for _, _, given, _ in layers(net, coords)]
    assume(all(np.isfinite(own).all() for own in u))
    for k, act in enumerate(net.bound_activations):
        sizes = np.abs(u[k][u[k] != 0]) if act.name == "relu" else np.ones(1)
        assume(sizes.size == 0 or sizes.min() > 1e-18)
    return [own > 0 for own in u]


@settings(max_examples=40, deadline=None)
@given(deep_networks(names=tuple(sorted(ACTIVATIONS))))
def test_bounds_of_every_layer_hold_its_errors(given):
    net, coords = given
    mlp, capture = found(net, coords)[0].modulated_mlp, found(net, coords)[0]
    with own_modes():
        z = capture.inputs(coords)
        each = doubts._at_inputs(z, doubts._input_errors(mlp, capture.inputs, coords))
        coarse = doubts.Errors(each.norm(dim=1), None)
        fine, y = doubts.Errors(each.norm(dim=1), each), z
        for layer, (_, truth, _, _) in zip(mlp.hidden, layers(net, coords), strict=True):
            own = doubts._Layer.of(layer)
            z, coarse, _ = doubts._through_layer(own, z, coarse, coords)
            y, fine, _ = doubts._through_layer(own, y, fine, coords)
            for values, errors in ((z, coarse), (y, fine)):
                lost = np.abs(values.numpy().astype(LONG) - truth)
                assert (np.sqrt((lost**2).sum(1)) <= errors.length.numpy() * (1 + 1e-6) + 1e-300).all()
                if errors.each is not None:
                    assert (lost <= errors.each.numpy() * (1 + 1e-6) + 1e-300).all()  # where it underflows
            weight = layer.linear.weight
            assert torch.linalg.matrix_norm(weight, 2) <= own.spectral <= 2 * torch.linalg.matrix_norm(weight, 2)


@settings(max_examples=60, deadline=None)
@given(planted(most=5))
def test_gates_that_rounding_gets_wrong_are_in_doubt(given):
    net, coords = given
    truth = true_gates(net, coords)
    capture, places = found(net, coords)
    known = {tuple(place[:3]) for place in places.tolist()}
    unknown = {point for point, _, _, kind in places.tolist() if kind == DIRECTION}
    for points in (slice(None), slice(0, 1), slice(0, 7)):  # sums of other shapes round in other ways
        with own_modes():
            x = coords[points]
            slopes = activation_slopes(capture.modulated_mlp, capture.inputs(x), coords=x)
        for k, act in enumerate(net.bound_activations):
            if act.name == "relu":
                wrong = np.argwhere((slopes[k].numpy() > 0) != truth[k][points])
                assert {(int(point), k, int(unit)) for point, unit in wrong if int(point) not in unknown} <= known


@settings(max_examples=25, deadline=None)
@given(planted(most=4, names=("relu", "relu", "tanh")))
def test_any_choice_of_gates_in_doubt_lies_within_the_error(given):
    """Of several layers at a point too, where one gate shuts the way to another."""
    net, coords = given
    capture, places = found(net, coords)
    gates = places[places[:, 3] == GATE]
    assume(0 < len(gates) <= 6)
    error = capture.pass_errors(coords).jacobian.sum(1) * SAFETY**2
    mlp, exact = capture.modulated_mlp, capture.exact(coords)
    for choice in itertools.product([False, True], repeat=len(gates)):
        some = gates[list(choice)]
        with own_modes():
            other = switches._other(mlp, some[:, 0], some, capture.inputs(coords), coords)
            moved = capture._closed_factors(other, coords)
        rows, _ = squared_differences(*[[(z.numpy(), None if s is None else s.numpy()) for z, s in made]
                                        for made in (exact, moved)])  # fmt: skip
        assert (rows <= error.numpy() * (1 + 1e-9)).all()


@settings(max_examples=40, deadline=None)
@given(planted(most=2))
def test_spectra_and_ranks_hold_the_truth_where_units_lie_on_hinges(given):
    net, coords = given
    true_gates(net, coords)
    truth, rest = eigenvalues(kernel(net, coords))
    capture, _ = found(net, coords)
    K = inr.ntk(net, coords, params=[layer.name for layer in capture.layers], precision="highest")
    s = K.spectrum(1e-10)
    lower, upper = (bound.numpy().astype(LONG) for bound in s.bounds())
    assert (lower - rest <= truth).all()
    assert (truth <= upper + rest).all()
    for rtol in (1e-1, 1e-2, 1e-4):
        try:
            assert int((truth > rtol * truth[0]).sum()) in inr.numerical_rank(K, rtol)
        except ResolutionError:
            continue


@settings(max_examples=40, deadline=None)
@given(networks(max_width=64), st.integers(0, 10**6))
def test_nothing_is_in_doubt_at_points_of_no_symmetry(net, seed):
    coords = random_coords(200, net.in_features, seed).double()
    capture = Capture(net, coords)
    with own_modes():
        assert len(in_doubt(capture.modulated_mlp, capture.inputs, coords)) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(0, 10**6), st.booleans())
def test_units_that_are_exactly_zero_are_in_doubt_in_no_layer(depth, seed, pointwise):
    """Sums of small whole numbers round nowhere, however many layers there are."""
    generator = torch.Generator().manual_seed(seed)
    net = inr.INR(2, 1, width=7, hidden_layers=depth, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape, generator=generator))
    coords = torch.randint(-2, 3, (40, 2), generator=generator).double()
    u = [given for _, _, given, _ in layers(net, coords)]
    assume(any((own == 0).any() for own in u))
    assert len(found(net, coords)[1]) == 0


def test_a_jump_in_slope_of_ones_own_activation_is_found():
    def slope(u):
        return torch.where(u > 0, 1.0, 0.1).to(u.dtype)

    with registered(Activation("leaky", value=lambda u: u * slope(u), slope=slope)):
        jumping = [name for name in sorted(ACTIVATIONS) if inr.activations.bind(mild(name)).sides is not None]
        assert jumping == ["leaky", "relu"]
        net = inr.INR(1, 1, width=4, hidden_layers=2, activation="leaky", dtype=torch.float64, seed=3)
        coords = random_coords(24, 1, 0).double()
        plant_(net, coords, [(3, 0, 2), (3, 1, 3)])
        places = found(net, coords)[1]
        assert [3, 1, 3, GATE] in places.tolist()
        wide = inr.ntk(net, coords).jacobian_error
        with torch.no_grad():
            net.layers[1].bias[3] += 1e-9
        assert wide > 1e6 * inr.ntk(net, coords, params=["layers.1", "layers.2"]).jacobian_error


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
    assert len(in_doubt(mlp, lambda x: x, points)) == 0

    line = inr.INR(1, 1, width=2, hidden_layers=1, norm={"name": norm, "k": 1}, dtype=torch.float64)
    with torch.no_grad():
        line.layers[0].weight.copy_(torch.tensor([[0.3], [-0.3]]).double())
        line.layers[0].bias.copy_(torch.tensor([0.7, 0.7]).double())
    mlp, zero = Capture(line.eval(), torch.zeros(1, 1).double()).mlp, torch.zeros(1, 1).double()
    assert len(in_doubt(mlp, lambda x: x, zero)) == 0
