"""Optimisers of torch.optim in a fit of one network, and what a checkpoint keeps of how one was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.training.optimizers import Optimizer
from inrfast.training.schema import anything, check, fields, listed, named, short
from inrfast.training.stack import Stack, has_gaps, names_of

NAMES = ("params", "param_names")
"""What says which parameters a group has, in torch's own ways."""

LIKE_PARAMETER = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"),
    *("sum", "ax", "prev", "step_size"),
}
"""What torch's optimisers keep in the shape of each parameter."""


class TorchOptimizer(Optimizer):
    """Any ``torch.optim.Optimizer`` of one network; the schedule multiplies the rates of its groups.

    Raises
    ------
    ValueError
        Its parameters are not the network's trainable ones; it takes sparse gradients alone; it is fused, and one
        of them is a view with gaps.
    """

    def __init__(self, stack: Stack, optimizer: torch.optim.Optimizer, lr: float) -> None:
        super().__init__(stack)
        if isinstance(optimizer, torch.optim.SparseAdam):
            raise ValueError(
                "optimizer is a SparseAdam, which takes sparse gradients alone, and those of a fit are dense; take "
                "torch.optim.Adam"
            )
        self.optimizer, self.lr = optimizer, lr
        self.rates = [group["lr"] for group in optimizer.param_groups]
        mine = {stack.owner(name): name for name in stack.trainable}
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        foreign, missing = len(held - set(mine)), [name for parameter, name in mine.items() if parameter not in held]
        if foreign or missing:
            found = [f"{foreign} parameter(s) that are not"] if foreign else []
            found += [f"not {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"] if missing else []
            beside = " and those of modules and regularizers" if stack.modules else ""
            raise ValueError(
                f"optimizer must hold the network's trainable parameters{beside}, got one that holds "
                f"{' and '.join(found)}; make it from net.parameters(){beside}, and freeze what is not to be trained "
                "with requires_grad_(False)"
            )
        for group in optimizer.param_groups:
            gaps = [mine[parameter] for parameter in group["params"] if has_gaps(parameter)]
            if group.get("fused") and gaps:
                raise ValueError(
                    f"optimizer is fused, and torch's fused update writes beside {gaps[0]}, whose entries have gaps "
                    f"(strides {tuple(stack.owner(gaps[0]).stride())}); make it with fused=False"
                )

    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        """See :class:`Optimizer`."""
        for name, grad in self.stack.grads.items():
            self.stack.owner(name).grad = grad[0]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (rates[0] / self.lr)
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.step(again)  # it takes several gradients per step, where it searches
        else:
            self.optimizer.step()

    def release(self) -> None:
        """Give the groups of parameters their own rates back."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    def state(self) -> dict[str, Any]:
        """See :class:`Optimizer`."""
        return self.optimizer.state_dict()

    def check(self, state: Any, place: str, settings: bool = True) -> None:
        """Check that a kept state is one of this optimiser: of the same parameters, groups and, if asked, ``settings``.

        The rates are left out: they change from step to step.

        Raises
        ------
        ValueError
            It is not.
        """
        fields({"state": anything, "param_groups": listed(named(anything))})(state, place)
        own, kept = self.optimizer.state_dict()["param_groups"], state["param_groups"]
        check(f"{place}.param_groups", len(kept) == len(own), f"a list of {len(own)}", kept)
        for index, (mine, then) in enumerate(zip(own, kept, strict=True)):
            for key in mine.keys() | then.keys() if settings else {"params"}:
                fits = key in mine and key in then and (key == "lr" or same(then[key], mine[key]))
                check(f"{place}.param_groups[{index}].{key}", fits, f"{short(mine.get(key))}, as now", then.get(key))
        known = {number for group in own for number in group["params"]}
        fits = isinstance(state["state"], dict) and set(state["state"]) <= known
        fits = fits and all(isinstance(value, dict) for value in state["state"].values())
        check(f"{place}.state", fits, f"a dict of the {len(known)} parameters", state["state"])
        self._check_shapes(state["state"], f"{place}.state")

    def _check_shapes(self, state: dict[int, dict[str, Any]], place: str) -> None:
        """Check that what torch's own optimisers keep of each parameter is of its shape."""
        kinds = [kind for kind in type(self.optimizer).__mro__ if kind.__module__.startswith("torch.optim.")]
        if len(kinds) < 2:  # torch.optim.Optimizer alone: nobody knows what the class keeps
            return
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, entries in state.items():
            for key in LIKE_PARAMETER & entries.keys():
                value, shape = entries[key], held[number].shape
                fits = value is None or (isinstance(value, Tensor) and value.shape == shape)
                check(f"{place}.{number}.{key}", fits, f"a tensor {tuple(shape)}, as its parameter", value)

    def load(self, state: dict[str, Any]) -> None:
        """See :class:`Optimizer`."""
        try:
            self.optimizer.load_state_dict(state)
        except Exception as error:  # of anybody's class
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            raise ValueError(f"the optimizer does not take its state ({words})") from error


def started(optimizer: torch.optim.Optimizer, net: nn.Module, modules: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """Return, for each parameter group, its parameters' names in their order and its settings, the rate included.

    At the start of a fit: schedules change the rates, and a scheduler of the user's own may change all else.
    """
    names = names_of(net, modules)
    return [
        {
            "parameters": [names.get(parameter, "no parameter of the network") for parameter in group["params"]],
            "settings": {str(key): _kept(value) for key, value in group.items() if key not in NAMES},
        }
        for group in optimizer.param_groups
    ]


def _kept(value: Any) -> Any:
    """Return a setting as JSON gives it back; of what is no plain value, its class."""
    if isinstance(value, Tensor):
        return _kept(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_kept(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return f"an object of {type(value).__name__}"


def check_started(now: Sequence[dict[str, Any]], then: Sequence[dict[str, Any]], groups: Any, place: str) -> None:
    """Check that two fits were started with the same parameters and settings in each group.

    Settings, the rate aside, may also be as a checkpoint has kept them in its ``groups`` (None where it has none): so
    they are where a scheduler has changed them and the same optimiser goes on.

    Raises
    ------
    ValueError
        The first thing that is another.
    """
    check(f"{place}.param_groups", len(then) == len(now), f"a list of {len(now)}", list(then))
    for index, (mine, other) in enumerate(zip(now, then, strict=True)):
        where = f"{place}.param_groups[{index}]"
        names, others = mine["parameters"], other["parameters"]
        check(f"{where}.params", len(others) == len(names), f"a list of {len(names)}, as now", others)
        for number, (name, another) in enumerate(zip(names, others, strict=True)):
            check(f"{where}.params[{number}]", name == another, f"{name!r}, as now", another)
        known = isinstance(groups, list) and len(groups) == len(now) and isinstance(groups[index], dict)
        kept = {key: _kept(value) for key, value in groups[index].items()} if known else {}
        for key, value in mine["settings"].items():
            fits = key in other["settings"] and same(other["settings"][key], value)
            fits = fits or (key != "lr" and key in kept and same(kept[key], value))
            check(f"{where}.{key}", fits, f"{short(value)}, as now", other["settings"].get(key))
        for key in other["settings"].keys() - mine["settings"].keys():
            check(f"{where}.{key}", False, "not there, as now", other["settings"][key])


def same(one: Any, other: Any) -> bool:
    """Return whether two settings are the same, as a file gives them back: tuples have become lists."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other.to(one))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
