"""Probes: whether a network is what it must be for its factors to be exact, tried on a few of its points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from inrfast.errors import UnsupportedModuleError, warn
from inrfast.memory import chunks
from inrfast.pointwise import FLOOR_EXPONENT, LONGEST, MOVED, RANDOM, dependence, spread_points
from inrfast.snapshot import own_dtype, snapshot
from inrfast.tangent.network import PASS_DTYPE, Network, gradients, rounded
from inrfast.tangent.originals import without_originals
from inrfast.tangent.side_effects import changed, numbers_of, outputs_without_side_effects

AMPLIFIED = 16.0
"""How many times the effect of rounding inputs and parameters may stand for rounding in every operation."""

CHAOTIC = 1e-7
"""Share of a result that rounding may change in fp64; beyond it the precision that is promised cannot be held."""

MOST_DRAWS = 32
"""Roundings tried before a network counts as another function in fp64."""

SAME_AXES = 1e-6
"""Difference of outputs, relative to their size, that rounding may make where coordinates have other axes."""

ALIKE_ROWS = 32
"""Points at least, and at most of the second pass, where a network is asked once more whether it treats them alike."""

COMPARED_ROWS = 64
"""Points at which the fp64 copy is compared with the network in its own dtype, before it is at all of them."""

FAR = 256.0
"""How many times the effect of rounding inputs and parameters a difference must be to be that of another function."""

LINEAR = 2.0**-42
"""Relative size of steps whose effect is measured and scaled up to that of rounding, too small to cross a border."""

LONGEST_GPU = 1 << 14
"""Points of a pass over all of them on a GPU, as many as of a chunk of factors there."""

MOST_ELSEWHERE = 0.01
"""Share of points at which the network may be another function in fp64; beyond it there is no kernel."""


# ---- the network -------------------------------------------------------------------------------------------------


def check_network(net: nn.Module, network: Network, coords: Tensor) -> None:
    """Refuse networks that cannot run in fp64, look at their batch, or are another function in fp64.

    Parameters
    ----------
    net
        The network as it was given.
    network
        Its copy in fp64.
    coords
        The points (N, d) that it is for.
    """
    copy = snapshot(net)
    with without_originals(net):
        _check_copies(copy, network, coords)


def _check_copies(net: nn.Module, network: Network, coords: Tensor) -> None:
    """Run the probes of :func:`check_network` with a copy of the network in its own dtype, and one in fp64."""
    own = own_dtype(net)
    points = spread_points(coords, COMPARED_ROWS).to(own)
    wide = points.to(PASS_DTYPE)
    in_own = None
    with suppress(RuntimeError), torch.enable_grad():  # parts of several dtypes run in fp64 only
        in_own = network.call(points, net).detach()
    before = numbers_of(network.module)
    try:
        expected = outputs_without_side_effects(lambda: network.outputs(wide), network.module, before, coords.device)
    except RuntimeError as error:
        if in_own is None:
            sizes = ", ".join((*("1" * (network.axes - 2)), "n", str(points.shape[1])))
            raise ValueError(
                f"net fails on points of coords, given as ({sizes}) with a few n and with gradients on: {error}"
            ) from error
        raise UnsupportedModuleError(
            f"net runs in {own} but not in fp64, in which factors are computed ({error}). Make fixed tensors "
            "buffers, and cast to the dtype of a parameter or of the input, not to a fixed one (.float())"
        ) from error
    _refuse_coupling(network, coords.to(PASS_DTYPE), wide, expected, before)
    if in_own is not None and own != PASS_DTYPE and bool(torch.isfinite(in_own).all()):
        _compare(network, own, in_own, wide, expected)
    few = slice(None, None, 8)
    _refuse_chaos(network, wide[few], expected[few])
    _refuse_fp32_inside(network, wide[few], expected[few])


def check_points(net: nn.Module, network: Network, coords: Tensor) -> None:
    """Warn of points at which the network in its own dtype takes another branch or cell than in fp64, or refuse them.

    A lookup ``table[(x * n).long()]`` on its own pixels, and ``torch.where(x * 10 >= 7, ...)``, do so where rounding
    decides on which side of a border a point lies. One pass in fp64 and one in the own dtype over all points, in
    chunks. A point counts where an output differs :data:`FAR` times as much as rounding moves it by its slopes.

    Parameters
    ----------
    net
        The network as it was given, which :func:`check_network` has looked at.
    network
        Its copy in fp64.
    coords
        All points (N, d), as they were given.

    Raises
    ------
    UnsupportedModuleError
        That is so at more than :data:`MOST_ELSEWHERE` of the points.
    """
    own = own_dtype(net)
    if own == PASS_DTYPE:
        return
    module, few = snapshot(net), spread_points(coords, COMPARED_ROWS)
    narrow = Network(module, network.select, network.axes)
    try:
        in_own = narrow.outputs(few.to(own)).double()
    except RuntimeError:  # parts of several dtypes run in fp64 only
        return
    eps, tiny = torch.finfo(own).eps, torch.finfo(own).smallest_normal
    expected = network.outputs(few.to(PASS_DTYPE))
    moved = _moved_by_rounding(network, few, eps)
    size = expected.abs().amax(0)
    # Quantiles that points on borders, of which either may hold some, leave as they are.
    usual = torch.maximum(FAR * moved.quantile(0.5, 0), AMPLIFIED * (in_own - expected).abs().nanquantile(0.25, 0))

    def differ(points: Tensor, outputs: Tensor, effect: Tensor | float) -> Tensor:
        wide = network.outputs(points)
        allowed = AMPLIFIED * eps * torch.maximum(size, wide.abs()) + usual + tiny + effect
        return (((outputs - wide).abs() > allowed) & torch.isfinite(outputs)).any(1)

    rows = LONGEST if coords.device.type == "cpu" else LONGEST_GPU
    found = []
    for part in chunks(len(coords), rows):
        outputs = narrow.outputs(coords[part].to(own)).double()
        found.append(differ(coords[part].to(PASS_DTYPE), outputs, 0.0))
    suspects = torch.cat(found).nonzero().squeeze(1)
    kept = []
    for part in chunks(len(suspects), rows):
        some = coords[suspects[part]]
        outputs, effect = narrow.outputs(some.to(own)).double(), _moved_by_rounding(network, some, eps)
        effect = FAR * torch.maximum(effect, effect.median(0).values)
        # Where coordinates are rounded to the own dtype, that alone may move them over a border.
        off = differ(some.to(PASS_DTYPE), outputs, effect) & differ(some.to(own).to(PASS_DTYPE), outputs, effect)
        kept.append(suspects[part][off])
    if not kept or not (places := torch.cat(kept).tolist()):
        return
    point = ", ".join(f"{x:.9g}" for x in coords[places[0]].tolist())
    told = (
        f"net in fp64, in which factors are computed, is another function than in {own} at {len(places)} of "
        f"{len(coords)} points, such as row {places[0]}, ({point}): they lie on the border of a cell or branch "
        "(an index made from coordinates, torch.where, a comparison), and rounding decides on which side. Shift coords "
        "off the borders, by half a cell for instance, or convert the network if its function in fp64 is the one "
        "meant: net.double(), with coords in fp64"
    )
    if len(places) > MOST_ELSEWHERE * len(coords):
        raise UnsupportedModuleError(told)
    warn(f"{told}. The kernel is that of the network in fp64")


def _moved_by_rounding(network: Network, coords: Tensor, eps: float) -> Tensor:
    """Return how much rounding of coordinates and parameters by ``eps`` moves each output (n, M), by its slopes."""
    points = coords.to(PASS_DTYPE)
    before, found = network.outputs(points), []
    for seed in range(3):
        near = network.rounded(LINEAR, seed)
        found.append((near.outputs(rounded(points, LINEAR, seed)) - before).abs())
    return torch.stack(found).amax(0) * (eps / LINEAR)


def check_axes(network: Network, coords: Tensor) -> None:
    """Refuse networks whose output at a point is another one with the axes of the coordinates than with its points
    in one row: with (2, 2, d) than with (1, 4, d).

    Parameters
    ----------
    network
        The network in fp64, called with as many axes as ``coords`` has; nothing is checked where they are two.
    coords
        The coordinates (..., d) that it is for, in fp64.
    """
    if network.axes == 2 or math.prod(coords.shape[:-2]) == 1:
        return
    block = coords[(slice(2),) * (coords.ndim - 1)]
    points = block.reshape(-1, block.shape[-1])
    expected = network.outputs(points)
    try:
        with network.alone() as module:
            found = network.selected(module(block.clone())).reshape(len(points), -1)
    except RuntimeError as error:
        found, why = None, str(error)
    if found is not None and found.shape == expected.shape:
        why = "its outputs are others"
        if float((found - expected).abs().max()) <= SAME_AXES * float(expected.abs().max()):
            return
    else:
        why = f"its outputs have shape {tuple(found.shape)}, not {tuple(expected.shape)}" if found is not None else why
    row = (1,) * (coords.ndim - 2) + tuple(points.shape)
    raise UnsupportedModuleError(
        f"net takes coords of shape {tuple(block.shape)} otherwise than the same points in one row {row}: {why}. Pass "
        "coords in the one shape that it treats point by point, such as (N, d) or (1, N, d)"
    )


def treats_points_alike(network: Network, coords: Tensor) -> bool:
    """Return whether a few of the points, in another order, have the outputs they have among as many as there are.

    Two forward passes, one of them over at most :data:`inrfast.pointwise.LONGEST` points, which notice what changed
    numbers may have changed in a network that :func:`check_network` has looked at.

    Raises
    ------
    UnsupportedModuleError
        A pass changes parameters, or draws random numbers.
    """
    points = spread_points(coords, min(max(len(coords), ALIKE_ROWS), LONGEST))
    step, before = -(-len(points) // ALIKE_ROWS) + 2, numbers_of(network.module)
    some = torch.arange(len(points) - 1, -1, -step, device=points.device)
    outputs = outputs_without_side_effects(lambda: network.outputs(points), network.module, before, points.device)
    allowed = torch.finfo(PASS_DTYPE).eps ** FLOOR_EXPONENT * outputs.abs().max()
    return bool(((network.outputs(points[some]) - outputs[some]).abs() <= allowed).all())


def _refuse_coupling(
    network: Network, coords: Tensor, points: Tensor, expected: Tensor, before: Mapping[str, Tensor]
) -> None:
    """Refuse networks whose output at a point depends on anything beside that point, now or behind zero weights.

    ``before`` are the numbers of the network before it was run.
    """
    found = dependence(network.outputs, coords, number=len(coords))
    if found == RANDOM:
        name = changed(network.module, before, parameters=False)
        why = "it counts its passes or draws numbers" if name is None else f"they change its buffer {name!r}"
        raise UnsupportedModuleError(
            f"net is random: {found} ({why}). Call net.eval(); what changes in eval mode too is to change only where "
            "self.training is true"
        )
    if found not in (None, MOVED):  # then rounding alone may differ
        _refuse_chaos(network, points, expected)
    if found is None:
        found = _hidden_coupling(network, coords, points)
    if found is not None:
        raise UnsupportedModuleError(
            f"net couples samples: {found}, so the kernel is not one of points (batch statistics, attention over "
            "the batch and row numbers do this). Take statistics over points once, into a buffer that the forward "
            "pass only reads"
        )


def _hidden_coupling(network: Network, coords: Tensor, points: Tensor) -> str | None:
    """Return what a copy whose parameters are moved a little depends on beside a point."""
    other = network.stirred()
    found = dependence(other.outputs, coords, number=len(coords))
    if found not in (None, MOVED):
        try:
            _refuse_chaos(other, points, other.outputs(points))
        except UnsupportedModuleError:  # moved so, it says nothing
            return None
    return None if found is None else f"{found} once its parameters are not exactly these"


def _compare(network: Network, own: torch.dtype, in_own: Tensor, points: Tensor, expected: Tensor) -> None:
    """Refuse networks whose outputs in their own dtype differ from those in fp64 by more than rounding."""
    difference = float((in_own.double() - expected).abs().max())
    eps = torch.finfo(own).eps
    allowed = AMPLIFIED * eps * float(expected.abs().max()) + torch.finfo(own).smallest_normal
    for seed in range(MOST_DRAWS):  # many only where it would be refused: a step is seldom met
        if difference <= allowed:
            break
        effect = network.rounded(eps, seed).outputs(rounded(points, eps, seed)) - expected
        allowed = max(allowed, 4 * AMPLIFIED * float(effect.abs().max()))
    if difference > allowed:
        raise UnsupportedModuleError(
            f"net is another function in fp64, in which factors are computed, than in {own}: outputs differ by "
            f"{difference:.2e}, where rounding explains {allowed:.2e}. Some module takes a number from the dtype "
            "(torch.finfo, an epsilon of None), casts in its forward pass, or works below the dtype's range: give "
            "the number, cast to the dtype of the input, or convert net to fp64 if that is the function meant"
        )


def _refuse_chaos(network: Network, points: Tensor, expected: Tensor) -> None:
    """Refuse networks whose outputs at most points are made by fp64 rounding.

    The parameters alone are rounded: a table that is read by the cell of a coordinate may jump at its border.
    """
    outputs = network.rounded(torch.finfo(PASS_DTYPE).eps, 0).outputs(points)
    effect = float((outputs - expected).abs().amax(1).median())
    size = float(expected.abs().max())
    if effect > CHAOTIC * size:
        raise UnsupportedModuleError(chaotic("outputs", effect / max(size, 1e-300)))


def _refuse_fp32_inside(network: Network, coords: Tensor, before: Tensor) -> None:
    """Refuse networks that round to fp32 inside.

    Steps of the input below that rounding then change nothing, although slopes say so; larger ones do. Where they do
    not either, the network is a step function with slopes of its own (quantisation), which is exact in fp64.
    """
    tiny, larger = 2.0**-36, 2.0**-18
    slope = torch.zeros_like(coords)
    no_slope = suppress(RuntimeError, UnsupportedModuleError)  # some operations have none there
    with no_slope, torch.enable_grad(), network.alone():
        moving = coords.clone().requires_grad_()
        (slope,) = gradients(network.call(moving).sum(), [moving])

    def moved(step: float) -> Tensor:
        return (network.outputs(coords * (1 + step)) - before).sum(1).abs()

    expected = (slope * coords).sum(1).abs() * tiny
    size = before.abs().sum(1)
    # Beyond rounding, and small enough for the slope to tell it.
    visible = (expected > 1e4 * torch.finfo(PASS_DTYPE).eps * size) & (expected < 1e-3 * size)
    if not bool(visible.any()) or float((moved(tiny) < 0.1 * expected)[visible].double().mean()) < 0.5:
        return
    if float((moved(larger) > 0)[visible].double().mean()) > 0.5:
        raise UnsupportedModuleError(
            "net rounds to fp32 inside its forward pass (.float(), a fixed dtype=), so its fp64 factors would hold "
            "that rounding; cast to the dtype of the input or of a parameter"
        )


def chaotic(what: str, effect: float) -> str:
    """Return the refusal of a network whose outputs or Jacobian are made by rounding."""
    return (
        f"net is so ill-conditioned at these coordinates that fp64 does not determine its {what} (rounding weights in "
        f"their last bit makes a change of {effect:.1e} of the size); scale coords to [-1, 1] or lower the frequencies"
    )
