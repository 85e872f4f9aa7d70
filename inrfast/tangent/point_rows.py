"""Rows of the Jacobian by automatic differentiation, point by point: for parameters without a form of two factors.

``d f_m(x_n) / d p`` is exact for any function of a point. All points are taken at once by ``torch.func`` where it can
run the network (``vmap`` of ``vjp``), else one after the other by ``torch.autograd``, which takes every network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from inrfast.layers import Factors, Layer
from inrfast.memory import is_refusal
from inrfast.tangent.network import gradients

TOLERANCE = 1e-9
"""Of rows by ``torch.func`` against rows by ``torch.autograd`` at a few points, relative to the largest entry."""


class PointRows:
    """The rows of some parameters.

    Parameters
    ----------
    root
        The module that the parameters' names begin at, in fp64.
    layers
        The layers whose rows are wanted.
    run
        Returns values (n, D) of points (n, ...), by running ``root`` or a part of it; each depends on its point alone.
    """

    def __init__(self, root: nn.Module, layers: Sequence[Layer], run: Callable[[Tensor], Tensor]) -> None:
        self.layers = layers
        self._names = [name for layer in layers for name in layer.parameters]
        self._root, self._run = root, run
        self._runner = _Runner(root, run)
        # How many copies of a point torch.func gets as a batch; 0: it cannot run the network.
        self._copies: int | None = None

    def __call__(self, coords: Tensor, cotangents: Tensor | None = None) -> list[Factors]:
        """Return the rows of every layer at points (n, ...), as factors with features of ones.

        ``cotangents`` (n, M, D) are the derivatives of the outputs by the values; None: the values are the outputs.
        """
        if self._copies is None:
            self._copies = self._fastest(coords[:2], None if cotangents is None else cotangents[:2])
        rows = self._together(coords, cotangents, self._copies) if self._copies else self._each(coords, cotangents)
        return [Factors(None, torch.cat([rows[name] for name in layer.parameters], dim=2)) for layer in self.layers]

    def _fastest(self, coords: Tensor, cotangents: Tensor | None) -> int:
        """Return the copies with which ``torch.func`` gives the rows that ``torch.autograd`` gives, or 0.

        Two of them for a module that drops the axis of a single point.
        """
        truth = self._each(coords, cotangents)
        for copies in (1, 2):
            try:
                found = self._together(coords, cotangents, copies)
            except Exception as error:  # whatever a network raises that torch.func cannot run
                if is_refusal(error):
                    raise
                continue
            if all(_close(found[name], rows) for name, rows in truth.items()):
                return copies
        return 0

    def _together(self, coords: Tensor, cotangents: Tensor | None, copies: int) -> dict[str, Tensor]:
        """Return the rows (n, M, entries) of every parameter, all points at once."""
        tensors = dict(self._root.named_parameters())
        chosen = {f"root.{name}": tensors[name].detach() for name in self._names}

        def at_point(point: Tensor, cotangent: Tensor | None) -> dict[str, Tensor]:
            def values(parameters: dict[str, Tensor]) -> Tensor:
                found: Tensor = functional_call(self._runner, parameters, (point.expand(copies, *point.shape),))
                return found[0]

            at_once, pull, *_ = vjp(values, chosen)
            if cotangent is None:
                cotangent = torch.eye(len(at_once), dtype=at_once.dtype, device=at_once.device)
            return vmap(lambda direction: pull(direction)[0])(cotangent)

        with warnings.catch_warnings():  # of operators without a rule of their own, which nobody here can give
            warnings.filterwarnings("ignore", "There is a performance drop")
            found = vmap(at_point, (0, None if cotangents is None else 0))(coords, cotangents)
        rows = {name: found[f"root.{name}"] for name in self._names}
        return {name: row.reshape(*row.shape[:2], tensors[name].numel()) for name, row in rows.items()}

    def _each(self, coords: Tensor, cotangents: Tensor | None) -> dict[str, Tensor]:
        """Return the same, one point after the other."""
        tensors = dict(self._root.named_parameters())
        wanted = [tensors[name] for name in self._names]
        rows: list[list[Tensor]] = [[] for _ in wanted]
        for n, point in enumerate(coords):
            with torch.enable_grad():
                # With a copy beside it: some modules drop the axis of a single point.
                values = self._run(point.expand(2, *point.shape))[0]
                directions = torch.eye(len(values)).to(values) if cotangents is None else cotangents[n]
                last = len(directions) - 1
                found = [
                    gradients((values * direction).sum(), wanted, again=m < last)
                    for m, direction in enumerate(directions)
                ]
            for into, of_outputs in zip(rows, zip(*found, strict=True), strict=True):
                into.append(torch.stack([gradient.flatten() for gradient in of_outputs]))
        return {name: torch.stack(own) for name, own in zip(self._names, rows, strict=True)}


class _Runner(nn.Module):
    """``run`` as a module, for :func:`torch.func.functional_call`."""

    def __init__(self, root: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.root, self._run = root, run

    def forward(self, coords: Tensor) -> Tensor:
        return self._run(coords)


def _close(found: Tensor, truth: Tensor) -> bool:
    return bool(((found - truth).abs() <= TOLERANCE * truth.abs().max()).all())
