"""Volume rendering: colours along rays from densities, by the quadrature of emission and absorption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike
from inrfast.errors import check_tensor
from inrfast.records import Record


@dataclass(frozen=True, eq=False)
class Composited(Record):
    """What rays see; of a picture the same by its rows and columns.

    Attributes
    ----------
    colours
        (n, C), with what shines through of the background.
    opacity
        (n,), 1 minus the light that passes.
    depth
        (n,), the expected distance ``sum_i w_i t_i`` at the middles of intervals; the background counts nothing.
    """

    colours: Tensor
    opacity: Tensor
    depth: Tensor


def weights(densities: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (n, m) of the intervals of rays, and the light (n,) that passes all of them.

    Interval i, of length ``d_i`` and constant density ``s_i``, has the weight ``T_i (1 - exp(-s_i d_i))`` with the
    transmittance ``T_i = exp(-sum_(j<i) s_j d_j)``. The weights and the light that passes sum to 1.

    Parameters
    ----------
    densities
        (n, m), not negative.
    edges
        (n, m + 1), ascending distances.

    Raises
    ------
    ValueError
        Negative densities, descending edges.

    Source: Max, Optical models for direct volume rendering, IEEE TVCG 1995; Mildenhall et al., NeRF, ECCV 2020,
    equation 3.

    Examples
    --------
    >>> own, passes = weights(torch.ones(1, 2), torch.tensor([[0.0, 1.0, 3.0]]))
    >>> round(float(own.sum() + passes), 6), round(float(passes), 4)
    (1.0, 0.0498)
    """
    return _weights(_depths(densities, edges))


def _depths(densities: Tensor, edges: Tensor) -> Tensor:
    """Return the optical depths (n, m) of intervals, whose light would not sum to 1 if any were negative.

    NaN is let through: a fit that diverges is told of by the fit.
    """
    if bool((densities < 0).any()):
        raise ValueError(f"densities must not be negative, got {float(densities.detach().min()):g}")
    lengths = edges.diff(dim=1)
    if bool((lengths < 0).any()):
        raise ValueError(f"edges must ascend along each ray, got a step of {float(lengths.min()):g}")
    return densities * lengths


def _weights(depths: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and passing light from optical depths (n, m)."""
    summed = depths.cumsum(1)
    before = torch.cat([torch.zeros_like(summed[:, :1]), summed[:, :-1]], dim=1)
    return torch.exp(-before) * -torch.expm1(-depths), torch.exp(-summed[:, -1])


class _Composite(torch.autograd.Function):
    """``sum_i w_i v_i + T b`` of values v (n, m, C) and a background b (C,), without a graph of its parts.

    With ``g_i = <G, v_i>`` and ``g_b = <G, b>``, the gradient in the optical depth of interval i is
    ``T_(i+1) g_i - sum_(j>i) w_j g_j - T g_b``: no quotient, so that nothing is lost where an interval is opaque.
    """

    @staticmethod
    def forward(ctx: Any, depths: Tensor, values: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, passes = _weights(depths)
        ctx.save_for_backward(depths, values, background, own, passes)
        seen = torch.bmm(own.unsqueeze(1), values).squeeze(1) + passes.unsqueeze(1) * background
        return seen, own, passes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, seen: Tensor, own: Tensor, passing: Tensor) -> tuple[Tensor | None, ...]:
        depths, values, background, weight, passes = ctx.saved_tensors
        needs_depths, needs_values, needs_background = ctx.needs_input_grad
        in_depths = in_values = in_background = None
        if needs_values:
            in_values = weight.unsqueeze(2) * seen.unsqueeze(1)
        if needs_background:
            in_background = passes @ seen
        if needs_depths:
            towards = torch.bmm(values, seen.unsqueeze(2)).squeeze(2) + own  # g_i
            past = passes * (seen @ background + passing)  # T g_b
            behind = weight * towards
            behind = behind.flip(1).cumsum(1).flip(1) - behind
            in_depths = torch.exp(-depths.cumsum(1)) * towards - behind - past.unsqueeze(1)
        return in_depths, in_values, in_background


def composite(densities: ArrayLike, values: ArrayLike, edges: ArrayLike, background: ArrayLike) -> Composited:
    """Return what rays see of intervals with constant densities and colours before a background.

    The gradient in densities, values and background is computed in closed form (first derivatives only).

    Parameters
    ----------
    densities
        (n, m), not negative, floating, of one dtype with all others.
    values
        (n, m, C), colours.
    edges
        (n, m + 1), ascending distances; they get no gradient.
    background
        (C,), the colour behind all intervals; white is ones.

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that do not belong together; negative densities, descending edges; edges that require
        gradients.

    Source: as :func:`weights`.
    """
    densities = check_tensor("densities", densities, ndim=2, finite=False)
    values = check_tensor("values", values, ndim=3, finite=False)
    edges, background = check_tensor("edges", edges, finite=False), check_tensor("background", background)
    n, m = densities.shape
    shapes = {"values": (n, m, values.shape[-1]), "edges": (n, m + 1), "background": (values.shape[-1],)}
    for (name, shape), got in zip(shapes.items(), (values, edges, background), strict=True):
        if tuple(got.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} for densities {(n, m)}, got {tuple(got.shape)}")
    for name, got in {"values": values, "edges": edges, "background": background}.items():
        if got.dtype != densities.dtype:
            raise TypeError(f"{name} must have the dtype of densities, {densities.dtype}, got {got.dtype}")
    if edges.requires_grad:
        raise ValueError("edges get no gradient: detach() them")
    seen, own, passes = _Composite.apply(_depths(densities, edges), values, background)
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    return Composited(seen, 1 - passes, (own * middles).sum(1))


def stratified(
    near: Tensor, far: Tensor, count: int, generator: torch.Generator | None = None, jitter: bool = True
) -> Tensor:
    """Return the edges (n, count + 1) of ``count`` intervals between two distances (n,) of every ray.

    With ``jitter`` the edges between them are moved at random within half an interval to either side, so that the
    middles are stratified samples; else they are even. The outer edges stay, so that every ray is covered.

    Source: Mildenhall et al., NeRF, ECCV 2020, equation 2.
    """
    steps = torch.arange(count + 1, dtype=near.dtype, device=near.device).expand(len(near), -1)
    if jitter:
        moved = torch.rand(len(near), count - 1, dtype=near.dtype, device=near.device, generator=generator) - 0.5
        steps = steps + torch.nn.functional.pad(moved, (1, 1))
    return near.unsqueeze(1) + (far - near).unsqueeze(1) * (steps / count)
