"""The check of a kind of layer: that its factors are the Jacobian of its parameters, and that its block keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from inrfast.errors import check_module, check_tensor
from inrfast.layers import LAYERS, Factors, Layer
from inrfast.modes import own_modes
from inrfast.ops.rows import rows_
from inrfast.pointwise import dependence
from inrfast.snapshot import snapshot, widen_
from inrfast.tangent.hooks import observed_factors, reasons_against
from inrfast.tangent.point_rows import PointRows

OUTPUTS = 3
"""Outputs of the network that is made of the module: random sums of its own, bent by a hyperbolic tangent."""

MOST_SUBSETS = 8
"""Subsets of a module's parameters that are tried."""

AGREES = 1e-9
"""Of rows by the factors against rows by ``torch.autograd``, relative to the largest entry."""


def check_layer(module: nn.Module, inputs: Tensor, handler: type[Layer] | None = None) -> None:
    """Check a kind of layer on one module: its factors against automatic differentiation, in fp64, and its block.

    For all parameters that it takes, and for subsets of them, as if the others were frozen: what it names; rows of the
    Jacobian; every single parameter's part of them; the way between parameters and block, in both directions; columns
    of ones where they are stated; the rows of a module that is called twice, where its calls add up; and that no point
    influences another.

    Parameters
    ----------
    module
        A module of the kind, in the mode in which it is used; it is copied.
    inputs
        What it gets, one row per point: (n, ...), at least 4 points in general position; or the index that an
        embedding gets, whole numbers (n,) or (n, ...).
    handler
        The kind of layer, a class derived from :class:`inrfast.layers.Layer`, registered or not; None: the first
        registered one that takes parameters of the module.

    Raises
    ------
    AssertionError
        It breaks the contract; the message says where.
    TypeError, ValueError
        Bad arguments.

    Examples
    --------
    >>> check_layer(torch.nn.Linear(3, 5), torch.randn(8, 3))
    """
    check_module("module", module)
    index = isinstance(inputs, Tensor) and inputs.dtype in (torch.int64, torch.int32)
    if not isinstance(inputs, Tensor) or not (index or inputs.is_floating_point()) or inputs.ndim < 2 - index:
        raise ValueError("inputs must be a floating tensor (n, ...), or an index of int64 or int32")
    if len(inputs) < 4:
        raise ValueError(f"inputs must be at least 4 points, got {len(inputs)}")
    check_tensor("inputs", inputs, floating=not index)
    if not bool(inputs.any()):
        raise ValueError("inputs must be points in general position, got zeros alone, at which any factors seem right")
    if handler is not None and not (isinstance(handler, type) and issubclass(handler, Layer)):
        raise TypeError(f"handler must be a class derived from inrfast.layers.Layer, got {handler!r}")
    if not any(True for _ in module.parameters(recurse=False)):
        raise ValueError(f"module must have parameters of its own, got {type(module).__name__} without one")
    with own_modes():
        _Check(module, inputs, handler).run()


class _Check:
    """One module in fp64 inside of a small network, and the kind of layer that is checked on it."""

    def __init__(self, module: nn.Module, inputs: Tensor, handler: type[Layer] | None) -> None:
        self.root = nn.Module()
        self.root.checked = widen_(snapshot(module))
        self.module = self.root.checked.requires_grad_(True)
        self.inputs = inputs.detach().double() if inputs.is_floating_point() else inputs
        self.twice = False  # whether the network calls the module a second time
        self.names = [name for name, _ in self.module.named_parameters(recurse=False)]
        if handler is not None:
            self.handler = handler
        generator = torch.Generator().manual_seed(0)
        width = self._tried("the module", lambda: self.module(self.inputs.clone())).flatten(1).shape[1]
        self.readout = torch.randn(width, OUTPUTS, generator=generator, dtype=torch.float64) / width**0.5
        self.readout = self.readout.to(inputs.device)
        if handler is None:
            self.handler = self._registered()

    def _registered(self) -> type[Layer]:
        """Return the first registered handler that takes parameters of the module as it is used here."""
        for handler in sorted(LAYERS.values(), key=lambda handler: handler.order):
            self.handler = handler
            taken = handler.takes(self.module, self.names)
            if taken and (not handler.observed or not self.reasons(self.layer(taken))):
                return handler
        raise AssertionError(f"no registered kind of layer takes parameters of {type(self.module).__name__}")

    def fail(self, what: str) -> NoReturn:
        raise AssertionError(f"{self.handler.__name__} breaks the contract of layers: {what}")

    def _tried(self, what: str, call: Callable[[], Any]) -> Any:
        """Return what a call gives; whatever it raises becomes the error of this check."""
        try:
            return call()
        except Exception as error:
            kind = self.handler.__name__ if hasattr(self, "handler") else "the handler"
            raise AssertionError(
                f"{kind} breaks the contract of layers: {what} raises {type(error).__name__}: {error}"
            ) from error

    def run(self) -> None:
        taken = self.check_claim(self.names)
        subsets = [list(some) for size in range(len(taken), 0, -1) for some in combinations(taken, size)]
        self.check_alone()
        for subset in subsets[:MOST_SUBSETS]:
            layer = self.layer(self.check_claim(subset))
            self.check_block(layer)
            self.check_factors(layer)
        if self.handler.observed and self.handler.adds:
            self.check_calls(self.layer(taken))

    # ---- what it takes -----------------------------------------------------------------------------------------

    def check_claim(self, names: Sequence[str]) -> list[str]:
        """Return which of the parameters the handler takes, each once."""
        if not isinstance(getattr(self.handler, "kind", None), str) or not self.handler.kind.isidentifier():
            self.fail("kind must be an identifier, the name that it is registered under")
        taken = list(self._tried("takes()", lambda: list(self.handler.takes(self.module, list(names)))))
        if not taken:
            self.fail(f"takes() finds nothing among {list(names)} of {type(self.module).__name__}")
        if len(set(taken)) < len(taken) or not set(taken) <= set(names):
            self.fail(
                f"takes() must return some of the names that it is asked for, {list(names)}, each once; got {taken}"
            )
        if self._tried("takes() of a module without parameters", lambda: list(self.handler.takes(nn.Identity(), []))):
            self.fail("takes() must return nothing where there are no parameters")
        return taken

    def layer(self, taken: Sequence[str]) -> Layer:
        """Return the layer of some parameters, whose columns stand in another order and apart."""
        shapes = {f"checked.{name}": self.module.get_parameter(name).shape for name in taken}
        columns, start = {}, 2
        for name in reversed(list(shapes)):
            columns[name] = slice(start, start + shapes[name].numel())
            start = columns[name].stop + 1
        return self.handler("checked", "checked", {name: columns[name] for name in shapes}, shapes)

    # ---- its block ---------------------------------------------------------------------------------------------

    def check_block(self, layer: Layer) -> None:
        """Check that parameter vectors survive the way into the block and back, in both directions."""
        b, a = self._tried("block", lambda: tuple(map(int, layer.block)))
        if b * a != layer.columns:
            self.fail(f"block must have as many entries as there are parameters, {layer.columns}, got {b} x {a}")
        total = max(columns.stop for columns in layer.parameters.values()) + 2
        flat = torch.arange(2.0 * total, dtype=torch.float64, device=self.inputs.device).view(2, total) + 1
        block = self._tried("to_block()", lambda: layer.to_block(flat))
        if not isinstance(block, Tensor) or block.shape != (2, b, a):
            got = tuple(block.shape) if isinstance(block, Tensor) else type(block).__name__
            self.fail(f"to_block() must return (k, {b}, {a}), got {got} for k = 2")
        back = torch.zeros_like(flat)
        self._tried("from_block()", lambda: layer.from_block(block, back))
        expected = torch.zeros_like(flat)
        for columns in layer.parameters.values():
            expected[:, columns] = flat[:, columns]
        if not torch.equal(back, expected):
            self.fail("from_block() does not give back what to_block() took; join() and divide() must be mirrors")

    # ---- its factors -------------------------------------------------------------------------------------------

    def values(self, inputs: Tensor) -> Tensor:
        """Return the outputs (n, M) of the network made of the module."""
        values: Tensor = torch.tanh(self.module(inputs.clone()).flatten(1)) @ self.readout
        if not self.twice:
            return values
        other = inputs / 2 if inputs.is_floating_point() else inputs.clone()
        return values + torch.sin(self.module(other).flatten(1)) @ self.readout

    def check_alone(self) -> None:
        """Check that the module treats its points one by one."""

        def predict(points: Tensor) -> Tensor:
            inputs = points.reshape(-1, *self.inputs.shape[1:])
            return self.values(inputs if self.inputs.is_floating_point() else inputs.round().to(self.inputs.dtype))

        found = dependence(predict, self.inputs.reshape(len(self.inputs), -1).double())
        if found is not None:
            self.fail(f"{type(self.module).__name__} couples points: {found}")

    def reasons(self, layer: Layer) -> dict[str, str]:
        """Return why a layer has no factors for the module, by its name."""
        found = self._tried("the module", lambda: reasons_against(self.root, [layer], self.values, self.inputs))
        return dict(found)

    def factors(self, layer: Layer, inputs: Tensor) -> Factors:
        """Return a layer's factors at some inputs."""
        if layer.observed:
            return observed_factors(self.root, [layer], self.values, inputs)[0]
        return PointRows(self.root, [layer], self.values)(inputs)[0]

    def check_factors(self, layer: Layer) -> None:
        """Compare the rows with automatic differentiation, whole, by parameter, and at few points."""
        if layer.observed:
            reasons = self.reasons(layer)
            if reasons:
                self.fail(f"it has no factors for this module: {reasons[layer.name]}")
        found = self._tried("making factors", lambda: self.factors(layer, self.inputs))
        self.check_shapes(layer, found)
        self.check_tap(layer)
        truth = self.rows_by_autograd(layer)
        if not any(bool(rows.any()) for rows in truth.values()):
            raise ValueError("inputs tell nothing: every derivative in the module's parameters vanishes at them")
        names = ", ".join(layer.parameters)
        block = _rows(found, layer.block).flatten(0, 1)
        for name, own in zip(layer.parameters, layer.divide(block), strict=True):
            self.compare(f"the rows of {name} (of {names})", own, truth[name])
        for ones in (True, False):
            parts = list(self._tried("parts()", lambda ones=ones: list(layer.parts(found, ones))))  # type: ignore[misc]
            if len(parts) != len(layer.parameters):
                self.fail(f"parts() must yield the factors of each of {names}, got {len(parts)}")
            for name, part in zip(layer.parameters, parts, strict=True):
                own = _rows(part, (truth[name].shape[1], 1) if layer.sparse else None).flatten(0, 1).flatten(1)
                self.compare(f"parts() of {name}", own, truth[name])
        few = self._tried("factors of few points", lambda: self.factors(layer, self.inputs[1:4]))
        self.compare(
            "the rows of three points alone", _rows(few, layer.block), _rows(found.at(slice(1, 4)), layer.block)
        )

    def check_calls(self, layer: Layer) -> None:
        """Compare the rows of a module that is called twice with automatic differentiation."""
        self.twice = True
        if reasons := self.reasons(layer):
            self.fail(f"adds is true, but it has no factors for two calls: {reasons[layer.name]}")
        found = self._tried("added()", lambda: self.factors(layer, self.inputs))
        block, truth = _rows(found, layer.block).flatten(0, 1), self.rows_by_autograd(layer)
        for name, own in zip(layer.parameters, layer.divide(block), strict=True):
            self.compare(f"the rows of {name}, its module called twice,", own, truth[name])
        self.twice = False

    def check_shapes(self, layer: Layer, found: Factors) -> None:
        """Check sizes and dtype of the factors, and what is said of ones, of the representation and the weight."""
        n, (b, a) = len(self.inputs), layer.block
        if not isinstance(found, Factors):
            self.fail(f"factors() must return Factors(features, sensitivities), got {type(found).__name__}")
        z, s = found
        dtypes = (torch.float64, torch.int64 if layer.sparse else torch.float64)
        if any(f is not None and f.dtype not in dtypes for f in found):
            self.fail("factors() must return Factors in the dtype of the features, fp64")
        if layer.sparse:
            self.check_sparse(layer, found)
            return
        if (z is None and a != 1) or (z is not None and z.shape != (n, a)):
            got = None if z is None else tuple(z.shape)
            self.fail(f"features must be (n, a) = {(n, a)} for a block of {b} x {a} (None: a = 1), got {got}")
        if s is None or s.shape != (n, OUTPUTS, b):
            got = None if s is None else tuple(s.shape)
            self.fail(f"sensitivities must be (n, M, b) = {(n, OUTPUTS, b)} for a block of {b} x {a}, got {got}")
        if layer.ends_with_ones and (z is None or z.shape[1] < 2 or not bool((z[:, -1] == 1).all())):
            self.fail("ends_with_ones is true, but the features do not end with a column of ones beside others")
        shown = self._tried("representation()", lambda: layer.representation(found))
        if shown is not None and (shown.ndim != 2 or len(shown) != n):
            self.fail(f"representation() must be (n, D) or None, got {tuple(shown.shape)}")
        weight = self._tried("matrix()", lambda: layer.matrix(self.module))
        if weight is not None and weight.ndim != 2:
            self.fail(f"matrix() must have two dimensions, got {tuple(weight.shape)}")

    def check_sparse(self, layer: Layer, found: Factors) -> None:
        """Check the columns and entries of sparse rows."""
        columns, entries = found
        if columns is None or columns.dtype != torch.int64 or columns.ndim != 2 or len(columns) != len(self.inputs):
            self.fail("features of sparse rows must be their columns (n, q), int64")
        if entries is None or entries.shape != (len(columns), OUTPUTS, columns.shape[1]):
            self.fail("sensitivities of sparse rows must be their entries (n, M, q)")
        if int(columns.min()) < 0 or int(columns.max()) >= layer.columns:
            self.fail(f"columns of sparse rows must lie in 0 to {layer.columns - 1}")
        dense = _rows(found, layer.block).square().sum((1, 2, 3))
        squares = entries.square().sum((1, 2))
        self.compare("squared lengths of rows, a column that stands twice holding its entry once,", squares, dense)

    def check_tap(self, layer: Layer) -> None:
        """Check that what is observed leaves the module's output as it is."""
        output = self.module(self.inputs.clone())
        pair = self._tried("tap()", lambda: layer.tap(self.module, self.inputs, output))
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], Tensor):
            self.fail(f"tap() must return what is observed and the output, got {type(pair).__name__}")
        returned = pair[1]
        self.compare("the output that tap() returns", returned, output)

    def rows_by_autograd(self, layer: Layer) -> dict[str, Tensor]:
        """Return the rows (n M, entries) of every parameter, point by point."""
        wanted = [self.root.get_parameter(name) for name in layer.parameters]
        rows: list[list[Tensor]] = [[] for _ in wanted]
        for n in range(len(self.inputs)):
            with torch.enable_grad():
                values = self.values(self.inputs[n : n + 1].expand(2, *self.inputs.shape[1:]))[0]
                for value in values:
                    found = torch.autograd.grad(
                        value, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    for own, gradient in zip(rows, found, strict=True):
                        own.append(gradient.flatten())
        return {name: torch.stack(own) for name, own in zip(layer.parameters, rows, strict=True)}

    def compare(self, what: str, found: Tensor, truth: Tensor) -> None:
        """Fail where two tensors differ by more than rounding."""
        if found.shape != truth.shape:
            self.fail(f"{what} must have the shape {tuple(truth.shape)}, got {tuple(found.shape)}")
        error, size = float((found - truth).abs().max()), float(truth.abs().max())
        if not error <= AGREES * size + 1e-300:
            self.fail(f"{what} differ from those of autograd by {error:.2e}, where they reach {size:.2e}")


def _rows(factors: Factors, block: tuple[int, int] | None = None) -> Tensor:
    """Return the rows (n, M, b, a) of a block, whose shape dense factors tell."""
    z, s = factors
    assert s is not None
    shape = (s.shape[2], 1 if z is None else z.shape[1]) if block is None else block
    out = s.new_empty(len(s), OUTPUTS, *shape)
    rows_(out, z, s)
    return out
