"""Hooks: what layers get and how sensitive the outputs are to what they give, observed while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import UnsupportedModuleError
from inrfast.layers import Factors, Layer
from inrfast.tangent.network import REENTRANT, gradients


class _Taps:
    """Forward hooks on the modules of some layers, in a block: they keep inputs and outputs of one forward pass.

    Attributes
    ----------
    inputs, outputs
        The input of every layer that was called, and the tensor whose sensitivities are wanted, by the layer's name.
    reasons
        Why a layer has no factors of its own kind, by its name.
    recording
        Whether calls count: activation checkpointing calls the layer again in the backward pass.
    """

    def __init__(self, root: nn.Module, layers: Sequence[Layer], points: int) -> None:
        self.root, self.layers, self.points = root, layers, points
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.reasons: dict[str, str] = {}
        self.recording = True
        self._stack = ExitStack()

    def __enter__(self) -> _Taps:
        for layer in self.layers:
            # Before the user's own hooks, which may change the output.
            handle = self.root.get_submodule(layer.module).register_forward_hook(
                self._hook(layer), prepend=True, with_kwargs=True
            )
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _hook(self, layer: Layer) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            given, *others = *args, *kwargs.values()
            if others or not isinstance(given, Tensor) or not isinstance(output, Tensor):
                self.reasons[layer.name] = "it takes or returns more than one tensor"
                return output
            kept, returned = layer.tap(module, given, output)
            if self.recording:
                given = layer.by_points(module, given, self.points)
                if layer.name in self.outputs:
                    self.reasons[layer.name] = "it is used more than once in a forward pass"
                elif reason := layer.reason_against(module, given, self.points):
                    self.reasons[layer.name] = reason
                self.inputs[layer.name], self.outputs[layer.name] = given.detach().clone(), kept
            return returned

        return hook

    def missing(self) -> dict[str, str]:
        """Return the reasons against layers, those that were not called among them."""
        called = {**self.outputs, **self.reasons}
        uncalled = [layer.name for layer in self.layers if layer.name not in called]
        return self.reasons | dict.fromkeys(uncalled, "the forward pass does not call its module")


def reasons_against(
    root: nn.Module, layers: Sequence[Layer], run: Callable[[Tensor], Tensor], coords: Tensor
) -> tuple[dict[str, str], Tensor]:
    """Return why some of the layers have no factors of their own kind in the way the network uses them, by name.

    The second is what ``run`` returns.
    """
    with _Taps(root, layers, len(coords)) as taps:
        values = run(coords)
    return taps.missing(), values


def observed_factors(
    root: nn.Module,
    layers: Sequence[Layer],
    run: Callable[[Tensor], Tensor],
    coords: Tensor,
    cotangents: Tensor | None = None,
) -> list[Factors]:
    """Return the factors of some layers at ``coords`` (n, d), n at least 2, from their inputs and sensitivities.

    Parameters
    ----------
    root
        The module that the layers' names begin at.
    layers
        The layers; every one is called once.
    run
        Returns values (n, M) at the points.
    coords
        The points (n, d).
    cotangents
        Derivatives of the outputs by those values, (n, M', D) where ``run`` returns (n, D): the factors are then those
        of M' outputs. None: the values are the outputs.

    Raises
    ------
    UnsupportedModuleError
        A layer is used in another way than when it was looked at, or runs inside reentrant checkpointing.
    """
    with _Taps(root, layers, len(coords)) as taps, torch.enable_grad():
        values = run(coords)
        taps.recording = False
        for name, reason in taps.missing().items():
            raise UnsupportedModuleError(f"layer {name!r} is used otherwise than at the first points: {reason}")
        wanted = [taps.outputs[layer.name] for layer in layers]
        last = (values if cotangents is None else cotangents).shape[1] - 1
        columns = []
        for m in range(last + 1):
            total = values[:, m].sum() if cotangents is None else (values * cotangents[:, m]).sum()
            found = zip(layers, gradients(total, wanted, again=m < last), strict=True)
            columns.append([_by_points(root, layer, own, len(coords)) for layer, own in found])
    if not all(output.requires_grad for output in wanted):
        _refuse_reentrant(run, coords[:2])
    factors = []
    for index, layer in enumerate(layers):
        features = layer.features(root.get_submodule(layer.module), taps.inputs[layer.name])
        factors.append(layer.factors(features, torch.stack([column[index] for column in columns], dim=1)))
    return factors


def _by_points(root: nn.Module, layer: Layer, tensor: Tensor, points: int) -> Tensor:
    return layer.by_points(root.get_submodule(layer.module), tensor, points)


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
