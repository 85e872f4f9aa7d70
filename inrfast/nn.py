"""Networks: the coordinate MLP ``INR``, and a linear layer fused with its activation. Both are ordinary modules."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.activations import BoundActivation, bind, shown
from inrfast.backends import BACKENDS
from inrfast.encodings import Encoding, built, encoding_of, from_config
from inrfast.errors import check_choice, check_entries, check_int, warn
from inrfast.grids import check_bounds
from inrfast.initialisers import first_and_hidden, initialise_, split_rule, within_bounds
from inrfast.memory import counted, require_free, tells_refusals
from inrfast.mlp import MLP, HiddenLayer, linear_layer, undrawn
from inrfast.modulations import filter_numbers, filter_of, made_modulations, modulation_config
from inrfast.norms import made_norm, norm_config, norm_of
from inrfast.norms.sphere import SphereNorm as SphereNorm  # pickled networks name it so
from inrfast.ops.fused_linear import PRECISIONS, fused_linear
from inrfast.seeds import seed_of

NORM_POSITIONS = ("post", "pre")
"""Where a hidden layer's norm stands, after or before its activation; first the default."""

DEFAULT_OMEGA = 30.0
"""What ``omegas`` say of activations without a frequency when none was given."""

MOST_LAYERS = 2**15
"""Hidden layers at most: building more takes over ten seconds, and nobody trains them."""

LAYER_BYTES = 2**13
"""Bytes of a layer's Python objects, beside its parameters."""


class FusedLinear(nn.Linear):
    """A linear layer and its activation in one operation: ``act(x W^T + b)``, shape (..., D_in) to (..., D_out).

    It is a ``torch.nn.Linear`` in everything else: parameters, state, initialisers, and it is captured by
    :func:`inrfast.ntk`. See :func:`inrfast.ops.fused_linear.fused_linear` for errors, dtypes and what is saved.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As in ``torch.nn.Linear``.
    activation
        A name or ``{"name": ..., **numbers}``, see :class:`INR`.
    omega
        The number ``omega`` of one that has such a number and does not say it itself; None: its default.
    precision
        Of fp32 products on a GPU: ``"high"`` or ``"medium"`` (TF32).
    backend
        ``"auto"``, ``"torch"`` or ``"triton"``.

    Raises
    ------
    ValueError, TypeError
        Sizes below 1, unknown names, a frequency that is not positive.
    MemoryBudgetError
        The weights would take more than half of what is free.

    Examples
    --------
    >>> layer = FusedLinear(2, 64, activation="sine", omega=30.0)
    >>> layer(torch.zeros(5, 3, 2)).shape
    torch.Size([5, 3, 64])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | Mapping[str, Any] = "relu",
        omega: float | None = None,
        precision: str = "high",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_int("in_features", in_features, minimum=1)
        check_int("out_features", out_features, minimum=1)
        item = (dtype or torch.get_default_dtype()).itemsize
        where = "cpu" if device is None else device
        what = f"a layer of {counted(in_features)} x {counted(out_features)} weights"
        require_free(item * in_features * out_features, what, "take a smaller one", where)
        super().__init__(in_features, out_features, bool(bias), device, dtype)
        self.bound_activation = bind(activation, omega)
        self._omega = _omega_of(self.bound_activation, omega)
        self.precision = check_choice("precision", precision, PRECISIONS)
        self.backend = check_choice("backend", backend, BACKENDS)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``act(x W^T + b)``."""
        return fused_linear(
            x, self.weight, self.bias, self.bound_activation, precision=self.precision, backend=self.backend
        )

    @property
    def activation(self) -> str:
        """The activation's name."""
        return self.bound_activation.name

    @property
    def omega(self) -> float:
        """The activation's number ``omega``; of one without such a number, what was given."""
        return self._omega

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "bound_activation" not in state:  # pickled by a version whose activations had no other number than omega
            self._omega = vars(self).pop("omega")
            self.bound_activation = bind(vars(self).pop("activation"), self._omega)

    def activate(self, preactivation: Tensor) -> Tensor:
        """Return the activation of ``x W^T + b``, by torch's operations."""
        return self.bound_activation.value(preactivation)

    def extra_repr(self) -> str:
        omega = self.bound_activation.named.get("omega")
        told = f"{super().extra_repr()}, activation={self.activation!r}" + (f", omega={omega:g}" if omega else "")
        return told + _other_numbers([self.bound_activation])


def _per_layer(argument: str, given: Any, layers: int) -> list[Any]:
    """Return one value per layer from a single value, a sequence of them, or ``{"first": ..., "hidden": ...}``."""
    if isinstance(given, Mapping) and "name" not in given:
        if set(given) != {"first", "hidden"}:
            raise ValueError(
                f"{argument} as a mapping takes the keys 'first' and 'hidden', or 'name' and that name's numbers, "
                f"got {sorted(map(str, given))}"
            )
        return [given["first"]] + [given["hidden"]] * (layers - 1)
    if getattr(given, "ndim", 0) == 1 and hasattr(given, "tolist"):  # a tensor or an array
        given = given.tolist()
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != layers:
            raise ValueError(
                f"{argument} must be one value or {layers} of them (one per hidden layer), got {len(given)}"
            )
        return list(given)
    return [given] * layers


def _other_numbers(activations: Sequence[BoundActivation]) -> str:
    """Return what is to be said of activations whose numbers are not ``omega`` alone; of others nothing."""
    described = dict.fromkeys(shown(own.config()) for own in activations if not isinstance(own.config(), str))
    return f", {', '.join(described)}" if described else ""


def _omega_of(activation: BoundActivation, given: float | None) -> float:
    """Return the frequency of a layer; that of activations without one does not matter, and is kept as it was given."""
    return activation.named.get("omega", DEFAULT_OMEGA if given is None else float(given))


def _device(given: Any) -> torch.device:
    """Return the device that numbers are made on."""
    try:
        return torch.empty(0, device=given).device
    except Exception as error:  # each backend raises its own type
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"device must be a device of this machine, such as 'cpu' or 'cuda', got {given!r}: {reason}"
        ) from error


class INR(nn.Module):
    """Implicit neural representation: a coordinate MLP ``R^d -> R^M``.

    ``encoding -> [linear -> activation -> norm -> * filter] * hidden_layers -> linear`` (the norm before the activation
    with ``norm_position="pre"``).

    Parameters
    ----------
    in_features, out_features
        Number of coordinates d and of outputs M.
    width
        Units of every hidden layer; 256 is the usual width for images.
    hidden_layers
        Number of activated layers: 2 -> 256 -> 256 -> 256 -> 1 has 3. At most 32,768.
    activation
        ``relu``, ``sine`` (``sin(omega u)``), ``gaussian`` (``exp(-(omega u)^2)``), ``finer``
        (``sin(omega (|u| + 1) u)``), ``wire`` (``cos(omega u) exp(-(sigma u)^2)``), ``tanh``, ``gelu`` (exact),
        ``softplus``, ``identity`` or another name of
        :data:`inrfast.activations.ACTIVATIONS`; or ``{"name": ..., **numbers}`` for its numbers. One for all hidden
        layers, a list with one per layer, or ``{"first": ..., "hidden": ...}``.
    omega
        The number ``omega`` of the activations that have one and do not say it themselves, in the same forms; None:
        their defaults, of sine, gaussian and finer 30, which is SIREN's.
    encoding
        An encoding of :mod:`inrfast.encodings`, or None.
    norm
        None or a norm of :mod:`inrfast.norms`: ``"batch"``, ``"layer"``, ``"sphere"``, ``"topk"``, ``"topk_sphere"`` or
        another name there; or ``{"name": ..., **numbers}`` for its numbers: ``{"name": "topk", "k": 64}`` keeps the 64
        units of each point that are largest in magnitude (default: a quarter of the width). One for all hidden layers,
        a list with one per layer, or ``{"first": ..., "hidden": ...}``.
    norm_position
        ``"post"`` the activation, as in equation 20 of the Inlet Rank Collapse (arXiv 2602.01526), or ``"pre"``, as
        most image classifiers have it. Before the activation a batch norm subtracts the layer's bias again: on
        coordinates around 0 every unit of a first ReLU layer then switches near the origin, which costs rank.
    init
        ``"default"`` (torch's), ``"kaiming"``, ``"xavier"``, ``"siren"``, ``"rank_expanding"`` (first layer; hidden
        layers torch's default), ``{"first": ..., "hidden": ...}``, each a name or ``{"name": ..., **options}``.
    bias
        Whether the linear layers have one.
    seed
        Below 2^32, of a CPU generator: the same weights on every device, the global generator untouched. None draws a
        seed from torch's global generator, so that ``torch.manual_seed`` decides on the weights, as it does on those of
        ``torch.nn.Linear``; :attr:`seed` and :meth:`config` keep it.
    device, dtype
        Of the parameters; dtype defaults to fp32.
    modulation
        None or a filter of :mod:`inrfast.modulations`: ``"fourier"`` (``sin(W x + b)``), ``"gabor"`` (that times
        ``exp(-gamma/2 |x - mu|^2)``), or ``{"name": ..., **numbers}``: ``{"name": "fourier", "scale": 16}``. A hidden
        layer's output, after its norm, is multiplied by its filter of the raw coordinates, also behind an encoding. One
        for all hidden layers, a list with one or None per layer, or ``{"first": ..., "hidden": ...}``. With activations
        ``["sine", "identity", ...]``, ``omega=1`` and filters from the second layer on it is the Fourier network of
        Fathony et al., Multiplicative Filter Networks (ICLR 2021). Drawn after all else; initialisers leave it alone.
    bounds
        Box of the coordinates that the network is made for, ``(low, high)`` or one such pair per axis; None: not
        stated, and [-1, 1] is meant, as :func:`inrfast.grid` has it. It scales nothing: the rank-expanding initialiser
        places its hinges there, grids that ``fit`` and ``render`` make themselves lie there, and fits, kernels,
        diagnoses, records and pictures of points outside warn, once per network.

    Attributes
    ----------
    layers
        ``ModuleList`` of ``nn.Linear``, the head last: keys ``layers.0.weight``, ``layers.0.bias``, ...
    seed
        The given or the drawn one.
    bounds
        One pair per axis, or None.
    modulations
        ``ModuleList`` of the filters, ``nn.Identity`` for a layer without one: keys ``modulations.0.linear.weight``,
        ...; None if no layer has one.
    modulation_configs
        Name and numbers of each hidden layer's filter, or None; empty if no layer has one.

    Raises
    ------
    ValueError, TypeError
        Sizes below 1, too many layers, unknown names (with the nearest match), lists of the wrong length,
        rank-expanding initialisation behind an encoding or without a bias.
    MemoryBudgetError
        The network would take more than half of what is free; raised before anything is allocated.

    Examples
    --------
    >>> net = INR(2, 3, width=64, hidden_layers=2, activation="sine", init="siren")
    >>> net(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    _not_compared = ("seed", "_drawn")  # of networks whose weights a checkpoint replaces

    @tells_refusals
    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int = 256,
        hidden_layers: int = 3,
        activation: Any = "relu",
        omega: float | Sequence[float] | Mapping[str, float] | None = None,
        encoding: Encoding | None = None,
        norm: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any] | None] | None = None,
        norm_position: str = "post",
        init: Any = "default",
        bias: bool = True,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        modulation: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any] | None] | None = None,
        bounds: Any = None,
    ) -> None:
        super().__init__()
        self.in_features = check_int("in_features", in_features, minimum=1)
        self.out_features = check_int("out_features", out_features, minimum=1)
        self.width = check_int("width", width, minimum=1)
        self.hidden_layers = check_int("hidden_layers", hidden_layers, minimum=1)
        encoding = encoding_of(encoding)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        dtype = dtype or torch.float32
        where = _device(device)
        self._require_free(encoding, dtype, where)  # before any list has one entry per layer
        filters = [
            None if own is None else modulation_config(own)
            for own in _per_layer("modulation", modulation, self.hidden_layers)
        ]
        if any(filters):
            self._require_free(encoding, dtype, where, filter_numbers(filters, self.in_features, self.width))
        omegas = _per_layer("omega", omega, hidden_layers)
        self.bound_activations: tuple[BoundActivation, ...] = tuple(
            bind(given, own)
            for given, own in zip(_per_layer("activation", activation, hidden_layers), omegas, strict=True)
        )
        self._omegas: tuple[float, ...] = tuple(
            _omega_of(own, value) for own, value in zip(self.bound_activations, omegas, strict=True)
        )
        self.norm_configs: tuple[str | dict[str, Any] | None, ...] = tuple(
            None if own is None else norm_config(own, self.width) for own in _per_layer("norm", norm, hidden_layers)
        )
        self.norm_position = check_choice("norm_position", norm_position, NORM_POSITIONS)
        self.seed, self._drawn = seed_of("seed", seed), seed is None
        generator = torch.Generator().manual_seed(self.seed)
        self.encoding = None if encoding is None else built(encoding, self.in_features, generator, where, dtype)
        inlet = self.in_features if self.encoding is None else self.encoding.out_features
        sizes = [inlet] + [self.width] * self.hidden_layers + [self.out_features]
        self.layers = nn.ModuleList(undrawn(a, b, bool(bias), where, dtype) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(
            nn.Identity() if own is None else made_norm(own, self.width, where, dtype) for own in self.norm_configs
        )
        self.bounds = None if bounds is None else tuple(check_bounds(bounds, self.in_features))
        self.init = within_bounds(init, self.bounds)
        initialise_(list(self.layers), self.init, self.omegas, self.encoding is not None, generator)  # type: ignore[arg-type]
        self._warn_of_mismatch()
        # Drawn last: the other weights of a seed are those without filters.
        self.modulation_configs: tuple[dict[str, Any] | None, ...] = tuple(filters) if any(filters) else ()
        self.modulations = made_modulations(filters, self.in_features, self.width, generator, where, dtype)

    def _warn_of_mismatch(self) -> None:
        """Warn, once, where a layer starts as it should for another activation."""
        first, hidden = (split_rule("init", rule)[0] for rule in first_and_hidden(self.init))
        names = [first, *[hidden] * (self.hidden_layers - 1)]
        for index, (name, own) in enumerate(zip(names, self.bound_activations, strict=True)):
            if name == "siren" and index > 0 and "omega" not in own.named and own.name != "identity":
                warn(
                    f"init 'siren' divides a hidden layer's weights by omega, for sines, and {own.name!r} is none: its "
                    "outputs become tiny. Take activation='sine', or another init, such as 'kaiming'"
                )
                return
            if name == "rank_expanding" and "omega" in own.named:
                warn(
                    f"init 'rank_expanding' places the hinges of ReLU units, and {own.name!r} has none: take "
                    "activation='relu', or another init, such as 'siren'"
                )
                return

    def _require_free(
        self, encoding: Encoding | None, dtype: torch.dtype, device: torch.device, filters: int = 0
    ) -> None:
        """Refuse a network that would not fit, or take long to build, before anything of it is made."""
        inlet = self.in_features if encoding is None else encoding.columns(self.in_features)
        count, width = self.hidden_layers, self.width
        sizes = [inlet * width, width * width * (count > 1), width * self.out_features]
        numbers = sizes[0] + (count - 1) * sizes[1] + sizes[2] + count * width + self.out_features
        numbers += filters
        # The largest layer is drawn in fp64, in three steps.
        needed = numbers * dtype.itemsize + 24 * max(sizes) + (count + 1) * LAYER_BYTES
        what = f"a network of {counted(numbers)} parameters"
        require_free(needed, what, "take a smaller width, fewer layers, outputs or columns of the encoding", device)
        if count > MOST_LAYERS:
            raise ValueError(f"hidden_layers must be at most {MOST_LAYERS}, got {counted(count)}")

    @property
    def activations(self) -> tuple[str, ...]:
        """The name of each hidden layer's activation."""
        return tuple(own.name for own in self.bound_activations)

    @property
    def omegas(self) -> tuple[float, ...]:
        """The number ``omega`` of each hidden layer's activation; of one without such a number, what was given."""
        return self._omegas

    @property
    def norm_names(self) -> tuple[str | None, ...]:
        """The name of each hidden layer's norm, None where there is none."""
        return tuple(own["name"] if isinstance(own, dict) else own for own in self.norm_configs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "bound_activations" not in state:  # pickled by a version whose activations had no other number than omega
            self._omegas = vars(self).pop("omegas")
            self.bound_activations = tuple(map(bind, vars(self).pop("activations"), self._omegas))
        if "norm_configs" not in state:  # pickled by a version whose norms had no numbers
            self.norm_configs = vars(self).pop("norm_names")
        self.__dict__.setdefault("bounds", None)
        self.__dict__.setdefault("_drawn", False)  # pickled by a version whose networks had seed 0 where none was given
        if "modulation_configs" not in state:  # pickled by a version without filters
            self.modulation_configs, self.modulations = (), None

    def activate(self, index: int, preactivation: Tensor) -> Tensor:
        """Return the output of hidden layer ``index`` from its pre-activation, activation and norm in their order."""
        norm = self.norms[index]
        if self.norm_position == "pre":
            preactivation = norm(preactivation)
        features = self.bound_activations[index].value(preactivation)
        return norm(features) if self.norm_position == "post" else features

    def modulated(self, index: int, features: Tensor, coords: Tensor) -> Tensor:
        """Return what :meth:`activate` gave of hidden layer ``index``, times its filter of the coordinates, if any."""
        if not self.modulation_configs or self.modulation_configs[index] is None:
            return features
        assert self.modulations is not None
        return features * self.modulations[index](coords)

    def forward(self, coords: Tensor) -> Tensor:
        """Return the outputs ``(..., M)`` at coordinates ``(..., d)``."""
        try:
            leading = coords.shape[:-1]
        except AttributeError:
            raise TypeError(f"coords must be a torch.Tensor, got {type(coords).__name__}") from None
        features = points = coords.reshape(-1, coords.shape[-1])
        if self.encoding is not None:
            features = self.encoding(features)
        for index in range(self.hidden_layers):
            features = self.modulated(index, self.activate(index, self.layers[index](features)), points)
        return self.layers[-1](features).reshape(*leading, self.out_features)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> INR:
        """Return a network of the shape that :meth:`config` described; its weights are to be loaded.

        They are torch's defaults until then, whatever initialisation the config names.

        Raises
        ------
        ValueError, TypeError
            The config is no dict, misses an entry, has an unknown one, or one of a bad value.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be a dict that describes the network, got {type(config).__name__}")
        check_entries("config", config, cls)
        arguments = {**config, "init": "default", "device": device, "dtype": dtype}
        if arguments.get("encoding") is not None:
            arguments["encoding"] = from_config(arguments["encoding"])
        return cls(**arguments)

    def config(self) -> dict[str, Any]:
        """Return what describes the network, as plain values (for reports and files).

        ``modulation`` is there only where a layer has a filter, ``bounds`` only where they are stated.
        """
        filters = [None if own is None else dict(own) for own in self.modulation_configs]
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "width": self.width,
            "hidden_layers": self.hidden_layers,
            "activation": [own.config() for own in self.bound_activations],
            "omega": list(self.omegas),
            "encoding": None if self.encoding is None else self.encoding.config(),
            "norm": [dict(own) if isinstance(own, dict) else own for own in self.norm_configs],
            "norm_position": self.norm_position,
            "init": self.init,
            "bias": self.layers[0].bias is not None,
            "seed": self.seed,
            **({"modulation": filters} if filters else {}),
            **({} if self.bounds is None else {"bounds": [list(pair) for pair in self.bounds]}),
        }

    def as_mlp(self) -> MLP | str:
        """Return the description of this network, or why its parts are not those of the constructor.

        Hooks and methods of single objects are not looked at: :func:`inrfast.mlp.describe` does.
        """
        depth = self.hidden_layers
        if len(self.layers) != depth + 1 or len(self.norms) < depth:
            return f"it has {len(self.layers)} linear layers and {len(self.norms)} norms for {depth} hidden layers"
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        linear, norms = [], []
        for index, module in enumerate(self.layers):
            layer = linear_layer(module, f"layers.{index}", names)
            if isinstance(layer, str):
                return layer
            linear.append(layer)
        for index, module in enumerate(list(self.norms)[:depth]):
            norm = norm_of(module)
            if isinstance(norm, str):
                return f"norms.{index} {norm}"
            norms.append(norm)
        filters = filter_of(self.modulations, self.modulation_configs)
        if isinstance(filters, str):
            return filters
        for below, above in itertools.pairwise(linear):
            if above.inputs != below.outputs:
                return f"{above.name} takes {above.inputs} features of the {below.outputs} of {below.name}"
        if linear[-1].outputs != self.out_features:
            return f"its last layer has {linear[-1].outputs} units for {self.out_features} outputs"
        after = self.norm_position == "post"
        hidden = tuple(
            HiddenLayer(
                layer,
                activation,
                norm,
                after,
                f"norms.{index}",
                filters[index] if filters else None,
                f"modulations.{index}" if filters else "",
            )
            for index, (layer, activation, norm) in enumerate(
                zip(linear[:-1], self.bound_activations, norms, strict=True)
            )
        )
        return MLP(self.in_features, self.encoding, hidden, linear[-1], "encoding")

    def extra_repr(self) -> str:
        frequencies = [own.named.get("omega") for own in self.bound_activations]
        omegas = f"omegas={tuple(frequencies)}, " if any(frequencies) else ""
        told = f"activations={self.activations}, {omegas}norm_position={self.norm_position!r}"
        filters = dict.fromkeys("none" if own is None else shown(own) for own in self.modulation_configs)
        told += f", modulation={'/'.join(filters)}" if filters else ""
        told += f", bounds={self.bounds}" if self.bounds is not None else ""
        return told + _other_numbers(self.bound_activations)


def described_network(net: nn.Module) -> dict[str, Any] | None:
    """Return what describes an INR, or None: of another module, or with an encoding that does not describe itself."""
    try:
        return net.config() if isinstance(net, INR) else None
    except NotImplementedError:
        return None


def has_drawn_seed(net: nn.Module) -> bool:
    """Return whether a network's seed was drawn, so that another one with the same weights may state another."""
    return isinstance(net, INR) and net._drawn


def declared_sizes(net: nn.Module) -> tuple[int, int] | tuple[None, None]:
    """Return the numbers of coordinates and outputs that an INR, whatever was changed in it, declares; else None."""
    return (net.in_features, net.out_features) if isinstance(net, INR) else (None, None)
