"""Total variation and Dirichlet energy against NumPy, closed forms and autograd; random points; bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import inrfast as inr

WIDE = torch.float64
SHAPE = (7, 5)
GRID = inr.grid(SHAPE, dtype=WIDE)


def network(inputs: int = 2, outputs: int = 3) -> inr.INR:
    sine = {"activation": "sine", "init": "siren", "omega": 3.0}
    return inr.INR(inputs, outputs, width=16, hidden_layers=2, dtype=WIDE, **sine)


def slopes(net, shape):
    """Forward differences over the spacing of [-1, 1], 0 at the end of an axis: (*grid, M, d)."""
    values = net(inr.grid(shape, dtype=WIDE)).detach().numpy().reshape(*shape, -1)
    found = []
    for axis, size in enumerate(shape):
        last = np.take(values, [size - 1], axis)
        found.append(np.diff(values, axis=axis, append=last) * (size - 1) / 2)
    return np.stack(found, -1)


@pytest.mark.parametrize("shape", [(9,), SHAPE, (4, 3, 5)])
def test_differences_are_those_of_numpy(shape):
    net, points = network(len(shape)), inr.grid(shape, dtype=WIDE)
    own = slopes(net, shape)
    wanted = {
        inr.TotalVariation(points, 1): np.abs(own).sum((-1, -2)).mean(),
        inr.TotalVariation(points, 2, rows="all"): np.sqrt((own**2).sum(-1)).sum(-1).mean(),
        inr.TotalVariation(shape, dtype=WIDE): np.sqrt((own**2).sum(-1)).sum(-1).mean(),
        inr.DirichletEnergy(points.reshape(*shape, -1)): (own**2).sum((-1, -2)).mean() / 2,
    }
    for regularizer, value in wanted.items():
        assert float(regularizer(net, 0).detach()) == pytest.approx(value, rel=1e-11), regularizer


def test_derivatives_are_those_of_a_formula():
    """f = sin(a x) cos(b y): the integrals over a grid of many points, and each point's gradient by hand."""

    class Wave(nn.Module):
        def forward(self, x):
            return (torch.sin(2 * x[:, :1]) * torch.cos(3 * x[:, 1:])) * 1.0

    x, y = GRID.numpy().T
    gradient = np.stack([2 * np.cos(2 * x) * np.cos(3 * y), -3 * np.sin(2 * x) * np.sin(3 * y)], 1)
    exact = {"mode": "derivatives"}
    assert float(inr.TotalVariation(GRID, 2, **exact)(Wave())) == pytest.approx(np.hypot(*gradient.T).mean())
    assert float(inr.TotalVariation(GRID, 1, **exact)(Wave())) == pytest.approx(np.abs(gradient).sum(1).mean())
    assert float(inr.DirichletEnergy(GRID, **exact)(Wave())) == pytest.approx((gradient**2).sum(1).mean() / 2)
    fine = inr.DirichletEnergy((201, 201), rows="all", dtype=WIDE)
    exact_one = inr.DirichletEnergy((201, 201), rows="all", dtype=WIDE, mode="derivatives")
    assert float(fine(Wave())) == pytest.approx(float(exact_one(Wave())), rel=0.02)  # a spacing of 1/100


@pytest.mark.parametrize("mode", ["differences", "derivatives"])
@pytest.mark.parametrize("make", [inr.TotalVariation, inr.DirichletEnergy])
def test_random_points_are_unbiased_and_gradients_those_of_finite_differences(make, mode):
    net = network()
    whole, some = make(GRID, mode=mode), make(GRID, mode=mode, rows=8)
    found = torch.stack([some(net, step).detach() for step in range(300)])
    assert abs(float(found.mean() - whole(net).detach())) < 4 * float(found.std()) / math.sqrt(300)
    first, again, next_one = (float(some(net, step).detach()) for step in (3, 3, 4))
    assert first == again != next_one
    weight = net.layers[1].weight
    (grad,) = torch.autograd.grad(whole(net), weight)
    for place in [(0, 0), (3, 7)]:
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[place] += step
            values.append(float(whole(net)))
            with torch.no_grad():
                weight[place] -= step
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(grad[place]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("mode", ["differences", "derivatives"])
def test_constants_cost_nothing_and_have_a_gradient(mode):
    net = network()
    with torch.no_grad():
        net.layers[-1].weight.zero_()
    for make in (inr.TotalVariation, inr.DirichletEnergy):
        value = make(GRID, mode=mode)(net)
        assert float(value) == 0
        found = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
        assert all(own is None or bool(own.isfinite().all()) for own in found)


def test_a_fit_gets_smoother():
    noise = torch.randn(len(GRID), 1, dtype=WIDE, generator=torch.Generator().manual_seed(0))
    roughness = []
    for factor in (0.0, 1.0):
        net = network(outputs=1)
        regularizers = [(inr.DirichletEnergy(GRID, mode="derivatives"), factor)]
        inr.fit(net, GRID, noise, steps=40, lr=1e-2, regularizers=regularizers, progress=False)
        roughness.append(float(inr.TotalVariation(GRID, mode="derivatives")(net)))
    assert roughness[1] < 0.2 * roughness[0]


@pytest.mark.parametrize("mode", ["differences", "derivatives"])
def test_points_are_the_regularisers_own(mode):
    net, points = network(), GRID.clone()
    own = inr.TotalVariation(points, mode=mode)
    before = float(own(net, 0).detach())
    points.mul_(2)
    assert float(own(net, 0).detach()) == before


def test_derivatives_are_there_in_inference_mode():
    net, exact = network(), {"mode": "derivatives", "dtype": WIDE}
    wanted = float(inr.TotalVariation(SHAPE, **exact)(net, 0).detach())
    with torch.inference_mode():
        made = inr.TotalVariation(SHAPE, **exact)
        assert float(inr.TotalVariation(GRID.clone(), mode="derivatives")(net, 0).detach()) == pytest.approx(wanted)
        assert float(made(net, 0).detach()) == wanted
        with pytest.raises(ValueError, match="net was made in inference mode"):
            made(nn.Linear(2, 1, dtype=WIDE), 0)
    assert float(made(net, 0).detach()) == wanted


def test_derivatives_are_refused_where_points_are_coupled():
    """The sum of a batch norm's values has no slope: 4e-5 came in place of 2.8."""
    net, exact = inr.INR(2, 1, width=16, norm="batch", dtype=WIDE), inr.TotalVariation(GRID, mode="derivatives")
    with pytest.raises(ValueError, match=r"norms\.0 \(BatchNorm1d\).*use mode='differences'"):
        exact(net)
    assert float(exact(net.eval()).detach()) > 0.01


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: inr.TotalVariation(GRID, 3), ValueError, "p must be 1 .* or 2"),
        (lambda: inr.TotalVariation(GRID[1:]), ValueError, "points must be a regular grid.*34 points with 7, 5"),
        (lambda: inr.TotalVariation(GRID**3), ValueError, "points must be a regular grid"),
        (lambda: inr.TotalVariation((8, 8), dtype=torch.bfloat16)(network(), 0), TypeError, "fp32 or fp64 .*bfloat16"),
        (lambda: inr.TotalVariation(GRID.flip(1)), ValueError, "row-major order"),
        (lambda: inr.TotalVariation((0, 3)), ValueError, "shape must be at least 1"),
        (lambda: inr.TotalVariation("grid"), TypeError, "points must be"),
        (lambda: inr.DirichletEnergy(GRID, mode="both"), ValueError, "mode must be one of"),
        (lambda: inr.DirichletEnergy(GRID, rows=36), ValueError, "rows must be at most the number of points 35"),
        (lambda: inr.DirichletEnergy(GRID / 0), ValueError, "points must be finite"),
        (
            lambda: inr.TotalVariation(SHAPE, dtype=WIDE)(network(3)),
            ValueError,
            "points of 2 coord.* net takes 3: give",
        ),
        (
            lambda: inr.TotalVariation(SHAPE)(nn.Linear(3, 1)),
            ValueError,
            r"\(Linear\) does not take the points \(N, 2\)",
        ),
        (
            lambda: inr.DirichletEnergy(SHAPE)(network()),
            TypeError,
            "has points of torch.float32.*network is torch.float64",
        ),
    ],
)
def test_bad_input(make, error, match):
    with pytest.raises(error, match=match):
        make()
