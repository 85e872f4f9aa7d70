"""The factors' check: ``J^T v`` by them against automatic differentiation, each row of the Jacobian by its own size."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import UnsupportedModuleError
from inrfast.layers import Factors, Layer
from inrfast.memory import chunks
from inrfast.mlp import MLP, describe
from inrfast.ops.gram import gram_diagonal
from inrfast.ops.rows import vjp
from inrfast.tangent.network import PASS_DTYPE, Network, gradients, rounded
from inrfast.tangent.probes import AMPLIFIED, CHAOTIC, chaotic

TOLERANCE, FLOOR = 1e-7, 1e-10
"""Of an entry of ``J^T v``, relative to the size of its terms and to the largest entry of all layers."""

LEAST_NORMS = (1e-9, 1e-4)
"""Norms of rows, as shares of the largest, below which rows count as little as they are: the first, else the next where
rounding makes the smaller rows. Errors of the size of a row are seen down to a share of 1e-15."""

LEAST_BESIDE = 1e-8
"""The same beside other outputs of the point, whose rounding a smaller row may be: of a saturated softmax for instance,
where it is what is left of 1 - p."""

MOST_PARTS = 64
"""Parts of the outputs that are compared by themselves, where all of them together do not agree."""

LARGEST_NORM = 1e150
"""Norms of rows up to which fp64 holds their squares."""


def check_jacobian(
    network: Network,
    layers: Sequence[Layer],
    sample: Tensor,
    outputs: int,
    captured: Sequence[Factors],
    known: Tensor,
    movable: Collection[int],
) -> tuple[list[float], list[int]]:
    """Compare ``J^T v`` by the factors with automatic differentiation, on a few points, for one v.

    In reverse mode: forward mode of torch is not safe in threads. A GPU is waited for once, for all answers and the
    ``known`` numbers, which are returned. The second are the layers, of those that are ``movable`` to automatic
    differentiation, whose factors are not those of the network; another such layer is refused.
    """
    norms = gram_diagonal(captured, "full", outputs).sqrt().nan_to_num(0.0, LARGEST_NORM).view(-1, outputs)
    weights = _row_weights(norms, LEAST_NORMS[0])
    truth = _products_at(network, layers, sample, weights)
    ours = products_by_factors(layers, captured, weights)
    sums = torch.stack([f.sum() for factors in captured for f in factors if f is not None])
    answers = torch.stack([far(ours, truth).any().to(PASS_DTYPE), sums.sum()])
    apart, total, *numbers = torch.cat([answers, known]).tolist()
    if not math.isfinite(total):
        _need_finite(layers, captured)
    if not apart:
        return numbers, []
    return numbers, _refuse_other_jacobian(network, layers, sample, captured, norms, movable)


def _row_weights(norms: Tensor, least: float) -> Tensor:
    """Return the weights (n, M) of the rows in the check, around 1 / norm, so that every row counts alike.

    Norms below ``least`` times the largest count as that, those below :data:`LEAST_BESIDE` times the largest of their
    point too, and rows of zeros as the others do in the middle.
    """
    weights = torch.linspace(0.5, 1.5, norms.numel(), dtype=norms.dtype, device=norms.device).view_as(norms)
    usual = torch.where(norms > 0, norms, math.nan).nanmedian().nan_to_num(1.0)
    floor = (LEAST_BESIDE * norms.amax(1, keepdim=True)).clamp_min(least * norms.max())
    return weights / torch.where(norms > 0, norms, usual).clamp_min(floor)


def _as_powers(weights: Tensor) -> Tensor:
    """Return powers of two near the weights, times one of a few in turn, so that no two neighbours count alike."""
    turn = torch.arange(weights.numel(), device=weights.device).view_as(weights)
    return torch.exp2(torch.frexp(weights).exponent.to(weights) + (5 * turn) % 7)


def _need_finite(layers: Sequence[Layer], captured: Sequence[Factors]) -> None:
    for layer, factors in zip(layers, captured, strict=True):
        if not all(bool(torch.isfinite(f).all()) for f in factors if f is not None):
            raise ValueError(
                f"layer {layer.name!r} has NaN or Inf features or sensitivities at the first points of coords"
            )


def _refuse_other_jacobian(
    network: Network,
    layers: Sequence[Layer],
    sample: Tensor,
    captured: Sequence[Factors],
    norms: Tensor,
    movable: Collection[int],
) -> list[int]:
    """Refuse networks whose ``J^T v`` differ by more than rounding, which deep ones of high frequency amplify.

    Layers that differ are returned where all or some of them are movable. Rows are looked at by their sizes, then so
    that each counts alike, or as many as are not what rounding leaves of a sum that cancels; those output by output,
    by powers of two, since other weights of many sizes would enter such sums together and round otherwise, as those of
    a softmax do.
    """

    def compared(weights: Tensor, refuse: bool) -> list[int] | None:
        ours = products_by_factors(layers, captured, weights)
        truth, effect, largest = _products_at(network, layers, sample, weights), 0.0, float(largest_of(ours))
        if not refuse and not bool(far(ours, truth).any()):
            return []
        eps = torch.finfo(PASS_DTYPE).eps
        for seed in range(3):
            near = _products_at(network.rounded(eps, seed), layers, rounded(sample, eps, seed), weights)
            effect = max(effect, *(float((a - b).abs().max()) for a, b in zip(near, truth, strict=True)))
        if effect > CHAOTIC * largest:
            if refuse:
                raise UnsupportedModuleError(chaotic("Jacobian", effect / max(largest, 1e-300)))
            return None
        return _apart(network, layers, len(sample), ours, truth, AMPLIFIED * effect, movable)

    # The largest norm alone leaves all rows as large as they are.
    apart = compared(_row_weights(norms, 1.0), refuse=True)
    outputs = norms.shape[1]
    for part in chunks(outputs, -(-outputs // MOST_PARTS)):
        kept = torch.zeros_like(norms)
        kept[:, part] = 1
        for least in () if apart else LEAST_NORMS:
            apart = compared(_as_powers(_row_weights(norms, least)) * kept, refuse=False)
            if apart is not None:
                break
    return apart or []


def _apart(
    network: Network,
    layers: Sequence[Layer],
    points: int,
    ours: list[Tensor],
    truth: list[Tensor],
    allowed: float,
    movable: Collection[int],
) -> list[int]:
    """Return the movable layers whose ``J^T v`` differ by more than is ``allowed``, or refuse the network."""
    off = far(ours, truth, allowed).nonzero().flatten().tolist()
    apart = [k for k in off if k in movable]
    if apart or not off:
        return apart
    errors = [float((a - b).abs().max()) for a, b in zip(ours, truth, strict=True)]
    where = f"most in layer {layers[errors.index(max(errors))].name!r}, last in layer {layers[off[-1]].name!r}"
    raise UnsupportedModuleError(
        "the captured factors do not reproduce the network's Jacobian (checked against automatic "
        f"differentiation on {points} points, error {max(errors):.2e}, {where}): {_own_parts(network, layers)}"
        "a parameter acts outside its layer's forward, a layer gets the points in another order, or a part "
        "computes in 16 bits"
    )


def _own_parts(network: Network, layers: Sequence[Layer]) -> str:
    """Return in words which parts of a network are the user's own, and what checks them; nothing if there are none."""
    mlp = describe(network.module)
    parts: list[tuple[str, str, Callable[..., Any] | type]] = []
    if isinstance(mlp, MLP):
        for hidden in mlp.hidden:
            kind = hidden.activation.kind
            parts.append((f"the slope of the activation {kind.name!r}", "check_activation", kind.slope))
            if hidden.norm is not None:
                parts.append(
                    (f"the derivative of the norm {type(hidden.norm).__name__}", "check_norm", type(hidden.norm))
                )
    parts += [(f"the factors of {type(layer).__name__}", "check_layer", type(layer)) for layer in layers]
    told = [
        f"{what} may be wrong (inrfast.testing.{check} tells)"
        for what, check, code in parts
        if not str(getattr(code, "__module__", "")).startswith("inrfast.")
    ]
    return "".join(f"{one}, " for one in dict.fromkeys(told)) + ("or " if told else "")


# ---- J^T v, and how far two of them are apart ------------------------------------------------------------------------


def products_by_factors(layers: Sequence[Layer], captured: Sequence[Factors], weights: Tensor) -> list[Tensor]:
    """Return ``J^T v`` by the factors as the layers' blocks (1, b, a), v the weights (n, M) of the rows."""
    cotangents = weights.unsqueeze(-1)
    return [vjp(*factors, cotangents, rows=layer.block[0]) for layer, factors in zip(layers, captured, strict=True)]


def products_by_autograd(module: nn.Module, layers: Sequence[Layer], outputs: Tensor, weights: Tensor) -> list[Tensor]:
    """Return ``J^T v`` by automatic differentiation of a module's outputs (n, M), as the same blocks."""
    own = dict(module.named_parameters())
    names = [name for layer in layers for name in layer.parameters]
    found = gradients((outputs * weights).sum(), [own[name] for name in names])
    by_name = dict(zip(names, found, strict=True))
    return [layer.join([by_name[name].reshape(1, -1) for name in layer.parameters]) for layer in layers]


def largest_of(blocks: Sequence[Tensor]) -> Tensor:
    """Return the largest entry of some blocks."""
    return torch.stack([own.abs().amax() for own in blocks]).amax()


def far(ours: Sequence[Tensor], truth: Sequence[Tensor], rounding: float = 0.0) -> Tensor:
    """Return which blocks differ by more than rounding, a tensor of truth values that nobody waits for.

    By more than :data:`TOLERANCE` of an entry, :data:`FLOOR` of the largest entry of all blocks, and ``rounding``.
    """
    floor = largest_of(ours) * FLOOR + (rounding + 1e-290)
    found = []
    for own, other in zip(ours, truth, strict=True):
        allowed = own.abs().add_(other.abs()).mul_(TOLERANCE).add_(floor)
        found.append(~((own - other).abs_() <= allowed).all())  # NaN is far from everything
    return torch.stack(found)


def _products_at(network: Network, layers: Sequence[Layer], sample: Tensor, weights: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        return products_by_autograd(network.module, layers, network.outputs(sample), weights)
