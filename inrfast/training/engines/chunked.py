"""The chunked engine: autograd over chunks of points, for every network that treats its points one by one."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from inrfast.calling import Called
from inrfast.training.engines.autograd import AutogradGradient, coupling, pieces
from inrfast.training.engines.task import Task, has_hooks
from inrfast.training.stack import Stack

TABLE_SHARE = 8
"""Numbers kept in a chunk per entry of tables: then adding up dense gradients takes a small part of the time."""

SHARE = 2
"""Chunks of one core that each of several cores takes of an operation: after every one they wait for each other, which
is long where other processes have some of the cores. Beside two of these on two cores, 2,048 points at a time took 23 %
less than 512, and 3 % more on free cores."""


class ChunkedGradient(AutogradGradient):
    """Autograd of a named loss over chunks of rows, exact for networks that treat points one by one."""

    name: ClassVar[str] = "chunked"

    def __init__(self, stack: Stack, task: Task) -> None:
        super().__init__(stack, task)
        assert task.objective.named is not None
        self.loss = task.objective.named
        self.rows = self.evaluation_rows = self._cached_rows()
        cores = torch.get_num_threads() if task.cores is None else task.cores
        shared = cores > 1 and task.data.coords.device.type == "cpu"
        # A table's gradient is dense, and added once per chunk, however few of its rows the chunk has read.
        tables = math.ceil(TABLE_SHARE * self.sizes.tables / self.sizes.kept)
        wanted = max(tables, SHARE * cores * self.rows if shared else 1)
        # Twice: the backward pass has the gradients of what was kept beside it.
        item = task.data.target.element_size()
        affordable = max(self.rows, int(self.budget // (2 * self.sizes.kept * item)))
        rows = min(max(self.rows, wanted), affordable)
        # Two chunks gain nothing: a batch that small is at home in the caches beyond.
        at_once = task.points <= 2 * rows and task.points <= affordable
        self.rows = min(task.data.points if at_once else rows, task.data.points)

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        reason = task.objective.reason_against_parts()
        if reason is not None:
            return reason
        if has_hooks(task.nets[0]):
            return "the network has hooks, which expect all points at once"
        return coupling(Called(task.nets[0], task.data.calling), task.data.coords[0])

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return {**super().layout, "rows": self.rows}

    def __call__(self, batch: Tensor | None, step: int = 0) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        coords, target, weight = self._rows(batch)
        self._zero_gradients()
        total = target.numel() if weight is None else float(weight.double().expand_as(target).sum())
        losses = 0.0
        for rows in pieces(len(coords), self.rows):
            with torch.enable_grad():
                values = self.loss.value(self._predict(coords[rows]), target[rows])
                loss = (values if weight is None else values * weight[rows]).sum()
                (loss / total).backward()
            losses += float(loss.detach())
        return torch.tensor([losses / total], dtype=torch.float64)
