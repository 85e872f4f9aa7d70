"""Positional encoding: sines and cosines of every coordinate in octaves."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrfast.encodings.base import FEWER, Encoding, Shape, register
from inrfast.errors import check_int
from inrfast.memory import counted, require_free


@register
class PositionalEncoding(Encoding):
    """Octaves ``sin(2^k pi x), cos(2^k pi x)`` for ``k < n`` of every coordinate; the raw coordinate is not kept.

    Column order: coordinate slow, then octave, then (sin, cos); ``2 n d`` columns. Up to 127 octaves in fp32 and 1,023
    in fp64, beyond which ``2^k pi`` is infinite.

    Source: Mildenhall et al., NeRF, ECCV 2020, equation 4.
    """

    spelling = "positional"
    numbers: ClassVar = {"n": 10}

    octaves: Tensor

    def __init__(self, n: int = 10) -> None:
        super().__init__()
        self.n = check_int("n", n, minimum=1)
        self._check_range(torch.float64)

    def columns(self, in_features: int) -> int:
        """Return ``2 n d``."""
        return 2 * self.n * in_features

    def shapes(self, in_features: int) -> dict[str, Shape]:
        """Return those of the octaves."""
        return {"octaves": (self.n,)}

    def _check_range(self, dtype: torch.dtype) -> None:
        require_free(32 * self.n, f"an encoding of {counted(self.n)} octaves", FEWER)
        most = math.frexp(torch.finfo(dtype).max / math.pi)[1]
        if self.n > most:
            name = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"n must be at most {most} octaves in {name}, beyond which they overflow, got {counted(self.n)}"
            )

    def build(
        self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> PositionalEncoding:
        """Fix the number of coordinates; nothing is random."""
        self._check_range(dtype)
        built = PositionalEncoding(self.n)
        built.in_features, built.out_features = in_features, 2 * self.n * in_features
        octaves = math.pi * 2.0 ** torch.arange(self.n, dtype=torch.float64, device="cpu")
        built.register_buffer("octaves", octaves.to(device=device, dtype=dtype))
        return built

    def forward(self, coords: Tensor) -> Tensor:
        phase = coords.unsqueeze(-1) * self.octaves
        return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-3)

    def config(self) -> dict[str, Any]:
        return {"name": "PositionalEncoding", "n": self.n}

    def extra_repr(self) -> str:
        return f"n={self.n}"
