"""The prediction is the linearised network's fit: against dense solutions and steps taken one by one."""

import math

import numpy as np
import pytest
import torch

import inrfast as inr
from inrfast.choosing.prediction import MEMORY, Fit, Modes, as_adam_sees, followed, predicted
from inrfast.choosing.samples import samples_of
from inrfast.choosing.scales import scales_of


def whole(points=80, outputs=2):
    x = inr.grid(points)
    samples = samples_of(torch.cat([torch.sin((3 + k) * x) for k in range(outputs)], 1))
    (scale,) = scales_of(samples, points, seed=0)
    return scale


def jacobian(net, points):
    """Return the slopes (n, P) of the first output, and per layer the columns."""
    rows = []
    for point in points:
        net.zero_grad()
        net(point[None].to(torch.float64))[0, 0].backward()
        rows.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return torch.stack(rows)


def adam_kernel(net, points):
    """Return what Adam's kernel is, from slopes by autograd."""
    slopes, total, start = jacobian(net, points), 0.0, 0
    for index, layer in enumerate(net.layers):
        count = sum(p.numel() for p in layer.parameters())
        own = slopes[:, start : start + count]
        start += count
        # All outputs train a hidden layer; only its own row of the head has slopes of an output.
        head = index == len(net.layers) - 1
        size = own.square().sum(1).mean() / (count / net.out_features) if head else None
        size = own.square().sum(1).mean() * net.out_features / count if size is None else size
        total = total + own @ own.T / size.sqrt()
    return total


def test_adams_kernel_is_that_of_the_slopes():
    net = inr.INR(1, 2, width=6, hidden_layers=2, activation="tanh", dtype=torch.float64)
    x = inr.grid(9).double()
    layers = {name: K.to_dense() for name, K in inr.ntk(net, x, output=0, precision="highest").layers.items()}
    torch.testing.assert_close(as_adam_sees(layers, net), adam_kernel(net, x), rtol=1e-10, atol=1e-12)


def test_a_fit_without_end_is_kernel_regression():
    """Beyond all steps the held-out half is what the dense solution says."""
    scale = whole()
    net = inr.INR(1, 2, width=24, hidden_layers=2, activation="gaussian", omega=4.0, dtype=torch.float64)
    n = len(scale.train)
    K = adam_kernel(net, torch.cat([scale.train, scale.held_out])).numpy()
    values, vectors = np.linalg.eigh(K[:n, :n])
    kept = values > 1e-9 * values[-1]  # what a fit learns, and rounding does not decide
    modes = Modes(torch.from_numpy(K), scale)
    decay = torch.where(torch.from_numpy(kept), -torch.inf, 0.0)
    solution = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T @ scale.values.numpy()
    expected = np.square(scale.held_values.numpy() - K[n:, :n] @ solution).mean()
    assert float(modes.errors(decay, n) @ scale.weight) == pytest.approx(expected, rel=1e-5)


def test_a_followed_fit_is_gradient_descent_of_the_linearised_network():
    """Small steps of the weights themselves, at Adam's speed, leave the errors that the eigenvectors tell."""
    scale = whole(64, outputs=1)
    net = inr.INR(1, 1, width=10, hidden_layers=1, activation="sine", omega=3.0, dtype=torch.float64)
    both = torch.cat([scale.train, scale.held_out])
    n, steps, rate = len(scale.train), 20, 1e-3
    slopes, start = jacobian(net, both), 0
    for layer in net.layers:
        count = sum(p.numel() for p in layer.parameters())
        size = (slopes[:, start : start + count].square().sum(1).mean() / count).sqrt()
        slopes[:, start : start + count] /= size.sqrt()
        start += count
    weights = torch.zeros(slopes.shape[1], 1, dtype=torch.float64)
    trained, kernel = slopes[:n], slopes[:n] @ slopes[:n].T
    moment = 0.0
    for step in range(1, steps + 1):
        left = scale.values - trained @ weights
        size = float(kernel.diagonal().mean())
        pattern = float((left.T @ kernel @ left) / n**2) / size
        moment = MEMORY * moment + (1 - MEMORY) * (pattern + float(left.square().mean()) / n)
        speed = rate * 0.1 ** (step / steps) / math.sqrt(moment / (1 - MEMORY**step))
        for _ in range(200):  # in the limit of small steps
            weights += speed / 200 / n * trained.T @ (scale.values - trained @ weights)
    expected = float((scale.held_values - slopes[n:] @ weights).square().mean())
    found = followed([Modes(slopes @ slopes.T, scale)], Fit(steps, n, n), rate)
    assert found.steps == steps
    assert found.mse == pytest.approx(expected, rel=1e-3)
    assert predicted(net, [scale], Fit(steps, n, n), rate).mse == pytest.approx(found.mse, rel=1e-8)
