"""MAML's exact gradient with all products written out, for MLPs whose formula is known: chunks of points stay in cache.

With ``u_l = A_{l-1} W_l^T + b_l``, ``A_l = act(u_l)`` and the error ``E_L = 2 (f - y) / (N M)`` at the head, a signal's
gradient is ``dW_l = E_l^T A_{l-1}``, ``E_{l-1} = F_l * act'(u_{l-1})`` with ``F_l = E_l W_l``. Its derivative in a
direction V of the weights, the product H V, differentiates every line of that (Pearlmutter, Fast exact multiplication
by the Hessian, Neural Computation 1994); a dot stands for the derivatives::

    .u_l = .A_{l-1} W_l^T + A_{l-1} V_l^T + v_l          .A_l = act'(u_l) * .u_l         .E_L = 2 .f / (N M)
    (H V)_l = .E_l^T A_{l-1} + E_l^T .A_{l-1}            .F_l = .E_l W_l + E_l V_l
    .E_{l-1} = act'(u_{l-1}) * .F_l + act''(u_{l-1}) * F_l * .u_{l-1}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrfast.activations import BoundActivation
from inrfast.memory import cached_rows, chunks, require
from inrfast.mlp import MLP, describe
from inrfast.ops import gemm
from inrfast.threads import MOST_THREADS, share
from inrfast.training.data import Data
from inrfast.training.engines.task import against_formula
from inrfast.training.engines.tensor import DEVICE_POINTS
from inrfast.training.meta.inner import Inner, Learned, Weights

CHUNK_BYTES = 2**20
"""Bytes of a chunk's features of the widest layer, on a CPU: products of fewer rows are slower, and more leave the
cache."""

COPIES = 4
"""Copies of the weights beside those of the path: a gradient, a direction, a product, and what is added up."""

KEPT, ALIVE = 4, 7
"""Features of all hidden layers that are kept of a chunk for a product with the Hessian, and alive while one is
taken."""

TEMPORARIES = 10
"""Features of the widest layer beside these: what autograd makes for second derivatives."""


@dataclass
class Up:
    """What a chunk's way up the layers leaves: the inputs of every layer, ``act'(u)`` and ``act''(u)``, predictions.

    A second derivative is None where it is 0 everywhere, or is not wanted.
    """

    features: list[Tensor]
    slopes: list[Tensor]
    curves: list[Tensor | None]
    prediction: Tensor


@dataclass
class Passed:
    """What a chunk's pass leaves for a product with the Hessian.

    Attributes
    ----------
    features
        The inputs of every layer, (k, n, D_in).
    slopes, bends
        Of every hidden layer: ``act'(u)``, and ``act''(u)`` times the error above; None where that is 0 everywhere.
    errors
        At the outputs of every layer, (k, n, D_out).
    """

    features: list[Tensor]
    slopes: list[Tensor]
    bends: list[Tensor | None]
    errors: list[Tensor]


class WrittenOutSecondOrder:
    """MAML's gradient of a network without norms, all of whose layers are trained.

    The signals of a step are divided into blocks, small ones stacked; on a CPU each thread takes whole blocks. The sums
    do not depend on which thread takes which.

    Parameters
    ----------
    net
        The network; its weights are the start.
    inner
        The inner steps.
    data
        The whole set, for its sizes; its points are encoded once where all signals share them.
    most
        Signals of a step.
    budget
        Bytes for all. Where the features of the inner steps do not fit, they are made twice.

    Raises
    ------
    MemoryBudgetError
        Not even one chunk fits the budget.
    """

    def __init__(self, net: nn.Module, inner: Inner, data: Data, most: int, budget: int) -> None:
        mlp = describe(net)
        assert isinstance(mlp, MLP)
        self.net, self.mlp, self.inner = net, mlp, inner
        like = data.target
        item, widest, cpu = like.element_size(), max(*mlp.widths, mlp.outputs), like.device.type == "cpu"
        rows = cached_rows(widest, like, CHUNK_BYTES) if cpu else DEVICE_POINTS
        self.rows = -(-data.points // -(-data.points // rows))  # of equal size
        together = CHUNK_BYTES // (self.rows * widest * item) if cpu else DEVICE_POINTS // self.rows
        self.block = min(most, max(1, together)) if self.rows == data.points else 1
        blocks = -(-most // self.block)
        self.threads = min(blocks, torch.get_num_threads(), MOST_THREADS) if cpu else 1
        weights = self.block * sum(p.numel() for p in mlp.parameters.values()) * item
        ends, widths = mlp.columns + mlp.outputs, sum(mlp.widths)
        chunk = self.rows * self.block * item * (ALIVE * widths + 2 * ends + TEMPORARIES * widest)
        least = self.threads * (weights * (inner.steps + COPIES) + chunk)
        require(least, budget, "an outer step", "a narrower network, or a larger memory_budget, would fit")
        kept = (self.threads * inner.steps + 1) * data.points * self.block * item * (KEPT * widths + ends)
        self.kept = kept <= budget - least
        own = len(data.coords) == 1 and 2 * data.points * mlp.columns * item <= budget - least
        self.encoded = self._encode(data.coords) if own else None

    @staticmethod
    def reason_against(net: nn.Module) -> str | None:
        """Return why this does not take a network; None if it does."""
        mlp = describe(net)
        reason = against_formula(mlp)
        if reason is not None:
            return reason
        assert isinstance(mlp, MLP)
        frozen = [name for name, parameter in mlp.parameters.items() if not parameter.requires_grad]
        return f"{frozen[0]} is frozen" if frozen else None

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.meta.inner.Learner`."""
        return {"gradient": "written out", "rows": self.rows, "signals": self.block, "kept": self.kept}

    @torch.no_grad()
    def __call__(self, data: Data) -> Learned:
        """See :class:`inrfast.training.meta.inner.Learner`."""
        count = len(data.target)
        blocks = list(chunks(count, self.block))
        found: list[Learned | None] = [None] * len(blocks)

        def take(number: int) -> None:
            block = blocks[number]
            with torch.no_grad():  # the mode of each thread is its own
                found[number] = self._of(data.keep(range(block.start, block.stop)), ups)

        with gemm.products_chosen():
            ups = self._ups(data)
            share(range(len(blocks)), [take] * min(self.threads, len(blocks)))
        own = [one for one in found if one is not None]
        grads = {name: torch.stack([one.grads[name] for one in own]).sum(0) / count for name in own[0].grads}
        return Learned(grads, torch.cat([one.before for one in own]), torch.cat([one.after for one in own]))

    def _of(self, data: Data, ups: list[Up]) -> Learned:
        """Return the sum over the signals of a block; ``ups`` are the ways up from the start, or none."""
        at = {name: p.detach().expand(len(data.target), *p.shape) for name, p in self.mlp.parameters.items()}
        path: list[tuple[Weights, list[Passed]]] = []
        before = torch.zeros(0)
        for step in range(self.inner.steps):
            grads, losses, kept = self._gradient(at, data, ups if step == 0 else [], self.kept)
            before = losses if step == 0 else before
            path.append((at, kept))
            at = {name: torch.sub(own, grads[name], alpha=self.inner.lr) for name, own in at.items()}
        moved, after, _ = self._gradient(at, data, [], False)
        for own, kept in reversed(path):
            products = self._products(own, moved, data, kept)
            moved = {name: v.sub_(products[name], alpha=self.inner.lr) for name, v in moved.items()}
        return Learned({name: v.sum(0) for name, v in moved.items()}, before, after)

    def _ups(self, data: Data) -> list[Up]:
        """Return the ways up from the start where all signals have them in common, and there is room for them."""
        if len(data.coords) > 1 or not self.kept:
            return []
        at = {name: p.detach().unsqueeze(0) for name, p in self.mlp.parameters.items()}
        return [self._up(at, self._inputs(data, some), True) for some in chunks(data.points, self.rows)]

    # ---- a gradient ----------------------------------------------------------------------------------------------

    def _gradient(self, at: Weights, data: Data, ups: list[Up], kept: bool) -> tuple[Weights, Tensor, list[Passed]]:
        """Return gradients (k, *shape) and losses (k,) at weights (k, *shape), and the passes where they are kept."""
        sums = {name: torch.zeros_like(own, memory_format=torch.contiguous_format) for name, own in at.items()}
        losses = torch.zeros(len(data.target), dtype=torch.float64, device=data.target.device)
        passes, size = [], data.target[0].numel()
        for number, some in enumerate(chunks(data.points, self.rows)):
            up = ups[number] if ups else self._up(at, self._expanded(data, some), kept)
            passed, squares = self._down(at, up, data.target[:, some], 2 / size, sums)
            losses += squares
            if kept:
                passes.append(passed)
        return sums, losses / size, passes

    def _up(self, at: Weights, inputs: Tensor, bent: bool) -> Up:
        """Go up the layers with a chunk's inputs (k, n, columns); ``bent``: with second derivatives."""
        features, slopes = [inputs], []
        curves: list[Tensor | None] = []
        for layer, activation in zip(self.mlp.layers[:-1], self.mlp.activations, strict=True):
            u = self._linear(features[-1], at[layer.weight_name], layer.bias_name, at)
            value, slope, curve = _activated(activation, u, bent)
            features.append(value)
            slopes.append(slope)
            curves.append(curve)
        head = self.mlp.layers[-1]
        return Up(features, slopes, curves, self._linear(features[-1], at[head.weight_name], head.bias_name, at))

    def _down(self, at: Weights, up: Up, target: Tensor, scale: float, sums: Weights | None) -> tuple[Passed, Tensor]:
        """Go down the layers; return what a chunk leaves, and the squared errors (k,).

        Gradients are added to ``sums`` where these are given. What went up may be that of all signals.
        """
        error = up.prediction - target
        squares = error.double().square().sum((1, 2))
        features = [own.expand(len(target), -1, -1) for own in up.features]
        errors: list[Tensor] = [error.mul_(scale)]
        bends: list[Tensor | None] = []
        for index in range(len(self.mlp.layers) - 1, -1, -1):
            layer = self.mlp.layers[index]
            if sums is not None:
                self._add(sums, layer.weight_name, layer.bias_name, errors[0], features[index])
            if index > 0:
                below = torch.bmm(errors[0], at[layer.weight_name])
                curve = up.curves[index - 1]
                bends.insert(0, None if curve is None else curve * below)
                errors.insert(0, below.mul_(up.slopes[index - 1]))
        return Passed(features, up.slopes, bends, errors), squares

    # ---- a product with the Hessian --------------------------------------------------------------------------------

    def _products(self, at: Weights, vectors: Weights, data: Data, kept: list[Passed]) -> Weights:
        """Return the products of the Hessians at weights with vectors, all (k, *shape)."""
        sums = {name: torch.zeros_like(own) for name, own in vectors.items()}
        for number, some in enumerate(chunks(data.points, self.rows)):
            scale = 2 / data.target[0].numel()
            if kept:
                passed = kept[number]
            else:
                up = self._up(at, self._expanded(data, some), True)
                passed, _ = self._down(at, up, data.target[:, some], scale, None)
            self._product_of(at, vectors, passed, scale, sums)
        return sums

    def _product_of(self, at: Weights, vectors: Weights, passed: Passed, scale: float, sums: Weights) -> None:
        """Add a chunk's part of the products."""
        layers, features, errors = self.mlp.layers, passed.features, passed.errors
        moves: list[Tensor | None] = [None]  # of the features; the inputs stay where they are
        bent: list[Tensor | None] = []  # of the errors, by the second derivatives
        for index, layer in enumerate(layers):
            u = self._linear(features[index], vectors[layer.weight_name], layer.bias_name, vectors)
            move = moves[-1]
            if move is not None:
                u.baddbmm_(move, at[layer.weight_name].mT)
            if index < len(layers) - 1:
                bend = passed.bends[index]
                bent.append(None if bend is None else bend * u)
                moves.append(u.mul_(passed.slopes[index]))
            else:
                moves.append(u.mul_(scale))
        error = moves.pop()
        assert error is not None
        for index in range(len(layers) - 1, -1, -1):
            layer, move = layers[index], moves[index]
            self._add(sums, layer.weight_name, layer.bias_name, error, features[index])
            if move is not None:
                sums[layer.weight_name].baddbmm_(errors[index].mT, move)
            if index > 0:
                below = torch.bmm(error, at[layer.weight_name])
                below = below.baddbmm_(errors[index], vectors[layer.weight_name]).mul_(passed.slopes[index - 1])
                more = bent[index - 1]
                error = below if more is None else below.add_(more)

    # ---- what both are made of -------------------------------------------------------------------------------------

    def _inputs(self, data: Data, some: slice) -> Tensor:
        """Return the inputs (1 or k, n, columns) of the first layer."""
        return self._encode(data.coords[:, some]) if self.encoded is None else self.encoded[:, some]

    def _expanded(self, data: Data, some: slice) -> Tensor:
        return self._inputs(data, some).expand(len(data.target), -1, -1)

    def _encode(self, coords: Tensor) -> Tensor:
        encoding = self.mlp.encoding
        return coords if encoding is None else encoding(coords.flatten(0, 1)).unflatten(0, coords.shape[:2])

    @staticmethod
    def _linear(features: Tensor, weight: Tensor, bias_name: str | None, at: Weights) -> Tensor:
        found = torch.bmm(features, weight.mT)
        return found if bias_name is None else found.add_(at[bias_name].unsqueeze(1))

    @staticmethod
    def _add(sums: Weights, weight_name: str, bias_name: str | None, errors: Tensor, features: Tensor) -> None:
        """Add the gradients of a layer by the errors at its outputs."""
        sums[weight_name].baddbmm_(errors.mT, features)
        if bias_name is not None:
            sums[bias_name].add_(errors.sum(1))


def _activated(activation: BoundActivation, u: Tensor, bent: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return value, slope and, where it is wanted and not 0 everywhere, second derivative; ``u`` is lost."""
    if not bent:
        value = torch.empty_like(u)
        activation.in_place(u, value, torch.empty_like(u))
        return value, u, None
    value = activation.value(u)
    with torch.enable_grad():
        u.requires_grad_()
        slope = activation.slope(u)
        curve = torch.autograd.grad(slope.sum(), u)[0] if slope.requires_grad else None
    return value, slope.detach(), curve
