"""The exact gradient of what inner steps lead to, through these steps, by autograd: for every network.

Inner steps are ``theta_{k+1} = theta_k - a g(theta_k)`` with ``g`` the gradient of a signal's loss. The gradient of the
loss at ``theta_K`` by ``theta_0`` is ``v_0``, where ``v_K = g(theta_K)`` and ``v_k = v_{k+1} - a H(theta_k) v_{k+1}``
(Finn, Abbeel, Levine, ICML 2017). ``g`` and ``H v`` are sums over points: they may be taken over chunks of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from inrfast.training.data import Data
from inrfast.training.meta.inner import Inner, Learned

Parameters = dict[str, Tensor]


class AutogradSecondOrder:
    """MAML's gradient by autograd, for signals one after another or stacked.

    Parameters
    ----------
    net
        The network; its trainable parameters are the start.
    inner
        The inner steps.
    rows
        Points of a chunk; None takes all at once, and keeps the graphs of the inner steps.
    stacked
        Whether the signals of a step are stacked along a first axis.
    """

    def __init__(self, net: nn.Module, inner: Inner, rows: int | None, stacked: bool) -> None:
        self.net, self.inner, self.rows, self.stacked = net, inner, rows, stacked
        self.start = {name: p for name, p in net.named_parameters() if p.requires_grad}

    @property
    def layout(self) -> dict[str, object]:
        """What decides about the last digits."""
        return {"gradient": "autograd", "rows": self.rows, "stacked": self.stacked}

    def __call__(self, data: Data) -> Learned:
        """Return the gradient of the mean over these signals, and their losses before and after the inner steps."""
        count = len(data.target)
        block = count if self.stacked else 1
        found = [self._of(data.keep(range(at, min(at + block, count)))) for at in range(0, count, block)]
        grads = {name: torch.stack([own[name] for own, _, _ in found]).sum(0) / count for name in self.start}
        before, after = (torch.cat(own).double() for own in ([b for _, b, _ in found], [a for _, _, a in found]))
        return Learned(grads, before, after)

    @torch.enable_grad()
    def _of(self, data: Data) -> tuple[Parameters, Tensor, Tensor]:
        """Return the gradient of the sum over some signals, and their losses before and after."""
        predict, at = self._predictions(data)
        path: list[tuple[Parameters, list[Tensor] | None]] = []
        first = torch.zeros(0)
        for _ in range(self.inner.steps):
            own = {name: p.requires_grad_() for name, p in at.items()}
            graphs, losses, grads = self._gradient(predict, own, data, keep=self.rows is None)
            first = first if path else losses
            path.append((own, graphs))
            at = {name: p.detach() - self.inner.lr * grads[name] for name, p in own.items()}
        own = {name: p.requires_grad_() for name, p in at.items()}
        _, last, moved = self._gradient(predict, own, data, keep=False)
        for own, graphs in reversed(path):
            products = self._products(predict, own, graphs, moved, data)
            moved = {name: v - self.inner.lr * products[name] for name, v in moved.items()}
        stacked = len(data.target) > 1
        return {name: v.sum(0) if stacked else v for name, v in moved.items()}, first, last

    def _predictions(self, data: Data) -> tuple[Callable[[Parameters, Tensor], Tensor], Parameters]:
        """Return a function of parameters and points that predicts (b, n, M), and the start as it takes it."""
        count = len(data.target)
        if count == 1:
            return lambda at, points: functional_call(self.net, at, (points[0],)).unsqueeze(0), {
                name: p.detach().clone() for name, p in self.start.items()
            }
        own = 0 if len(data.coords) > 1 else None
        one = vmap(lambda at, points: functional_call(self.net, at, (points,)), in_dims=(0, own))
        return lambda at, points: one(at, points if own == 0 else points[0]), {
            name: p.detach().expand(count, *p.shape).clone() for name, p in self.start.items()
        }

    def _pieces(self, data: Data) -> list[slice]:
        size = self.rows or data.points
        return [slice(at, at + size) for at in range(0, data.points, size)]

    def _piece(
        self, predict: Callable[[Parameters, Tensor], Tensor], at: Parameters, data: Data, some: slice, keep: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Return the gradients and the losses (b,) of a chunk of points, as their share of the mean over all."""
        errors = predict(at, data.coords[:, some]) - data.target[:, some]
        losses = errors.square().sum((1, 2)) / data.target[0].numel()
        grads = torch.autograd.grad(losses.sum(), list(at.values()), create_graph=keep, materialize_grads=True)
        return list(grads), losses.detach()

    def _gradient(
        self, predict: Callable[[Parameters, Tensor], Tensor], at: Parameters, data: Data, keep: bool
    ) -> tuple[list[Tensor] | None, Tensor, Parameters]:
        """Return the graph of a gradient if it is kept, the losses, and the gradient."""
        found = [self._piece(predict, at, data, some, keep) for some in self._pieces(data)]
        losses = torch.stack([own for _, own in found]).sum(0)
        if len(found) == 1:
            graphs = found[0][0]
            return graphs if keep else None, losses, dict(zip(at, [g.detach() for g in graphs], strict=True))
        sums = [torch.stack(own).sum(0) for own in zip(*(grads for grads, _ in found), strict=True)]
        return None, losses, dict(zip(at, sums, strict=True))

    def _products(
        self,
        predict: Callable[[Parameters, Tensor], Tensor],
        at: Parameters,
        graphs: list[Tensor] | None,
        vectors: Parameters,
        data: Data,
    ) -> Parameters:
        """Return the products of the Hessians at some weights with vectors."""
        sums = {name: torch.zeros_like(v) for name, v in vectors.items()}
        for some in self._pieces(data):
            grads = graphs or self._piece(predict, at, data, some, keep=True)[0]
            curved = [i for i, grad in enumerate(grads) if grad.requires_grad]  # a linear network has none
            if not curved:
                continue
            own = list(vectors.values())
            found = torch.autograd.grad(
                [grads[i] for i in curved],
                list(at.values()),
                [own[i] for i in curved],
                materialize_grads=True,
            )
            for total, product in zip(sums.values(), found, strict=True):
                total += product
        return sums
