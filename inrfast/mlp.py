"""The description of a coordinate MLP, all that a fast path reads of a network, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from inrfast.activations import BoundActivation
from inrfast.encodings import Encoding, is_own
from inrfast.norms import Norm

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")

METHODS = ("forward", "activate")
"""Methods that compute a module's output; one that a single object has of its own may compute anything."""


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear layer: the live parameters ``weight`` (D_out, D_in) and ``bias`` (D_out,) or None, and their names.

    ``name`` is the module's qualified name; ``weight_name`` and ``bias_name`` are those of the parameters as
    ``named_parameters()`` gives them: a shared parameter has the name of its first place.
    """

    weight: Tensor
    bias: Tensor | None
    name: str = ""
    weight_name: str = ""
    bias_name: str | None = None

    @property
    def inputs(self) -> int:
        """Number of input features."""
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        """Number of units."""
        return self.weight.shape[0]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, weight before bias."""
        found = {self.weight_name: self.weight}
        return found if self.bias is None or self.bias_name is None else {**found, self.bias_name: self.bias}

    def detached(self) -> LinearLayer:
        """Return the same with tensors that autograd does not follow."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    """One hidden layer: linear, activation and norm, which stands after the activation if ``norm_after``, else before.

    ``norm_name`` is the qualified name of the norm's module. ``modulation`` is the module of the coordinates that the
    result is multiplied by (:mod:`inrfast.modulations`), or None, and ``modulation_name`` its qualified name.
    """

    linear: LinearLayer
    activation: BoundActivation
    norm: Norm | None = None
    norm_after: bool = False
    norm_name: str = ""
    modulation: nn.Module | None = None
    modulation_name: str = ""


@dataclass(frozen=True, eq=False)
class MLP:
    """A coordinate MLP ``R^d -> R^M``: ``encoding -> [linear, activation, norm] * depth -> linear``.

    Attributes
    ----------
    inputs
        Number of coordinates d.
    encoding, encoding_name
        What stands before the first layer, or None, and the qualified name of its module.
    hidden
        The hidden layers, at least one.
    head
        The last linear layer.
    hooked_backward
        Whether hooks see or change gradients in backward passes. (Hooks on forward passes are a reason for
        :func:`describe` to refuse.)
    """

    inputs: int
    encoding: Encoding | None
    hidden: tuple[HiddenLayer, ...]
    head: LinearLayer
    encoding_name: str = ""
    hooked_backward: bool = False

    @cached_property
    def layers(self) -> tuple[LinearLayer, ...]:
        """All linear layers, the head last."""
        return (*(layer.linear for layer in self.hidden), self.head)

    @property
    def columns(self) -> int:
        """Number of input features of the first layer."""
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        """Number of outputs M."""
        return self.head.outputs

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of units of every hidden layer."""
        return tuple(layer.linear.outputs for layer in self.hidden)

    @cached_property
    def activations(self) -> tuple[BoundActivation, ...]:
        """The activation of every hidden layer."""
        return tuple(layer.activation for layer in self.hidden)

    @cached_property
    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters of all linear layers by name; a shared one stands once."""
        return {name: tensor for layer in self.layers for name, tensor in layer.parameters.items()}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first layer's weight."""
        return self.layers[0].weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the first layer's weight."""
        return self.layers[0].weight.device

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms that there are."""
        return tuple(layer.norm for layer in self.hidden if layer.norm is not None)

    @property
    def modulations(self) -> tuple[nn.Module, ...]:
        """The filters of the coordinates that there are."""
        return tuple(layer.modulation for layer in self.hidden if layer.modulation is not None)

    @property
    def known_encoding(self) -> bool:
        """Whether there is no encoding, or one of the library's own; any other may look at its batch."""
        return is_own(self.encoding)

    @property
    def pointwise(self) -> bool:
        """Whether each prediction is known to depend on its own point alone, in the network's present mode."""
        return self.known_encoding and not any(norm.couples for norm in self.norms)

    @cached_property
    def places(self) -> dict[str, tuple[bool, int]]:
        """By the qualified name of a linear layer's or norm's module: whether it is a norm, and the layer's index."""
        norms = {layer.norm_name: (True, index) for index, layer in enumerate(self.hidden) if layer.norm is not None}
        return {**{layer.name: (False, index) for index, layer in enumerate(self.layers)}, **norms}

    @cached_property
    def filter_places(self) -> dict[str, int]:
        """By the qualified name of a filter's module, and of its child ``linear``: the hidden layer's index."""
        found = {layer.modulation_name: k for k, layer in enumerate(self.hidden) if layer.modulation is not None}
        return {**found, **{f"{name}.linear": index for name, index in found.items()}}

    def detached(self) -> MLP:
        """Return the same with linear layers that autograd does not follow."""
        hidden = tuple(replace(layer, linear=layer.linear.detached()) for layer in self.hidden)
        return replace(self, hidden=hidden, head=self.head.detached())


MODULATED = "its hidden layers are multiplied by filters of the coordinates"


def describe(net: nn.Module, modulated: bool = False) -> MLP | str:
    """Return the description of a coordinate MLP, or the reason why ``net`` is none whose formula is known.

    A class of networks describes itself by a method ``as_mlp`` of its own, as :class:`inrfast.INR` does; a subclass
    may compute anything and is not asked by the method that it inherits. The tensors of linear layers are the live
    ones; norms are described with the numbers that they have now.

    ``modulated`` is for those who know :attr:`HiddenLayer.modulation`: to all others a network that has filters has no
    description.
    """
    own = vars(type(net)).get("as_mlp")
    if own is None:
        return f"it is a {type(net).__name__}, not an inrfast.INR"
    hooked = False
    for module in net.modules():  # one look at each: networks of many layers are described often
        own_names = vars(module)
        changed = [method for method in METHODS if method in own_names]
        if changed or _has(module, FORWARD_HOOKS):
            name = next(name for name, other in net.named_modules() if other is module)
            return f"{name or 'it'} has {f'a method {changed[0]!r} of its own' if changed else 'hooks'}"
        hooked = hooked or _hooked_backward(module)
    found: MLP | str = own(net)
    if isinstance(found, MLP) and found.modulations and not modulated:
        return MODULATED
    return replace(found, hooked_backward=True) if hooked and isinstance(found, MLP) else found


def is_pointwise(net: nn.Module) -> bool:
    """Return whether each prediction of ``net``, in its present mode, is known to depend on its own point alone."""
    found = describe(net, modulated=True)
    return isinstance(found, MLP) and found.pointwise


def hooked_forward(net: nn.Module) -> bool:
    """Return whether hooks see or change forward passes."""
    return any(_has(module, FORWARD_HOOKS) for module in net.modules())


def hooked_backward(net: nn.Module) -> bool:
    """Return whether hooks see or change gradients in backward passes."""
    return any(_hooked_backward(module) for module in net.modules())


def _hooked_backward(module: nn.Module) -> bool:
    """Return whether hooks see or change the gradients of a module's outputs or of its own parameters."""
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    return _has(module, BACKWARD_HOOKS) or any(_has(parameter, PARAMETER_HOOKS) for parameter in own)


def _has(thing: object, kinds: tuple[str, str]) -> bool:
    return bool(getattr(thing, kinds[0], None) or getattr(thing, kinds[1], None))


def linear_layer(module: nn.Module, name: str, names: Mapping[int, str]) -> LinearLayer | str:
    """Return the description of a plain ``nn.Linear``, or why it is none.

    Parameters
    ----------
    module, name
        The module and its qualified name.
    names
        The names of the network's parameters by their ``id``.
    """
    if type(module) is not nn.Linear:
        return f"{name} is a {type(module).__name__}, no plain torch.nn.Linear"
    weight, bias = module.weight, module.bias
    for leaf, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and id(tensor) not in names:
            return f"{name}.{leaf} is no parameter"
    return LinearLayer(weight, bias, name, names[id(weight)], None if bias is None else names[id(bias)])


class _Undrawn(nn.Linear):
    """A linear layer whose numbers are not drawn, since an initialiser follows."""

    def reset_parameters(self) -> None:
        pass


def undrawn(inputs: int, outputs: int, bias: bool, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """Return a linear layer with uninitialised numbers. (Torch's skip_init goes by the meta device, which at first use
    imports the tables of decompositions, for seconds.)"""
    layer: nn.Linear = _Undrawn(inputs, outputs, bias=bias, device=device, dtype=dtype)
    layer.__class__ = nn.Linear
    return layer
