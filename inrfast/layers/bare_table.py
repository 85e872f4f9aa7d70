"""Bare tables that are read by index, ``tables[level][index]`` or ``F.embedding(index, table)``: sparse rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.layers.base import LAYERS, Factors
from inrfast.layers.calls import Call, CallLayer, Put, entries, points_axes
from inrfast.ops.sparse_rows import coalesced

ALONG_THE_FIRST_AXIS = {
    torch.index_select: ("table", "dim", "index"),
    Tensor.index_select: ("table", "dim", "index"),
    F.embedding: ("index", "table", "padding_idx", "max_norm"),
    torch.embedding: ("table", "index", "padding_idx"),
}
READS = {*ALONG_THE_FIRST_AXIS, Tensor.__getitem__, torch.take, Tensor.take, torch.gather, Tensor.gather}
"""Functions that copy entries of a tensor to places of their result; those of the first kind copy whole rows."""

KEYWORDS = {"input": "index", "weight": "table"}


def reads(call: Call, view: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor | None] | str:
    """Return which entries of the flattened parameter a call copies, int64 in the shape of its result, and a mask.

    The mask is false where a copy has no derivative; None: it has one everywhere. Or the reason against the call.
    """
    if call.function not in READS:
        return f"it enters {call.name}"
    row = _row(call, view)
    if isinstance(row, str):
        return row
    if row is None:  # whatever it copies of a table, it copies of one of places
        return call.with_(view, entries(view, parameter))(), None
    index, padding = row
    width = view[0].numel()
    index = torch.where(index < 0, index + len(view), index).long()
    if not view.is_contiguous() or not parameter.is_contiguous():
        found = entries(view, parameter)[index]
    else:
        start = int(view.storage_offset()) - int(parameter.storage_offset())
        columns = torch.arange(start, start + width, device=view.device).view(view.shape[1:])
        found = index.view(index.shape + (1,) * (view.ndim - 1)) * width + columns
    if padding is None or (padding == -1 and call.function is torch.embedding):
        return found, None
    mask = index != (padding + len(view) if padding < 0 else padding)
    return found, mask.view(index.shape + (1,) * (view.ndim - 1)).expand(found.shape)


def _row(call: Call, view: Tensor) -> tuple[Tensor, int | None] | str | None:
    """Return the index of the rows that a call copies and the row without a derivative; None: it copies no rows."""
    if call.function is Tensor.__getitem__:
        index = call.args[1]
        if isinstance(index, tuple) and len(index) == 1:
            index = index[0]
        whole = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
        return (index, None) if whole and index.dtype != torch.uint8 and index.ndim > 0 else None
    names = ALONG_THE_FIRST_AXIS.get(call.function)
    if names is None:
        return None
    keywords = KEYWORDS if call.function is F.embedding else {"input": "table", "weight": "table", "indices": "index"}
    found = {**dict(zip(names, call.args, strict=False)), **{keywords.get(k, k): v for k, v in call.kwargs.items()}}
    if found.get("table") is not view or call.holds(found.get("index")):
        return f"it enters {call.name} not as its table"
    if found.get("max_norm") is not None:
        return f"{call.name} changes it by max_norm"
    if found.get("dim", 0) != 0:
        return None
    return found["index"], found.get("padding_idx")


class BareTable(CallLayer):
    """A parameter of any shape of which every point reads a few entries, in any number of calls."""

    kind: ClassVar[str] = "bare_table"
    sparse: ClassVar[bool] = True
    adds: ClassVar[bool] = True

    @classmethod
    def claims(cls, uses: Mapping[str, Sequence[Call]]) -> list[tuple[list[str], dict[str, Any]]]:
        """Return every parameter that is read in all its calls."""
        return [([name], {}) for name, calls in uses.items() if _only_read(name, calls)]

    def put(self, call: Call) -> Put | str:
        """Return the call itself: the rows are the sensitivities of the entries that it copies."""
        name = next(iter(self.parameters))
        found = read_by_points(call, name)
        if isinstance(found, str):
            return found
        columns, mask = found

        def factors(sensitivities: Tensor) -> Factors:
            own = sensitivities.reshape(*sensitivities.shape[:2], -1)
            return Factors(*coalesced(columns, own if mask is None else own * mask.unsqueeze(1)))

        return Put(call, None, factors)

    def added(self, calls: Sequence[Factors]) -> Factors:
        """Return the rows of all calls: their columns side by side, those that are the same added up."""
        columns = torch.cat([factors.features for factors in calls if factors.features is not None], dim=1)
        rows = torch.cat([factors.sensitivities for factors in calls if factors.sensitivities is not None], dim=2)
        return Factors(*coalesced(columns, rows))

    def parts(self, factors: Factors, ones: bool = True) -> Iterator[Factors]:
        """Yield the factors of the one parameter."""
        yield factors


def read_by_points(call: Call, name: str) -> tuple[Tensor, Tensor | None] | str:
    """Return the columns (n, q) that a call reads of a parameter and their mask, or the reason against the call."""
    view = call.own_view(name)
    if view is None:
        return f"it enters {call.name} more than once, or not as it is"
    return by_points(call, view, call.parameters[name])


def by_points(call: Call, view: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor | None] | str:
    """Return :func:`reads` with a row per point, columns (n, q) and their mask, or the reason against the call."""
    found = reads(call, view, parameter)
    if isinstance(found, str):
        return found
    columns, mask = found
    if points_axes(columns.shape, call.points) is None:
        return f"{call.name} reads of it {tuple(columns.shape)} numbers, where the points must come first"
    columns = columns.reshape(call.points, -1)
    return columns, None if mask is None else mask.reshape(call.points, -1)


def _only_read(name: str, calls: Sequence[Call]) -> bool:
    calls = [call for call in calls if not call.idle]
    return bool(calls) and not any(isinstance(read_by_points(call, name), str) for call in calls)


LAYERS.add(BareTable.kind, BareTable)
