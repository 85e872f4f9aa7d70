"""The gradient of a regularised loss: an engine takes that of the loss, and autograd adds that of the regularisers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from inrfast.threads import cores
from inrfast.training.engines.task import Gradient, Task
from inrfast.training.objective import batch_of, blamed
from inrfast.training.stack import Stack


class RegularizedGradient:
    """An engine's gradient of the loss of one network, and beside it autograd's of the regularisers.

    Parameters
    ----------
    of
        The gradient of the loss, of the same stack and task.
    stack, task
        See :class:`inrfast.training.engines.task.Gradient`; one network.
    """

    whole: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    several: ClassVar[bool] = False

    def __init__(self, of: Gradient, stack: Stack, task: Task) -> None:
        self.of, self.data, self.objective, self.net = of, task.data, task.objective, stack.nets[0]
        self.name, self.one_core = of.name, of.one_core
        self.cores = torch.get_num_threads() if task.cores is None else task.cores
        self.parameters = [stack.owner(name) for name in stack.trainable]
        self.watched = [stack.owner(name) for name in stack.trainable if name not in stack.beside]
        self.gradients = [stack.grads[name][0] for name in stack.trainable]

    @property
    def coupled(self) -> bool:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return self.of.coupled

    @property
    def measures(self) -> bool:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return self.of.measures

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return self.of.layout

    def __call__(self, batch: Tensor | None, step: int = 0) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        versions = [own._version for own in self.watched]
        loss = self.of(batch, step)
        # Some layers (an Embedding with max_norm) change their weights in each forward pass.
        still = [own for own, version in zip(self.watched, versions, strict=True) if own._version == version]
        index = slice(None) if batch is None else batch[0]
        own = batch_of(self.data, self.net, self.objective, index, step, still)
        # A fit keeps its own operations to one core beside threads of an engine, which have come to their end here.
        with torch.enable_grad(), cores(self.cores):
            value = self.objective.penalty(own)
            if value.requires_grad:
                try:
                    found = torch.autograd.grad(value, self.parameters, allow_unused=True)
                except RuntimeError as error:
                    raise blamed(error, self.objective.regularizers, lambda: own, self.parameters) from error
                for gradient, more in zip(self.gradients, found, strict=True):
                    if more is not None:
                        gradient.add_(more)
        return loss + value.detach().double().cpu()

    def state(self) -> Tensor | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return self.of.state()

    def load(self, state: Tensor) -> None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        self.of.load(state)

    def mean_square(self) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return self.of.mean_square()
