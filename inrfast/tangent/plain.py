"""Plain networks: an INR as its constructor made it, of which a capture needs the numbers alone.

What the probes of a capture find out about such a network depends on its configuration (class, layers, activations,
dtypes, which parameters are trainable) and not on its numbers: it is asked once per configuration. What does depend on
them is looked at in every capture: whether they are finite, how large the kernel is, and how much the network amplifies
rounding. The copy of the network is its parameters in fp64; a module is made of them only where one is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from inrfast.activations import BoundActivation
from inrfast.arrays import ArrayLike
from inrfast.boxes import warn_of_other_box
from inrfast.encodings import Encoding
from inrfast.errors import check_coords, check_tensor
from inrfast.layers import LAYERS, Layer
from inrfast.layers.linear import Linear
from inrfast.mlp import MLP, undrawn
from inrfast.modes import own_modes
from inrfast.nn import INR
from inrfast.ops import mlp_step
from inrfast.ops.factor_pass import FactorPass, LayerForm, forms_of
from inrfast.pointwise import spread_points
from inrfast.snapshot import TORCH_ATTRIBUTES
from inrfast.tangent.closed_form import NativePass, native_pass
from inrfast.tangent.network import PASS_DTYPE, Network

if TYPE_CHECKING:
    from inrfast.tangent.capture import Capture

MOST_KNOWN = 256
"""Configurations that are remembered."""

DISTURBANCE = 2.0**-40
"""Relative size of the disturbances that show how much a network amplifies rounding: 8,192 times that of fp64."""

STEADY = 1e-7
"""Largest relative change of a row of factors by :data:`DISTURBANCE` with which a network counts as steady: rounding in
fp64 is then amplified 1e5 times at most, and moves no row by more than about 1e-11. Others take all probes."""

GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
"""Of torch: they run for every module."""


class Known(NamedTuple):
    """What is known of a configuration.

    Attributes of a capture; the description of a network, without numbers; and the forms of its linear layers, with the
    place among them of each layer that is differentiated.
    """

    attributes: dict[str, Any]
    mlp: MLP
    forms: list[LayerForm]
    places: Sequence[int]


ATTRIBUTES = (
    *("device", "in_features", "layers", "columns", "against_closed_form", "concurrent", "outputs"),
    *("widths", "stored", "numbers_per_point", "plain", "_encoding", "_rows", "_others"),
)
"""Attributes of a capture that are the same for all networks of a configuration."""

_known: dict[Hashable, Known] = {}


@cache
def _usual() -> dict[type[nn.Module], frozenset[str]]:
    """Return the attributes of modules as their constructors leave them, by the class."""
    made: list[nn.Module] = [
        INR(1, 1, width=1, hidden_layers=1, seed=0),
        nn.Linear(1, 1),
        nn.ModuleList(),
        nn.Identity(),
    ]
    return {type(module): frozenset(vars(module)) for module in made}


def _is_usual(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is of this very class, with no hooks and no attributes that the class does not give."""
    own = vars(module)
    if type(module) is not kind or own.keys() != _usual()[kind]:
        return False
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own["_state_dict_hooks"]
        or own["_load_state_dict_pre_hooks"]
    )


def form_of(net: nn.Module) -> Hashable | None:
    """Return all of a plain network but its numbers, or None of another network.

    Plain is an :class:`inrfast.INR` of this very class, with no encoding, norms or filters, with activations of this
    library, layers that are ``nn.Linear`` itself, and no hooks, buffers, attributes of the user's, replaced methods, or
    parameters that are shared or of other types than ``nn.Parameter``, on a CPU.
    """
    if type(net) is not INR or not _is_usual(net, INR) or net._buffers or net._parameters:
        return None
    if (
        net.encoding is not None
        or net.modulations is not None
        or any(vars(torch_modules)[name] for name in GLOBAL_HOOKS)
    ):
        return None
    if not _is_usual(net.layers, nn.ModuleList) or not _is_usual(net.norms, nn.ModuleList):
        return None
    if not all(_is_usual(module, nn.Identity) for module in net.norms._modules.values()):
        return None
    activations = net.bound_activations
    if type(activations) is not tuple or not all(type(own) is BoundActivation for own in activations):
        return None
    if not all(str(own.kind.slope.__module__).startswith("inrfast.") for own in activations):
        return None
    parts: list[Hashable] = [net.in_features, net.out_features, net.hidden_layers, net.width, activations]
    parts += [len(net.norms), INR.forward, INR.activate, INR.modulated, INR.as_mlp, nn.Linear.forward]
    parts += [nn.Module.__call__, Linear.factors, tuple(LAYERS.values())]
    seen = set()
    for module in net.layers._modules.values():
        if module is None or not _is_usual(module, nn.Linear) or module._buffers:
            return None
        for tensor in module._parameters.values():
            if tensor is None:
                parts.append(None)
                continue
            if type(tensor) is not nn.Parameter or tensor.device.type != "cpu" or id(tensor) in seen:
                return None
            if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != module.weight.dtype:
                return None
            if tensor.layout is not torch.strided or tensor._backward_hooks or tensor.numel() == 0:
                return None
            seen.add(id(tensor))
            parts.append((tensor.shape, tensor.dtype, tensor.requires_grad))
    form = tuple(parts)
    try:
        hash(form)
    except TypeError:  # an attribute that is not what the constructor made of it
        return None
    return form


def take(capture: Capture, net: nn.Module, coords: ArrayLike, form: Hashable | None) -> bool:
    """Let a capture take a network of a known configuration; return whether it is one, and its numbers allow it."""
    known = None if form is None else _known.get(form)
    if known is None or not mlp_step.instructions():
        return False
    assert isinstance(net, INR)
    vars(capture).update(known.attributes)
    given = check_tensor("coords", coords, finite=False, device=capture.device).detach()
    points = check_coords("coords", given, capture.in_features, capture.device)
    with own_modes():
        copied = Copied(net, known)
        found = copied.magnitudes(spread_points(points.to(PASS_DTYPE), 4))
        if found is None:
            return False
        warn_of_other_box(net, points)
        capture.hold(PlainNetwork(net, copied, capture.layers), copied, found)
    return True


def remember(form: Hashable, attributes: dict[str, Any], mlp: MLP, native: NativePass) -> None:
    """Keep what the probes found of a configuration, without the numbers of its network."""
    while len(_known) >= MOST_KNOWN:
        _known.pop(next(iter(_known)), None)
    empty = [(layer.weight.to("meta"), layer.bias) for layer in mlp.layers]
    _known[form] = Known(attributes, _with(mlp, empty), forms_of(mlp), native.places)


def _with(mlp: MLP, parameters: Sequence[tuple[Tensor, Tensor | None]]) -> MLP:
    """Return the same description with other numbers."""
    layers = [
        replace(own, weight=weight, bias=bias) for own, (weight, bias) in zip(mlp.layers, parameters, strict=True)
    ]
    hidden = tuple(replace(own, linear=layer) for own, layer in zip(mlp.hidden, layers, strict=False))
    return replace(mlp, hidden=hidden, head=layers[-1])


class Copied:
    """The parameters of a plain network in its native pass, from which its description is made where one is asked for.

    Parameters
    ----------
    net
        The network.
    known
        What is known of its configuration.
    """

    def __init__(self, net: INR, known: Known) -> None:
        modules = net.layers._modules.values()
        parameters = [(own._parameters["weight"], own._parameters["bias"]) for own in modules if own is not None]
        self.native = NativePass(FactorPass(known.forms, parameters), known.places)  # type: ignore[arg-type]
        self._known = known

    def described(self) -> MLP:
        """Return the description of the network, its parameters in fp64."""
        return _with(self._known.mlp, self.native.made.parameters())

    def magnitudes(self, sample: Tensor) -> list[float] | None:
        """Return the largest entry of every layer's kernel at a few points (n, D_in); None: take all probes.

        So it is where numbers are not finite, or the network is not steady: see :data:`STEADY`.
        """
        if not self.native.made.finite:
            return None
        largest, changes = self.native.made.probe(sample, DISTURBANCE)
        return [largest[place] for place in self._known.places] if max(changes) <= STEADY else None


class PlainNetwork(Network):
    """A plain network in fp64, as a module only where one is asked for.

    Parameters
    ----------
    net
        The network; its attributes are kept, its parameters are not.
    copied
        Its parameters.
    layers
        The layers that are differentiated.
    """

    def __init__(self, net: INR, copied: Copied, layers: tuple[Layer, ...]) -> None:
        self._made: nn.Module | None = None
        self._attributes = {name: value for name, value in vars(net).items() if name not in TORCH_ATTRIBUTES}
        self._training, self._copied, self._layers = net.training, copied, layers
        super().__init__(None, None)  # type: ignore[arg-type]

    def __reduce__(self) -> Any:
        """Pickle it as the network that it is, with its module."""
        return Network, (self.module, None)

    @property
    def module(self) -> nn.Module:
        """The copy of the network."""
        with self._lock:
            if self._made is None:
                with torch.inference_mode(False):
                    self._made = self._module()
            return self._made

    @module.setter
    def module(self, module: nn.Module) -> None:
        self._made = module

    def _module(self) -> INR:
        net = INR.__new__(INR)
        nn.Module.__init__(net)
        vars(net).update(copy.deepcopy(self._attributes))
        chosen = {name for layer in self._layers for name in layer.parameters}
        layers, mlp = nn.ModuleList(), self._copied.described()
        for own in mlp.layers:
            layer = undrawn(own.inputs, own.outputs, own.bias is not None, own.weight.device, PASS_DTYPE)
            layer.weight = nn.Parameter(own.weight, own.weight_name in chosen)
            if own.bias is not None:
                layer.bias = nn.Parameter(own.bias, own.bias_name in chosen)
            layers.append(layer)
        net.layers, net.norms = layers, nn.ModuleList(nn.Identity() for _ in mlp.hidden)
        return net.train(self._training)


class Described:
    """What a capture holds of a network whose factors have a closed form: its description, and the native pass."""

    layers: tuple[Layer, ...]
    network: Network
    magnitudes: list[float]
    _found: MLP | Copied | None
    _native: tuple[NativePass | None] | None = None

    @property
    def native(self) -> NativePass | None:
        """The native pass that makes the factors of all layers; None where there is none."""
        if self._native is None:
            self._native = (native_pass(self.layers, self._mlp),)
        return self._native[0]

    def hold(self, network: Network, copied: Copied, magnitudes: list[float]) -> None:
        """Take a plain network, whose description is made where one is asked for."""
        self.network, self._found, self._native, self.magnitudes = network, copied, (copied.native,), magnitudes

    @property
    def _mlp(self) -> MLP | None:
        """The description of the network in fp64, if its factors have a closed form."""
        found = self._found
        if isinstance(found, Copied):
            self._found = found = found.described()
        return found

    @_mlp.setter
    def _mlp(self, mlp: MLP | None) -> None:
        self._found, self._native = mlp, None
        vars(self).pop("_encoding", None)

    @cached_property
    def _encoding(self) -> Encoding | None:
        return None if self._mlp is None else self._mlp.encoding
