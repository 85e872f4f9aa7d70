"""What a solver takes down while it runs: residuals, and PSNRs where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inrfast.inverse.ambiguities import align_ambiguities
from inrfast.inverse.operators import MeasurementLoss, Operator
from inrfast.metrics import data_range_of, psnr


class Truth:
    """The signal that is looked for, where it is known, for scores alone."""

    def __init__(self, target: Tensor, operator: Operator, data_range: float | None) -> None:
        self.target, self.operator = target, operator
        self.data_range = data_range_of(target) if data_range is None else data_range

    def psnr(self, signal: Tensor) -> float:
        """Return the PSNR (dB) of a signal (*shape_in, M), its ambiguities resolved."""
        if not bool(torch.isfinite(signal).all()):
            return float("nan")
        target = self.target.to(signal)
        if self.operator.ambiguities:
            signal = align_ambiguities(signal, target, self.operator)
        return psnr(signal, target, self.data_range)


class History:
    """Residuals, PSNRs and gaps by step; plain numbers, which checkpoints keep."""

    NAMES = ("steps", "residuals", "psnrs", "gaps")

    def __init__(self, loss: MeasurementLoss, truth: Truth | None) -> None:
        self.loss, self.truth = loss, truth
        self.kept: dict[str, list[Any]] = {name: [] for name in self.NAMES}

    def add(self, step: int, signal: Tensor, gap: float | None = None) -> None:
        """Take down how a signal (*shape_in, M) after ``step`` updates fits measurements and truth."""
        if self.kept["steps"] and self.kept["steps"][-1] == step:
            return
        self.kept["steps"].append(step)
        self.kept["residuals"].append(self.loss.relative(signal))
        if self.truth is not None:
            self.kept["psnrs"].append(self.truth.psnr(signal))
        if gap is not None:
            self.kept["gaps"].append(gap)

    def __getitem__(self, name: str) -> tuple[Any, ...]:
        return tuple(self.kept[name])

    def last(self, name: str) -> float | None:
        """Return the last number of a kind, or None."""
        found: Sequence[float] = self.kept[name]
        return found[-1] if found else None
