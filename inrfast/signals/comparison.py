"""A signal compared with what a network makes of it, in pieces: no copy of either is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.memory import chunks

PIECE = 2**20
"""Values of a piece."""

NEAR, NEARER = 0.05, 0.01
"""Errors, as shares of the range, up to which values are counted."""


@dataclass(frozen=True)
class Comparison:
    """Numbers of all values of a signal (N, M) and of the predictions.

    Attributes
    ----------
    largest, mse
        The largest absolute error, and the mean squared one.
    nearer, near
        Shares of the values that are off by at most 1 % and 5 % of the range.
    variance, power
        Mean square of the signal, about the mean of each channel, and about zero.
    outside
        Share of the predictions that lie outside [0, 1] as the signal is stored.
    known, others
        Points of a weight above zero, and all others: their number and the mean squared error there.
    """

    largest: float
    mse: float
    nearer: float
    near: float
    variance: float
    power: float
    outside: float
    known: tuple[int, float]
    others: tuple[int, float]

    @property
    def explained(self) -> float | None:
        """Share of the variance that is explained; None of a signal that has none."""
        return None if self.variance == 0 else 1 - self.mse / self.variance


def compare(
    target: Tensor, predictions: Tensor, whole: float, scale: float, offset: float, weight: Tensor | None = None
) -> Comparison | None:
    """Return what tells predictions from a signal, both (N, M), of the range ``whole``; None: not all are finite."""
    points, channels = target.shape
    parts = list(chunks(points, max(PIECE // channels, 1)))
    means = torch.stack([target[part].double().sum(0) for part in parts]).sum(0) / points
    sums = torch.zeros(8, dtype=torch.float64)
    largest, count = 0.0, 0
    for part in parts:
        values, made = target[part].double(), predictions[part].double()
        error = (made - values).abs()
        if not bool(error.isfinite().all()):
            return None
        squares, stored = error.square(), made * scale + offset
        known = torch.ones(len(values), dtype=torch.bool) if weight is None else weight.reshape(-1)[part] > 0
        count += int(known.sum())
        largest = max(largest, float(error.max()))
        sums += torch.stack(
            [
                squares.sum(),
                (error <= NEARER * whole).sum(),
                (error <= NEAR * whole).sum(),
                (values - means).square().sum(),
                values.square().sum(),
                ((stored < 0) | (stored > 1)).sum(),
                squares[known].sum(),
                squares[~known].sum(),
            ]
        )
    squared, nearer, near, spread, power, outside, at_known, at_others = sums.tolist()
    total = points * channels
    return Comparison(
        largest=largest,
        mse=squared / total,
        nearer=nearer / total,
        near=near / total,
        variance=spread / total if bool((target != target[:1]).any()) else 0.0,
        power=power / total,
        outside=outside / total,
        known=(count, at_known / max(count * channels, 1)),
        others=(points - count, at_others / max((points - count) * channels, 1)),
    )
