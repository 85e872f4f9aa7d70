"""Starts around the paper's: hinges turn about their points, and nothing else changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.experiments.inlet_rank_collapse.starts import (
    BASELINES,
    FAMILY,
    LARGE,
    SCALED,
    SCALES,
    STARTS,
    turn_,
)
from inrfast.nn import INR


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(4, 40),
    gain=st.floats(0.5, 10),
    eps=st.floats(1e-3, 0.2),
    directions=st.sampled_from(["inward", "random"]),
    seed=st.integers(0, 99),
)
def test_turned_units_keep_their_points_their_value_there_and_their_slope(width, gain, eps, directions, seed):
    options = {"init": {"first": {"name": "rank_expanding", "gain": gain, "eps": eps}, "hidden": "kaiming"}}
    paper, net = (INR(2, 1, width=width, seed=seed, dtype=torch.float64, **options) for _ in range(2))
    turn_(net, directions, options, seed)
    weight, bias = paper.layers[0].weight, paper.layers[0].bias
    points = (eps - bias / gain).unsqueeze(1) * weight / gain
    turned = net.layers[0]
    assert turned.weight.norm(dim=1).tolist() == pytest.approx([gain] * width)
    at_points = (turned.weight * points).sum(1) + turned.bias
    assert at_points.tolist() == pytest.approx([gain * eps] * width)
    if directions == "inward":
        assert torch.allclose(turned.weight, -weight, rtol=1e-12)
    else:
        assert not torch.allclose(turned.weight, weight)
    for one, two in zip(paper.layers[1:], net.layers[1:], strict=True):
        assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_the_family_holds_every_combination_once_and_the_papers_start_beside_it():
    whole = [tuple(start.factors.values()) for start in FAMILY.values() if start.factors]
    assert len(set(whole)) == len(whole) == 3 * 3 * 5 * 2 - 1
    assert len(STARTS) == len(BASELINES) + len(FAMILY)
    kept = [start.network(2, 3, 5, 16).state_dict() for start in STARTS.values()]
    flat = [torch.cat([value.flatten() for value in state.values()]) for state in kept]
    for place, one in enumerate(flat):
        assert not any(torch.equal(one, other) for other in flat[:place]), list(STARTS)[place]


def test_a_scaled_layer_is_the_only_one_that_differs():
    scaled = {name: start for name, start in FAMILY.items() if not start.factors}
    assert len(scaled) == len(LARGE) * len(SCALED) * len(SCALES)
    for name, start in scaled.items():
        base = FAMILY[name.rsplit("-", 1)[0]].network(2, 3, 3, 16)
        ((layer, factor),) = start.options["scales"].items()
        for place, (one, two) in enumerate(zip(base.layers, start.network(2, 3, 3, 16).layers, strict=True)):
            scale = factor if place == int(layer) else 1.0
            assert torch.allclose(two.weight, scale * one.weight) and torch.allclose(two.bias, scale * one.bias)
