"""The native factor pass against the pass of torch's operations in fp64, for every set of instructions here."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_coords

import inrfast as inr
from inrfast.mlp import describe
from inrfast.ops import mlp_step
from inrfast.ops.factor_pass import ACTIVATIONS, FactorPass, forms_of, reason_against
from inrfast.ops.factors import mlp_factors
from inrfast.ops.gram import gram_diagonal

FOUND = mlp_step.instructions()
INSTRUCTIONS = {"avx512": ["avx512", "avx2"], "avx2": ["avx2"], "": []}[FOUND]

pytestmark = pytest.mark.skipif(not INSTRUCTIONS, reason="this processor, build or environment has no native step")


@st.composite
def mlps(draw, max_width=70):
    """Networks that the native pass takes, in fp64."""
    depth = draw(st.integers(1, 4))
    activation = draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=depth, max_size=depth))
    net = inr.INR(
        draw(st.integers(1, 40)),
        draw(st.integers(1, 4)),
        width=draw(st.integers(1, max_width)),
        hidden_layers=depth,
        activation=activation,
        omega=draw(st.sampled_from([1.0, 3.0])),
        init=draw(st.sampled_from(["default", "siren"])),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
        dtype=torch.float64,
    )
    return describe(net).detached()


def passes(mlp):
    for instructions in INSTRUCTIONS:
        made = FactorPass.of(mlp)
        made.instructions = instructions
        yield made


def targets(mlp, n, dtype, ones=True):
    m = mlp.outputs
    features = [torch.full((n, layer.inputs + ones), math.nan, dtype=dtype) for layer in mlp.layers]
    sensitivities = [torch.full((n, m, layer.outputs), math.nan, dtype=dtype) for layer in mlp.layers[:-1]]
    return list(zip(features, [*sensitivities, None], strict=True))


def flat(pairs):
    return [tensor for pair in pairs for tensor in pair if tensor is not None]


@given(mlps(), st.integers(1, 200), st.booleans())
@settings(max_examples=40, deadline=None)
def test_factors_are_those_of_torch(mlp, n, ones):
    assert reason_against(mlp) is None
    inputs = random_coords(n, mlp.inputs, n).double()
    with torch.no_grad():
        exact = mlp_factors(mlp, inputs)
    wanted = [z if ones else z[:, :-1] for z in exact.features], [*exact.sensitivities, None]
    wanted = flat(zip(*wanted, strict=True))
    for made in passes(mlp):
        wide, narrow = targets(mlp, n, torch.float64, ones), targets(mlp, n, torch.float32, ones)
        assert made.into(inputs, wide)
        assert made.into(inputs, narrow)
        for own, rounded, truth in zip(flat(wide), flat(narrow), wanted, strict=True):
            size = truth.flatten(1).abs().amax(1).view(-1, *(1,) * (truth.ndim - 1)).clamp_min(1e-300)
            assert ((own - truth).abs() <= 1e-11 * size).all()
            assert torch.equal(rounded, own.float())  # once, and from the same numbers
        some = torch.arange(n - 1, -1, -3)
        beside = targets(mlp, len(some), torch.float64, ones)
        made.into(inputs[some], beside)
        assert all(torch.equal(own[some], other) for own, other in zip(flat(wide), flat(beside), strict=True))


@given(mlps())
@settings(max_examples=20, deadline=None)
def test_parameters_come_back_and_probes_tell_sizes(mlp):
    inputs = random_coords(4, mlp.inputs, 0).double()
    with torch.no_grad():
        exact = mlp_factors(mlp, inputs)
    for made in passes(mlp):
        for layer, (weight, bias) in zip(mlp.layers, made.parameters(), strict=True):
            assert torch.equal(layer.weight, weight)
            assert bias is None if layer.bias is None else torch.equal(layer.bias, bias)
        assert made.finite
        largest, changes = made.probe(inputs, 2.0**-40)
        for index, (found, change) in enumerate(zip(largest, changes, strict=True)):
            z = exact.features[index][:, : exact.features[index].shape[1] - (mlp.layers[index].bias is None)]
            s = None if index == len(mlp.hidden) else exact.sensitivities[index]
            truth = float(gram_diagonal([(z, s)], "trace", mlp.outputs).amax())
            assert found == pytest.approx(truth, rel=1e-10, abs=1e-300)
            assert not change < 0


def test_a_network_that_amplifies_rounding_changes_by_disturbances():
    """Phases of 1e9: a disturbance of 2^-40 turns them by a thousandth and more."""
    mild = inr.INR(2, 1, width=32, activation="sine", init="siren", dtype=torch.float64)
    wild = inr.INR(2, 1, width=32, activation="sine", init="siren", omega=1e9, dtype=torch.float64)
    inputs = random_coords(4, 2, 0).double()
    for net, low, high in ((mild, 1e-13, 1e-9), (wild, 1e-5, math.inf)):
        for made in passes(describe(net).detached()):
            assert low <= max(made.probe(inputs, 2.0**-40)[1]) <= high


def test_sines_are_those_of_the_c_library():
    """Of angles from 0 to 1e8, those next to multiples of pi/2 among them."""
    net = inr.INR(1, 1, width=1, hidden_layers=1, activation="sine", omega=1.0, bias=False, dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].weight.fill_(1)
        net.layers[1].weight.fill_(1)
    mlp = describe(net).detached()
    near = torch.arange(-3000, 3000, dtype=torch.float64) * (math.pi / 2)
    wide = torch.logspace(-300, 8, 3000, dtype=torch.float64)
    angles = torch.cat(
        [near * (1 + 1e-15 * torch.randn(6000, dtype=torch.float64)), wide, -wide, torch.zeros(1).double()]
    )
    for made in passes(mlp):
        found = targets(mlp, len(angles), torch.float64, ones=False)
        made.into(angles.unsqueeze(1), found)
        for own, exact in ((found[1][0], math.sin), (found[0][1], math.cos)):
            truth = torch.tensor([exact(x) for x in angles.tolist()], dtype=torch.float64)
            assert ((own.flatten() - truth).abs() <= 3e-16 * truth.abs().clamp_min(0.1)).all()


@pytest.mark.parametrize(("scale", "held"), [(1.0, True), (1e14, False), (1e-14, False)])
def test_features_whose_squares_fp32_does_not_hold_are_told(scale, held):
    net = inr.INR(2, 1, width=9, bias=False, dtype=torch.float64)
    mlp = describe(net).detached()
    for made in passes(mlp):
        inputs = scale * random_coords(30, 2, 0).double().abs().add_(0.1)
        assert made.into(inputs, targets(mlp, 30, torch.float32, ones=False)) == held
        assert made.into(inputs, targets(mlp, 30, torch.float64, ones=False))


def test_what_it_does_not_take_has_a_reason():
    def reason(**options):
        return reason_against(describe(inr.INR(2, 1, width=8, dtype=torch.float64, **options), modulated=True))

    assert reason() is None
    assert "gelu" in reason(activation="gelu")
    assert "norms" in reason(norm="sphere")
    assert "filters" in reason(modulation="fourier")
    assert "float32" in reason_against(describe(inr.INR(2, 1, width=8)))


def test_forms_are_those_of_the_layers():
    mlp = describe(inr.INR(2, 3, width=8, hidden_layers=2, activation="sine", omega=5.0))
    assert forms_of(mlp) == [(2, 8, "sine", [5.0]), (8, 8, "sine", [5.0]), (8, 3, "identity", [])]
