"""The mean squared error, ``(f - y)^2``."""

from __future__ import annotations

from torch import Tensor

from inrfast.losses import LOSSES, Loss


def _value(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def _slope(prediction: Tensor, target: Tensor) -> Tensor:
    return 2 * (prediction - target)


MSE = LOSSES.add("mse", Loss("mse", _value, _slope, native="mse", triton="mse"))
