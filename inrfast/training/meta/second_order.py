"""MAML's exact gradient by autograd, for every network: through the inner steps, one signal after another.

Inner steps are ``theta_{k+1} = theta_k - a g(theta_k)`` with ``g`` the gradient of a signal's loss. The gradient of the
loss at ``theta_K`` by ``theta_0`` is ``v_0``, where ``v_K = g(theta_K)`` and ``v_k = v_{k+1} - a H(theta_k) v_{k+1}``
(Finn, Abbeel, Levine, ICML 2017). ``g`` and ``H v`` are sums over points: they may be taken over chunks of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from inrfast.calling import Calling
from inrfast.memory import over_budget
from inrfast.training.data import Data
from inrfast.training.engines.autograd import coupling, pieces
from inrfast.training.engines.peaks import Peak, held, holdable, peak_of
from inrfast.training.engines.task import has_hooks
from inrfast.training.meta.inner import Inner, Learned, Weights

MARGIN = 1.1
"""Factor by which an outer step may exceed what few points let expect."""


class AutogradSecondOrder:
    """MAML's gradient by autograd.

    Where a step over all points fits the budget, the graphs of the inner steps are kept. Else, for a network that
    treats its points one by one, they are made again in chunks.

    Parameters
    ----------
    net
        The network; its trainable parameters are the start.
    inner
        The inner steps.
    data
        The whole set, for its sizes.
    budget
        Bytes for all.

    Raises
    ------
    MemoryBudgetError
        Not even a few points fit the budget, or not all points of a network that couples them.
    ValueError
        Torch has no second derivative of the network; the message has torch's reason.
    """

    def __init__(self, net: nn.Module, inner: Inner, data: Data, budget: int) -> None:
        self.net, self.inner = net, inner
        self.start = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.rows: int | None = None
        self._check(data)
        self.rows = self._chunk(data, budget)

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.meta.inner.Learner`."""
        return {"gradient": "autograd", "rows": self.rows}

    def __call__(self, data: Data) -> Learned:
        """See :class:`inrfast.training.meta.inner.Learner`."""
        found = [self._of(*data.rows(slice(None), place)[:2]) for place in range(len(data.target))]
        grads = {name: torch.stack([own[name] for own, _, _ in found]).mean(0) for name in self.start}
        before, after = (torch.stack([one[i] for one in found]).double().cpu() for i in (1, 2))  # type: ignore[misc]
        return Learned(grads, before, after)

    @torch.enable_grad()
    def _check(self, data: Data) -> None:
        """Take second derivatives on few points, for what torch has against the network.

        By ``backward``, which meets every node: ``torch.autograd.grad`` passes over those that have no derivative, and
        what it returns is wrong.
        """
        coords, target, _ = data.rows(slice(0, 2))
        at = {name: p.detach().clone().requires_grad_() for name, p in self.start.items()}
        try:
            grads, _ = self._piece(at, coords, target, slice(None), keep=True)
            curved = [grad.square().sum() for grad in grads if grad.requires_grad]
            if curved:
                torch.stack(curved).sum().backward()
        except RuntimeError as error:
            words = str(error).splitlines()[0][:200]
            if "differentiate" not in words and coupling(self.net, data.coords[0]) is not None:
                return  # it may take nothing but its full grid
            raise ValueError(f"net has no second derivative by torch ({words}); method='fomaml' needs none") from error

    def _chunk(self, data: Data, budget: int) -> int | None:
        """Return the points of a chunk; None where all fit at once."""
        coords, target, _ = data.rows(slice(None))
        points = data.points
        peak: Peak | None = peak_of(lambda n: self._of(coords[:n], target[:n]), points, holdable(budget))
        if peak is None or held(MARGIN * peak(points)) <= budget:
            return None
        least = max(1, peak.most(holdable(budget) / MARGIN, points))
        alone = not has_hooks(self.net) and coupling(self.net, data.coords[0]) is None
        if alone and held(MARGIN * peak(least)) <= budget:
            return least
        needed = int(held(MARGIN * peak(1 if alone else points))) + 1
        what = "an outer step on one point" if alone else f"an outer step on all {points} points, which net couples,"
        raise over_budget(needed, budget, what, "a narrower network, fewer inner steps or method='fomaml' would fit")

    @torch.enable_grad()
    def _of(self, coords: Tensor, target: Tensor) -> tuple[Weights, Tensor, Tensor]:
        """Return the gradient of a signal, and its losses before and after the inner steps."""
        at = {name: p.detach().clone().requires_grad_() for name, p in self.start.items()}
        if self.rows is None:
            return self._through(at, coords, target)
        path: list[Weights] = []
        before = target.new_zeros(())
        for step in range(self.inner.steps):
            loss, grads = self._gradient(at, coords, target)
            before = before if step else loss
            path.append(at)
            at = {
                n: (p.detach() - self.inner.lr * g).requires_grad_()
                for (n, p), g in zip(at.items(), grads, strict=True)
            }
        after, moved = self._gradient(at, coords, target)
        for own in reversed(path):
            products = self._products(own, moved, coords, target)
            moved = [v - self.inner.lr * product for v, product in zip(moved, products, strict=True)]
        return dict(zip(self.start, moved, strict=True)), before, after

    def _through(self, start: Weights, coords: Tensor, target: Tensor) -> tuple[Weights, Tensor, Tensor]:
        """Return the same by one graph of all steps."""
        at, losses = start, []
        for _ in range(self.inner.steps):
            losses.append((self._predicted(at, coords) - target).square().mean())
            grads = torch.autograd.grad(losses[-1], list(at.values()), create_graph=True, materialize_grads=True)
            at = {name: p - self.inner.lr * grad for (name, p), grad in zip(at.items(), grads, strict=True)}
        after = (self._predicted(at, coords) - target).square().mean()
        moved = torch.autograd.grad(after, list(start.values()), materialize_grads=True)
        return dict(zip(start, moved, strict=True)), losses[0].detach(), after.detach()

    def _predicted(self, at: Weights, coords: Tensor) -> Tensor:
        """Return the predictions (n, M) of the network with these weights."""
        return Calling().output_in(functional_call(self.net, at, (coords,)), len(coords))

    def _pieces(self, coords: Tensor) -> list[slice]:
        return list(pieces(len(coords), self.rows or len(coords)))

    def _piece(
        self, at: Weights, coords: Tensor, target: Tensor, some: slice, keep: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Return the gradient and the loss of a chunk of points, as their share of the mean over all."""
        errors = self._predicted(at, coords[some]) - target[some]
        loss = errors.square().sum() / target.numel()
        grads = torch.autograd.grad(loss, list(at.values()), create_graph=keep, materialize_grads=True)
        return list(grads), loss.detach()

    def _gradient(self, at: Weights, coords: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return a loss and its gradient, over chunks of points."""
        sums, losses = [torch.zeros_like(p) for p in at.values()], target.new_zeros(())
        for some in self._pieces(coords):
            grads, loss = self._piece(at, coords, target, some, keep=False)
            losses = losses + loss
            sums = [total + grad for total, grad in zip(sums, grads, strict=True)]
        return losses, sums

    def _products(self, at: Weights, vectors: list[Tensor], coords: Tensor, target: Tensor) -> list[Tensor]:
        """Return the product of the Hessian at some weights with a vector, over chunks of points."""
        sums = [torch.zeros_like(v) for v in vectors]
        for some in self._pieces(coords):
            grads, _ = self._piece(at, coords, target, some, keep=True)
            curved = [(g, v) for g, v in zip(grads, vectors, strict=True) if g.requires_grad]
            if not curved:  # as of predictions that do not depend on the weights
                continue
            outputs, along = zip(*curved, strict=True)
            found = torch.autograd.grad(outputs, list(at.values()), along, materialize_grads=True)
            sums = [total + product for total, product in zip(sums, found, strict=True)]
        return sums
