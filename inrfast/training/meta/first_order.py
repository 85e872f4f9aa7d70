"""First-order directions: the gradient at the adapted weights (first-order MAML), and the way there (Reptile)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inrfast.mlp import describe
from inrfast.snapshot import snapshot
from inrfast.training.data import Data
from inrfast.training.engines import Taken, Task, engine_of, gradient_of
from inrfast.training.engines.task import against_formula
from inrfast.training.meta.inner import Inner, Learned, Weights
from inrfast.training.stack import Stack


class FirstOrder:
    """The direction of first-order MAML or Reptile, by the engines of a fit.

    First-order MAML takes the gradient at the adapted weights (Finn, Abbeel, Levine, ICML 2017, section 5.2), Reptile
    the way there over the inner rate (Nichol, Achiam, Schulman, arXiv 1803.02999, section 2): the sum of the inner
    gradients, as which it is taken, since the difference of weights in fp32 keeps a few of its digits only.

    Parameters
    ----------
    net
        The network; its weights are the start.
    inner
        The inner steps.
    reptile
        Which of the two.
    data, most
        The whole set, for its sizes, and the signals of a step.
    budget
        Bytes for all.
    """

    def __init__(self, net: nn.Module, inner: Inner, reptile: bool, data: Data, most: int, budget: int) -> None:
        self.inner, self.reptile, self.budget = inner, reptile, budget
        # Networks whose formula is known are stacked, others take the signals one after another.
        self.block = most if against_formula(describe(net)) is None else 1
        self.nets = [snapshot(net).train() for _ in range(self.block)]
        self.start = dict(net.named_parameters())
        mlp = describe(net)
        encoded = not isinstance(mlp, str) and mlp.encoding is not None
        # Engines encode points once, when they are made.
        self.own = len(data.coords) > 1
        self.lasting = not (self.own and encoded)
        self.ready: dict[int, tuple[Data, Stack, Taken]] = {}
        self._layout = self._prepared(data.keep(range(self.block)))[1].layout  # refuses what does not fit

    @property
    def layout(self) -> dict[str, object]:
        """What decides about the last digits."""
        return self._layout

    @torch.no_grad()
    def __call__(self, data: Data) -> Learned:
        """Return the direction of the mean over these signals, and their losses before and after."""
        count = len(data.target)
        sums: Weights = {}
        before, after = [], []
        for at in range(0, count, self.block):
            grads, first, last = self._of(data.keep(range(at, min(at + self.block, count))))
            sums = {name: grad + sums[name] if sums else grad for name, grad in grads.items()}
            before.append(first)
            after.append(last)
        return Learned({name: own / count for name, own in sums.items()}, torch.cat(before), torch.cat(after))

    def _prepared(self, data: Data) -> tuple[Stack, Taken]:
        """Return copies of the network side by side for a block of signals, and what takes their gradients."""
        count = len(data.target)
        if count not in self.ready or not self.lasting:
            coords = data.coords.clone() if self.own else data.coords
            own = Data(coords, data.target.clone())
            task = Task(nets=self.nets[:count], data=own, budget=self.budget)
            engine, _ = engine_of(task)
            for _, before, _ in self.ready.values():
                before.release()  # the copies are lent to one stack at a time
            stack = Stack(task.nets, engine.flat)
            self.ready = {count: (own, stack, gradient_of(stack, task, engine))}
        own, stack, gradient = self.ready[count]
        own.target.copy_(data.target)
        if self.own:
            own.coords.copy_(data.coords)
        return stack, gradient

    def _of(self, data: Data) -> tuple[Weights, Tensor, Tensor]:
        """Return the direction of the sum over a block of signals, and their losses before and after."""
        stack, gradient = self._prepared(data)
        for name, parameter in stack.parameters.items():
            parameter.copy_(self.start[name].expand_as(parameter))
        sums = {name: torch.zeros_like(grad) for name, grad in stack.grads.items()}
        first = last = torch.zeros(0)
        for step in range(self.inner.steps):
            last = gradient(None)
            first = first if step else last
            for name, grad in stack.grads.items():
                stack.parameters[name].sub_(grad, alpha=self.inner.lr)
                sums[name].add_(grad)
        if not self.reptile:
            last, sums = gradient(None), stack.grads
        return {name: own.sum(0) for name, own in sums.items()}, first, last
