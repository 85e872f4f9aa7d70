"""Fourier filter: ``sin(W x + b)``, of the Fourier networks of Fathony et al."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from inrfast.modulations import MODULATIONS, Modulation, phase_errors, phases, uniform


class Fourier(Modulation):
    """``h(x) = sin(W x + b)``, with a trained ``linear``.

    W is drawn uniform up to ``scale / sqrt(count d)`` for ``count`` filters in the network, b uniform in ``[-pi, pi]``.
    Source: Fathony, Sahu, Willmott, Kolter, Multiplicative Filter Networks, ICLR 2021, section 3.1, and their code,
    whose ``input_scale`` is ``scale``.
    """

    numbers: ClassVar[Mapping[str, float]] = {"scale": 256.0}
    native: ClassVar[str | None] = "fourier"

    def __init__(
        self,
        in_features: int,
        width: int,
        count: int,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
        scale: float = 256.0,
    ) -> None:
        super().__init__(in_features, width, count, generator, device, dtype)
        weight = uniform((width, in_features), scale / (count * in_features) ** 0.5, generator)
        self.linear = phases(weight, generator, device, dtype)

    @classmethod
    def state(cls, in_features: int, width: int) -> dict[str, tuple[int, ...]]:
        """See :class:`inrfast.modulations.Modulation`."""
        return {"linear.weight": (width, in_features), "linear.bias": (width,)}

    def forward(self, coords: Tensor) -> Tensor:
        """Return ``sin(W x + b)``."""
        return torch.sin(self.linear(coords))

    def derivative(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`inrfast.modulations.Modulation`."""
        phase = self.linear(coords)
        return phase.sin(), phase.cos()

    def rounding(self, coords: Tensor) -> Tensor:
        """See :class:`inrfast.modulations.Modulation`."""
        return phase_errors(self.linear, coords) + 2 * torch.finfo(coords.dtype).eps


MODULATIONS.add("fourier", Fourier)
