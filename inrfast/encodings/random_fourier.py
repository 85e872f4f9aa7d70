"""Random Fourier features: cosines and sines of random, given or trained frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrfast.encodings.base import FEWER, Encoding, Shape, register
from inrfast.errors import check_flag, check_float, check_int, check_tensor
from inrfast.memory import counted, require_free

USUAL = 256
"""Frequencies of the source for images."""


@register
class RandomFourier(Encoding):
    """Random Fourier features ``[cos(2 pi B x), sin(2 pi B x)]`` with ``B ~ N(0, sigma^2)``, unscaled.

    Parameters
    ----------
    n
        Number of frequencies; the encoding has ``2 n`` columns.
    sigma
        Standard deviation of the frequencies, in cycles per coordinate unit; 10 is the value of the source for images.
    frequencies
        ``B`` itself, shape ``(n, d)``, in cycles per coordinate unit; nothing is drawn then, and ``n`` and ``sigma``
        are left out.
    trainable
        Whether the frequencies are parameters, which start as drawn or given.

    Raises
    ------
    ValueError, TypeError
        Numbers out of range; ``frequencies`` that are no matrix of finite numbers, or beside another ``n``.
    MemoryBudgetError
        The frequencies would take more than half of what is free.

    Source: Tancik et al., Fourier features let networks learn high frequency functions, NeurIPS 2020.
    """

    spelling = "fourier"
    numbers: ClassVar = {"n": USUAL, "sigma": 10.0}

    frequencies: Tensor

    def __init__(
        self,
        n: int = USUAL,
        sigma: float = 10.0,
        frequencies: Tensor | Sequence[Sequence[float]] | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.n = check_int("n", n, minimum=1)
        self.sigma = check_float("sigma", sigma, minimum=0.0, exclusive=True)
        self.given = None if frequencies is None else _matrix(frequencies)
        self.trainable = check_flag("trainable", trainable)
        if self.given is not None:
            if self.n not in (USUAL, len(self.given)):
                raise ValueError(f"n must be {len(self.given)}, the number of frequencies, or be left out, got {n}")
            self.n = len(self.given)
        self.out_features = 2 * self.n
        require_free(16 * self.n, f"an encoding of {counted(self.n)} frequencies", FEWER)

    def columns(self, in_features: int) -> int:
        """Return ``2 n``."""
        return self.out_features

    def shapes(self, in_features: int) -> dict[str, Shape]:
        """Return that of the frequencies."""
        return {"frequencies": (self.n, in_features)}

    def build(
        self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> RandomFourier:
        """Draw the frequencies on the CPU, so that every device gets the same ones, or take those given."""
        # The draw, its multiple, and that in the dtype asked for.
        require_free(24 * self.n * in_features, f"an encoding of {counted(self.n)} frequencies", FEWER)
        built = RandomFourier(self.n, self.sigma, self.given, self.trainable)
        built.in_features = in_features
        if self.given is None:
            numbers = self.sigma * torch.randn(
                self.n, in_features, generator=generator, dtype=torch.float64, device="cpu"
            )
        elif len(self.given[0]) == in_features:
            numbers = torch.tensor(self.given, dtype=torch.float64, device="cpu")
        else:
            raise ValueError(f"frequencies must have shape (n, {in_features}), got {(self.n, len(self.given[0]))}")
        if float(numbers.abs().max()) > torch.finfo(dtype).max:
            what = "sigma" if self.given is None else "frequencies"
            raise ValueError(f"{what} must be smaller: a frequency of {float(numbers.abs().max()):g} overflows {dtype}")
        built._hold("frequencies", numbers.to(device=device, dtype=dtype), self.trainable)
        return built

    def forward(self, coords: Tensor) -> Tensor:
        phase = 2 * math.pi * (coords @ self.frequencies.mT)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)

    def config(self) -> dict[str, Any]:
        drawn = {"n": self.n, "sigma": self.sigma}
        start = drawn if self.given is None else {"frequencies": self.given}
        return {"name": "RandomFourier", **start, **({"trainable": True} if self.trainable else {})}

    def extra_repr(self) -> str:
        start = f"n={self.n}, " + (f"sigma={self.sigma}" if self.given is None else "frequencies given")
        return start + (", trainable=True" if self.trainable else "")


def _matrix(given: Any) -> list[list[float]]:
    """Return given frequencies as plain numbers."""
    if not isinstance(given, Tensor):
        try:
            given = torch.as_tensor(given, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"frequencies must be numbers of shape (n, d): {error}") from None
    numbers: list[list[float]] = check_tensor("frequencies", given, ndim=2).double().tolist()
    return numbers
