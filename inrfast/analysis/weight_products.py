"""Singular values of weight matrices and of their products, the weight factor of the Inlet Rank Collapse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from inrfast.analysis.report import Weight, matrix_spectrum
from inrfast.analysis.representations import RTOLS, check_tolerances
from inrfast.errors import check_tensor
from inrfast.linalg.tsqr import ROUNDOFF, singular_values
from inrfast.mlp import MLP, LinearLayer, describe
from inrfast.modes import in_own_modes
from inrfast.wrapped import unwrapped


@in_own_modes
def weight_products(net: nn.Module | MLP, head: bool = False, rtols: Sequence[float] = RTOLS) -> tuple[Weight, ...]:
    """Return the singular values of the products ``W_l ... W_k`` of a network's weights, in fp64, one for every k < l.

    Without the activations between them, they are the weight factor of the weight Jacobian in equation 10 of the Inlet
    Rank Collapse (arXiv 2602.01526): full products of square matrices, whose ranks its figure 2a calls healthy.

    Parameters
    ----------
    net
        An :class:`inrfast.INR`, or another network whose layers :func:`inrfast.mlp.describe` knows.
    head
        Whether W_l is the last linear layer, or (default) the one before it: with M outputs the product with the head
        has at most rank M, which hides the others.
    rtols
        Relative tolerances in (0, 1), in any order.

    Returns
    -------
    tuple of Weight
        From the longest product, down to the first hidden layer, to that of two; ``factors`` are the layers' names in
        the order of multiplication. Empty where there are no two weights. The ranks take in the rounding of the
        product: of many layers, whose product loses all digits, they are wide intervals.

    Raises
    ------
    TypeError, ValueError
        A network whose layers are not known to be a chain; NaN or Inf among the weights; bad tolerances.

    Examples
    --------
    >>> from inrfast import INR
    >>> [product.factors for product in weight_products(INR(2, 1, width=8, hidden_layers=3))]
    [('layers.2', 'layers.1', 'layers.0'), ('layers.2', 'layers.1')]
    """
    rtols = check_tolerances(rtols)
    mlp = (
        net
        if isinstance(net, MLP)
        else describe(unwrapped(net))
        if isinstance(net, nn.Module)
        else "it is no torch.nn.Module"
    )
    if isinstance(mlp, str):
        raise TypeError(f"net must be an inrfast.INR, whose layers are known to be a chain: {mlp}")
    layers = list(mlp.layers if head else mlp.layers[:-1])
    last = layers.pop()
    names: tuple[str, ...] = (last.name,)
    product, error, found = _matrix(last), 0.0, []
    for layer in reversed(layers):
        weight = _matrix(layer)
        norms = float(torch.linalg.matrix_norm(product)) * float(torch.linalg.matrix_norm(weight))
        # Sums of n products are off by sqrt(n) u times the norms; the error so far is multiplied like the product.
        error = float(torch.linalg.matrix_norm(weight, 2)) * error + math.sqrt(len(weight)) * ROUNDOFF * norms
        product, names = product @ weight, (*names, layer.name)
        found.append(weight_spectrum(names, product, rtols, error))
    return tuple(reversed(found))


def _matrix(layer: LinearLayer) -> Tensor:
    return check_tensor(f"the weight of {layer.name!r}", layer.weight).detach().double().cpu()


def weight_spectrum(names: tuple[str, ...], matrix: Tensor, rtols: tuple[float, ...], error: float = 0.0) -> Weight:
    """Return the report's entry of a weight matrix or product in fp64, which is off by so much in spectral norm."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.t()
    values = singular_values(lambda: [tall], rtols[-1])
    shape = (matrix.shape[0], matrix.shape[1])
    return Weight(names, matrix_spectrum(replace(values, shape=shape, matrix_error=error), rtols, refuse=error == 0))
