"""Hooks: what layers get and how sensitive the outputs are to what they give, observed while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inrfast.errors import UnsupportedModuleError
from inrfast.layers import Factors, Layer
from inrfast.layers.calls import Call, CallLayer, Put
from inrfast.tangent.network import REENTRANT, gradients
from inrfast.tangent.watching import Watching


class _Tap(NamedTuple):
    """One call of a layer: the tensor whose sensitivities are wanted, and the layer's factors from them."""

    kept: Tensor
    factors: Callable[[Tensor], Factors]


class _Taps:
    """What some layers get and give in one forward pass, in a block.

    Modules are observed by forward hooks, bare parameters by the torch functions that take them.

    Attributes
    ----------
    calls
        The calls of every layer that was called, by the layer's name.
    reasons
        Why a layer has no factors of its own kind, by its name.
    recording
        Whether calls count: activation checkpointing calls the layer again in the backward pass, and what comes after
        it is made as it was written.
    """

    def __init__(self, root: nn.Module, layers: Sequence[Layer], points: int) -> None:
        self.root, self.layers, self.points = root, layers, points
        self.calls: dict[str, list[_Tap]] = {}
        self.reasons: dict[str, str] = {}
        self.recording = True
        self._by_calls = {name: layer for layer in layers if isinstance(layer, CallLayer) for name in layer.parameters}
        self._watching: Watching | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Taps:
        for layer in self.layers:
            if isinstance(layer, CallLayer):
                continue
            # Before the user's own hooks, which may change the output.
            handle = self.root.get_submodule(layer.module).register_forward_hook(
                self._hook(layer), prepend=True, with_kwargs=True
            )
            self._stack.callback(handle.remove)
        if self._by_calls:
            self._watching = Watching(self.root, list(self._by_calls), self.points, self._make)
            self._stack.enter_context(self._watching)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._watching = None  # it holds this object

    def _hook(self, layer: Layer) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            given, *others = *args, *kwargs.values()
            if others or not isinstance(given, Tensor) or not isinstance(output, Tensor):
                self.reasons[layer.name] = "it takes or returns more than one tensor"
                return output
            kept, returned = layer.tap(module, given, output)
            if self.recording:
                given = layer.by_points(module, given.detach(), self.points)
                if reason := layer.reason_against(module, given, self.points):
                    self.reasons[layer.name] = reason
                features = given.clone()
                self._record(layer, kept, lambda s: layer.factors(layer.features(module, features), s))
            return returned

        return hook

    def _make(self, call: Call, idle: Callable[[Any], bool]) -> Any:
        """Make a call of a torch function as the layers of its parameters want it, and observe it."""
        if not self.recording and not call.repeated:
            return call()
        layers = {layer.name: layer for name in call.views if (layer := self._by_calls[name])}
        puts: dict[str, Put] = {}
        against: dict[str, str] = {}
        for name, layer in layers.items():
            put = layer.put(call)
            if isinstance(put, str):
                against[name] = put
            else:
                puts[name], call = put, put.call
        result = returned = call()
        if against and not idle(result):
            self.reasons |= against
        for name, put in puts.items():
            kept = put.kept
            if kept is None:
                if not isinstance(result, Tensor):
                    self.reasons[name] = f"{call.name} gives no tensor of it"
                    continue
                kept = result
                returned = result.clone() if returned is result else returned
            if self.recording:
                self._record(layers[name], kept, put.factors)
        return returned

    def _record(self, layer: Layer, kept: Tensor, factors: Callable[[Tensor], Factors]) -> None:
        if layer.name in self.calls and not layer.adds:
            self.reasons[layer.name] = "it is used more than once in a forward pass"
        self.calls.setdefault(layer.name, []).append(_Tap(kept, factors))

    def stop(self) -> None:
        """Let no further calls count."""
        self.recording = False
        if self._watching is not None:
            self._watching.recording = False

    def missing(self) -> dict[str, str]:
        """Return the reasons against layers, those that were not called among them."""
        called = {**self.calls, **self.reasons}
        uncalled = [layer for layer in self.layers if layer.name not in called]
        told = "no function that takes it is seen", "the forward pass does not call its module"
        return self.reasons | {layer.name: told[not isinstance(layer, CallLayer)] for layer in uncalled}

    def factors(self, layer: Layer, sensitivities: Sequence[Sequence[Tensor]]) -> Factors:
        """Return a layer's factors from the sensitivities of what its calls kept: for every call those of M outputs."""
        module, found = self.root.get_submodule(layer.module), list[Factors]()
        for tap, of_outputs in zip(self.calls[layer.name], sensitivities, strict=True):
            by_output = [layer.by_points(module, gradient, self.points) for gradient in of_outputs]
            found.append(tap.factors(torch.stack(by_output, dim=1)))
            if len(found) == 2 and not layer.sparse:  # rows as long as a parameter are not kept for every call
                found = [layer.added(found)]
        return found[0] if len(found) == 1 else layer.added(found)


def reasons_against(
    root: nn.Module, layers: Sequence[Layer], run: Callable[[Tensor], Tensor], coords: Tensor
) -> dict[str, str]:
    """Return why some of the layers have no factors of their own kind in the way the network uses them, by name."""
    with _Taps(root, layers, len(coords)) as taps, torch.enable_grad():
        run(coords)
    return taps.missing()


def observed_factors(
    root: nn.Module,
    layers: Sequence[Layer],
    run: Callable[[Tensor], Tensor],
    coords: Tensor,
    cotangents: Tensor | None = None,
    then: Callable[[Tensor, list[Factors]], None] | None = None,
) -> list[Factors]:
    """Return the factors of some layers at ``coords`` (n, d), n at least 2, from their inputs and sensitivities.

    Parameters
    ----------
    root
        The module that the layers' names begin at.
    layers
        The layers; every one is called once, or adds its calls up.
    run
        Returns values (n, M) at the points.
    coords
        The points (n, d).
    cotangents
        Derivatives of the outputs by those values, (n, M', D) where ``run`` returns (n, D): the factors are then those
        of M' outputs. None: the values are the outputs.
    then
        Gets the outputs (n, M), whose graph is still there, and the factors.

    Raises
    ------
    UnsupportedModuleError
        A layer is used in another way than when it was looked at, or runs inside reentrant checkpointing.
    """
    with _Taps(root, layers, len(coords)) as taps, torch.enable_grad():
        values = run(coords)
        taps.stop()
        for name, reason in taps.missing().items():
            raise UnsupportedModuleError(f"layer {name!r} is used otherwise than at the first points: {reason}")
        wanted = [call.kept for layer in layers for call in taps.calls[layer.name]]
        last = (values if cotangents is None else cotangents).shape[1] - 1
        by_output = []
        for m in range(last + 1):
            total = values[:, m].sum() if cotangents is None else (values * cotangents[:, m]).sum()
            by_output.append(gradients(total, wanted, again=m < last or then is not None))
        if not all(tensor.requires_grad for tensor in wanted):
            _refuse_reentrant(run, coords[:2])
        by_call = iter(zip(*by_output, strict=True))
        with torch.no_grad():
            found = [taps.factors(layer, list(islice(by_call, len(taps.calls[layer.name])))) for layer in layers]
        if then is not None:
            then(values if cotangents is None else (values.unsqueeze(1) * cotangents).sum(2), found)
    return found


def _refuse_reentrant(run: Callable[[Tensor], Tensor], coords: Tensor) -> None:
    """Raise if a layer ran without a graph because it is checkpointed, not because the user wants it constant."""
    with torch.enable_grad():
        output = run(coords.clone().requires_grad_())
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "CheckpointFunction" in node.name():
            raise UnsupportedModuleError(REENTRANT)
        waiting.extend(following for following, _ in node.next_functions)
