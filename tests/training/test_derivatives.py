"""Derivatives with respect to coordinates are those of the formula, and can be trained through."""

import math

import pytest
import torch

import inrfast as inr
from inrfast.training.derivatives import gradient, laplacian


def test_gradient_and_laplacian_of_known_functions() -> None:
    x = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pred = torch.stack([(2 * x[:, 0]).sin() * x[:, 1], x.square().sum(1), x[:, 2]], dim=1)
    found = gradient(pred, x)
    a, b, _ = x.detach().unbind(1)
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    expected = [
        torch.stack([2 * (2 * a).cos() * b, (2 * a).sin(), zero], dim=1),
        2 * x.detach(),
        torch.stack([zero, zero, one], dim=1),
    ]
    torch.testing.assert_close(found, torch.stack(expected, dim=1))
    torch.testing.assert_close(laplacian(pred, x), torch.stack([-4 * (2 * a).sin() * b, 6 * one, zero], dim=1))


def test_double_backward_is_that_of_finite_differences() -> None:
    net = inr.INR(2, 1, width=8, hidden_layers=2, activation="sine", omega=3.0, dtype=torch.float64)
    x = inr.grid((5, 5), dtype=torch.float64)

    def loss() -> torch.Tensor:
        points = x.clone().requires_grad_()
        pred = net(points)
        return (gradient(pred, points).norm(dim=-1) - 1).square().mean() + laplacian(pred, points).square().mean()

    loss().backward()
    weight = net.layers[1].weight
    assert weight.grad is not None
    for place in [(0, 0), (3, 5), (7, 7)]:
        with torch.no_grad():
            sides = []
            for step in (1e-6, -1e-6):
                weight[place] += step
                with torch.enable_grad():
                    sides.append(float(loss().detach()))
                weight[place] -= step
        assert float(weight.grad[place]) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_an_eikonal_fit_learns_a_distance() -> None:
    coords = inr.grid((15, 15))
    target = coords.norm(dim=1, keepdim=True) - 0.5

    def eikonal(pred: torch.Tensor, truth: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        slope = gradient(pred, points).norm(dim=-1) - 1
        return (pred - truth).square().mean() + 0.1 * slope.square().mean()

    net = inr.INR(2, 1, width=32, hidden_layers=2, activation="tanh")
    result = inr.fit(net, coords, target, steps=400, lr=1e-2, loss=eikonal)
    assert result.psnr > 20
    points = coords.clone().requires_grad_()
    slopes = gradient(net(points), points).norm(dim=-1).detach()
    assert abs(float(slopes.median()) - 1) < 0.15
    assert math.isfinite(result.losses[-1])


def test_predictions_must_come_from_the_coordinates() -> None:
    x = torch.rand(4, 2)
    with pytest.raises(ValueError, match="require gradients"):
        gradient(x[:, :1], x)
    with pytest.raises(ValueError, match="one length"):
        gradient(x[:3, :1].requires_grad_(), x)
    y = x.clone().requires_grad_()
    assert torch.equal(laplacian(y[:, :1] * 2, y), torch.zeros(4, 1))
