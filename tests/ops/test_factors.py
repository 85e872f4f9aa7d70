"""The factor pass: a room that is used again changes nothing; the fused pass as an operator of torch.

(The kernel's tests hold its numbers to automatic differentiation, tests/kernels the fused pass to the plain one.)
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import networks, random_coords

import inrfast as inr
from inrfast.ops import factors
from inrfast.ops.factors import Room
from inrfast.ops.operands import Layout, make_plan
from inrfast.tangent.capture import Capture


@settings(max_examples=40)
@given(networks(max_width=20, max_depth=3), st.lists(st.integers(1, 30), min_size=2, max_size=4))
def test_a_room_can_be_used_again(net, sizes):
    capture, room = Capture(net, random_coords(5, net.in_features, 0)), Room()
    for seed, n in enumerate(sizes):
        coords = random_coords(n, net.in_features, seed)
        before = coords.clone()
        reused, fresh = capture.exact(coords, room), capture.exact(coords)
        for one, other in zip(reused, fresh, strict=True):
            for a, b in zip(one, other, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)
        assert torch.equal(coords, before)


def test_memory_of_a_room_grows_and_stays():
    room, like = Room(), torch.zeros((), dtype=torch.float64)
    large = room.take("x", (4, 3), like)
    assert room.take("x", (2, 3), like).data_ptr() == large.data_ptr()
    assert room.take("y", (2, 3), like).data_ptr() != large.data_ptr()
    assert room.take("x", (9, 9), like).shape == (9, 9)


# ---- the fused pass ------------------------------------------------------------------------------------------------


def mlp(seed=0, device="cpu", **kwargs):
    coords = random_coords(9, 2, 0).double().to(device)
    net = inr.INR(2, kwargs.pop("outputs", 1), width=12, hidden_layers=2, seed=seed, **kwargs)
    return Capture(net.to(device), coords)._mlp


def arguments(found, device):
    layout = Layout(factors.layer_shapes(found[0]), "trace", 1, "fp64")
    plan = make_plan("high", layout, [(4.0, 1.0)] * 3)
    parameters = torch.stack([factors.flat_parameters(one) for one in found])
    tables = ([2, 12, 12, 1], True, "relu", [1.0, 1.0], "trace", plan.layout.format, list(plan.exponents))
    return random_coords(9, 2, 0).double().unsqueeze(0).to(device), parameters, tables, plan


def test_many_networks_and_vmap_are_one_by_one(device):
    nets = [mlp(seed, device) for seed in range(3)]
    inputs, parameters, tables, plan = arguments(nets, device)
    together = factors.mlp_operands(nets, inputs[0], plan)
    for k, net in enumerate(nets):
        one = factors.mlp_operands([net], inputs[0], plan)
        for name in ("slabs", "narrow", "scale"):
            assert torch.equal(getattr(together, name)[k], getattr(one, name)[0])
    batched = torch.vmap(lambda p: factors.mlp_slabs(inputs, p.unsqueeze(0), *tables))(parameters)
    for ours, theirs in zip(batched, (together.slabs, together.narrow, together.scale), strict=True):
        assert torch.equal(ours[:, 0], theirs)
    points = torch.stack([inputs, inputs + 1, inputs - 1])
    moved = torch.vmap(lambda x: factors.mlp_slabs(x, parameters, *tables))(points)
    for k, x in enumerate(points):
        for ours, theirs in zip(moved, factors.mlp_slabs(x, parameters, *tables), strict=True):
            assert torch.equal(ours[k], theirs)


@pytest.mark.parametrize(
    ("kwargs", "output", "covered"),
    [
        ({}, "trace", True),
        ({"bias": False}, 0, True),
        ({"outputs": 8}, "full", True),
        ({"outputs": 9}, "full", False),
        ({"outputs": 9}, "trace", True),
        ({"norm": "sphere"}, "trace", False),
        ({"activation": ["relu", "tanh"]}, "trace", False),
    ],
)
def test_what_the_fused_pass_covers(kwargs, output, covered):
    assert (factors.reason_against(mlp(**kwargs), output) is None) is covered


@given(networks(max_width=20, max_depth=3), st.integers(1, 30))
def test_ranges_are_those_of_the_features(net, n):
    coords = random_coords(n, net.in_features, 0)
    capture = Capture(net, coords)
    if factors.reason_against(capture._mlp, "trace") is not None:
        return
    found = factors.feature_ranges(capture._mlp, capture.inputs(coords))
    for (largest, smallest), values in zip(found, capture.representations(coords).values(), strict=True):
        rows = values.abs().amax(1)
        bounded = net.layers[0].bias is not None and capture._mlp.activations[0].bound is not None
        if bounded:
            assert rows.amax() <= largest * (1 + 1e-6) + 1e-12
        else:
            assert rows.amax() == pytest.approx(largest, rel=1e-4)
            assert rows[rows > 0].amin() == pytest.approx(smallest, rel=1e-3, abs=1e-6 * largest) or rows.amax() == 0
