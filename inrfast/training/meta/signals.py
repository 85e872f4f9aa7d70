"""The signals of a set, checked at the door: their points, and one tensor of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.calling import Select
from inrfast.errors import check_coords, check_tensor
from inrfast.mlp import describe
from inrfast.nn import declared_sizes
from inrfast.pixels import as_values, one_white
from inrfast.snapshot import snapshot
from inrfast.training.data import MOST_SPREAD, Data, aligned, check_data, check_net, of_dtype

PROBE_ROWS = 16
"""Points on which a network is tried."""


def check_signals(
    net: nn.Module,
    coords: Any,
    signals: Any,
    names: tuple[str, str] = ("coords", "signals"),
    spread: bool = True,
    select: Select = None,
) -> tuple[Data, int | None]:
    """Return points (1 or B, N, d) and values (B, N, M) of B signals, of the network's dtype and device, and the white.

    Parameters
    ----------
    coords
        Points (N, d) of all signals, or (B, N, d) of each.
    signals
        Values (B, N, M) or (B, *grid, M), where M = 1 also without the last axis; or a sequence of B tensors of one
        shape. Pixels of whole numbers and pictures are taken as by :func:`inrfast.fit`.
    names
        What the arguments are called in messages.
    spread
        Whether values that span more than 100 are refused.
    select
        As in :func:`inrfast.fit`.

    Raises
    ------
    ValueError, TypeError
        Bad shapes, dtypes, devices, or a spread that is hardly meant; NaN or Inf.
    """
    dtype, device = check_net(net)
    values, white = _one_tensor(names[1], signals, dtype, device)
    if values.ndim < 2:
        raise ValueError(
            f"{names[1]} must have shape (B, N, M) or (B, *grid, M) for B signals, got {tuple(values.shape)}; one "
            "signal alone takes a first axis (signal.unsqueeze(0))"
        )
    values = of_dtype(names[1], values, dtype)
    coords = of_dtype(names[0], check_tensor(names[0], coords, finite=False, device=device), dtype)
    shared = coords.ndim != 3
    points = check_coords(names[0], coords if shared else coords[0], declared_sizes(net)[0], device)
    if not shared:
        _check_own(names, coords, values, device)
    # The first stands for all, which are of one shape.
    first = check_data(net, points, values[0], names=(names[0], f"{names[1]}[0]", "weight"), select=select)
    check_tensor(names[1], values)
    if spread:
        low, high = (float(value) for value in torch.aminmax(values))
        if high - low > MOST_SPREAD:
            raise ValueError(
                f"{names[1]} must span a range near 1, for which inner rates are stated, got {low:g} to {high:g}; "
                "scale them (pixels of 8 bits: divide by 255)"
            )
    target = aligned(values.detach().reshape(len(values), *first.target.shape[1:]))
    return Data(first.coords if shared else aligned(coords.detach()), target), white


@torch.no_grad()
def check_plain(net: nn.Module, coords: Tensor, argument: str = "net") -> None:
    """Refuse networks that are another function in train mode, draw random numbers, or change buffers when called.

    The start would depend on statistics of other signals, or the inner steps not be gradient descent.

    Raises
    ------
    ValueError
        It is such a one.
    """
    if not isinstance(describe(net), str) and not any(isinstance(own, nn.BatchNorm1d) for own in net.modules()):
        return
    copied = snapshot(net).train()
    before = [own.clone() for own in copied.buffers()]
    with torch.random.fork_rng([coords.device] if coords.device.type == "cuda" else []):
        try:
            few = coords[:PROBE_ROWS]
            found = [copied(few.clone()) for _ in range(2)]
        except Exception:  # it may take nothing but its full grid
            few = coords
            found = [copied(few.clone()) for _ in range(2)]
        changed = any(not torch.equal(a, b) for a, b in zip(before, copied.buffers(), strict=True))
        found.append(copied.eval()(few.clone()))
    if changed or not all(torch.equal(found[0], other) for other in found[1:]):
        fault = "changes its buffers when it is called" if changed else "predicts otherwise in train mode, or at random"
        raise ValueError(f"{argument} {fault}, as batch norm and dropout do; meta-learning takes networks without them")


def _one_tensor(argument: str, signals: Any, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, int | None]:
    """Return signals as one tensor, from a tensor or from a sequence of them, and the white of their pixels."""
    if isinstance(signals, Sequence) and not isinstance(signals, str):
        # Pixels of all signals are told once.
        made = [as_values(f"{argument}[{i}]", own, dtype, device, told=i == 0) for i, own in enumerate(signals)]
        for i, (_, white) in enumerate(made):
            one_white(f"{argument}[0]", made[0][1], f"{argument}[{i}]", white)
        some = [check_tensor(f"{argument}[{i}]", own, finite=False) for i, (own, _) in enumerate(made)]
        kinds = {(tuple(own.shape), own.dtype, own.device) for own in some}
        if len(kinds) != 1:
            got = ", ".join(sorted(str(tuple(own.shape)) for own in some)[:4]) or "none"
            raise ValueError(f"{argument} must be at least one tensor, all of one shape, dtype and device, got {got}")
        return torch.stack([own.detach() for own in some]), made[0][1]
    values, white = as_values(argument, signals, dtype, device)
    return check_tensor(argument, values, finite=False).detach(), white


def _check_own(names: tuple[str, str], coords: Tensor, values: Tensor, device: torch.device) -> None:
    """Check points (B, N, d) of each signal."""
    if len(coords) != len(values):
        raise ValueError(
            f"{names[0]} must have shape (N, d), or ({len(values)}, N, d) for {len(values)} {names[1]}, got "
            f"{tuple(coords.shape)}"
        )
    check_tensor(names[0], coords)
    if coords.device != device:
        raise ValueError(f"{names[0]} is on {coords.device} but the network is on {device}; move one of them")
