"""What a network's kernel predicts: its linearisation, fitted by Adam, followed along the kernel's eigenvectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.choosing.scales import Scale
from inrfast.nn import INR
from inrfast.tangent.local import ntk

MEMORY = 0.999
"""Adam's second moments, beta_2: what remains of them after a step."""

FALL = 0.1
"""The learning rate at the end of a fit, of that at its start."""

LOOKS = 16
"""At how many numbers of steps, in equal ratios, a fit is looked at."""


@dataclass(frozen=True)
class Fit:
    """The fit that is predicted: Adam with batches, the rate falling exponentially to a tenth.

    Attributes
    ----------
    steps, batch
        Steps, and samples of one batch.
    samples
        Samples that train, of the whole signal.
    """

    steps: int
    batch: int
    samples: int


@dataclass(frozen=True)
class Prediction:
    """What a fit of the linearised network reaches.

    Attributes
    ----------
    steps
        At which the error is least.
    parts
        Squared error of each patch of the finest scale, times its weight and the number of patches: their mean is the
        mean over the signal.
    coarser
        Squared error that is left on the coarser scales.
    """

    steps: int
    parts: Tensor
    coarser: float

    @property
    def mse(self) -> float:
        """Mean squared error between the samples, over all outputs."""
        return float(self.parts.mean()) + self.coarser

    @property
    def error(self) -> float:
        """Standard error of the PSNR (dB), from the spread over the patches."""
        spread = float(self.parts.std()) / math.sqrt(len(self.parts)) if len(self.parts) > 1 else math.inf
        return 10 / math.log(10) * spread / max(self.mse, 1e-300)


class Modes:
    """A scale along the eigenvectors of the kernel of its points.

    Attributes
    ----------
    values
        Eigenvalues (n,), at least 1e-12 of the largest.
    start
        What is to be fitted, along the eigenvectors (n, M).
    """

    def __init__(self, kernel: Tensor, scale: Scale) -> None:
        n = len(scale.train)
        self.scale = scale
        values, self.vectors = torch.linalg.eigh(kernel[:n, :n])
        self.values = values.clamp_min(1e-12 * float(values[-1]))
        self.start = self.vectors.T @ scale.values
        self.smooth = None if scale.smooth is None else self.vectors.T @ scale.smooth
        self.cross = None if scale.held_out is None else kernel[n:, :n] @ self.vectors

    def errors(self, decay: Tensor, samples: int) -> Tensor:
        """Return the squared error of each part, in mean over its points and outputs, after logarithmic decays (n,)."""
        scale = self.scale
        if self.cross is None or scale.held_values is None:
            left = self.vectors @ (decay.exp()[:, None] * self.start)
        else:
            found = -torch.expm1(decay)[:, None] * self.start
            left = scale.held_values
            if self.smooth is not None and scale.held_smooth is not None:
                # Of what is smooth, all samples of the signal learn the same: as much faster as they are more.
                found = found - torch.expm1(decay * samples / len(self.values))[:, None] * self.smooth
                left = left + scale.held_smooth
            left = left - self.cross @ (found / self.values[:, None])
        parts = len(self.scale.weight)
        sums = torch.zeros(parts, dtype=left.dtype).index_add_(0, self.scale.part, left.square().mean(1))
        return sums / torch.bincount(self.scale.part, minlength=parts)


def predicted(
    net: INR,
    scales: Sequence[Scale],
    fit: Fit,
    rate: float,
    growth: float = 1.0,
    memory_budget: int | None = None,
) -> Prediction:
    """Return what a fit of a network with a learning rate is predicted to reach between the samples.

    The network is linearised at initialisation, ``f(x) = J(x) w``, and Adam follows it in the limit of small steps:
    each layer's gradient is divided by its root mean square, so that the residual of the N training samples changes by
    ``-rate / v K r / N`` a step. ``K`` is the sum of the layers' kernels, each over the size of its slopes
    (:func:`as_adam_sees`), and ``v`` Adam's running size of the gradient, of its mean and of the noise of its batches.
    Held-out samples follow by kernel regression: ``K_held (1 - decay) / lambda`` along the eigenvectors. The errors of
    the scales add up. ``growth`` multiplies the coordinates, for networks whose frequencies a fit raises.
    """
    modes = [Modes(_kernel(net, scale, growth, memory_budget), scale) for scale in scales]
    return followed(modes, fit, rate)


def _kernel(net: INR, scale: Scale, growth: float, memory_budget: int | None) -> Tensor:
    """Return the kernel as Adam sees it, between training and judging points."""
    points = scale.train if scale.held_out is None else torch.cat([scale.train, scale.held_out])
    points = (growth * points).to(next(net.parameters()).dtype)
    layers = ntk(net, points, output=0, precision="highest", memory_budget=memory_budget).layers
    return as_adam_sees({name: torch.as_tensor(layer.to_dense()) for name, layer in layers.items()}, net)


def as_adam_sees(layers: Mapping[str, Tensor], net: INR) -> Tensor:
    """Return the sum of the layers' kernels (one output's), each over the root mean square of its slopes.

    Adam divides each number's gradient by its size. For residuals without a pattern that is in proportion to the size
    of the slopes, over all points and outputs: ``sqrt(M tr(K_l) / (n P_l))`` of a layer of ``P_l`` numbers that all M
    outputs share.
    """
    total: Tensor | None = None
    head = f"layers.{net.hidden_layers}"
    for name, kernel in layers.items():
        numbers = sum(p.numel() for p in net.get_submodule(name).parameters() if p.requires_grad)
        outputs = net.out_features
        # An output has its own part of the head.
        shared = (1, numbers / outputs) if name == head else (outputs, numbers)
        size = math.sqrt(float(kernel.diagonal().mean()) * shared[0] / shared[1])
        part = kernel if size == 0 else kernel / size  # of NaN too, which the eigenvalues refuse
        total = part if total is None else total + part
    assert total is not None
    return total


def followed(modes: Sequence[Modes], fit: Fit, rate: float) -> Prediction:
    """Return the best error on the way of a fit."""
    looks = {round(fit.steps ** (k / (LOOKS - 1))) for k in range(LOOKS)}
    decays = [torch.zeros_like(mode.values) for mode in modes]
    energies = [mode.start.square().mean(1) for mode in modes]
    rates = [mode.values * mode.scale.counts / fit.samples for mode in modes]
    size = float(modes[0].values.mean())
    moment = 0.0
    best: Prediction | None = None
    for step in range(1, fit.steps + 1):
        left = [torch.exp(2 * decay) * energy for decay, energy in zip(decays, energies, strict=True)]
        square = sum(float(e.mean()) for e in left)
        # Of the mean gradient: r^T K r / N^2 of all samples, of which patches hold one part in N / n.
        pattern = sum(float(e @ r) / len(e) for e, r in zip(left, rates, strict=True)) / size
        moment = MEMORY * moment + (1 - MEMORY) * (pattern + square / fit.batch)
        speed = rate * FALL ** (step / fit.steps) / math.sqrt(max(moment, 1e-300) / (1 - MEMORY**step))
        for decay, slow in zip(decays, rates, strict=True):
            decay.sub_((speed * slow).clamp_max(2.0))
        if step in looks:
            now = _looked(modes, decays, step, fit.samples)
            best = now if best is None or now.mse < best.mse else best
    assert best is not None
    return best


def _looked(modes: Sequence[Modes], decays: Sequence[Tensor], step: int, samples: int) -> Prediction:
    """Return the errors at one step."""
    errors = [mode.errors(decay, samples) for mode, decay in zip(modes, decays, strict=True)]
    fine = errors[0] * modes[0].scale.weight * len(errors[0])
    coarser = sum(float(e @ mode.scale.weight) for e, mode in zip(errors[1:], modes[1:], strict=True))
    return Prediction(step, fine, coarser)
