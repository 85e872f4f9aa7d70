"""The mean absolute error, ``|f - y|``, whose slope at 0 is 0."""

from __future__ import annotations

from torch import Tensor

from inrfast.losses import LOSSES, Loss


def _value(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs()


def _slope(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).sign()


L1 = LOSSES.add("l1", Loss("l1", _value, _slope, native="l1", triton="l1"))
