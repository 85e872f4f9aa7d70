"""The box of coordinates that a network is made for, and a warning where it is given others."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import warn
from inrfast.grids import check_bounds
from inrfast.initialisers import dead_units, expands_rank
from inrfast.mlp import LinearLayer, describe
from inrfast.nn import INR
from inrfast.ops.grid_init import rank_expanding
from inrfast.wrapped import unwrapped

SAME_BOX = 0.25
"""Largest distance, in sides of the box, at which the box of the coordinates counts as an initialiser's bounds."""

DEAD_SHARE = 0.05
"""Share of a layer's units from which on dead ones are warned of."""

USUAL = (-1.0, 1.0)
"""The bounds that are meant where a network states none."""

FAR = 2.0
"""Sides of the usual box beyond which coordinates are hardly meant where none is stated, such as numbers of pixels."""

SLACK = 1e-3
"""Sides of a stated box beyond which coordinates lie outside: what rounding does is less."""


def stated_bounds(net: nn.Module) -> Sequence[tuple[float, float]] | tuple[float, float]:
    """Return the bounds that a network states, or the usual ones."""
    net = unwrapped(net)
    return net.bounds if isinstance(net, INR) and net.bounds is not None else USUAL


_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Networks whose box was warned of."""


_everywhere: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Networks that may be given any coordinates."""


def made_for_anywhere(net: nn.Module) -> None:
    """Say nothing of coordinates outside a network's box from now on, where this library places them there itself."""
    _everywhere.add(unwrapped(net))


def warn_of_other_box(net: nn.Module, coords: Tensor, copies: Iterable[nn.Module] = ()) -> None:
    """Warn, once per network, of coordinates outside the box that it is made for.

    That is the box it states (``INR(bounds=)``), or else [-1, 1], of which coordinates may lie two sides off. And where
    the hinges of a rank-expanding first layer lie among other coordinates than these: where the box of the coordinates
    is another one than the initialiser's ``bounds``, and units of the first layer are dead (see
    :func:`inrfast.initialisers.dead_units` for the cost), or the coordinates stick out of the bounds and the layer is
    still as it was initialised.

    Parameters
    ----------
    net
        Any module; of others than an :class:`INR` nothing is known.
    coords
        All points (N, d).
    copies
        Of the network: what is said of it is not said of them again.
    """
    net = unwrapped(net)
    if net in _warned:
        _warned.update(copies)
    if not isinstance(net, INR) or net in _warned:
        return
    said = _hinges_elsewhere(net, coords) or ("" if net in _everywhere else _outside(net, coords))
    if said:
        _warned.update((net, *copies))
        warn(said, UserWarning)


def warn_of_evaluation(net: nn.Module, coords: Tensor) -> None:
    """Warn, once per network, of points of an evaluation (N, d) outside the box that an :class:`INR` is made for."""
    net = unwrapped(net)
    if isinstance(net, INR) and net not in _warned and net not in _everywhere and (said := _outside(net, coords)):
        _warned.add(net)
        warn(f"eval_coords: {said}", UserWarning)


def _outside(net: INR, coords: Tensor) -> str:
    """Return what is said of coordinates outside a network's box, nothing where they lie in it."""
    least, most = torch.stack(torch.aminmax(coords.detach())).tolist()  # one wait for a GPU
    if net.bounds is None and (max(-1 - least, most - 1) <= 2 * FAR or expands_rank(net.init) is not None):
        return ""  # where hinges are placed, they tell the box
    low, high = (side.tolist() for side in torch.aminmax(coords.detach().double(), dim=0))
    pairs = [USUAL] * len(low) if net.bounds is None else net.bounds
    slack = FAR if net.bounds is None else SLACK
    beyond = [max(a - x, y - b) / (b - a) for x, y, (a, b) in zip(low, high, pairs, strict=False)]
    if max(beyond) <= slack:
        return ""
    reached = f"coordinates lie in {_printed(zip(low, high, strict=True))}, and the network is made for"
    if net.bounds is not None:
        return f"{reached} {_printed(net.bounds)}, its bounds: what it gives outside them nothing has taught it"
    stated = ", ".join(f"({x:g}, {y:g})" for x, y in zip(low, high, strict=True))
    return (
        f"{reached} [-1, 1]: scale them, as inrfast.grid(shape) does, or say by INR(bounds=[{stated}]) that they are "
        "meant; numbers of pixels make frequencies, encodings and initialisations many times what they are meant to be"
    )


def _printed(box: Iterable[Sequence[float]]) -> str:
    return " x ".join(f"[{low:g}, {high:g}]" for low, high in box)


def _hinges_elsewhere(net: INR, coords: Tensor) -> str:
    """Return what is said of a rank-expanding first layer whose hinges lie elsewhere, nothing where they do not."""
    options = expands_rank(net.init)
    if options is None:
        return ""
    mlp = describe(net, modulated=True)
    if isinstance(mlp, str) or mlp.encoding is not None:
        return ""
    first = mlp.hidden[0]
    if first.activation.name != "relu" or (first.norm is not None and not first.norm_after):
        return ""
    low, high = (side.double().cpu() for side in torch.aminmax(coords.detach(), dim=0))
    given = options.get("bounds", (-1, 1))
    bounds = torch.tensor(check_bounds(given, len(low)), dtype=torch.float64, device="cpu")
    sizes = (bounds[:, 1] - bounds[:, 0]).abs()
    out = torch.stack([bounds[:, 0] - low, high - bounds[:, 1]]) / sizes
    if float(out.abs().max()) <= SAME_BOX or bool((low == high).any()):
        return ""
    dead = dead_units(first.linear, coords.detach())
    box = ", ".join(f"[{a:g}, {b:g}]" for a, b in zip(low.tolist(), high.tolist(), strict=True))
    if dead >= DEAD_SHARE * first.linear.outputs:
        said = (
            f"{dead} of the {first.linear.outputs} units of the first layer are dead at these coordinates, which lie "
            f"in {box}: the hinges of init='rank_expanding' are placed for bounds={given}"
        )
    elif float(out.max()) > SAME_BOX and _as_initialised(first.linear, options):
        said = (
            f"the hinges of init='rank_expanding' are placed for bounds={given}, and these coordinates lie in {box}: "
            "there are none in most of that box"
        )
    else:
        return ""
    cure = ", ".join(f"({a:g}, {b:g})" for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return (
        f"{said}. Give it those of the coordinates, init={{'name': 'rank_expanding', 'bounds': [{cure}]}}, or "
        "inrfast.init.apply_(net, 'rank_expanding', coords=coords) before any training, or scale the coordinates "
        "(inrfast.grid has bounds=(-1, 1))"
    )


def _as_initialised(linear: LinearLayer, options: Mapping[str, Any]) -> bool:
    """Return whether a layer has the numbers of the rank-expanding initialiser with these options."""
    dtype = torch.float64 if linear.weight.dtype == torch.float64 else torch.float32
    made = rank_expanding(linear.outputs, linear.inputs, **options, dtype=dtype, device=linear.weight.device)
    own = (linear.weight, linear.bias)
    return all(mine is not None and torch.equal(mine, new.to(mine.dtype)) for mine, new in zip(own, made, strict=True))
