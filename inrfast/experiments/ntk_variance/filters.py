"""Networks whose hidden layers are multiplied by filters of the coordinates: Multiplicative Filter Networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.nn import INR

SHAPE, RATE = 6.0, 1.0
"""Of the Gamma distribution of a Gabor filter's gamma, the shape over all layers."""


class Filter(nn.Module):
    """The filters of one layer, (n, d) to (n, m): ``sin(W x + b)``, as Gabor times ``exp(-gamma/2 |x - mu|^2)``.

    Drawn as Fathony et al. (ICLR 2021) do, on [-1, 1]^d: W uniform up to ``scale / sqrt(d)``, of a Gabor filter times
    ``sqrt(gamma)``; b uniform in ``[-pi, pi]``, mu in ``[-1, 1]``, gamma of Gamma(6 / layers, 1).
    """

    def __init__(
        self, inputs: int, width: int, layers: int, spelled: Mapping[str, Any], generator: torch.Generator
    ) -> None:  # fmt: skip
        super().__init__()
        self.gabor = spelled["name"] == "gabor"
        self.linear = nn.Linear(inputs, width, dtype=torch.float64)
        weight = _uniform((width, inputs), spelled["scale"] / inputs**0.5, generator)
        if self.gabor:
            gamma = _gamma(SHAPE / layers, width, generator)
            weight = weight * gamma[:, None].sqrt()
            self.gamma = nn.Parameter(gamma)
            self.mu = nn.Parameter(_uniform((width, inputs), 1.0, generator))
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(_uniform((width,), math.pi, generator))

    def forward(self, coords: Tensor) -> Tensor:
        values = self.linear(coords).sin()
        if self.gabor:
            apart = (coords[..., None, :] - self.mu).square().sum(-1)
            values = values * (-0.5 * self.gamma * apart).exp()
        return values


class Filtered(INR):
    """An INR of which every hidden layer, after its norm, is multiplied by a filter of the raw coordinates."""

    def __init__(
        self, inputs: int, outputs: int, *, modulation: Mapping[str, Any], seed: int = 0, **options: Any
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs, seed=seed, **options)
        generator = torch.Generator().manual_seed(seed + 2**21)  # unlike that of the weights
        self.modulations = nn.ModuleList(
            Filter(self.in_features, self.width, self.hidden_layers, modulation, generator)
            for _ in range(self.hidden_layers)
        ).to(next(self.layers.parameters()))

    def forward(self, coords: Tensor) -> Tensor:
        assert self.modulations is not None
        values = coords if self.encoding is None else self.encoding(coords)
        parts = zip(self.layers, self.bound_activations, self.norms, self.modulations, strict=False)
        for layer, activation, norm, modulation in parts:
            values = norm(activation.value(layer(values))) * modulation(coords)
        return self.layers[-1](values)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return bound * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)


def _gamma(shape: float, count: int, generator: torch.Generator) -> Tensor:
    """Return numbers of Gamma(shape, 1), by their quantiles."""
    from scipy import stats  # slow to import

    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.from_numpy(stats.gamma.ppf(drawn.numpy(), shape, scale=1 / RATE))
