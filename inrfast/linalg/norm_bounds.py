"""The spectral norm of a symmetric operator, bounded from both sides by a few products with a random block.

For a Gaussian block ``omega_1, ..., omega_k`` and a symmetric E with ``|E u| = |E| |u|`` for a unit vector u, every
power has ``|E^q omega_i| >= |E|^q |u . omega_i|``, and ``P(max_i |u . omega_i| < e) <= (e sqrt(2 / pi))^k``. So
``|E| <= (max_i |E^q omega_i| / e)^(1/q)`` except with that probability: Halko, Martinsson and Tropp, SIAM Review
53(2), 2011, Lemma 4.1, with a power iteration. The event that spoils the bound is the same for every q, so that one may
stop when it suits.

Products are rounded: ``v_{j+1} = E v_j + d_j``. Where ``|u . d_j| <= a_j + |E| b_j``, the component along u is at least
``|u . v_{j+1}| >= |E| |u . v_j| - a_j - |E| b_j``, and x = |E| satisfies ::

    e x^q <= |v_q| + sum_{j < q} (a_j + x b_j) x^(q - 1 - j)

for one of the columns. Divided by ``x^q`` the right side falls as x grows, so the largest x of all columns for which it
holds is the bound.
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

HALVINGS = 20
"""Halvings of the interval of log x in which a bound is looked for: it is 3e-6 too large at most."""

ErrorNorms = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the norms of the columns given to a product, and of what it returned, both (k,), to ``a`` and ``b`` (k,)."""


@dataclass(frozen=True)
class NormBound:
    """``lower <= |E| <= upper``, the upper bound except with probability ``failure``.

    Attributes
    ----------
    lower, upper
        The bounds; ``upper`` is infinite where products are not finite, or hold nothing but rounding.
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
    errors: float | ErrorNorms = 0.0,
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
    errors
        Bound on the error of a product with a unit vector, or a function that returns the numbers ``a`` and ``b`` of
        this module's formula.
    most
        Products at most.
    enough
        Asked after every product whether to stop.
    """
    block = partition.random(BLOCK, seed, like)
    least = failure ** (1 / BLOCK) * math.sqrt(math.pi / 2)
    size = torch.zeros(BLOCK, dtype=torch.float64)  # log |v_j| = size + log of the norm of the block's column
    absolute, relative = [], []  # logarithms of the errors
    bound = NormBound(0.0, math.inf, failure, 0)
    for count in range(1, most + 1):
        before = partition.norm(block)
        block = product(block)
        sizes = partition.norm(block)
        before, norms = torch.stack([before, sizes]).cpu()
        if not bool(torch.isfinite(norms).all()):
            return NormBound(bound.lower, math.inf, failure, count)
        own, scaled = errors(before, norms) if callable(errors) else (errors * before, 0 * before)
        absolute.append(size + own.log())
        relative.append(size + scaled.log())
        largest = (norms / before - own / before - scaled * norms / before.square()).max()
        upper = _largest_root(least, size + norms.log(), torch.stack(absolute), torch.stack(relative))
        bound = NormBound(max(float(largest), bound.lower, 0.0), upper, failure, count)
        if not bool((norms > 0).any()) or (enough is not None and enough(bound)):
            break
        kept = torch.where(norms > 0, norms, 1.0)
        size = size + torch.where(norms > 0, norms, 0.0).log().clamp_min(-1e4)
        block = block / kept.to(block.device)
    return bound


def _largest_root(least: float, last: Tensor, absolute: Tensor, relative: Tensor) -> float:
    """Return the largest x with ``least <= |v_q| x^-q + sum_j a_j x^-(j+1) + b_j x^-j`` for a column, from logarithms.

    Infinite where ``b_0 >= least``; 0 where everything on the right is 0. Rounded up.
    """
    steps = torch.arange(len(absolute), dtype=torch.float64).unsqueeze(1)
    terms = torch.cat([last.unsqueeze(0), absolute, relative[1:]])
    powers = torch.cat([steps[-1:] + 1, steps + 1, steps[1:]])
    constant = relative[0].exp()
    if bool((constant >= least).any()):
        return math.inf
    rest = (least - constant).log()
    # Each term alone reaches its share of the left side at exp(here); all of them together between these bounds.
    low = ((terms - rest) / powers).amax(0)
    high = ((terms - rest + math.log(len(terms))) / powers).amax(0)
    if bool((high == -math.inf).all()):
        return 0.0
    low, high = low[high > -math.inf], high[high > -math.inf]
    terms, rest = terms[:, terms.amax(0) > -math.inf], rest[terms.amax(0) > -math.inf]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = torch.logsumexp(terms - powers * middle, 0) > rest
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    largest = float(high.max()) + 1e-12
    return math.exp(largest) if largest < 700 else math.inf
