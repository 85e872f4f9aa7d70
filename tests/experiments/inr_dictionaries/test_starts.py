"""Starts: weights as the authors' code draws them, as cells learned them, or as a file holds them."""

import numpy as np
import pytest
import torch
from tiny_faces import TINY, arrays, tiny

from inrfast.experiments.inr_dictionaries.faces import targets
from inrfast.experiments.inr_dictionaries.starts import (
    ADAM_LR,
    FFN_META,
    FFNS,
    META,
    RELU,
    REPTILE,
    SIRENS,
    images,
    points,
    random_network,
    shape,
    singles,
    weights_cells,
)
from inrfast.experiments.inr_dictionaries.weights import read_weights
from inrfast.experiments.paper import Request, Work

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small():
    with tiny():
        yield


@pytest.mark.parametrize("start", [SIRENS[0], SIRENS[-1], RELU, FFNS[2]], ids=lambda start: start.name)
def test_random_weights_are_those_of_the_authors_code(start):
    request = Request(preset="paper")
    net = random_network(start, request, CPU, torch.float64)
    assert [linear.out_features for linear in net.layers] == [256] * (4 - (start.kind == "ffn")) + [1]
    assert all((linear.bias == 0).all() for linear in net.layers)
    for i, linear in enumerate(net.layers[:-1]):
        weights, inputs = linear.weight.detach(), linear.in_features
        if start.kind == "siren":
            assert net.omegas[i] == (start.number if i == 0 else 30.0)
            bound = 0.5 if i == 0 else (6 / inputs) ** 0.5 / 30
            assert weights.abs().max() <= bound and weights.abs().max() > 0.98 * bound
        else:
            # A normal variable cut at 2 deviations has 0.7737 of its variance.
            assert weights.abs().max() <= 2 * inputs**-0.5
            assert float(weights.var() * inputs) == pytest.approx(0.7737, abs=5 / weights.numel() ** 0.5)
    if start.kind == "ffn":
        assert float(net.encoding.frequencies.std()) == pytest.approx(start.number, rel=0.2)


def test_a_start_has_the_weights_that_its_cell_learned(tmp_path):
    request = Request()
    starts = [META, REPTILE, FFN_META, *singles(request), SIRENS[0]]
    cells = weights_cells(starts, request)
    assert sorted(cell.name for cell in cells) == sorted({start.source(request) for start in starts[:-1]})
    found = {cell.name: cell.run(Work(CPU, tmp_path / f"{cell.name}.fit", False)) for cell in cells}
    for start in (META, REPTILE, FFN_META):
        state = start.network(request, found, CPU, torch.float32).state_dict()
        moved = [float((state[name] - values).abs().max()) for name, values in
                 random_network(start, request, CPU, torch.float32).state_dict().items()]  # fmt: skip
        assert 0 < max(moved) <= 2 * TINY.meta_steps * TINY.meta_lr  # Adam steps by about its rate
    losses = found[META.source(request)].numbers["losses"]
    assert len(losses) == TINY.meta_steps


def test_weights_of_a_single_image_are_those_of_torchs_adam(tmp_path):
    request = Request()
    start = singles(request)[-1]
    (cell,) = weights_cells([start], request)
    found = {cell.name: cell.run(Work(CPU, tmp_path / "x.fit", False))}
    net = random_network(start, request, CPU, torch.float64)
    there = images(request)
    coords, values = points(there.side, CPU, torch.float64), targets(there.learned, torch.float64)[start.image]
    adam = torch.optim.Adam(net.parameters(), ADAM_LR)
    for _ in range(start.steps):
        adam.zero_grad()
        (net(coords) - values).square().mean().backward()
        adam.step()
    state = start.network(request, found, CPU, torch.float64).state_dict()
    for name, weights in net.state_dict().items():
        torch.testing.assert_close(state[name], weights, rtol=0, atol=0.1 * ADAM_LR)


def test_given_weights_replace_the_learned_ones_and_lend_their_shape_to_all(tmp_path):
    np.savez(tmp_path / "w.npz", **arrays(width=7, layers=2))
    request = Request(weights=tmp_path / "w.npz")
    assert shape(request) == (7, 2) and weights_cells([META, SIRENS[0]], request) == []
    assert random_network(RELU, request, CPU, torch.float32).width == 7
    expected = read_weights(tmp_path / "w.npz").state_dict()
    state = META.network(request, {}, CPU, torch.float32).state_dict()
    assert all(torch.equal(state[name], values) for name, values in expected.items())
    np.savez(tmp_path / "w.npz", **arrays(width=6, layers=2))
    assert shape(Request(weights=tmp_path / "w.npz")) == (6, 2)  # nothing is remembered of the old contents
