"""Convolutions, linear maps on patches: two factors where a point has one output position, rows where it has several.

Points are the batch, (n, C, ...), or lie along the axes that a kernel of size 1 passes over, (1, C, n).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, Factors
from inrfast.layers.linear import Linear
from inrfast.layers.positions import Positions

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def patches(module: Convolution, given: Tensor) -> Tensor:
    """Return what a convolution multiplies by its weight, (n, positions, groups, C / groups * taps), of (n, C, ...)."""
    axes = len(module.kernel_size)
    sides = _padding(module)
    if any(sides):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        given = F.pad(given, sides, mode=mode)
    for axis, (taps, stride, apart) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        given = given.unfold(2 + axis, apart * (taps - 1) + 1, stride)[..., ::apart]
    grouped = given.unflatten(1, (module.groups, -1))  # (n, groups, channels, *positions, *taps)
    return grouped.flatten(3 + axes).flatten(3, 2 + axes).permute(0, 3, 1, 2, 4).flatten(3)


def _padding(module: Convolution) -> list[int]:
    """Return the padding as ``F.pad`` takes it: of the last axis first, on its two sides."""
    sides: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            both = module.dilation[axis] * (module.kernel_size[axis] - 1)
            sides += [both // 2, both - both // 2]
        else:
            sides += 2 * [0 if module.padding == "valid" else int(module.padding[axis])]
    return sides


def is_convolution(module: nn.Module) -> TypeGuard[Convolution]:
    """Return whether the forward pass of a module is that of ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _KINDS)


_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def by_points(module: nn.Module, tensor: Tensor, points: int) -> Tensor:
    """Return a convolution's input or output as (n, channels, ...), where the points lie along any of its axes."""
    assert is_convolution(module)
    axes = len(module.kernel_size)
    batch = tensor if tensor.ndim == axes + 2 else tensor.unsqueeze(0)
    if len(batch) == points or len(batch) * math.prod(batch.shape[2:]) != points:
        return batch
    if not _each(module.kernel_size, 1) or not _each(module.stride, 1) or any(_padding(module)):
        return batch
    return batch.movedim(1, -1).flatten(0, -2)[(..., *[None] * axes)]


def _each(sizes: Iterable[int], wanted: int) -> bool:
    return all(size == wanted for size in sizes)


class ConvPositions(Positions):
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` on (n, C, ...): rows ``sum_p S[p] (x) patch[p]``."""

    kind: ClassVar[str] = "conv_positions"

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return weight and bias of a convolution."""
        return [name for name in ("weight", "bias") if name in names] if is_convolution(module) else []

    def by_points(self, module: nn.Module, tensor: Tensor, points: int) -> Tensor:
        """Return (1, C, n), where it holds the points so, as (n, C, 1)."""
        return by_points(module, tensor, points)

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return the patches (n, positions, groups, C / groups * taps)."""
        assert is_convolution(module)
        return patches(module, given)

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the rows from patches and S (n, M, C', ...)."""
        assert sensitivities is not None
        s = sensitivities.unflatten(2, (features.shape[2], -1)).flatten(4)  # (n, M, groups, channels, positions)
        return self._summed(features, s.permute(0, 1, 4, 2, 3))


class Conv(Linear):
    """The same where every point has one output position and there is one group: a linear layer on its patch.

    The block is ``[W, b]`` with W (C', C * taps).
    """

    kind: ClassVar[str] = "conv"

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return weight and bias of a convolution of one group."""
        return ConvPositions.takes(module, names) if is_convolution(module) and module.groups == 1 else []

    def by_points(self, module: nn.Module, tensor: Tensor, points: int) -> Tensor:
        """Return (1, C, n), where it holds the points so, as (n, C, 1)."""
        return by_points(module, tensor, points)

    def reason_against(self, module: nn.Module, given: Tensor, points: int) -> str | None:
        """Return why: points along no axis, or with several positions."""
        if len(given) != points:
            return f"its input has the shape {tuple(given.shape)}, where (points, channels, ...) has factors"
        assert is_convolution(module)
        positions = patches(module, given[:1]).shape[1]
        return None if positions == 1 else f"it has {positions} output positions per point, and two factors hold for 1"

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return ``[patch, 1]``."""
        assert is_convolution(module)
        return super().features(module, patches(module, given).flatten(1))

    def matrix(self, module: nn.Module) -> Tensor | None:
        """Return W (C', C * taps)."""
        assert is_convolution(module)
        return module.weight.flatten(1)


LAYERS.add(Conv.kind, Conv)
LAYERS.add(ConvPositions.kind, ConvPositions)
