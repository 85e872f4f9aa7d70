"""The arguments of ``fit_many`` spread over its networks: one for all, or one per network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import as_tensor, is_array
from inrfast.calling import Select
from inrfast.errors import check_coords, check_tensor
from inrfast.training.data import aligned, calling_of, check_apart, check_net, count_outputs
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

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Own:
        """Return those of :func:`inrfast.fit`, from its arguments by name."""
        return cls(**{name: given[name] for name in cls.__dataclass_fields__ if name != "modules"})

    @classmethod
    def of_many(cls, nets: Sequence[nn.Module], given: Mapping[str, Any]) -> list[Own]:
        """Return those of each network of :func:`inrfast.fit_many`; what is shared is one tensor."""
        count, device = len(nets), next(nets[0].parameters()).device
        given = {name: _on(device, name, own) for name, own in given.items()}
        points = _own_points("coords", given["coords"], count)
        outputs = _outputs_of(nets[0], points[0], given["select"])
        own = {name: each(name, given[name], count) for name in ("weight", "lr", "target_psnr", "seed", "data_range")}
        own |= {"coords": points, "target": _own_values("targets", given["targets"], points, count, outputs)}
        eval_coords, eval_target = given["eval_coords"], given["eval_target"]
        own |= {"eval_coords": [eval_coords] * count, "eval_target": [None] * count}
        if eval_target is not None:
            evaluated = points if eval_coords is None else _own_points("eval_coords", eval_coords, count)
            own |= {"eval_coords": evaluated}
            own |= {"eval_target": _own_values("eval_target", eval_target, evaluated, count, outputs)}
        own |= {"modules": _each_modules(given["modules"], nets)}
        return [cls(**{name: values[i] for name, values in own.items()}) for i in range(count)]


ARRAYS = ("coords", "targets", "weight", "eval_coords", "eval_target")
"""Arguments that are arrays, or sequences of them."""


def _on(device: torch.device, argument: str, given: Any) -> Any:
    """Return an argument that is one array as a tensor, so that what is shared stays one; all else as it is."""
    return as_tensor(argument, given, device) if argument in ARRAYS and is_array(given) else given


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
    """Return one value per network, from one for all or from a sequence."""
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
