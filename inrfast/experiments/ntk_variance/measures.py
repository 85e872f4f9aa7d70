"""Numbers of a tangent kernel: the variance of its eigenvalues, how it splits, and its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.analysis.variance import variance
from inrfast.experiments.ntk_variance.variants import ready
from inrfast.nn import INR
from inrfast.tangent.local import ntk

MOST_POINTS = 1024
"""Points of a spectrum at most."""

LAYERS = "layers."
"""How names of linear layers begin; those of filters and norms do not."""


def measured(
    net: INR, coords: Tensor, params: Sequence[str] | None = None, precision: str = "highest"
) -> dict[str, Any]:
    """Return the numbers of a network's tangent kernel at some points, as JSON holds them.

    Returns
    -------
    dict
        ``mean``, ``variance`` and ``normalised`` (v / mu^2) of the eigenvalues; ``overlap``, the energy-weighted
        squared cosine of the Jacobian's rows, and ``diagonal``, the variance of K_ii over mu^2, which together make up
        v / mu^2 (see :func:`made_up`); ``input``, ``hidden`` and ``gate`` similarities; ``first``, v / mu^2 of the
        first layer's own kernel, and ``frozen`` that of the kernel without the parameters of filters and norms;
        ``layers`` with each layer's ``energy`` (share of the trace), ``share`` of v and own ``normalised``.
    """
    ready(net, coords)
    found = variance(net, coords, params=params, precision=precision, method="exact", progress=False)
    own = ntk(net, coords, params=params, precision=precision, backend="torch").diagonal().double()
    diagonal = float(own.var(correction=0) / own.mean() ** 2)
    count = found.points
    names = list(found.layers)
    kept = [index for index, name in enumerate(names) if name.startswith(LAYERS)]
    mean = sum(found.layers[names[index]].mean for index in kept)
    alike = found.similarities
    return {
        "mean": found.mean,
        "variance": found.variance,
        "normalised": found.normalised,
        "overlap": (found.normalised - diagonal) / (count - 1 - diagonal),
        "diagonal": diagonal,
        "input": alike.input,
        "hidden": alike.hidden,
        "gate": alike.gate,
        "first": found.layers[names[kept[0]]].normalised,
        "frozen": float(found.pairs[kept][:, kept].sum()) / mean**2,
        "layers": {
            name: {"energy": one.mean / found.mean, "share": one.share, "normalised": one.normalised}
            for name, one in found.layers.items()
        },
    }


def made_up(overlap: float, diagonal: float, count: int) -> float:
    """Return v / mu^2 from its two parts: ``(n - 1 - d) t + d`` at n points, for a kernel of one output.

    ``t = sum_{i != j} K_ij^2 / sum_{i != j} K_ii K_jj`` is the overlap and ``d = Var(K_ii) / mu^2``: since
    ``sum_{i != j} K_ii K_jj = n^2 mu^2 - sum_i K_ii^2 = n mu^2 (n - 1 - d)``, it follows from
    ``v = 1/n sum_{i != j} K_ij^2 + Var(K_ii)``.
    """
    return (count - 1 - diagonal) * overlap + diagonal


def spectrum(net: INR, coords: Tensor) -> np.ndarray:
    """Return the eigenvalues of a network's tangent kernel, largest first, fp64; of every k-th point of many."""
    few = coords[:: -(-len(coords) // MOST_POINTS)]
    kernel = dense(ready(net, coords), few)
    return torch.linalg.eigvalsh(kernel).flip(0).clamp_min(0).cpu().numpy()


def dense(net: INR, coords: Tensor) -> Tensor:
    """Return a network's tangent kernel in fp64."""
    return ntk(net, coords, precision="highest", backend="torch").to_dense().double()


def first_share(values: np.ndarray) -> float:
    """Return the largest eigenvalue's share of the trace."""
    return float(values[0] / values.sum())


def rest(values: np.ndarray) -> float:
    """Return v / mu^2 of all eigenvalues but the largest, which in most networks belongs to the constant."""
    others = values[1:]
    return float(others.var() / others.mean() ** 2)


def effective_rank(values: np.ndarray) -> float:
    """Return the exponential of the entropy of the eigenvalues' shares (Roy and Vetterli, EUSIPCO 2007).

    The other usual one, ``(sum l)^2 / sum l^2``, is ``n / (1 + v / mu^2)``, so that it says nothing new.
    """
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
