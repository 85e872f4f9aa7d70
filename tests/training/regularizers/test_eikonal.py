"""Regularisers of signed distances against distances whose formulas are known, and what fits make of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import inrfast as inr
from inrfast.training.regularizers.eikonal import Eikonal, NormalAlignment, OffSurface

WIDE = torch.float64


class Ball(nn.Module):
    """The signed distance of a ball about a centre, times a factor."""

    def __init__(self, factor: float = 1.0, radius: float = 0.5) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=WIDE))
        self.radius = radius

    def forward(self, x):
        return self.factor * (x.norm(dim=1, keepdim=True) - self.radius)


def drawn(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=WIDE) - 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.floats(-3, 3), st.integers(0, 10**6))
def test_a_distance_times_a_factor_costs_what_the_formula_says(d: int, factor: float, seed: int) -> None:
    points = drawn(50, d, seed)
    for p in (1, 2):
        cost = Eikonal(points, p)(Ball(factor), 0)
        assert float(cost.detach()) == pytest.approx(abs(abs(factor) - 1) ** p, abs=1e-9)
    normals = points / points.norm(dim=1, keepdim=True)
    if abs(factor) > 1e-3:
        aligned = NormalAlignment(points, normals)(Ball(factor), 0)
        assert float(aligned.detach()) == pytest.approx(1 - math.copysign(1, factor), abs=1e-6)
    away = OffSurface(points, alpha=7.0)(Ball(factor), 0)
    truth = torch.exp(-7 * (factor * (points.norm(dim=1) - 0.5)).abs()).mean()
    assert float(away.detach()) == pytest.approx(float(truth), rel=1e-9)


def test_gradients_are_those_of_the_formula() -> None:
    """The slope of ``(|a| - 1)^2`` in ``a``, through two derivatives."""
    for p, slope in ((1, 1.0), (2, 1.0)):
        net = Ball(1.5)
        (found,) = torch.autograd.grad(Eikonal(drawn(20, 3), p)(net, 0), net.factor)
        assert float(found) == pytest.approx(slope, abs=1e-9)


def test_a_step_draws_its_rows_alone_and_the_normals_go_with_their_points() -> None:
    points = drawn(300, 3)
    normals = points / points.norm(dim=1, keepdim=True)
    tilted = NormalAlignment(points, normals, rows=10)
    assert float(tilted(Ball(), 5).detach()) == pytest.approx(0, abs=1e-9)  # a mix-up would cost about 1
    net = inr.INR(3, 1, width=8, activation="sine", init="siren", omega=3.0, dtype=WIDE)
    some = Eikonal(points, rows=10)
    values = [float(some(net, step).detach()) for step in (3, 3, 4)]
    assert values[0] == values[1] != values[2]
    single = tilted.to(torch.float32)
    assert single.normals.dtype == single.points.dtype == torch.float32


def test_the_eikonal_equation_leads_a_fit_to_a_distance() -> None:
    """Zeros on a circle and a sign alone: what makes the values distances is the regulariser."""
    angle = torch.linspace(0, 2 * math.pi, 65, dtype=WIDE)[:-1]
    circle = 0.5 * torch.stack([angle.cos(), angle.sin()], 1)
    grid = inr.grid((24, 24), dtype=WIDE)
    truth = grid.norm(dim=1, keepdim=True) - 0.5
    errors = []
    for factor in (0.0, 0.1):
        net = inr.INR(2, 1, width=24, activation="sine", init="siren", omega=3.0, dtype=WIDE)
        terms = [(NormalAlignment(circle, 2 * circle), 0.1), (Eikonal(grid), factor)]
        inr.fit(net, circle, torch.zeros(64, 1, dtype=WIDE), steps=150, lr=3e-3, regularizers=terms, progress=False)
        errors.append(float((net(grid) - truth).abs().mean().detach()))
    assert errors[1] < 0.08
    assert errors[1] < errors[0] / 2, errors


def test_what_is_no_surface_is_refused() -> None:
    points = drawn(6, 3)
    unit = points / points.norm(dim=1, keepdim=True)
    for call, error, words in (
        (lambda: Eikonal((4, 4), 3), ValueError, "p must be 1 .* or 2"),
        (lambda: Eikonal((4, 4), mode="differences"), TypeError, "takes no mode"),
        (lambda: NormalAlignment(points, unit[:5]), ValueError, "shape of points"),
        (lambda: NormalAlignment(points, 2 * unit), ValueError, "length 1, got length 2 in row"),
        (lambda: NormalAlignment(points, 0 * unit), ValueError, "length 1, got length 0 in row"),
        (lambda: NormalAlignment(points, unit.log()), ValueError, "normals"),
        (lambda: OffSurface(points, 0.0), ValueError, "alpha"),
        (lambda: NormalAlignment(points, unit)(inr.INR(3, 2, width=8, dtype=WIDE), 0), ValueError, "one output"),
        (lambda: Eikonal(points)(inr.INR(3, 1, width=8, norm="batch", dtype=WIDE), 0), ValueError, "take a norm of"),
    ):
        with pytest.raises(error, match=words):
            call()
