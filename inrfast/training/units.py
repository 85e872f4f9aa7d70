"""Dead units: those of rectified layers that are zero at every point, found by running a network layer by layer."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inrfast.memory import chunks
from inrfast.mlp import MLP
from inrfast.tangent.capture import Capture
from inrfast.tangent.network import PASS_DTYPE, Network
from inrfast.tangent.store import PASS_ROWS, STREAMED_ROWS, rows_on

RECTIFIERS = frozenset({F.relu, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
"""Functions that compute a ReLU."""

Seen = Callable[[str, Tensor], None]
"""Takes the name of a layer and what it returned, (n, ...), which may be overwritten afterwards."""


def dead_units(capture: Capture, points: Tensor, coords: Tensor) -> dict[str, float]:
    """Return the share of units that are zero at every point, of each layer with outputs of 0 and none below.

    Those are layers that end with a ReLU, whichever module or function computes it. One that is missing in the result
    has no dead units. Layers are the modules inside the network, and its calls of ``relu``, that return a tensor of at
    least two axes with a row per point, in their order; what a function returned is named by the module before it,
    ``relu(layers.0)``, and a module that returns what the one before it returned does not count again. Of an
    :class:`inrfast.INR` they are the hidden layers, by the name of the linear layer and before a norm that follows the
    activation.

    Parameters
    ----------
    capture
        The network, in fp64.
    points
        Some of the coordinates, at which it is run first: the others are looked at only while a unit is idle.
    coords
        All coordinates (N, d).
    """
    tally = _Tally()
    rows = min(max(len(points), rows_on(coords.device, PASS_ROWS)), rows_on(coords.device, STREAMED_ROWS))
    for part in itertools.chain(_parts(points, rows), () if points is coords else _parts(coords, rows)):
        tally.begin()
        if capture.mlp is not None:
            _run_mlp(capture, capture.mlp, part, tally.add)
        else:
            _run_hooked(capture.network, part, tally.add)
        if not tally.idle:
            break
    return tally.shares


class _Tally:
    """Which units of each layer were ever active, and which layers look rectified; calls are told by their order.

    A layer that is called several times has the number of the call behind its name from the second one on.
    """

    def __init__(self) -> None:
        self.active: dict[str, Tensor] = {}
        self.negative: dict[str, bool] = {}
        self.zero: dict[str, bool] = {}
        self.begin()

    def begin(self) -> None:
        """Begin a pass over other points."""
        self._calls: Counter[str] = Counter()
        self._last: Tensor | None = None

    def add(self, name: str, values: Tensor) -> None:
        """Count what a layer returned, unless it is what the one before it did."""
        if self._last is not None and self._last.shape == values.shape and torch.equal(self._last, values):
            return
        self._last = values.detach().clone()  # operations in place may follow
        self._calls[name] += 1
        name = name if self._calls[name] == 1 else f"{name} (call {self._calls[name]})"
        flat = self._last.flatten(1)
        zero, active = bool((flat == 0).any()), (flat != 0).any(0)
        self.zero[name] = self.zero.get(name, False) or zero
        self.active[name] = active | self.active[name] if name in self.active else active
        self.negative[name] = self.negative.get(name, False) or bool((flat < 0).any())

    @property
    def shares(self) -> dict[str, float]:
        """The share of units that were never active, of layers that were zero somewhere and negative nowhere."""
        looked_at = [name for name, negative in self.negative.items() if self.zero[name] and not negative]
        return {name: float((~self.active[name]).double().mean()) for name in looked_at}

    @property
    def idle(self) -> bool:
        """Whether there is such a unit."""
        return any(share > 0 for share in self.shares.values())


def _parts(coords: Tensor, rows: int) -> Iterator[Tensor]:
    for part in chunks(len(coords), rows):
        yield coords[part].to(PASS_DTYPE)


def _run_mlp(capture: Capture, mlp: MLP, points: Tensor, seen: Seen) -> None:
    features = capture.inputs(points)
    for layer in mlp.hidden:
        features = F.linear(features, layer.linear.weight, layer.linear.bias)
        if layer.norm is not None and not layer.norm_after:
            features = layer.norm.forward(features)[0]
        features = layer.activation.value(features)
        seen(layer.linear.name, features)
        if layer.norm is not None and layer.norm_after:
            features = layer.norm.forward(features)[0]


def _run_hooked(network: Network, points: Tensor, seen: Seen) -> None:
    if len(points) == 1:  # modules that squeeze() would drop the axis of a single point
        points = points.expand(2, -1)
    calls = _Calls(network.axes, len(points), seen)
    with network.alone() as module, ExitStack() as stack:
        for name, inner in module.named_modules():
            if name:
                stack.callback(inner.register_forward_hook(calls.hook(name)).remove)
        with calls:
            network.call(points)
    calls.tell()


class _Calls(TorchFunctionMode):
    """Calls of modules, by hooks, and of the functions of ReLU, by their interception.

    What a module returns straight from such a function is told once, by the module's name; any other such result by
    that of the module that returned last: ``relu(layers.0)``.
    """

    def __init__(self, axes: int, points: int, seen: Seen) -> None:
        super().__init__()
        self.axes, self.points, self.seen = axes, points, seen
        self.last = "coords"
        self.waiting: tuple[str, Tensor] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, and keep what one of ReLU's returns."""
        result = func(*args, **(kwargs or {}))
        if func in RECTIFIERS and (values := self._of_points(result)) is not None:
            self.tell()
            self.waiting = f"relu({self.last})", values.detach().clone()  # operations in place may follow
        return result

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """Return a forward hook of the module with this name."""

        def look(module: nn.Module, given: Any, output: Any) -> None:
            values = self._of_points(output)
            if self.waiting is not None and values is not None:
                kept = self.waiting[1]
                if kept.shape == values.shape and torch.equal(kept, values):
                    self.waiting = None
            self.tell()
            self.last = name
            if values is not None:
                self.seen(name, values)

        return look

    def tell(self) -> None:
        """Tell what a function has returned that no module did."""
        if self.waiting is not None:
            self.seen(*self.waiting)
            self.waiting = None

    def _of_points(self, output: Any) -> Tensor | None:
        """Return a result as (n, ...), None if it has no row per point."""
        if not isinstance(output, Tensor):
            return None
        for _ in range(self.axes - 2):  # the leading axes of the coordinates
            output = output.squeeze(0) if output.ndim > 1 and len(output) == 1 else output
        return output if output.ndim > 1 and len(output) == self.points else None
