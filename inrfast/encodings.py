"""Input encodings: fixed feature maps of the coordinates, placed before the first layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.errors import check_choice, check_float, check_int
from inrfast.memory import counted, require_free

FEWER = "take a smaller one"


class Encoding(nn.Module):
    """Base of the encodings: ``build`` fixes the input size, ``forward`` maps ``(..., d)`` to ``(..., out_features)``.

    An encoding is described without knowing the number of coordinates; :class:`inrfast.INR` builds it with its own
    ``in_features`` and seed. Its numbers are buffers, not parameters.
    """

    in_features: int
    out_features: int

    def build(self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Encoding:
        """Return this encoding for ``in_features`` coordinates, drawing what is random from ``generator``."""
        raise NotImplementedError

    def columns(self, in_features: int) -> int:
        """Return how many columns :meth:`build` would make; 0 where that is not known before."""
        return 0

    def config(self) -> dict[str, Any]:
        """Return the class's name and the arguments that make the same encoding, as plain values."""
        raise NotImplementedError


class RandomFourier(Encoding):
    """Random Fourier features ``[cos(2 pi B x), sin(2 pi B x)]`` with ``B ~ N(0, sigma^2)``, unscaled.

    Parameters
    ----------
    n
        Number of frequencies; the encoding has ``2 n`` columns.
    sigma
        Standard deviation of the frequencies, in cycles per coordinate unit; 10 is the value of the source for images.

    Source: Tancik et al., Fourier features let networks learn high frequency functions, NeurIPS 2020.
    """

    frequencies: Tensor

    def __init__(self, n: int = 256, sigma: float = 10.0) -> None:
        super().__init__()
        self.n = check_int("n", n, minimum=1)
        self.sigma = check_float("sigma", sigma, minimum=0.0, exclusive=True)
        self.out_features = 2 * self.n
        require_free(16 * self.n, f"an encoding of {counted(self.n)} frequencies", FEWER)

    def columns(self, in_features: int) -> int:
        """Return ``2 n``."""
        return self.out_features

    def build(
        self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> RandomFourier:
        """Draw the frequencies on the CPU, so that every device gets the same ones."""
        # The draw, its multiple, and that in the dtype asked for.
        require_free(24 * self.n * in_features, f"an encoding of {counted(self.n)} frequencies", FEWER)
        built = RandomFourier(self.n, self.sigma)
        built.in_features = in_features
        draw = torch.randn(self.n, in_features, generator=generator, dtype=torch.float64)
        built.register_buffer("frequencies", (self.sigma * draw).to(device=device, dtype=dtype))
        return built

    def forward(self, coords: Tensor) -> Tensor:
        phase = 2 * math.pi * (coords @ self.frequencies.mT)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)

    def config(self) -> dict[str, Any]:
        return {"name": "RandomFourier", "n": self.n, "sigma": self.sigma}

    def extra_repr(self) -> str:
        return f"n={self.n}, sigma={self.sigma}"


class PositionalEncoding(Encoding):
    """Octaves ``sin(2^k pi x), cos(2^k pi x)`` for ``k < n`` of every coordinate; the raw coordinate is not kept.

    Column order: coordinate slow, then octave, then (sin, cos); ``2 n d`` columns. Up to 127 octaves in fp32 and 1,023
    in fp64, beyond which ``2^k pi`` is infinite.

    Source: Mildenhall et al., NeRF, ECCV 2020, equation 4.
    """

    octaves: Tensor

    def __init__(self, n: int = 10) -> None:
        super().__init__()
        self.n = check_int("n", n, minimum=1)
        self._check_range(torch.float64)

    def columns(self, in_features: int) -> int:
        """Return ``2 n d``."""
        return 2 * self.n * in_features

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
        octaves = math.pi * 2.0 ** torch.arange(self.n, dtype=torch.float64)
        built.register_buffer("octaves", octaves.to(device=device, dtype=dtype))
        return built

    def forward(self, coords: Tensor) -> Tensor:
        phase = coords.unsqueeze(-1) * self.octaves
        return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-3)

    def config(self) -> dict[str, Any]:
        return {"name": "PositionalEncoding", "n": self.n}

    def extra_repr(self) -> str:
        return f"n={self.n}"


HIGHEST = 1030
"""Degree from which on a binomial coefficient is beyond fp64."""


def _monomials(degree: int, variables: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the exponents (count, variables) of all monomials and the multinomial coefficients ``k! / m!`` (count,).

    Degrees ascend; within one, exponents descend, the first variable's first. A coefficient is the product of binomial
    ones, one a variable after the first, each rounded once.
    """
    powers = np.arange(degree + 1, dtype=np.int64).reshape(-1, 1)  # of the total degree, which its last variable takes
    weights = np.ones(degree + 1)
    if variables == 1:
        return powers, weights
    table = np.zeros((degree + 1, degree + 1))
    row = [1]
    for top in range(degree + 1):
        table[top, : top + 1] = [float(entry) for entry in row]
        row = [1, *(a + b for a, b in itertools.pairwise(row)), 1]
    for _ in range(variables - 1):
        left = powers[:, -1]  # what the variables so far leave to the others
        parts = np.repeat(np.arange(len(left)), left + 1)
        taken = left[parts] - (np.arange(len(parts)) - np.repeat(np.cumsum(left + 1) - (left + 1), left + 1))
        weights = weights[parts] * table[left[parts], taken]
        powers = np.column_stack([powers[parts, :-1], taken, left[parts] - taken])
    return powers, weights


class Polynomial(Encoding):
    """Distinct monomials up to a degree, weighted so that inner products are ``sum_k a_k (x . x')^k``.

    The monomial ``x^m`` of degree k carries ``sqrt(a_k k! / m!)``: the feature map of the optimal-kernel encoding
    ``gamma(x) = (+)_k sqrt(a_k) x^{(x)k}`` without its duplicate columns.

    The features are not scaled: their squared norm is ``sum_k a_k |x|^(2k)``, in the corner (1, 1) of the square with
    all ``a_k = 1`` some 2^(degree + 1). From a degree of about 32 on a fit then diverges at usual rates, which it says:
    give smaller ``coefficients``, such as ``2.0**-k`` in two dimensions, or coordinates inside the unit ball.

    Parameters
    ----------
    degree
        Highest degree; degrees 0 to ``degree`` are all present.
    coefficients
        The ``degree + 1`` non-negative numbers ``a_k``; default all 1.

    Source: PEAK (Li et al.), Theorem 3.3.
    """

    exponents: Tensor
    scales: Tensor

    def __init__(self, degree: int, coefficients: Sequence[float] | None = None) -> None:
        super().__init__()
        self.degree = check_int("degree", degree, minimum=0)
        require_free(32 * (self.degree + 1), f"a polynomial encoding of degree {counted(self.degree)}", FEWER)
        if coefficients is None:
            self.coefficients = [1.0] * (self.degree + 1)
        else:
            self.coefficients = [check_float("coefficients", a, minimum=0.0) for a in coefficients]
        if len(self.coefficients) != self.degree + 1:
            raise ValueError(
                f"coefficients must hold degree + 1 = {self.degree + 1} numbers, got {len(self.coefficients)}"
            )

    def columns(self, in_features: int) -> int:
        """Return the number of monomials, ``(degree + d)! / (degree! d!)``."""
        return math.comb(self.degree + in_features, in_features)

    def build(
        self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> Polynomial:
        """List the monomials of ``in_features`` variables; nothing is random.

        Raises
        ------
        MemoryBudgetError
            Their exponents would take more than half of what is free.
        ValueError
            The number of ways to order a monomial, which its weight holds, is beyond fp64: from degree 1,030 on in two
            dimensions.
        """
        count = self.columns(in_features)
        what = f"the list of the {counted(count)} monomials of degree {self.degree} in {in_features} coordinates"
        require_free(8 * count * (4 * in_features + 6), what, "take a lower degree")
        if in_features > 1 and self.degree >= HIGHEST:
            raise ValueError(f"degree must be below {HIGHEST} in several coordinates, where it overflows fp64")
        built = Polynomial(self.degree, self.coefficients)
        exponents, weights = _monomials(self.degree, in_features)
        with np.errstate(over="ignore"):
            scales = np.sqrt(np.asarray(self.coefficients)[exponents.sum(1)] * weights)
        if not np.isfinite(scales).all():
            raise ValueError(f"degree {self.degree} in {in_features} coordinates overflows fp64; take a lower one")
        built.in_features, built.out_features = in_features, count
        built.register_buffer("exponents", torch.from_numpy(exponents).to(device))
        built.register_buffer("scales", torch.from_numpy(scales).to(device=device, dtype=dtype))
        return built

    def forward(self, coords: Tensor) -> Tensor:
        powers = [torch.ones_like(coords)]
        for _ in range(self.degree):
            powers.append(powers[-1] * coords)
        table = torch.stack(powers, dim=-1)  # (..., d, degree + 1)
        columns = [table[..., axis, :].index_select(-1, self.exponents[:, axis]) for axis in range(coords.shape[-1])]
        return self.scales * torch.stack(columns, dim=-1).prod(-1)

    def config(self) -> dict[str, Any]:
        return {"name": "Polynomial", "degree": self.degree, "coefficients": self.coefficients}

    def extra_repr(self) -> str:
        return f"degree={self.degree}"


ENCODINGS: dict[str, type[Encoding]] = {kind.__name__: kind for kind in (RandomFourier, PositionalEncoding, Polynomial)}


def from_config(config: dict[str, Any]) -> Encoding:
    """Return the encoding that :meth:`Encoding.config` described.

    Raises
    ------
    ValueError, TypeError
        An unknown name, or arguments that its class does not take.
    """
    arguments = dict(config)
    return ENCODINGS[check_choice("encoding", arguments.pop("name", None), ENCODINGS)](**arguments)


def described(config: dict[str, Any]) -> str:
    """Return a config for a reader: ``RandomFourier(n=256, sigma=10.0)``."""
    arguments = ", ".join(f"{name}={value}" for name, value in config.items() if name != "name")
    return f"{config['name']}({arguments})"
