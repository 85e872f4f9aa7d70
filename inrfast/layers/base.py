"""What every kind of layer answers: which parameters it takes, their factors, and their block of the Jacobian."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from inrfast.ops.sparse_rows import is_sparse
from inrfast.registry import Registry

SAFE_EXPONENT = 40
"""Exponent of a row's largest feature up to which fp32 holds its square beside others with all digits."""


class Factors(NamedTuple):
    """Factors of one layer on n points; the Jacobian's rows are ``sensitivities (x) features``.

    ``features`` (n, a) is Z or [Z, 1], None for a column of ones; ``sensitivities`` (n, M, b), None for the identity.
    Sparse rows (:mod:`inrfast.ops.sparse_rows`) stand in their place: features of int64 are the columns (n, q) that
    are not zero, sensitivities the entries (n, M, q) in them.
    """

    features: Tensor | None
    sensitivities: Tensor | None

    @property
    def widths(self) -> tuple[int, int]:
        """Columns (a, b) of the stored factors, 0 for one that is not stored."""
        a = 0 if self.features is None else self.features.shape[1]
        return a, 0 if self.sensitivities is None else self.sensitivities.shape[2]

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the factors rounded once to ``dtype``."""
        return Factors(*(f.to(dtype) if f is not None and f.is_floating_point() else f for f in self))

    def at(self, points: slice | Tensor) -> Factors:
        """Return the factors of some points: a slice of them, or an index."""
        return Factors(*(None if f is None else f[points] for f in self))

    def balanced(self) -> Factors:
        """Return factors with the same product, rows of features whose square fp32 could not hold brought near 1.

        A feature of 1e-30 beside a sensitivity of 1e34, as a norm makes them, would give 0 times Inf. Powers of two are
        exact.
        """
        z, s = self
        if z is None or s is None or z.numel() == 0 or is_sparse(z):
            return self
        exponent = torch.frexp(z.abs().amax(1)).exponent
        exponent = torch.where(exponent.abs() > SAFE_EXPONENT, exponent, 0)
        if not bool(exponent.any()):
            return self
        power = 2.0 ** exponent.to(z.dtype).unsqueeze(1)
        return Factors(z / power, s * power.unsqueeze(2))


@dataclass(frozen=True)
class Layer:
    """Parameters of one module that enter the Jacobian together.

    This base class describes layers whose rows are stored as they are: one factor ``sensitivities`` of shape
    (n, M, columns), features of ones, and a block (columns, 1). Layers with two factors override what differs.

    Attributes
    ----------
    name
        What the layer is called in ``K.layers`` and in reports.
    module
        Qualified name of the module that owns the parameters.
    parameters
        Qualified names of the parameters in the order of the block, each with its columns of the Jacobian.
    shapes
        Their shapes.
    kind
        The name that the class is registered under.
    order
        Handlers are asked in this order, those of one order as they were registered: 0 of a user's own, 1 of known
        modules, 2 of calls (:mod:`inrfast.layers.calls`), 3 of the calls' rows, 4 of the one that takes everything.
    sparse
        Whether the factors are sparse rows.
    observed
        Whether the factors are made of the module's input and of the sensitivities of its output, both observed while
        the network runs. If not, the rows come from automatic differentiation.
    adds
        Whether a module may be called several times in a forward pass: the factors of all calls then become one, by
        :meth:`added`.
    """

    name: str
    module: str
    parameters: Mapping[str, slice]
    shapes: Mapping[str, torch.Size]

    kind: ClassVar[str]
    order: ClassVar[int] = 0
    observed: ClassVar[bool] = True
    sparse: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    # ---- what it takes, and its factors ------------------------------------------------------------------------

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return those of a module's own parameters, named as its attributes, that this kind of layer knows.

        In the order of the block; empty if it knows none of them.
        """
        raise NotImplementedError

    def by_points(self, module: nn.Module, tensor: Tensor, points: int) -> Tensor:
        """Return what a module got, or gave, with its ``points`` along the first axis; as it is if that cannot be.

        By default (1, n, a) and (n / k, k, a) become (n, a): leading axes that make up the points are one.
        """
        return points_first(tensor, points)

    def reason_against(self, module: nn.Module, given: Tensor, points: int) -> str | None:
        """Return why the factors do not hold for a module that got ``given`` for so many points, or None.

        ``given`` is as :meth:`by_points` returns it. Where there is a reason, the next kind of layer is asked.
        """
        if given.ndim != 2 or len(given) != points:
            return f"its input has the shape {tuple(given.shape)}, where (points, features) has a form of two factors"
        return None

    def tap(self, module: nn.Module, given: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tensor whose sensitivities the factors take, and the module's output as made of it.

        By default the output itself and a copy, so that an operation in place that follows does not overwrite it.
        """
        return output, output.clone()

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return what :meth:`factors` takes of the module's input (n, ...), in fp64."""
        raise NotImplementedError

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the factors of :meth:`features` and of sensitivities (n, M, ...) of the tensor that :meth:`tap` gave.

        ``sensitivities`` is None for the identity: those of a network's last layer in closed form.
        """
        raise NotImplementedError

    def added(self, calls: Sequence[Factors]) -> Factors:
        """Return the factors of all calls in one forward pass from those of each: the sum of their rows."""
        rows = [factors.sensitivities for factors in calls if factors.sensitivities is not None]
        return Factors(None, torch.stack(rows).sum(0)) if len(rows) > 1 else calls[0]

    # ---- its block of the Jacobian -----------------------------------------------------------------------------

    @property
    def columns(self) -> int:
        """Number of differentiated parameters."""
        return sum(columns.stop - columns.start for columns in self.parameters.values())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(columns.stop - columns.start for columns in self.parameters.values())

    @property
    def block(self) -> tuple[int, int]:
        """Shape (b, a) of the parameters as a matrix, the shape of an outer product of the factors."""
        return self.columns, 1

    @property
    def ends_with_ones(self) -> bool:
        """Whether the features end with a column of ones beside others."""
        return False

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the block (k, b, a) of the parameters, each given as (k, number of its entries)."""
        return torch.cat(list(parts), dim=1).unsqueeze(-1)

    def divide(self, block: Tensor) -> list[Tensor]:
        """Return the parameters, each (k, number of its entries), of a block (k, b, a): the mirror of :meth:`join`."""
        return list(block[:, :, 0].split(list(self.sizes), dim=1))

    def parts(self, factors: Factors, ones: bool = True) -> Iterator[Factors]:
        """Yield the factors of every single parameter, in order.

        With ``ones`` a column of ones of the features is given as such, else as features of None.
        """
        assert factors.sensitivities is not None
        for own in factors.sensitivities.split(list(self.sizes), dim=2):
            yield Factors(None, own)

    def shaped(self, entries: Tensor, b: int) -> Tensor:
        """View a parameter's columns of the Jacobian (n, M, entries) as (n, M, b, a), as :meth:`parts` has factors."""
        return entries.unflatten(2, (-1, 1) if self.sparse else (b, -1))

    def to_block(self, flat: Tensor) -> Tensor:
        """Return this layer's block (k, b, a) of parameter vectors (k, P)."""
        return self.join([flat[:, columns] for columns in self.parameters.values()])

    def from_block(self, block: Tensor, flat: Tensor) -> None:
        """Write this layer's block (k, b, a) into parameter vectors (k, P)."""
        for columns, part in zip(self.parameters.values(), self.divide(block), strict=True):
            flat[:, columns] = part

    def counted(self, columns: Mapping[str, slice]) -> Layer:
        """Return this layer with other columns: those in a Jacobian of fewer parameters."""
        return replace(self, parameters={name: columns[name] for name in self.parameters})

    # ---- for the diagnosis -------------------------------------------------------------------------------------

    def representation(self, factors: Factors) -> Tensor | None:
        """Return the input that a diagnosis calls a representation, (n, D); None if the layer has none."""
        return None

    def matrix(self, module: nn.Module) -> Tensor | None:
        """Return the weight matrix whose singular values a diagnosis gives; None if there is none."""
        return None


def points_first(tensor: Tensor, points: int) -> Tensor:
    """Return a tensor whose leading axes make up the points with these as one axis, any other as it is."""
    for axes, count in enumerate(accumulate(tensor.shape, mul)):
        if count == points:
            return tensor.flatten(0, axes)
    return tensor


LAYERS: Registry[type[Layer]] = Registry("kind of layer", "inrfast.layers", Layer, classes=True, called="kind")
