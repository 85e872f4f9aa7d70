"""Initialisers against the distributions of their papers."""

import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import inrfast as inr
from inrfast.initialisers import dead_units, default_, expands_rank, kaiming_, siren_, xavier_


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_uniform(values, bound):
    """Bounded by, and filling, (-bound, bound), with the variance of the uniform distribution."""
    values = values.detach()
    assert float(values.abs().max()) <= bound
    assert float(values.abs().max()) > 0.99 * bound
    assert float(values.var()) == pytest.approx(bound**2 / 3, rel=0.05)


def test_uniform_initialisers_have_their_papers_bounds():
    a, b = 300, 200
    linear = nn.Linear(a, b)
    default_(linear, generator())
    assert_uniform(linear.weight, 1 / math.sqrt(a))
    assert float(linear.bias.abs().max()) <= 1 / math.sqrt(a)
    xavier_(linear, generator())
    assert_uniform(linear.weight, math.sqrt(6 / (a + b)))
    assert not linear.bias.any()
    siren_(linear, omega=30.0, generator=generator())
    assert_uniform(linear.weight, math.sqrt(6 / a) / 30)
    siren_(linear, first=True, generator=generator())
    assert_uniform(linear.weight, 1 / a)


def test_default_has_torchs_own_variance():
    ours, torchs = nn.Linear(64, 4000), nn.Linear(64, 4000)
    default_(ours, generator())
    assert float(ours.weight.var()) == pytest.approx(float(torchs.weight.var()), rel=0.02)
    assert float(ours.bias.var()) == pytest.approx(float(torchs.bias.var()), rel=0.08)


def test_kaiming_is_normal_with_variance_two_over_fan_in():
    linear = kaiming_(nn.Linear(500, 400), generator())
    assert float(linear.weight.var()) == pytest.approx(2 / 500, rel=0.02)
    assert float((linear.weight**4).mean() / linear.weight.var() ** 2) == pytest.approx(3, rel=0.05)
    assert not linear.bias.any()


@pytest.mark.parametrize(("bias", "bound"), [("uniform_sqrt", 0.1), ("uniform", math.sqrt(6 / 100) / 5), ("zero", 0)])
def test_siren_bias_conventions(bias, bound):
    linear = siren_(nn.Linear(100, 3000), omega=5.0, bias=bias, generator=generator())
    if bound:
        assert_uniform(linear.bias, bound)
    else:
        assert not linear.bias.any()


def test_siren_networks_use_each_layers_omega():
    net = inr.INR(2, 1, width=400, hidden_layers=2, activation="sine", omega=[30.0, 10.0], init="siren")
    assert_uniform(net.layers[0].weight, 1 / 2)
    assert_uniform(net.layers[1].weight, math.sqrt(6 / 400) / 10)
    zero = inr.INR(2, 1, width=4, activation="sine", init={"name": "siren", "bias": "zero"})
    assert not any(layer.bias.any() for layer in zero.layers)


def test_rank_expanding_in_place_and_its_options_through_the_network():
    weight, bias = inr.rank_expanding(20, 2, eps="cover", gain=3.0)
    linear = nn.Linear(2, 20)
    assert inr.init.rank_expanding_(linear, eps="cover", gain=3.0) is linear
    assert torch.equal(linear.weight, weight)
    assert torch.equal(linear.bias, bias)
    rule = {"first": {"name": "rank_expanding", "eps": "cover", "gain": 3.0}, "hidden": "kaiming"}
    net = inr.INR(2, 1, width=20, init=rule)
    assert torch.equal(net.layers[0].weight, weight)
    assert not net.layers[1].bias.any()


def test_rank_expanding_is_a_drop_in_for_every_dtype():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        linear = inr.init.rank_expanding_(nn.Linear(3, 30, dtype=dtype))
        expected = inr.rank_expanding(30, 3, dtype=torch.float64)[0]
        torch.testing.assert_close(linear.weight.double(), expected, rtol=1e-2, atol=1e-2)


def test_bad_input_is_refused_by_name():
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear"):
        inr.init.rank_expanding_(nn.Conv1d(1, 1, 1))
    with pytest.raises(ValueError, match="with a bias"):
        inr.init.rank_expanding_(nn.Linear(2, 4, bias=False))
    with pytest.raises(ValueError, match="Did you mean 'uniform'"):
        siren_(nn.Linear(2, 2), bias="unifrom")
    with pytest.raises(ValueError, match="omega"):
        siren_(nn.Linear(2, 2), omega=0)


@settings(max_examples=40)
@given(
    d=st.integers(1, 4),
    points=st.sampled_from([1, 2, 100, 5000]),
    shift=st.floats(-3, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_dead_units_are_those_that_no_point_wakes(d, points, shift, bias, seed):
    """Against every unit at every point, exactly."""
    rng = generator(seed)
    linear = nn.Linear(d, 40, bias=bias, dtype=torch.float64)
    default_(linear, rng)
    coords = shift + torch.randn(points, d, generator=rng, dtype=torch.float64)
    assert dead_units(linear, coords) == int((linear(coords) <= 0).all(0).sum())


DOORS = {
    "fit": lambda net, coords: inr.fit(net, coords, coords[:, :1] / 9, steps=1, data_range=1),
    "fit parallel": lambda net, coords: inr.fit(nn.DataParallel(net), coords, coords[:, :1], steps=1, data_range=1),
    "diagnose": lambda net, coords: inr.diagnose(net, coords, ntk_points=0, jacobian_pixels=0),
    "ntk": lambda net, coords: inr.ntk(net, coords),
    "jacobian": lambda net, coords: inr.jacobian(net, coords),
    "representation": lambda net, coords: inr.representation(net, coords, "layers.0"),
    "adapt": lambda net, coords: inr.adapt(net, coords, torch.stack([coords[:, :1], -coords[:, :1]]) / 9, steps=1),
    "meta_learn": lambda net, coords: inr.meta_learn(
        net, coords, torch.stack([coords[:, :1], -coords[:, :1]]) / 999, steps=1, batch=1, lr=1e-9, inner_lr=1e-9
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("bounds", [(0, 1), (0, 255), [(-1, 1), (5, 9)], (-9, 9), [(-1, 1), (-2, 1)]], ids=str)
def test_hinges_among_other_coordinates_are_warned_of_once_and_bounds_repair_them(bounds, door):
    coords = inr.grid((12, 12), bounds=bounds)
    make = partial(inr.INR, 2, 1, width=64, hidden_layers=1)
    net = make(init="rank_expanding")
    dead = int((net.layers[0](coords) <= 0).all(0).sum())
    told = f"{dead} of the 64 units .* dead" if dead >= 4 else "none in most of that box"
    with pytest.warns(UserWarning, match=rf"{told}.*'bounds': .*init\.apply_\(net") as caught:
        DOORS[door](net, coords)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DOORS[door](net, coords)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule = {"name": "rank_expanding", "bounds": bounds}
        for init in (rule, {"first": rule}):
            DOORS[door](make(init=init), coords)
        cured = make(init="rank_expanding")
        inr.init.apply_(cured, "rank_expanding", coords=coords)
        DOORS[door](cured, coords)
        DOORS[door](make(init="siren", activation="sine", bounds=bounds), coords)


def test_trained_networks_and_grids_of_the_same_box_are_not_warned_of():
    """Hinges that were trained may lie anywhere, as long as they live."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for endpoint in ("inclusive", "exclusive", "center"):
            x = inr.grid((5, 7), endpoint=endpoint)
            net = inr.INR(2, 1, width=64, init="rank_expanding")
            inr.fit(net, x, x[:, :1], steps=1)
        inr.ntk(net, inr.grid((5, 7), bounds=(-9, 9)))


def test_a_rule_tells_whether_its_first_layer_is_rank_expanding():
    options = {"name": "rank_expanding", "gain": 2.0}
    assert expands_rank("rank_expanding") == {}
    assert expands_rank(options) == expands_rank({"first": options, "hidden": "kaiming"}) == {"gain": 2.0}
    for rule in ("default", {"name": "siren"}, {"hidden": "kaiming"}, {"first": "xavier"}):
        assert expands_rank(rule) is None
