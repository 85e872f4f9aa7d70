"""The factor pass of coordinate MLPs on the CPU in one native call: fp64, with its own matrix products and sines.

It computes what :func:`inrfast.ops.factors.mlp_factors` does, at twice the rate and more of torch's products in fp64:
a chunk of points runs forward and back while it is in cache, and its factors are written once, rounded where they are
wanted in fp32. Every row is the same to the last bit beside any other points. Measured on one core of an AMD EPYC
(Zen 5, AVX-512): 105 GFLOP/s at width 256, where torch's pass has 47 for ReLU and 32 for sines. A pass in fp32 would be
no faster than 1.9 times, and would need a proof of every ReLU's switch and of every phase.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inrfast.extension import load_extension
from inrfast.memory import scratch
from inrfast.mlp import MLP
from inrfast.ops import mlp_step
from inrfast.ops.mlp_step import MOST_LAYERS

ACTIVATIONS = frozenset({"relu", "sine", "finer", "identity"})
"""Activations that the native pass has, by their native names."""

Target = tuple[Tensor | None, Tensor | None]
"""Where a layer's features (n, D_in), or (n, D_in + 1) with ones, and sensitivities (n, M, D_out) go; None: nowhere."""


def reason_against(mlp: MLP) -> str | None:
    """Return why the native pass does not take a network, or None."""
    if mlp.norms or mlp.modulations:
        return "its hidden layers have norms or filters"
    unknown = [own.name for own in mlp.activations if own.kind.native not in ACTIVATIONS]
    if unknown:
        return f"the activation {unknown[0]!r} has no native factor pass"
    if len(mlp.layers) > MOST_LAYERS:
        return f"it has {len(mlp.layers)} layers, and the native pass takes {MOST_LAYERS}"
    for tensor in mlp.parameters.values():
        if tensor.dtype != torch.float64 or tensor.device.type != "cpu":
            return f"the native pass takes a network in fp64 on a CPU, not {tensor.dtype} on {tensor.device}"
    if (reason := mlp_step.missing()) is not None:
        return reason
    if not hasattr(load_extension(), "MlpFactors"):
        return "this build of the extension has no factor pass"
    return None


LayerForm = tuple[int, int, str, list[float]]
"""A linear layer's inputs and outputs, and the native name and the numbers of the activation behind it."""


def forms_of(mlp: MLP) -> list[LayerForm]:
    """Return the form of every linear layer of a network; behind the head is the identity."""
    kinds = [(str(own.kind.native), list(own.numbers)) for own in mlp.activations]
    return [
        (layer.inputs, layer.outputs, *kind)
        for layer, kind in zip(mlp.layers, [*kinds, ("identity", list[float]())], strict=True)
    ]


class FactorPass:
    """The packed weights of a network that :func:`reason_against` has nothing against; threads may share one.

    Parameters
    ----------
    forms
        Those of its layers (:func:`forms_of`).
    parameters
        The weight and the bias or None of each, in fp32 or fp64, both the same; they are copied.
    """

    def __init__(self, forms: Sequence[LayerForm], parameters: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        given, kept = [], []
        for form, (weight, bias) in zip(forms, parameters, strict=True):
            weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
            kept += [weight, bias]  # until they are packed
            given.append((*form, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), weight.itemsize))
        self.instructions = mlp_step.instructions()
        self._native = load_extension().MlpFactors(given)
        self._inputs = [form[0] for form in forms]
        self._shapes = [(form[1], form[0], bias is not None) for form, (_, bias) in zip(forms, parameters, strict=True)]

    @classmethod
    def of(cls, mlp: MLP) -> FactorPass:
        """Return the pass of a network."""
        return cls(forms_of(mlp), [(layer.weight, layer.bias) for layer in mlp.layers])

    @property
    def depth(self) -> int:
        """Number of linear layers."""
        return len(self._inputs)

    @property
    def finite(self) -> bool:
        """Whether the sum of all parameters is finite, as it is where each of them is, unless they are huge."""
        return math.isfinite(self._native.total())

    def parameters(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the weight and the bias or None of each layer, in fp64."""
        found = []
        for index, (outputs, inputs, biased) in enumerate(self._shapes):
            weight = torch.empty(outputs, inputs, dtype=torch.float64, device="cpu")
            bias = torch.empty(outputs, dtype=torch.float64, device="cpu") if biased else None
            self._native.unpack(index, weight.data_ptr(), 0 if bias is None else bias.data_ptr())
            found.append((weight, bias))
        return found

    def into(self, inputs: Tensor, targets: Sequence[Target]) -> bool:
        """Write the factors at ``inputs`` (n, D_in), fp64; return whether they may be used in products of their dtype.

        ``targets`` are one pair per linear layer, the head last, all of fp32 or all of fp64, the numbers of a point
        next to each other. In fp32 they may not be used where a row's largest feature has a square beyond its digits.
        """
        inputs = inputs.contiguous()
        count, itemsize, places = len(inputs), 0, []
        for (z, s), width in zip(targets, self._inputs, strict=True):
            features, sensitivities = (0, 0, False), (0, 0)
            if z is not None:
                features, itemsize = (z.data_ptr(), z.stride(0), z.shape[1] > width), z.itemsize
            if s is not None:
                sensitivities = s.data_ptr(), s.stride(0)
            places.append((*features, *sensitivities))
        memory = scratch("factors", self._native.workspace(count), torch.float64)
        return not self._native.run(self.instructions, inputs.data_ptr(), count, places, itemsize, memory)

    def probe(self, inputs: Tensor, size: float) -> tuple[list[float], list[float]]:
        """Return two numbers per layer at a few ``inputs`` (n, D_in), fp64.

        The largest entry of its kernel's diagonal; and the largest relative change of a row of its features, or of its
        sensitivities, when every pre-activation, every sensitivity and the inputs are multiplied by ``1 + size`` or
        ``1 - size`` at random. NaN where a number is none.
        """
        inputs = inputs.contiguous()
        count, place = len(inputs), inputs.data_ptr()
        memory = scratch("factors", self._native.probe_workspace(count), torch.float64)
        found: tuple[list[float], list[float]] = self._native.probe(self.instructions, place, count, size, memory)
        return found
