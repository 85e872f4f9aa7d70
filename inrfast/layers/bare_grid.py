"""Bare grids of features that ``F.grid_sample`` interpolates: sparse rows, with entries at the corners of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.layers.bare_table import BareTable
from inrfast.layers.base import LAYERS, Factors, points_first
from inrfast.layers.calls import Call, Put, entries, points_axes
from inrfast.ops.sparse_rows import coalesced

ARGUMENTS = ("input", "grid", "mode", "padding_mode", "align_corners")
MODES = ("bilinear", "nearest")


class _Sample(NamedTuple):
    """Arguments of ``F.grid_sample``: features (B, C, ...), places (B, ..., axes) in [-1, 1], and how they are read."""

    features: Tensor
    places: Tensor
    nearest: bool
    padding: str
    aligned: bool


def sample_of(call: Call, name: str) -> _Sample | str:
    """Return the arguments of a call of ``F.grid_sample`` on a parameter, or why it is none that is known."""
    if call.function is not F.grid_sample:
        return f"it enters {call.name}"
    found = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": None, **call.bound(ARGUMENTS)}
    features, places = call.own_view(name), found["grid"]
    if features is None or found["input"] is not features or call.holds(places):
        return f"it enters {call.name} more than once, or not as its features"
    if found["mode"] not in MODES:
        return f"it enters {call.name} with mode={found['mode']!r}, where {' and '.join(MODES)} have sparse rows"
    if points_axes(places.shape[1:-1], call.points) is None:
        return f"{call.name} reads it at {tuple(places.shape[1:-1])} places, where the points must come first"
    aligned = bool(found["align_corners"])
    return _Sample(features, places.detach(), found["mode"] == "nearest", found["padding_mode"], aligned)


def corners_of(sample: _Sample) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
    """Return the corners that every place reads, each an index of every axis, and their weights, all (B, ...)."""
    lows, shares = [], []
    for axis, size in enumerate(sample.features.shape[2:]):
        place = _unnormalised(sample.places[..., -1 - axis], size, sample)
        low = place.round() if sample.nearest else place.floor()
        lows.append(low.long())
        shares.append(place - low)
    corners, weights = [], []
    for offsets in product(*[(0,) if sample.nearest else (0, 1)] * len(lows)):
        index, weight = [], torch.ones_like(shares[0])
        for low, share, offset, size in zip(lows, shares, offsets, sample.features.shape[2:], strict=True):
            inside = (low + offset >= 0) & (low + offset < size)
            part = torch.ones_like(share) if sample.nearest else share if offset else 1 - share
            weight = weight * torch.where(inside, part, 0)
            index.append((low + offset).clamp(0, size - 1))
        corners.append(tuple(index))
        weights.append(weight)
    return corners, weights


def _unnormalised(place: Tensor, size: int, sample: _Sample) -> Tensor:
    """Return places in [-1, 1] in numbers of entries along an axis, put back inside as the padding says."""
    place = (place + 1) / 2 * (size - 1) if sample.aligned else ((place + 1) * size - 1) / 2
    if sample.padding == "reflection":
        start, span = (0.0, size - 1.0) if sample.aligned else (-0.5, float(size))
        distance = (place - start).abs()
        around = distance.remainder(2 * span) if span > 0 else torch.zeros_like(distance)
        place = torch.minimum(around, 2 * span - around) + start
    return place if sample.padding == "zeros" else place.clamp(0, size - 1)


def columns_of(sample: _Sample, parameter: Tensor, corners: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Return the entries of the flattened parameter that are read, (B, ..., corners, C) int64."""
    view = sample.features
    plain = parameter.is_contiguous()
    source = view if plain else entries(view, parameter)
    start = int(view.storage_offset()) - int(parameter.storage_offset()) if plain else 0
    strides = source.stride()
    batch = torch.arange(len(view), device=view.device) * strides[0] + start
    flat = [torch.stack([i * s for i, s in zip(index, strides[2:], strict=True)]).sum(0) for index in corners]
    places = torch.stack(flat, dim=-1)
    channels = torch.arange(view.shape[1], device=view.device) * strides[1]
    found = (places + batch.view(-1, *[1] * (places.ndim - 1))).unsqueeze(-1) + channels
    return found if plain else source.flatten()[found]


class BareGrid(BareTable):
    """Features (B, C, ...) that ``F.grid_sample`` reads at a place of every point, in any number of calls."""

    kind: ClassVar[str] = "bare_grid"

    @classmethod
    def claims(cls, uses: Mapping[str, Sequence[Call]]) -> list[tuple[list[str], dict[str, Any]]]:
        """Return every parameter that is interpolated in all its calls."""
        claimed: list[tuple[list[str], dict[str, Any]]] = []
        for name, calls in uses.items():
            found = [sample_of(call, name) for call in calls if not call.idle]
            if found and not any(isinstance(sample, str) for sample in found):
                claimed.append(([name], {}))
        return claimed

    def by_points(self, module: nn.Module, tensor: Tensor, points: int) -> Tensor:
        """Return what is read, (B, C, ...), as (n, ..., B, C)."""
        return points_first(tensor.movedim((0, 1), (-2, -1)), points)

    def put(self, call: Call) -> Put | str:
        """Return the call itself: the rows are the sensitivities of what it reads, times the corners' weights."""
        name = next(iter(self.parameters))
        sample = sample_of(call, name)
        if isinstance(sample, str):
            return sample
        corners, weights = corners_of(sample)
        columns = columns_of(sample, call.parameters[name], corners)
        columns = points_first(columns.movedim(0, -3), call.points).flatten(1)
        weight = points_first(torch.stack(weights, dim=-1).movedim(0, -2), call.points)  # (n, ..., B, corners)

        def factors(sensitivities: Tensor) -> Factors:
            own = weight.unsqueeze(1).unsqueeze(-1) * sensitivities.unsqueeze(-2)
            return Factors(*coalesced(columns, own.flatten(2)))

        return Put(call, None, factors)


LAYERS.add(BareGrid.kind, BareGrid)
