"""Running statistics of batch norms, of the full set of points, for evaluation and kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.errors import UnsupportedModuleError, check_coords, check_module, check_tensor
from inrfast.memory import chunks, tells_refusals
from inrfast.modes import without_autocast
from inrfast.nn import INR, declared_sizes
from inrfast.wrapped import refuse_pieces, unwrapped

CALIBRATION_ROWS = 8192

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Torch's common base class of these is private."""

Net = TypeVar("Net", bound=nn.Module)


@torch.no_grad()
@without_autocast()
@tells_refusals
def calibrate_batchnorm_(net: Net, coords: ArrayLike) -> Net:
    """Set the running statistics of every batch norm to those of the full set of points, layer after layer.

    Means and (biased) variances are accumulated in fp64 over all of ``coords``, and all positions of a point; each norm
    is calibrated on the output of the layers before it, already calibrated. In eval mode the network then behaves as
    one batch of all points does in train mode; the modes themselves are left as they were. That takes one pass over the
    points for every norm, in chunks.

    Parameters
    ----------
    net
        Any module with ``nn.BatchNorm1d``, ``2d``, ``3d`` or ``nn.SyncBatchNorm``, such as an :class:`INR`; changed in
        place and returned. Everything but its batch norms has to treat points one by one. One inside
        ``DistributedDataParallel``, ``DataParallel``, ``AveragedModel`` or ``torch.compile`` is taken out of it for
        this. A ``SyncBatchNorm`` takes the points given in its own process: give all processes the same.
    coords
        Points (N, d) with N >= 2, or (..., d) as in :func:`inrfast.ntk`.

    Raises
    ------
    UnsupportedModuleError
        A batch norm without running statistics, one that is used twice in a forward pass; a network in pieces (FSDP).
    ValueError, TypeError
        No batch norm to calibrate, or one that a forward pass does not reach; one point only, bad coordinates, outputs
        of NaN or Inf. Statistics are then what they were.
    """
    check_module("net", net)
    inner = unwrapped(net)
    refuse_pieces(inner)
    norms = {name: norm for name, norm in inner.named_modules() if isinstance(norm, BATCH_NORMS)}
    if not norms:
        instead = "; build it with norm='batch'" if isinstance(inner, INR) else ""
        raise ValueError(f"net has no batch norm to calibrate{instead}")
    for name, norm in norms.items():
        if norm.running_mean is None or norm.running_var is None:
            raise UnsupportedModuleError(f"batch norm {name!r} keeps no running statistics, so it cannot be calibrated")
    like = next((p for p in inner.parameters() if p.is_floating_point()), next(iter(norms.values())).running_mean)
    assert like is not None
    given = check_tensor("coords", coords, finite=False, device=like.device)
    sizes = declared_sizes(inner)
    points = check_coords("coords", given, sizes[0], like.device).detach().to(like.dtype)
    if len(points) < 2:
        raise ValueError("coords must hold at least 2 points: one point has no variance")
    leading = (1,) * (0 if sizes[0] is not None else given.ndim - 2)
    with _in_eval_mode(inner), _restored_on_error(norms):
        for name in _in_order(inner, norms, points[:2].reshape(*leading, 2, -1)):
            _calibrate(inner, name, norms[name], points, leading)
    return net


def _in_order(net: nn.Module, norms: dict[str, Any], points: Tensor) -> list[str]:
    """Return the names of the batch norms in the order in which a forward pass comes to them."""
    called: list[str] = []
    hooks = [norm.register_forward_pre_hook(lambda *_, name=name: called.append(name)) for name, norm in norms.items()]
    try:
        net(points.clone())
    finally:
        for hook in hooks:
            hook.remove()
    for name in norms:
        if called.count(name) > 1:
            raise UnsupportedModuleError(
                f"batch norm {name!r} is used {called.count(name)} times in a forward pass, and has one set of "
                "statistics for all uses; give each use a norm of its own"
            )
        if name not in called:
            raise ValueError(
                f"batch norm {name!r} is not reached by a forward pass, so it has no statistics; take it out of net"
            )
    return called


def _calibrate(net: nn.Module, name: str, norm: Any, points: Tensor, leading: tuple[int, ...]) -> None:
    """Set the statistics of one batch norm to those of what enters it at all points."""
    width, device = norm.num_features, norm.running_mean.device
    total = torch.zeros(2, width, dtype=torch.float64, device=device)
    shift = torch.full((width,), math.nan, dtype=torch.float64, device=device)
    count = 0

    def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal count
        values = given[0].detach().double().movedim(1, -1).reshape(-1, width)
        if count == 0:
            shift.copy_(values.mean(0))  # removes the cancellation in E[x^2] - E[x]^2
        total.add_(torch.stack([(values - shift).sum(0), ((values - shift) ** 2).sum(0)]))
        count += len(values)

    hook = norm.register_forward_pre_hook(add)
    try:
        parts = -(-len(points) // CALIBRATION_ROWS)
        for rows in chunks(len(points), -(-len(points) // parts)):  # none of a single point
            net(points[rows].reshape(*leading, -1, points.shape[1]).clone())  # it might write into them
    finally:
        hook.remove()
    mean, square = total / count
    if not bool(torch.isfinite(total).all()):
        raise ValueError(f"what enters batch norm {name!r} is NaN or Inf at some points")
    norm.running_mean.copy_(mean + shift)
    norm.running_var.copy_(square - mean**2)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.fill_(1)


@contextmanager
def _in_eval_mode(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _restored_on_error(norms: dict[str, Any]) -> Iterator[None]:
    """Bring back the statistics of batch norms where an error ends this block."""
    before = [(buffer, buffer.clone()) for norm in norms.values() for buffer in norm.buffers(recurse=False)]
    try:
        yield
    except BaseException:
        for buffer, kept in before:
            buffer.copy_(kept)
        raise
