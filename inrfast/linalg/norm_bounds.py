"""The spectral norm of a symmetric operator, bounded from both sides by a few products with a random block.

For a Gaussian block ``omega_1, ..., omega_k`` and a symmetric E with ``|E u| = |E| |u|`` for a unit vector u, every
power has ``|E^q omega_i| >= |E|^q |u . omega_i|``, and ``P(max_i |u . omega_i| < e) <= (e sqrt(2 / pi))^k``. So
``|E| <= (max_i |E^q omega_i| / e)^(1/q)`` except with that probability: Halko, Martinsson and Tropp, SIAM Review
53(2), 2011, Lemma 4.1, with a power iteration. The event that spoils the bound is the same for every q, so that one may
stop when it suits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.linalg.partition import Whole

BLOCK = 8
"""Vectors per block."""


@dataclass(frozen=True)
class NormBound:
    """``lower <= |E| <= upper``, the upper bound except with probability ``failure``.

    Attributes
    ----------
    lower, upper
        The bounds.
    failure
        Probability, over the random block, that the upper bound does not hold.
    products
        Products with blocks taken.
    """

    lower: float
    upper: float
    failure: float
    products: int


def norm_bound(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    partition: Whole,
    failure: float,
    seed: int,
    error: float = 0.0,
    most: int = 6,
    enough: Callable[[NormBound], bool] | None = None,
) -> NormBound:
    """Return bounds of the norm of a symmetric operator.

    Parameters
    ----------
    product
        Applies the operator to a block (n, k), fp64.
    like
        A vector (n,) of the operator's device.
    partition
        Which rows of the vectors are held here.
    failure
        Probability with which the upper bound may fail, over the block that ``seed`` draws.
    error
        Bound on the error of a product with a unit vector; widens the bounds.
    most
        Products at most.
    enough
        Asked after every product whether to stop.
    """
    block = partition.random(BLOCK, seed, like)
    least = failure ** (1 / BLOCK) * math.sqrt(math.pi / 2)
    logs = torch.zeros(BLOCK, dtype=torch.float64)
    bound = NormBound(0.0, math.inf, failure, 0)
    for count in range(1, most + 1):
        before = partition.norm(block).cpu()
        block = product(block)
        norms = partition.norm(block).cpu()
        if not bool((norms > 0).any()):
            return NormBound(0.0, error, failure, count)
        logs += norms.log()
        lower = max(float((norms / before).max()) - error, 0.0)
        bound = NormBound(lower, math.exp((float(logs.max()) - math.log(least)) / count) + error, failure, count)
        if enough is not None and enough(bound):
            break
        block = block / norms.clamp_min(torch.finfo(norms.dtype).tiny).to(block.device)
    return bound
