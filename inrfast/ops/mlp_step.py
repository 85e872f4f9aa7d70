"""Forward and backward pass of coordinate MLPs on the CPU, in one native call: fp32, with its own matrix products.

Chunks of points go through all layers and back while they are in cache; bias, ReLU and its derivative are applied to
tiles before they leave the registers, and sine and cosine come from one reduction. What a training step costs beside
its products is then hardly measurable.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.activations import BoundActivation
from inrfast.backends import warn_once
from inrfast.errors import NotAvailableError
from inrfast.extension import cost_of_absence, load_extension, native_variant
from inrfast.losses import BoundLoss, loss_of
from inrfast.norms import Norm
from inrfast.norms.topk import Selecting

MOST_LAYERS = 64

MEAN_SQUARE = loss_of("mse")

TILE_ROWS = 84
"""A whole number of tiles, whatever their height: 6, 12 or 14 rows (and nearly for 8)."""

FEATURES = 2**15
"""Features of one layer that are in work at once: 128 KiB, so that all layers' stay in the second cache."""

MOST_TILES = 6

ALIGNMENT = 64


@functools.cache
def _available() -> str:
    try:
        return str(load_extension().mlp_step_instructions())
    except NotAvailableError:
        return ""


def instructions() -> str:
    """Return the instructions of the native step here: ``"avx512"``, ``"avx2"``, or ``""`` where there is no such step.

    There is none without the extension, on other processors, where ``INRFAST_GEMM`` asks for a library's products, and
    where ``INRFAST_NATIVE`` asks for none.

    Raises
    ------
    NotAvailableError
        ``INRFAST_NATIVE`` names instructions that this processor or build does not have.
    """
    variant = native_variant()
    if os.environ.get("INRFAST_GEMM") or variant in ("plain", "absent"):
        return ""
    found = _available()
    if variant == "auto":
        return found
    if variant == found or (variant, found) == ("avx2", "avx512"):
        return variant
    raise NotAvailableError(
        f"INRFAST_NATIVE={variant} cannot run here: the native step of this processor and build is "
        f"{found or 'missing'}; use INRFAST_NATIVE=auto"
    )


def missing() -> str | None:
    """Return why there is no native step here, or None; where the extension is missing, warn once of the cost."""
    if instructions():
        return None
    cost = None if os.environ.get("INRFAST_GEMM") else cost_of_absence()
    if cost is not None:
        warn_once(cost)
    return "this processor, build or environment has no native step"


def reaches_inputs() -> bool:
    """Return whether native steps here take gradients of their inputs: extensions built before did not."""
    return bool(instructions()) and hasattr(load_extension().MlpPoints, "coords_grad")


@dataclass(frozen=True)
class Filter:
    """A filter of the points' coordinates that the features of a layer of B networks are multiplied by.

    Attributes
    ----------
    name
        Out of ``csrc/mlp_step_filters.h``.
    parameters, grads
        Its parameters in the order given there, (B, *shape), each network's contiguous; tensors like them, to which
        gradients are added, or None: not wanted.
    """

    name: str
    parameters: Sequence[Tensor]
    grads: Sequence[Tensor | None]


@dataclass(frozen=True)
class Layer:
    """A linear layer of B networks and the activation behind it, None of the head.

    Attributes
    ----------
    weight, bias
        Shapes (B, out, in) and (B, out), each network's contiguous; a bias may be None.
    weight_grad, bias_grad
        Tensors like them, to which gradients are added; None: not wanted.
    norm
        One with a native step, behind the activation if ``norm_after``, else before it; None: there is none.
    filter
        What is multiplied with the features that come of all this; None: nothing. It filters the inputs of the first
        layer, whose gradient is then not to be had.
    """

    activation: BoundActivation | None
    weight: Tensor
    bias: Tensor | None
    weight_grad: Tensor | None = None
    bias_grad: Tensor | None = None
    norm: Norm | None = None
    norm_after: bool = True
    filter: Filter | None = None


@dataclass(frozen=True)
class Points:
    """Points of B networks: a first axis of 1 is shared by all.

    Attributes
    ----------
    coords, target, weight
        Shapes (B or 1, N, d), (B or 1, N, M), (B or 1, N, 1 or M) or None.
    rows
        The points of a step as (B or 1, n), int64, or as a range.
    coords_grad
        Like ``coords``: there the gradient of these rows is written; None: not wanted.
    """

    coords: Tensor
    target: Tensor
    weight: Tensor | None
    rows: Tensor | range
    coords_grad: Tensor | None = None


def takes_norms() -> bool:
    """Return whether native steps here take norms: extensions built before did not."""
    return bool(instructions()) and hasattr(load_extension().MlpLayer, "kept")


def takes_filters() -> bool:
    """Return whether native steps here take filters and the identity: extensions built before did not."""
    return bool(instructions()) and hasattr(load_extension(), "mlp_step_filters")


def reason_against(
    activations: Sequence[BoundActivation],
    tensors: Sequence[Tensor | None],
    norms: Sequence[Norm] = (),
    filters: Sequence[nn.Module] = (),
) -> str | None:
    """Return why the native step does not take networks of such parts, whose parameters and points are ``tensors``."""
    unknown = sorted(activation.name for activation in activations if activation.kind.native is None)
    if unknown:
        return f"the activation {unknown[0]!r} has no native step"
    if any(norm.native is None for norm in norms):
        return "its hidden layers have norms without a native step"
    if any(vars(type(own)).get("native") is None for own in filters):  # a subclass may compute anything
        return "its hidden layers have filters without a native step"
    if len(activations) >= MOST_LAYERS:
        return f"it has {len(activations)} hidden layers, and native steps take fewer than {MOST_LAYERS}"
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return f"native steps take fp32 on a CPU, not {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
        if not tensor[0].is_contiguous():
            return "its parameters are not contiguous"
    if (reason := missing()) is not None:
        return reason
    if norms and not takes_norms():
        return "this build of the extension takes no norms"
    if (filters or any(own.kind.native == "identity" for own in activations)) and not takes_filters():
        return "this build of the extension takes no filters, and no identity"
    return None


def chunk_rows(width: int, points: int) -> int:
    """Return how many points go through a network together."""
    tiles = min(max(FEATURES // (TILE_ROWS * width), 1), MOST_TILES, math.ceil(points / TILE_ROWS))
    return TILE_ROWS * tiles


def workspace(layers: Sequence[Layer], chunk: int) -> int:
    """Return how many floats :func:`steps` needs beside its arguments."""
    return int(load_extension().mlp_step_workspace(_native(layers), chunk)) + ALIGNMENT // 4


def steps(
    layers: Sequence[Layer],
    points: Points,
    scales: Tensor | None,
    count: int,
    chunk: int,
    memory: Tensor,
    instructions: str,
    loss: BoundLoss = MEAN_SQUARE,
) -> Tensor:
    """Return the sums of ``w l(f, y)`` (count,) in fp64 of ``count`` networks, adding the gradients to the layers'.

    The gradients are those of ``scale`` times these sums. They are the same to the bit for the same arguments and
    instructions.

    Parameters
    ----------
    layers, points
        Of ``count`` networks.
    scales
        One factor per network, (count,), of its loss; None: losses alone.
    chunk
        Points that go through a network together, as of :func:`chunk_rows`.
    memory
        At least :func:`workspace` floats.
    instructions
        Those of :func:`instructions`, or others that this processor has.
    loss
        One with a native function.
    """
    assert points.coords_grad is None or all(layer.filter is None for layer in layers)
    native, rows, own = load_extension(), points.rows, _native(layers)
    assert memory.numel() >= native.mlp_step_workspace(own, chunk) + ALIGNMENT // 4
    first, number = (rows.start, len(rows)) if isinstance(rows, range) else (0, rows.shape[1])
    place = native.MlpPoints(
        coords=_stacked(points.coords),
        target=_stacked(points.target),
        weight=_stacked(points.weight),
        index=(0, 0) if isinstance(rows, range) else _stacked(rows),
        weight_columns=1 if points.weight is None else points.weight.shape[2],
        first=first,
        count=number,
        **({} if points.coords_grad is None else {"coords_grad": _stacked(points.coords_grad)}),
    )
    found = native.mlp_steps(
        instructions=instructions,
        layers=own,
        points=place,
        scales=[0.0] * count if scales is None else scales.tolist(),
        gradient=scales is not None,
        chunk=chunk,
        workspace=-(-memory.data_ptr() // ALIGNMENT) * ALIGNMENT,
        loss=loss.kind.native,
        number=loss.numbers[0] if loss.numbers else 0.0,
    )
    return torch.tensor(found, dtype=torch.float64)


def _native(layers: Sequence[Layer]) -> list[Any]:
    module: ModuleType = load_extension()
    return [
        module.MlpLayer(
            inputs=layer.weight.shape[2],
            outputs=layer.weight.shape[1],
            activation="relu" if layer.activation is None else layer.activation.kind.native,
            numbers=[] if layer.activation is None else layer.activation.numbers,
            weight=_stacked(layer.weight),
            bias=_stacked(layer.bias),
            weight_grad=_stacked(layer.weight_grad),
            bias_grad=_stacked(layer.bias_grad),
            **_norm_words(layer),
            **_filter_words(layer.filter),
        )
        for layer in layers
    ]


def _norm_words(layer: Layer) -> dict[str, Any]:
    """Return what an extension is told of a layer's norm; nothing where there is none."""
    if layer.norm is None:
        return {}
    kept = layer.norm.k if isinstance(layer.norm, Selecting) else 0
    return {"norm": layer.norm.native, "norm_first": not layer.norm_after, "kept": kept}


def _filter_words(own: Filter | None) -> dict[str, Any]:
    """Return what an extension is told of a layer's filter; nothing where there is none."""
    if own is None:
        return {}
    parameters, grads = ([_stacked(tensor) for tensor in some] for some in (own.parameters, own.grads))
    return {"filter": own.name, "filter_parameters": parameters, "filter_grads": grads}


def _stacked(tensor: Tensor | None) -> tuple[int, int]:
    """Return an address and how far on the next network's is."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), tensor.stride(0) if len(tensor) > 1 else 0
