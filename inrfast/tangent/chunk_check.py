"""The check of every chunk of factors: whether a network treats its points as it did those of the probes.

A forward pass may do for a few points what it does for no other one: sort its points where they lie in two regions, use
a weight once more, leave points out. Where no probe met such a point, the factors of the whole chunk may be wrong. One
backward pass more tells: ``J^T w`` for weights ``w`` at random, by automatic differentiation and by the factors.

A chunk is spared it whose graph has the form of one that has been checked, uses the parameters of each module once, and
holds only operations whose place for every point is fixed by that form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from inrfast.errors import UnsupportedModuleError
from inrfast.layers import Factors, Layer
from inrfast.layers.calls import CallLayer
from inrfast.rounding import squared_rows
from inrfast.tangent.hooks import observed_factors
from inrfast.tangent.jacobian_check import far, products_by_autograd, products_by_factors
from inrfast.tangent.network import PASS_DTYPE, Network, rounded
from inrfast.tangent.probes import AMPLIFIED

SMALLEST = 1e-8
"""Norm of a row, relative to the largest of the chunk, below which rows are no longer scaled to norm 1."""

FIRST = 4
"""How many of the first points always take part in the probes."""

NAMES = """
    Abs Acos Add Addcdiv Addcmul Addmm Alias Asin Atan Atan2 Cat Clamp ClampMax ClampMin Clone Cos Cosh
    Div Elu Erf Exp Exp2 Expand Expm1 FusedRmsNorm Gelu Hardsigmoid Hardswish Hardtanh LeakyRelu
    LinalgVectorNorm Log Log10 Log1P Log2 LogSoftmax Maximum Mean Minimum Mish Mm Mul NativeLayerNorm
    Neg Norm Permute Pow Prelu Reciprocal Relu Repeat ReshapeAlias Rsqrt Rsub Sigmoid Silu Sin Sinc Sinh
    Softmax Softplus Split SplitWithSizes Sqrt Squeeze Stack Sub Sum T Tan Tanh ToCopy Transpose Unbind
    UnsafeSplit UnsafeView Unsqueeze View Where
"""

FIXED = frozenset(NAMES.split())
"""Nodes of autograd's graph that put no point at a place which its coordinates choose."""

PRODUCTS = {"Mm": 1, "Addmm": 2}
"""Those of them that may do so where the matrix on the right is none of parameters: the place of that matrix."""

TRIES = 256
"""Sets of points that are tried to find those that a network treats otherwise."""


Form = tuple[tuple[object, ...], ...]
"""A graph: the name of every node and the numbers of those that it leads to."""


class ChunkCheck:
    """Makes the factors of observed layers, chunk by chunk, and checks each chunk.

    Parameters
    ----------
    network
        The network in fp64.
    layers
        The layers, all of which are observed.
    run
        Returns values (n, D) at points (n, d).
    others
        Points (k, d) of the probes, which the layers' factors are right for.
    """

    def __init__(self, network: Network, layers: Sequence[Layer], run: Callable[[Tensor], Tensor], others: Tensor):
        self.network, self.layers, self.run, self.others = network, layers, run, others
        # Copies of a parameter stand in its place in the graph of their factors, which its own derivative misses.
        self._by_calls = any(isinstance(layer, CallLayer) for layer in layers)
        tensors = dict(network.module.named_parameters())
        of_modules = [layer for layer in layers if not isinstance(layer, CallLayer)]
        self._once = {id(tensors[name]) for layer in of_modules for name in layer.parameters}
        self._checked: set[Form] = set()

    def __call__(self, coords: Tensor, cotangents: Tensor | None = None) -> list[Factors]:
        """Return the factors of :func:`inrfast.tangent.hooks.observed_factors` at the points; the caller holds the
        network.

        Raises
        ------
        UnsupportedModuleError
            The network treats some of the points otherwise than those of the probes.
        ValueError
            A row is NaN or Inf.
        """
        found, against, _ = self._tried(coords, cotangents)
        if against is None:
            return found
        self._refuse(coords, cotangents, against)
        raise AssertionError  # for the type checker

    def apart(self, coords: Tensor) -> list[str]:
        """Return the names of the layers whose factors at the points are not all of their derivatives."""
        return self._tried(coords, None)[2]

    def _tried(self, coords: Tensor, cotangents: Tensor | None) -> tuple[list[Factors], str | None, list[str]]:
        """Return the factors, in words what is wrong with them, and the layers whose factors are wrong."""
        against: list[str] = []

        def check(outputs: Tensor, factors: list[Factors]) -> None:
            need_finite(coords, factors)
            form = _form(outputs, self._once)
            if form is not None and form in self._checked:
                return
            against.extend(self._apart(coords, cotangents, outputs, factors))
            if form is not None and not against:
                self._checked.add(form)

        try:
            found = observed_factors(self.network.module, self.layers, self.run, coords, cotangents, then=check)
        except UnsupportedModuleError as error:
            return [], str(error), []
        told = f"the factors of layer {against[0]!r} are not all of its derivatives there" if against else None
        return found, told, against

    def _apart(
        self, coords: Tensor, cotangents: Tensor | None, outputs: Tensor, factors: Sequence[Factors]
    ) -> list[str]:
        """Return the names of the layers whose ``J^T w`` is not that of the network by more than rounding."""
        weights = _weights(factors, outputs.shape)
        ours = products_by_factors(self.layers, factors, weights)
        module = self.network.module
        if not self._by_calls and not bool(
            far(ours, products_by_autograd(module, self.layers, outputs, weights)).any()
        ):
            return []
        truth = products_by_autograd(module, self.layers, self._outputs(coords, cotangents), weights)
        if not bool(far(ours, truth).any()):
            return []
        eps, effect = torch.finfo(PASS_DTYPE).eps, 0.0
        for seed in range(3):
            outputs = self._outputs(rounded(coords, eps, seed), cotangents)
            near = products_by_autograd(module, self.layers, outputs, weights)
            moved = near
            if cotangents is None:
                with torch.no_grad():
                    network = self.network.rounded(eps, seed)
                moved = products_by_autograd(network.module, self.layers, network.call(coords), weights)
            for changed in (near, moved):
                effect = max(effect, *(float((a - b).abs().max()) for a, b in zip(changed, truth, strict=True)))
        off = far(ours, truth, AMPLIFIED * effect).tolist()
        return [layer.name for layer, wrong in zip(self.layers, off, strict=True) if wrong]

    def _outputs(self, coords: Tensor, cotangents: Tensor | None) -> Tensor:
        """Return the outputs (n, M) of a pass that nothing observes."""
        values = self.run(coords)
        return values if cotangents is None else (values.unsqueeze(1) * cotangents).sum(2)

    def _refuse(self, coords: Tensor, cotangents: Tensor | None, against: str) -> None:
        """Raise, naming points that the network treats otherwise, few of them if they can be found."""

        def fails(chosen: Tensor) -> bool:
            some = coords[chosen]
            if cotangents is not None:
                return bool(self._tried(some, cotangents[chosen])[1])
            twice = (self.others.unsqueeze(1) == some).all(2).any(1)
            others = self.others[~twice]
            half = len(others) // 2
            return bool(self._tried(torch.cat([others[:half], some, others[half:]]), None)[1])

        chosen = _fewest(torch.arange(len(coords), device=coords.device), fails)
        listed = "; ".join(
            "(" + ", ".join(f"{value:.9g}" for value in coords[n].tolist()) + ")" for n in chosen[:FIRST].tolist()
        )
        told = f"net treats some points otherwise than those at which it was looked at first: {against}. "
        if len(chosen) <= FIRST:
            raise UnsupportedModuleError(
                f"{told}Such points: {listed}. Put them first in coords: then it is looked at there too, and what is "
                "not of one form goes to automatic differentiation"
            )
        raise UnsupportedModuleError(
            f"{told}They are {len(chosen)} points together, {listed} among them: let net treat every point by itself, "
            "without sorting, torch.unique or other choices among all points"
        )


def need_finite(coords: Tensor, factors: Sequence[Factors]) -> None:
    """Check that the factors at ``coords`` (n, d) are finite.

    Raises
    ------
    ValueError
        They are not; it names the first point.
    """
    sums = [own.sum() for pair in factors for own in pair if own is not None and own.is_floating_point()]
    if not sums or bool(torch.isfinite(torch.stack(sums).sum())):
        return
    for pair in factors:
        for own in pair:
            wrong = None if own is None else (~torch.isfinite(own)).flatten(1).any(1).nonzero()
            if wrong is not None and len(wrong) > 0:
                point = tuple(coords[int(wrong[0])].tolist())
                raise ValueError(
                    f"the derivatives of net by its parameters are NaN or Inf at the point {point} of coords, as the "
                    "slope of a root at 0 is: leave such points out, or add a small number under the root"
                )


def _form(outputs: Tensor, once: Set[int]) -> Form | None:
    """Return the form of a graph; None if it does not tell the place of every point, or the use of every parameter.

    ``once`` are the ``id`` of the parameters that it may use once.
    """
    if outputs.grad_fn is None:
        return None
    numbers: dict[Any, int] = {outputs.grad_fn: 0}
    waiting, found, used = [outputs.grad_fn], list[tuple[object, ...]](), set[int]()
    while waiting:
        node = waiting.pop()
        kind = node.name().rstrip("0123456789").removesuffix("Backward")
        following = [one for one, _ in node.next_functions]
        parameter = hasattr(node, "variable")
        reads = kind in ("Index", "Embedding") and _is_parameter(following[0])
        if not parameter and kind not in FIXED and not reads:
            return None
        if kind in PRODUCTS and not _is_parameter(following[PRODUCTS[kind]]):
            return None
        for one in following:
            if one is None:
                continue
            variable = id(getattr(one, "variable", None))
            if variable in used and variable in once:
                return None
            used.add(variable)
            if one not in numbers:
                numbers[one] = len(numbers)
                waiting.append(one)
        found.append((kind, numbers[node], *(-1 if one is None else numbers[one] for one in following)))
    return tuple(found)


def _is_parameter(node: Any) -> bool:
    """Return whether a node stands for a leaf, for one turned over, or for no derivative at all."""
    while node is not None and len(node.next_functions) == 1 and node.name().startswith(("TBackward", "TransposeB")):
        ((node, _),) = node.next_functions
    return node is None or hasattr(node, "variable")


def _weights(factors: Sequence[Factors], shape: torch.Size) -> Tensor:
    """Return weights (n, M) at random which bring rows of any size to norms near 1."""
    size = torch.stack([squared_rows(own, shape[1]).expand(shape) for own in factors]).sum(0).sqrt_()
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(shape, generator=generator, dtype=PASS_DTYPE).add_(0.5)
    random *= 2 * torch.randint(2, shape, generator=generator) - 1
    largest = size.amax()
    scale = torch.where(largest > 0, largest, 1.0)
    return random.to(size.device) / size.clamp_min(SMALLEST * scale)


def _fewest(numbers: Tensor, fails: Callable[[Tensor], bool]) -> Tensor:
    """Return a few of the numbers, at which ``fails`` still holds if it holds at all of them.

    Delta debugging (Zeller & Hildebrandt 2002): parts, and what is left without one of them, ever finer ones.
    """
    parts, tries = 2, 0
    while len(numbers) > 1 and tries < TRIES:
        pieces = numbers.tensor_split(min(parts, len(numbers)))
        rests = [numbers[~torch.isin(numbers, piece)] for piece in pieces] if len(pieces) > 2 else []
        for tried in (*pieces, *rests):
            tries += 1
            if fails(tried):
                parts = 2 if len(tried) < len(numbers) // 2 + 1 else max(parts - 1, 2)
                numbers = tried
                break
        else:
            if parts >= len(numbers):
                break
            parts *= 2
    return numbers
