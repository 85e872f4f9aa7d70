"""The fused factor pass against the plain one: every activation, output, format, shape and number of networks."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_networks import mild, random_coords

import inrfast as inr
from inrfast.activations import ACTIVATIONS, bind
from inrfast.kernels.formats import FORMATS
from inrfast.ops import factors
from inrfast.ops.operands import Layout, make_plan
from inrfast.tangent.capture import Capture

UNIT = {"fp16": 2.0**-10, "fp16x3": 2.0**-21, "tf32x3": 2.0**-24, "fp64": 2.0**-46}


def precision_of(format):
    return {"fp16": "medium", "fp16x3": "high", "tf32x3": "high", "fp64": "highest"}[format]


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    format=st.sampled_from(sorted(FORMATS)),
    n=st.sampled_from([0, 1, 31, 67]),
    inputs=st.sampled_from([1, 2, 3, 20]),
    outputs=st.integers(1, 4),
    width=st.sampled_from([9, 16, 65, 96]),
    depth=st.integers(1, 3),
    output=st.sampled_from(["trace", "full", 0]),
    bias=st.booleans(),
    models=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_fused_pass(device, activation, format, n, inputs, outputs, width, depth, output, bias, models, seed):
    own = bind(mild(activation), 3.0)
    nets = [
        inr.INR(inputs, outputs, width=width, hidden_layers=depth, activation=own, bias=bias, seed=k)
        for k in range(seed, seed + models)
    ]
    coords = random_coords(max(n, 1), inputs, seed).double()
    mlps = [Capture(net, coords)._mlp for net in nets]
    assert factors.reason_against(mlps[0], output) is None
    layout = Layout(factors.layer_shapes(mlps[0]), output, outputs, format)
    if format == "tf32x3":  # what ranges too wide for half precision lead to
        plan = make_plan("high", layout, [(1e30, 1e-30)] * (depth + 1))
        assert plan.layout.format == ("fp16x3" if all(p.narrow == "features" for p in layout.places) else "tf32x3")
    else:
        found = [factors.feature_ranges(mlp, coords) for mlp in mlps]
        ranges = [(max(r[0] for r in layer), min(r[1] for r in layer)) for layer in zip(*found, strict=True)]
        plan = make_plan(precision_of(format), layout, ranges)
        if format == "fp16":  # whatever the widths
            plan = replace(plan, layout=replace(layout, format="fp16"))
    points = coords[:n].unsqueeze(0)
    parameters = torch.stack([factors.flat_parameters(mlp) for mlp in mlps])
    names = activation, [*own.numbers] * depth
    expected = factors.mlp_operands_reference(points, parameters, plan, *names)
    made = factors._launch(points.to(device), parameters.to(device), plan, *names)
    unit = UNIT[plan.layout.format]
    # Halves add up: a high half may round the other way if the low one makes up for it.
    ours, theirs = (t.slabs.double().sum(1).cpu() for t in (made, expected))
    scale = theirs.abs().amax(dim=(1, 3), keepdim=True)
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() <= unit * (theirs.abs() + 0.1 * scale)).all()
    # The correction of fp16 alone sees a number that rounds the other way.
    rtol = {"fp16": 1e-4, "fp64": 1e-14}.get(plan.layout.format, 1e-6)
    torch.testing.assert_close(made.scale.cpu(), expected.scale, rtol=rtol, atol=0)
    torch.testing.assert_close(made.narrow.cpu(), expected.narrow, rtol=min(rtol, 1e-6), atol=0)


@pytest.mark.parametrize("hidden", [1, 40])
def test_depth_does_not_run_out_of_scratch(device, hidden):
    net = inr.INR(2, 1, width=10, hidden_layers=hidden, activation="tanh", init="xavier")
    coords = random_coords(40, 2, 0).double()
    mlp, there = Capture(net, coords)._mlp, Capture(copy.deepcopy(net).to(device), coords.to(device))._mlp
    layout = Layout(factors.layer_shapes(mlp), "trace", 1, "fp16")
    plan = make_plan("high", layout, factors.feature_ranges(mlp, coords))
    made = factors.mlp_operands([there], coords.to(device), plan)
    args = coords.unsqueeze(0), factors.flat_parameters(mlp).unsqueeze(0), plan, "tanh", [1.0] * hidden
    expected = factors.mlp_operands_reference(*args)
    torch.testing.assert_close(made.slabs.double().sum(1).cpu(), expected.slabs.double().sum(1), rtol=1e-5, atol=1e-3)
