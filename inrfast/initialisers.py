"""Initialisers: in-place functions on ``nn.Linear``, and the plan that initialises a whole network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import is_distributed
from inrfast.errors import UnsupportedModuleError, check_choice, check_float
from inrfast.memory import chunks
from inrfast.mlp import LinearLayer
from inrfast.ops.grid_init import rank_expanding
from inrfast.registry import name_and_numbers

SIREN_BIASES = ("uniform_sqrt", "uniform", "zero")

SAMPLED_ROWS = 4096
"""Points that are searched first for active units."""

SLACK = 8
"""Allowed rounding of a unit's value, in roundoffs of its terms."""


def _check_linear(linear: Any) -> nn.Linear:
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
    if is_distributed(linear.weight):
        raise UnsupportedModuleError(
            "linear.weight is a DTensor, of which each process may hold a piece: initialise the network before it is "
            "sharded (fully_shard, tensor parallelism)"
        )
    return linear


@torch.no_grad()
def _fill(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values.to(dtype=parameter.dtype))


def _uniform(shape: Sequence[int], bound: float, generator: torch.Generator | None) -> Tensor:
    """Draw fp64 numbers from U(-bound, bound) on the CPU, so that every device and dtype gets the same ones."""
    return bound * (2 * torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device="cpu") - 1)


def default_(linear: nn.Linear, generator: torch.Generator | None = None) -> nn.Linear:
    """Initialise like ``torch.nn.Linear``: weight and bias from ``U(-1/sqrt(in), 1/sqrt(in))``."""
    _check_linear(linear)
    bound = 1 / math.sqrt(linear.in_features)
    _fill(linear.weight, _uniform(linear.weight.shape, bound, generator))
    if linear.bias is not None:
        _fill(linear.bias, _uniform(linear.bias.shape, bound, generator))
    return linear


def kaiming_(linear: nn.Linear, generator: torch.Generator | None = None) -> nn.Linear:
    """Initialise for ReLU: weight from ``N(0, 2/in)``, bias zero (He et al., ICCV 2015, equation 10)."""
    _check_linear(linear)
    draw = torch.randn(tuple(linear.weight.shape), generator=generator, dtype=torch.float64, device="cpu")
    _fill(linear.weight, math.sqrt(2 / linear.in_features) * draw)
    if linear.bias is not None:
        _fill(linear.bias, torch.zeros_like(linear.bias))
    return linear


def xavier_(linear: nn.Linear, generator: torch.Generator | None = None) -> nn.Linear:
    """Initialise with ``U(-a, a)``, ``a = sqrt(6/(in + out))``, bias zero (Glorot and Bengio, AISTATS 2010, (16))."""
    _check_linear(linear)
    bound = math.sqrt(6 / (linear.in_features + linear.out_features))
    _fill(linear.weight, _uniform(linear.weight.shape, bound, generator))
    if linear.bias is not None:
        _fill(linear.bias, torch.zeros_like(linear.bias))
    return linear


def siren_(
    linear: nn.Linear,
    omega: float = 30.0,
    first: bool = False,
    bias: str = "uniform_sqrt",
    generator: torch.Generator | None = None,
) -> nn.Linear:
    """Initialise a sine layer (Sitzmann et al., SIREN, NeurIPS 2020, section 3.2 and supplement 1.5).

    Parameters
    ----------
    linear
        The layer, changed in place.
    omega
        The frequency of the activation that follows.
    first
        The first layer draws its weight from ``U(-1/in, 1/in)``, others from ``U(-a, a)``, ``a = sqrt(6/in)/omega``.
    bias
        Codes differ here: ``"uniform_sqrt"`` draws from ``U(-1/sqrt(in), 1/sqrt(in))`` (the authors' code, which
        leaves torch's bias), ``"uniform"`` from the bounds of the weight, ``"zero"`` sets zero.
    generator
        CPU generator; None uses torch's global one.
    """
    _check_linear(linear)
    omega = check_float("omega", omega, minimum=0.0, exclusive=True)
    check_choice("bias", bias, SIREN_BIASES)
    bound = 1 / linear.in_features if first else math.sqrt(6 / linear.in_features) / omega
    _fill(linear.weight, _uniform(linear.weight.shape, bound, generator))
    if linear.bias is not None:
        scale = {"uniform_sqrt": 1 / math.sqrt(linear.in_features), "uniform": bound, "zero": 0.0}[bias]
        _fill(linear.bias, _uniform(linear.bias.shape, scale, generator))
    return linear


def rank_expanding_(
    linear: nn.Linear,
    eps: float | str | None = None,
    gain: float = 1.0,
    bounds: Any = (-1, 1),
) -> nn.Linear:
    """Initialise a ReLU layer on raw coordinates so that its representation has high rank.

    Source: Zheng et al., *The Inlet Rank Collapse in Implicit Neural Representations* (arXiv 2602.01526), equations
    12-13.

    Every unit's hinge passes near one point of a grid that fills the coordinate box, facing outward.
    Parameters as in :func:`inrfast.rank_expanding`; the layer must have a bias and is changed in place.

    Raises
    ------
    ValueError
        A layer without a bias, or a bad option.

    Source: Zheng, Saratchandran, Lucey, The Inlet Rank Collapse, arXiv 2602.01526, Proposition 4.
    """
    _check_linear(linear)
    if linear.bias is None:
        raise ValueError("rank_expanding_ needs a linear layer with a bias: the hinges are placed by it")
    weight, bias = rank_expanding(
        linear.out_features,
        linear.in_features,
        eps=eps,
        gain=gain,
        bounds=bounds,
        dtype=torch.float32 if linear.weight.dtype in (torch.float16, torch.bfloat16) else linear.weight.dtype,
        device=linear.weight.device,
    )
    _fill(linear.weight, weight)
    _fill(linear.bias, bias)
    return linear


@torch.no_grad()
def dead_units(linear: nn.Linear | LinearLayer, coords: Tensor) -> int:
    """Return how many units of a layer are never positive at these points (n, d): behind ReLU they are dead.

    Exact, and cheap where most units are decided early: a unit that is active at one of a few points is alive, one that
    is inactive on the whole box around the points is dead, and only the others are computed at every point.
    """
    weight = linear.weight.to(coords.dtype)
    bias = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.to(coords.dtype)
    rows = torch.arange(0, len(coords), -(-len(coords) // SAMPLED_ROWS), device=coords.device)
    idle = (coords[rows] @ weight.mT + bias).amax(0) <= 0
    low, high = torch.aminmax(coords, dim=0)
    # An affine function is largest in a corner of the box; the slack keeps rounding from declaring a live unit dead.
    most = torch.maximum(weight * low, weight * high).sum(1) + bias
    slack = (
        SLACK
        * torch.finfo(coords.dtype).eps
        * ((weight.abs() * torch.maximum(low.abs(), high.abs())).sum(1) + bias.abs())
    )
    doubtful = (idle & (most > -slack)).nonzero()[:, 0]
    for part in chunks(len(coords), SAMPLED_ROWS * 16):
        if not len(doubtful):
            break
        still = (coords[part] @ weight[doubtful].mT + bias[doubtful]).amax(0) <= 0
        idle[doubtful[~still]] = False
        doubtful = doubtful[still]
    return int(idle.sum())


INITIALISERS: dict[str, Callable[..., nn.Linear]] = {
    "default": default_,
    "kaiming": kaiming_,
    "xavier": xavier_,
    "siren": siren_,
    "rank_expanding": rank_expanding_,
}


def expands_rank(rule: Any) -> Mapping[str, Any] | None:
    """Return the options of a network's rule (``INR.init``) if its first layer is rank-expanding, else None."""
    first = rule.get("first") if isinstance(rule, Mapping) and "name" not in rule else rule
    name, options = ("default", {}) if first is None else split_rule("init", first)
    return options if name == "rank_expanding" else None


def within_bounds(rule: Any, bounds: Any) -> Any:
    """Return a network's rule whose rank-expanding first layer places its hinges in a box, unless it states one."""
    if bounds is None or expands_rank(rule) is None:
        return rule
    if isinstance(rule, Mapping) and "name" not in rule:
        return {**rule, "first": within_bounds(rule["first"], bounds)}
    name, options = split_rule("init", rule)
    return {"name": name, "bounds": [list(pair) for pair in bounds], **options}


def first_and_hidden(rule: Any) -> tuple[Any, Any]:
    """Return the rules of the first layer and of the others by that of a network (``INR.init``)."""
    if not isinstance(rule, Mapping) or "name" in rule:
        return rule, "default" if split_rule("init", rule)[0] == "rank_expanding" else rule
    unknown = set(rule) - {"first", "hidden"}
    if unknown:
        raise ValueError(f"init takes the keys 'first' and 'hidden' (or 'name'), got {sorted(map(str, unknown))}")
    return rule.get("first", "default"), rule.get("hidden", "default")


def split_rule(argument: str, rule: Any) -> tuple[str, dict[str, Any]]:
    """Split a rule, a name or ``{"name": ..., **options}``, into its name and options."""
    name, options = name_and_numbers(argument, rule)
    return check_choice(argument, name, INITIALISERS), options


def initialise_(
    layers: Sequence[nn.Linear],
    rule: Any,
    omegas: Sequence[float],
    encoded: bool,
    generator: torch.Generator,
) -> None:
    """Initialise the linear layers of a network, the head last, by ``rule`` (see :class:`inrfast.INR`, ``init``).

    Every layer consumes the same number of random values whatever its rule: two networks of one seed that differ only
    in the first layer's rule share their other layers.
    """
    first, hidden = first_and_hidden(rule)
    for index, linear in enumerate(layers):
        name, options = split_rule("init", first if index == 0 else hidden)
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        if name == "rank_expanding" and (encoded or index > 0):
            raise ValueError(refused_place("behind an encoding" if index == 0 else "on a hidden layer"))
        if name == "siren":
            options.setdefault("omega", omegas[min(index, len(omegas) - 1)])
            options.setdefault("first", index == 0)
        draw_(linear, name, options, seed)


def refused_place(where: str) -> str:
    """Return the refusal of rank-expanding initialisation somewhere else than among raw coordinates."""
    return (
        f"init 'rank_expanding' places hinges among raw coordinates and is refused {where}; "
        "use it on the first layer of a network without an encoding"
    )


def draw_(linear: nn.Linear, name: str, options: Mapping[str, Any], seed: int) -> None:
    """Initialise a layer by the initialiser of this name, from a generator of its own; unknown options raise
    ``ValueError``."""
    random = {} if name == "rank_expanding" else {"generator": torch.Generator().manual_seed(seed)}
    try:
        INITIALISERS[name](linear, **{**options, **random})
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise ValueError(f"init {name!r} does not take these options: {error}") from None
        raise


@torch.no_grad()
def deal_rank_expanding_(
    linears: Sequence[nn.Linear],
    columns: Sequence[Sequence[int]],
    mirrored: Sequence[Sequence[bool]],
    bounds: Sequence[Sequence[tuple[float, float]]],
    eps: float | str | None = None,
    gain: float = 1.0,
) -> None:
    """Deal out the hinges of one rank-expanding layer, as wide as all these together, to them in turn.

    Parameters
    ----------
    linears
        Layers that get the same d coordinates, each rescaled in its own way; changed in place.
    columns, mirrored
        By layer and column of what it gets: which of the coordinates that is, and whether its factor is negative.
    bounds
        By layer, of what it gets.
    eps, gain
        As in :func:`inrfast.rank_expanding`.
    """
    weight, bias = rank_expanding(
        sum(linear.out_features for linear in linears),
        len(columns[0]),
        eps=eps,
        gain=gain,
        dtype=torch.float64,
        device="cpu",
    )
    places = [
        ((k + 0.5) / own.out_features, number) for number, own in enumerate(linears) for k in range(len(own.weight))
    ]
    owners = torch.tensor([number for _, number in sorted(places)], device="cpu")
    for number, linear in enumerate(linears):
        mine = weight[owners == number][:, list(columns[number])]
        low, high = torch.tensor(bounds[number], dtype=torch.float64, device="cpu").T
        mine = torch.where(torch.tensor(mirrored[number], device="cpu"), -mine, mine)
        _fill(linear.bias, bias[owners == number] - (mine * (low + high) / (high - low)).sum(1))
        _fill(linear.weight, mine * 2 / (high - low))


@torch.no_grad()
def write_(pairs: Sequence[tuple[str, Tensor, Tensor]], parameters: Mapping[str, Tensor]) -> None:
    """Write numbers into some of these parameters, ``(name, parameter, numbers)``: all of them or none, each once.

    Raises
    ------
    ValueError
        A parameter of inference mode; one that shares memory with another. Nothing was written.
    """
    targets = {name: (target, values) for name, target, values in reversed(pairs)}
    for name, (target, _) in targets.items():
        if target.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"{name} was made in inference mode and cannot be written; replace it with its clone()")
        other = next((key for key, own in parameters.items() if own is not target and _meet(own, target)), None)
        if other is not None:
            raise ValueError(f"{name} and {other} share memory: give each numbers of its own, with clone()")
    before = [(target, target.clone()) for target, _ in targets.values()]
    try:
        for target, values in targets.values():
            target.copy_(values)
    except BaseException:
        for target, values in before:
            with contextlib.suppress(Exception):  # the one that cannot be written
                target.copy_(values)
        raise


def _meet(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have an entry in common."""
    if first.device != second.device or not first.numel() or not second.numel() or first.is_meta or second.is_meta:
        return False
    starts = [own.data_ptr() for own in (first, second)]
    ends = [start + _last(own) for start, own in zip(starts, (first, second), strict=True)]
    if max(starts) >= min(ends):
        return False
    places = [start + _offsets(own) for start, own in zip(starts, (first, second), strict=True)]
    return bool(torch.isin(*places).any())


def _last(tensor: Tensor) -> int:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((size - 1) * step for size, step in steps) + 1) * tensor.element_size()


def _offsets(tensor: Tensor) -> Tensor:
    found = torch.zeros(1, dtype=torch.int64, device="cpu")
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        found = (found.unsqueeze(1) + step * tensor.element_size() * torch.arange(size, device="cpu")).flatten()
    return found
