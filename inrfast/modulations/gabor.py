"""Gabor filter: ``sin(W x + b) exp(-gamma/2 |x - mu|^2)``, of the Gabor networks of Fathony et al."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from inrfast.modulations import MODULATIONS, Modulation, phase_errors, phases, uniform


class Gabor(Modulation):
    """``h(x) = sin(W x + b) exp(-gamma/2 |x - mu|^2)``, with a trained ``linear``, ``mu`` (m, d) and ``gamma`` (m,).

    gamma is drawn of Gamma(alpha / count, rate beta) for ``count`` filters in the network, W uniform up to
    ``scale sqrt(gamma / (count d))``, b uniform in ``[-pi, pi]``, mu in ``[-1, 1]``. Training may make gamma negative.

    Source: Fathony, Sahu, Willmott, Kolter, Multiplicative Filter Networks, ICLR 2021, section 3.2, and their code,
    whose ``input_scale`` is ``scale``.
    """

    numbers: ClassVar[Mapping[str, float]] = {"scale": 256.0, "alpha": 6.0, "beta": 1.0}
    native: ClassVar[str | None] = "gabor"

    def __init__(
        self,
        in_features: int,
        width: int,
        count: int,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
        scale: float = 256.0,
        alpha: float = 6.0,
        beta: float = 1.0,
    ) -> None:
        super().__init__(in_features, width, count, generator, device, dtype)
        shape = torch.full((width,), alpha / count, dtype=torch.float64, device="cpu")
        gamma = torch._standard_gamma(shape, generator=generator) / beta
        weight = uniform((width, in_features), scale / (count * in_features) ** 0.5, generator)
        self.linear = phases(weight * gamma.sqrt().unsqueeze(1), generator, device, dtype)
        self.mu = nn.Parameter(uniform((width, in_features), 1.0, generator).to(device, dtype))
        self.gamma = nn.Parameter(gamma.to(device, dtype))

    @classmethod
    def state(cls, in_features: int, width: int) -> dict[str, tuple[int, ...]]:
        """See :class:`inrfast.modulations.Modulation`."""
        linear = {"linear.weight": (width, in_features), "linear.bias": (width,)}
        return {**linear, "mu": (width, in_features), "gamma": (width,)}

    def forward(self, coords: Tensor) -> Tensor:
        """Return the filter."""
        return torch.sin(self.linear(coords)) * torch.exp(-0.5 * self.gamma * self.apart(coords))

    def derivative(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`inrfast.modulations.Modulation`."""
        phase, envelope = self.linear(coords), torch.exp(-0.5 * self.gamma * self.apart(coords))
        return phase.sin() * envelope, phase.cos() * envelope

    def rounding(self, coords: Tensor) -> Tensor:
        """See :class:`inrfast.modulations.Modulation`."""
        eps, exponent = torch.finfo(coords.dtype).eps, 0.5 * self.gamma.abs() * self.apart(coords)
        relative = phase_errors(self.linear, coords) + eps * (4 + (coords.shape[1] + 4) * exponent)
        return torch.exp(-0.5 * self.gamma * self.apart(coords)) * relative

    def apart(self, coords: Tensor) -> Tensor:
        """Return ``|x - mu|^2`` (..., m), summed coordinate by coordinate: nothing cancels."""
        found = (coords[..., :1] - self.mu[:, 0]).square()
        for axis in range(1, coords.shape[-1]):
            found = found + (coords[..., axis : axis + 1] - self.mu[:, axis]).square()
        return found


MODULATIONS.add("gabor", Gabor)
