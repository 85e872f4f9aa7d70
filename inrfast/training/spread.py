"""The arguments of ``fit_many`` spread over its networks: one for all, or one per network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from inrfast.arrays import as_tensor, is_array
from inrfast.boxes import stated_bounds
from inrfast.calling import Select
from inrfast.errors import check_coords, check_tensor
from inrfast.pixels import as_values, is_picture, kind_of, one_white, range_of_pixels
from inrfast.seeds import seed_of
from inrfast.training.data import aligned, calling_of, check_apart, check_net, count_outputs, of_dtype
from inrfast.training.given import NOTHING, Made, check_channels, grid_in, grid_of, taken
from inrfast.training.objective import check_modules


@dataclass(frozen=True)
class Own:
    """The arguments of a fit that are one network's own, not yet checked, by their names in :func:`inrfast.fit`.

    ``modules`` are those of ``fit_many``; one network has those of the objective.
    """

    coords: Any
    target: Any
    weight: Any
    eval_coords: Any
    eval_target: Any
    lr: Any
    target_psnr: Any
    seed: Any
    data_range: Any
    modules: tuple[nn.Module, ...] = ()
    made: Made = NOTHING
    seed_given: bool = True

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Own:
        """Return those of :func:`inrfast.fit`, from its arguments by name."""
        net, select = given["net"], given["select"]
        own = {name: given[name] for name in cls.__dataclass_fields__ if name not in ("modules", "made", "seed_given")}
        own["coords"], own["target"], made = taken(net, own["coords"], own["target"], select)
        made = replace(made, white=given.get("white", made.white))
        own["data_range"] = range_of_pixels(own["data_range"], made.white)
        if own["eval_target"] is not None:
            points = own["coords"] if own["eval_coords"] is None else own["eval_coords"]
            own["eval_target"], evaluated = taken(net, points, own["eval_target"], select, "eval_target")[1:]
            one_white("target", made.white, "eval_target", evaluated.white)
        return cls(**own, made=made, seed_given=own["seed"] is not None)

    @classmethod
    def of_many(cls, nets: Sequence[nn.Module], given: Mapping[str, Any]) -> list[Own]:
        """Return those of each network of :func:`inrfast.fit_many`; what is shared is one tensor."""
        count, (dtype, device) = len(nets), check_net(nets[0], "nets[0]", finite=False)
        whites: dict[str, Any] = {}
        _check_pictures(nets, given)
        given = {name: _on(dtype, device, name, own, whites) for name, own in given.items()}
        made = [Made(None, white) for white in each("targets", whites.get("targets"), count)]
        several = given["coords"] if isinstance(given["coords"], Sequence) else [given["coords"]]
        if any(isinstance(own, DataLoader) for own in several):
            raise TypeError("coords must be points, got a DataLoader; fit(net, loader) takes batches, for one network")
        if given["targets"] is None:
            raise TypeError("targets are missing: call fit_many(nets, coords, targets)")
        if given["coords"] is None:
            given["coords"], shapes = _grids(nets, given["targets"], given["select"])
            made = [replace(own, grid=shape) for own, shape in zip(made, shapes, strict=True)]
        points = _own_points("coords", given["coords"], count)
        outputs = _outputs_of(nets[0], points[0], given["select"])
        own = {name: each(name, given[name], count) for name in ("weight", "lr", "target_psnr", "seed", "data_range")}
        own["seed_given"] = [given["seed"] is not None] * count
        if given["seed"] is None:
            own["seed"] = [seed_of("seed", None)] * count
        own |= {"coords": points, "target": _own_values("targets", given["targets"], points, count, outputs)}
        eval_coords, eval_target = given["eval_coords"], given["eval_target"]
        own |= {"eval_coords": [eval_coords] * count, "eval_target": [None] * count}
        if eval_target is not None:
            for i, white in enumerate(each("eval_target", whites.get("eval_target"), count)):
                one_white(f"targets[{i}]", made[i].white, f"eval_target[{i}]", white)
            evaluated = points if eval_coords is None else _own_points("eval_coords", eval_coords, count)
            own |= {"eval_coords": evaluated}
            own |= {"eval_target": _own_values("eval_target", eval_target, evaluated, count, outputs)}
        own |= {"modules": _each_modules(given["modules"], nets), "made": made}
        _check_one_range(given["data_range"], made)
        own["data_range"] = [
            range_of_pixels(value, one.white, f"data_range[{i}]")
            for i, (value, one) in enumerate(zip(own["data_range"], made, strict=True))
        ]
        return [cls(**{name: values[i] for name, values in own.items()}) for i in range(count)]


ARRAYS = ("coords", "targets", "weight", "eval_coords", "eval_target")
"""Arguments that are arrays, or sequences of them."""

NUMBERS = ("lr", "target_psnr", "seed", "data_range")
"""Arguments that are numbers, or sequences of them."""


def _check_one_range(given: Any, made: Sequence[Made]) -> None:
    """Refuse one range of pixels for targets of which some are pixels and others are not."""
    if given is None or isinstance(given, Sequence) or is_array(given):
        return
    kinds = sorted({kind_of(one.white) for one in made})
    if len(kinds) > 1 and given != 1:
        raise ValueError(
            f"data_range must be a sequence of one per network where targets are {' and '.join(kinds)}, got {given}"
        )


def _check_pictures(nets: Sequence[nn.Module], given: Mapping[str, Any]) -> None:
    """Refuse pictures of other channels than their network's outputs."""
    for i, (net, own) in enumerate(zip(nets, each("targets", given["targets"], len(nets)), strict=True)):
        if is_picture(own):
            name = f"targets[{i}]" if isinstance(given["targets"], Sequence) else "targets"
            check_channels(net, None, own, *as_values(name, own, told=False), name)


def _on(dtype: torch.dtype, device: torch.device, argument: str, given: Any, whites: dict[str, Any]) -> Any:
    """Return an argument that is one array as a tensor of the networks' dtype, so that what is shared stays one.

    Pictures and pixels of whole numbers become values, each in a sequence; their whites are added to ``whites``.
    """
    if argument not in ARRAYS:
        return given
    values = argument in ("targets", "eval_target")
    if values and isinstance(given, Sequence):
        pairs = [
            as_values(argument, own, dtype, device) if is_picture(own) or is_array(own) else (own, None)
            for own in given
        ]
        whites[argument] = [white for _, white in pairs]
        return [own for own, _ in pairs]
    if values and (is_picture(given) or is_array(given)):
        given, whites[argument] = as_values(argument, given, dtype, device)
    if not is_array(given):
        return given
    tensor = as_tensor(argument, given, device)
    return of_dtype(argument, tensor, dtype) if tensor.is_floating_point() and argument != "weight" else tensor


def _grids(nets: Sequence[nn.Module], targets: Any, select: Select) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    """Return the coordinates that stand in for those not given, one tensor for networks of one grid, and their shapes.

    A tensor of targets that is no grid of values itself is one of a grid per network.
    """
    count = len(nets)
    if isinstance(targets, Tensor):
        try:
            shapes = [grid_in(nets[0], tuple(targets.shape), select, "targets")] * count
        except ValueError:
            if targets.ndim < 2 or len(targets) != count:
                raise
            shapes = [grid_in(nets[0], tuple(targets.shape[1:]), select, "targets[0]")] * count
    else:
        shapes = [
            grid_in(net, tuple(as_tensor("targets", own).shape), select, f"targets[{i}]")
            for i, (net, own) in enumerate(zip(nets, each("targets", targets, count), strict=True))
        ]
    grids: dict[Any, Tensor] = {}
    made = []
    for net, shape in zip(nets, shapes, strict=True):
        key = str(stated_bounds(net)), shape
        if key not in grids:
            grids[key] = aligned(grid_of(net, shape))
        made.append(grids[key])
    return made, shapes


def check_nets(nets: Any) -> list[nn.Module]:
    """Return networks of one dtype and device that share nothing."""
    if isinstance(nets, nn.Module) and not isinstance(nets, nn.ModuleList):
        raise TypeError(f"nets must be a sequence of networks, got one {type(nets).__name__}; for one there is fit")
    try:
        given = list(nets)
    except TypeError:
        raise TypeError(f"nets must be a sequence of networks, got {type(nets).__name__}") from None
    if not given:
        raise ValueError("nets must hold at least one network, got none")
    owner: dict[int, int] = {}
    kinds = [check_net(net, f"nets[{i}]") for i, net in enumerate(given)]
    for i, net in enumerate(given):
        if kinds[i] != kinds[0]:
            raise ValueError(f"nets must have one dtype and device, got {kinds[0]} and, in nets[{i}], {kinds[i]}")
        for tensor in (*net.parameters(), *net.buffers()):
            if owner.setdefault(id(tensor), i) != i:
                raise ValueError(f"nets must share no parameter, but nets[{owner[id(tensor)]}] and nets[{i}] do")
    check_apart(
        {f"nets[{i}].{name}": parameter for i, net in enumerate(given) for name, parameter in net.named_parameters()}
    )
    return given


def _each_modules(given: Any, nets: Sequence[nn.Module]) -> list[tuple[nn.Module, ...]]:
    """Return the modules that are trained with each network, which share nothing with others or their networks."""
    count = len(nets)
    if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList):
        raise TypeError(f"modules must be a sequence of one per network, got one {type(given).__name__}")
    if not len(given):
        return [()] * count
    found = [check_modules(own, f"modules[{i}]") for i, own in enumerate(each("modules", list(given), count))]
    nets_of = {id(tensor): i for i, net in enumerate(nets) for tensor in (*net.parameters(), *net.buffers())}
    owner: dict[Tensor, int] = {}
    for i, own in enumerate(found):
        for tensor in (tensor for module in own for tensor in (*module.parameters(), *module.buffers())):
            if (other := nets_of.get(id(tensor), i)) != i:
                raise ValueError(
                    f"modules[{i}] must share nothing with nets[{other}], which trains it itself, but it does; "
                    f"modules[{i}] is what is trained with nets[{i}] alone"
                )
        for parameter in (parameter for module in own for parameter in module.parameters()):
            if owner.setdefault(parameter, i) != i:
                raise ValueError(f"modules[{owner[parameter]}] and modules[{i}] must share no parameter, but do")
    return found


def each(argument: str, given: Any, count: int) -> list[Any]:
    """Return one value per network, from one for all or from a sequence; numbers may be those of an array."""
    if argument in NUMBERS and is_array(given) and as_tensor(argument, given).ndim == 1:
        given = as_tensor(argument, given).tolist()
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != count:
            raise ValueError(f"{argument} must be one value or {count} of them (one per network), got {len(given)}")
        return list(given)
    return [given] * count


def _own_points(argument: str, given: Any, count: int) -> list[Any]:
    """Return the points of each network, at an address where they need no copy."""
    if isinstance(given, Tensor):
        if given.ndim == 3 and len(given) != count:
            raise ValueError(f"{argument} must have shape (N, d) or ({count}, N, d), got {tuple(given.shape)}")
        return [aligned(given)] * count if given.ndim != 3 else list(given)
    return each(argument, given, count)


def _outputs_of(net: nn.Module, coords: Any, select: Select) -> int:
    """Return M, or 1 where the points are no points: that is said when they are checked."""
    try:
        device = next(net.parameters()).device
        shaped = check_tensor("coords", coords, finite=False, device=device)
        points = check_coords("coords", shaped, device=device).detach()
        return count_outputs(net, points, calling=calling_of(net, shaped, select))
    except (ValueError, TypeError):
        return 1


def _own_values(argument: str, given: Any, points: list[Any], count: int, outputs: int) -> list[Any]:
    """Return the values of each network: a tensor is for all unless it holds ``count`` times as many."""
    if not isinstance(given, Tensor):
        return each(argument, given, count)
    n = _points_in(points[0])
    if given.ndim > 1 and len(given) == count and n and not _holds(given, n, outputs) and _holds(given[0], n, outputs):
        return list(given)
    return [aligned(given)] * count


def _points_in(coords: Any) -> int:
    """Return the number of points, 0 where they are no points: that is said when they are checked."""
    try:
        return len(check_coords("coords", coords))
    except (ValueError, TypeError):
        return 0


def _holds(values: Tensor, n: int, outputs: int) -> bool:
    """Return whether values (n, M), (*grid, M) or, with M = 1, (n,) or (*grid), belong to ``n`` points."""
    shape = values.shape
    return (outputs == 1 and shape.numel() == n) or (shape[-1:] == (outputs,) and shape[:-1].numel() == n)
