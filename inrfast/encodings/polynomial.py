"""Polynomial encoding: weighted monomials, whose inner products are a polynomial of x . x'."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.encodings.base import FEWER, Encoding, Shape, register
from inrfast.errors import check_flag, check_float, check_int
from inrfast.memory import counted, require_free

HIGHEST = 1030
"""Degree from which on a binomial coefficient is beyond fp64."""

MOST_MONOMIALS = 2**31
"""Monomials that no file has, and that are not counted."""


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


@register
class Polynomial(Encoding):
    """Distinct monomials up to a degree, weighted so that inner products are ``sum_k a_k <x, x'>^k``.

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
    trainable
        Whether the ``a_k`` are trained, from these on. The parameter is ``roots``, ``r_k`` with ``a_k = r_k^2``: no
        step makes an ``a_k`` negative, the features are linear in it, and an ``a_k`` of 0 still has a gradient
        where the weights of its columns are not 0 too; a softplus could not even start there.
        ``encoding.coefficients`` are the present ``a_k``.
    constant
        Whether the monomial of degree 0 is there. Without it ``coefficients`` are the ``degree`` numbers from ``a_1``
        on, and of degree 1 there are as many columns as coordinates: ``sqrt(a_1) x``.

    Source: PEAK (Li et al.), Theorem 3.3.
    """

    spelling = "polynomial"
    numbers: ClassVar = {"degree": 8}

    constant = True  # of objects pickled by a version that had no other
    exponents: Tensor
    scales: Tensor
    roots: Tensor

    def __init__(
        self,
        degree: int,
        coefficients: Sequence[float] | None = None,
        trainable: bool = False,
        constant: bool = True,
    ) -> None:
        super().__init__()
        self.constant = check_flag("constant", constant)
        self.degree = check_int("degree", degree, minimum=0 if self.constant else 1)
        require_free(32 * (self.degree + 1), f"a polynomial encoding of degree {counted(self.degree)}", FEWER)
        if coefficients is None:
            self.start = [1.0] * self.orders
        else:
            self.start = [check_float("coefficients", a, minimum=0.0) for a in coefficients]
        if len(self.start) != self.orders:
            count = f"degree + 1 = {self.orders}" if self.constant else f"degree = {self.orders}"
            raise ValueError(f"coefficients must hold {count} numbers, got {len(self.start)}")
        self.trainable = check_flag("trainable", trainable)

    @property
    def lowest(self) -> int:
        """The lowest degree that is there."""
        return 0 if self.constant else 1

    @property
    def orders(self) -> int:
        """The number of degrees that are there, ``degree + 1`` with the constant."""
        return self.degree + 1 - self.lowest

    @property
    def coefficients(self) -> list[float]:
        """The numbers ``a_k``, one for each degree that is there, as they are now, trained or not."""
        if "roots" not in self._parameters:
            return list(self.start)
        present: list[float] = self.roots.detach().double().square().tolist()
        return present

    def columns(self, in_features: int) -> int:
        """Return the number of monomials, ``(degree + d)! / (degree! d!)``, less one without the constant."""
        return math.comb(self.degree + in_features, in_features) - self.lowest

    def shapes(self, in_features: int) -> dict[str, Shape]:
        """Return those of the exponents and the scales, one per monomial, and of the roots if they are trained."""
        # The number of monomials may have a million digits; but it is not below 1 + d k.
        if self.degree * in_features >= MOST_MONOMIALS:
            raise ValueError(f"the monomials of degree {self.degree} in {counted(in_features)} coordinates fit no file")
        count = self.columns(in_features)
        roots = {"roots": (self.orders,)} if self.trainable else {}
        return {"exponents": (count, in_features), "scales": (count,), **roots}

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Check that the exponents are from 0 to the degree, and those of a monomial no constant where none is."""
        low, high = (int(bound) for bound in torch.aminmax(state["exponents"]))
        if not self.constant and not bool((state["exponents"].sum(1) > 0).all()):
            raise ValueError("exponents must not be all 0 without the constant")
        if low < 0 or high > self.degree:
            raise ValueError(f"exponents must be whole numbers from 0 to {self.degree}, got {low} to {high}")

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
        built = Polynomial(self.degree, self.start, self.trainable, self.constant)
        exponents, weights = _monomials(self.degree, in_features)
        if not self.constant:  # which is the first
            exponents, weights = exponents[1:].copy(), weights[1:]
        with np.errstate(over="ignore"):
            apart = [1.0] * self.orders if self.trainable else self.start
            scales = np.sqrt(np.asarray(apart)[exponents.sum(1) - self.lowest] * weights)
        if not np.isfinite(scales).all():
            raise ValueError(f"degree {self.degree} in {in_features} coordinates overflows fp64; take a lower one")
        built.in_features, built.out_features = in_features, count
        built.register_buffer("exponents", torch.from_numpy(exponents).to(device))
        built.register_buffer("scales", torch.from_numpy(scales).to(device=device, dtype=dtype))
        if self.trainable:
            roots = torch.tensor(self.start, dtype=torch.float64, device="cpu").sqrt()
            built.register_parameter("roots", nn.Parameter(roots.to(device=device, dtype=dtype)))
        return built

    def forward(self, coords: Tensor) -> Tensor:
        powers = [torch.ones_like(coords)]
        for _ in range(self.degree):
            powers.append(powers[-1] * coords)
        table = torch.stack(powers, dim=-1)  # (..., d, degree + 1)
        columns = [table[..., axis, :].index_select(-1, self.exponents[:, axis]) for axis in range(coords.shape[-1])]
        scales = self.scales
        if self.trainable:
            scales = scales * self.roots.index_select(0, self.exponents.sum(1) - self.lowest)
        return scales * torch.stack(columns, dim=-1).prod(-1)

    def config(self) -> dict[str, Any]:
        trained = {"trainable": True} if self.trainable else {}
        linear = {} if self.constant else {"constant": False}
        return {"name": "Polynomial", "degree": self.degree, "coefficients": list(self.start), **trained, **linear}

    def extra_repr(self) -> str:
        told = f"degree={self.degree}" + (", trainable=True" if self.trainable else "")
        return told + ("" if self.constant else ", constant=False")
