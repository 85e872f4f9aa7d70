"""Optimisers, clipping and learning-rate schedules of a fit."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inrfast.errors import check_choice, check_float
from inrfast.training.schema import anything, check, fields, listed, named, short
from inrfast.training.stack import Stack, has_gaps, names_of

OPTIMIZERS = ("adam", "adamw", "sgd")
"""Optimisers known by name, with torch's defaults; they update several networks at once."""

ADAM: dict[str, Any] = {
    "foreach": False,
    "amsgrad": False,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "maximize": False,
}
"""Arguments of ``torch.optim.adam.adam`` that are the same in every fit: torch's defaults."""

NAMES = ("params", "param_names")
"""What says which parameters a group has, in torch's own ways."""

LIKE_PARAMETER = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"),
    *("sum", "ax", "prev", "step_size"),
}
"""What torch's optimisers keep in the shape of each parameter."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "exponential": lambda progress: 0.1**progress,
}
"""Factor of the learning rate as a function of the fraction of the fit that is done."""


def learning_rates(lr: float, schedule: str | Callable[[int], float], steps: int) -> Callable[[int], float]:
    """Return the learning rate of each step ``0 <= t < steps``.

    Parameters
    ----------
    lr
        Learning rate that the schedule multiplies.
    schedule
        ``"exponential"`` (``0.1^(t/steps)``, a tenth at the end), ``"cosine"`` (to 0), ``"constant"``, or a callable
        from the step to a factor.

    Raises
    ------
    ValueError, TypeError
        An unknown name (with the nearest match); later, a callable whose factor is negative, not finite or no number.
    """
    if not callable(schedule):
        shape = SCHEDULES[check_choice("schedule", schedule, SCHEDULES)]
        return lambda step: lr * shape(step / steps)
    return lambda step: lr * check_float(f"schedule({step})", schedule(step), minimum=0.0)


class Optimizer(Protocol):
    """What a fit asks for: updates of a stack from its gradients, and a state that can be kept."""

    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        """Update with one learning rate a network; ``again`` takes the gradients anew and returns the loss."""
        ...

    def keep(self, stack: Stack, index: Sequence[int]) -> None:
        """Go on with ``stack``, which holds the networks ``index`` of the one before."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, beside weights and gradients."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        ...


class Adam:
    """Adam and AdamW with torch's defaults, for one or several networks, in the fused form where the device has one.

    The update itself is ``torch.optim.adam.adam``, which is no public name: a torch without it takes
    :func:`plain_adam`. The class ``torch.optim.Adam`` would import torch's compiler when
    it is made, which takes longer than many a fit; and on a CPU the fused update took a third of the time of the others
    on the weights of a 3 x 256 network.

    Parameters
    ----------
    stack
        What is updated, from its gradients.
    weight_decay
        Added to the gradient as ``weight_decay * p`` (Adam) or, ``decoupled``, taken off as ``lr weight_decay p``
        (AdamW; Loshchilov and Hutter, ICLR 2019).
    """

    def __init__(self, stack: Stack, weight_decay: float = 0.0, decoupled: bool = False) -> None:
        self.weight_decay, self.decoupled = weight_decay, decoupled
        self.means = {name: torch.zeros_like(grad) for name, grad in stack.grads.items()}
        self.squares = {name: torch.zeros_like(grad) for name, grad in stack.grads.items()}
        # Step counts are fp32 tensors on the device: what the fused update takes.
        self.steps = {
            name: torch.zeros((), dtype=torch.float32, device=grad.device) for name, grad in stack.grads.items()
        }
        self._take(stack)

    def _take(self, stack: Stack) -> None:
        self.parameters = [stack.parameters[name] for name in stack.grads]
        self.grads = list(stack.grads.values())
        # The fused update walks raw memory: a parameter with gaps is updated in a copy, laid out as its gradient is.
        self.copies = {i: torch.empty_like(self.grads[i]) for i, p in enumerate(self.parameters) if has_gaps(p)}
        self.blocks = [self.copies.get(i, parameter) for i, parameter in enumerate(self.parameters)]
        self.fused = self.grads[0].device.type in ("cpu", "cuda")

    @torch.no_grad()
    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        """Update the parameters in place."""
        if min(rates) == max(rates):
            for i, copy in self.copies.items():
                copy.copy_(self.parameters[i])
            self._update(self.blocks, rates[0], self.weight_decay)
            for i, copy in self.copies.items():
                self.parameters[i].copy_(copy)
            return
        # An update is a multiple of its rate: it is taken at the rate 1 from 0, then each network's multiple added.
        moves = [torch.zeros_like(grad) for grad in self.grads]
        own = [_per_network(rates, parameter) for parameter in self.parameters]
        for parameter, grad, rate in zip(self.parameters, self.grads, own, strict=True):
            if self.weight_decay and self.decoupled:
                parameter.mul_(1 - rate * self.weight_decay)
            elif self.weight_decay:
                grad.add_(parameter, alpha=self.weight_decay)
        self._update(moves, 1.0, 0.0)
        for parameter, move, rate in zip(self.parameters, moves, own, strict=True):
            parameter.addcmul_(move, rate)

    def _update(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        functional_adam()(
            parameters,
            self.grads,
            list(self.means.values()),
            list(self.squares.values()),
            [],
            list(self.steps.values()),
            fused=self.fused,
            decoupled_weight_decay=self.decoupled,
            lr=lr,
            weight_decay=weight_decay,
            **ADAM,
        )

    def keep(self, stack: Stack, index: Sequence[int]) -> None:
        """See :class:`Optimizer`."""
        for moments in (self.means, self.squares):
            for name, grad in stack.grads.items():
                moments[name] = torch.empty_like(grad).copy_(moments[name][list(index)])
        self._take(stack)

    def state(self) -> dict[str, Any]:
        """See :class:`Optimizer`."""
        return {"means": self.means, "squares": self.squares, "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        """See :class:`Optimizer`."""
        for key, own in self.state().items():
            for name, tensor in own.items():
                tensor.copy_(state[key][name])


def plain_adam(
    parameters: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    largest: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    **options: Any,
) -> None:
    """Update as ``torch.optim.adam.adam`` does without AMSGrad (Kingma and Ba, ICLR 2015), in plain operations."""
    for parameter, grad, mean, square, step in zip(parameters, grads, means, squares, steps, strict=True):
        step.add_(1)
        count = float(step)
        if weight_decay and decoupled_weight_decay:
            parameter.mul_(1 - lr * weight_decay)
        elif weight_decay:
            grad = grad.add(parameter, alpha=weight_decay)
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = square.sqrt().div_(math.sqrt(1 - beta2**count)).add_(eps)
        parameter.addcdiv_(mean, scale, value=-lr / (1 - beta1**count))


@functools.cache
def functional_adam() -> Callable[..., None]:
    """Return ``torch.optim.adam.adam`` if it is there and takes our arguments, else :func:`plain_adam`."""
    one, zero = torch.ones(1), torch.zeros(1)
    try:
        from torch.optim.adam import adam

        tensors: tuple[Any, ...] = [one.clone()], [one], [zero.clone()], [zero.clone()], [], [torch.zeros(())]
        update: Callable[..., None] = adam
        update(*tensors, fused=True, decoupled_weight_decay=False, lr=1.0, weight_decay=0.0, **ADAM)
    except Exception:  # a private function may be gone or changed in any way
        return plain_adam
    return update


class SGD:
    """Plain gradient descent ``p - lr (g + weight_decay p)``, for one or several networks."""

    def __init__(self, stack: Stack, weight_decay: float = 0.0) -> None:
        self.stack, self.weight_decay = stack, weight_decay

    @torch.no_grad()
    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        """Update the parameters in place."""
        for name, grad in self.stack.grads.items():
            parameter = self.stack.parameters[name]
            if self.weight_decay:
                grad.add_(parameter, alpha=self.weight_decay)
            parameter.addcmul_(grad, _per_network(rates, parameter), value=-1)

    def keep(self, stack: Stack, index: Sequence[int]) -> None:
        """See :class:`Optimizer`."""
        self.stack = stack

    def state(self) -> dict[str, Any]:
        """See :class:`Optimizer`."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """See :class:`Optimizer`."""


class TorchOptimizer:
    """Any ``torch.optim.Optimizer`` of one network; the schedule multiplies the rates of its groups.

    Raises
    ------
    ValueError
        Its parameters are not the network's trainable ones; it is fused, and one of them is a view with gaps.
    """

    def __init__(self, stack: Stack, optimizer: torch.optim.Optimizer, lr: float) -> None:
        self.stack, self.optimizer, self.lr = stack, optimizer, lr
        self.rates = [group["lr"] for group in optimizer.param_groups]
        mine = {stack.owner(name): name for name in stack.trainable}
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        foreign, missing = len(held - set(mine)), [name for parameter, name in mine.items() if parameter not in held]
        if foreign or missing:
            found = [f"{foreign} parameter(s) that are not"] if foreign else []
            found += [f"not {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"] if missing else []
            beside = " and those of modules" if stack.modules else ""
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
        """Update the parameters in place."""
        for name, grad in self.stack.grads.items():
            self.stack.owner(name).grad = grad[0]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (rates[0] / self.lr)
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.step(again)  # it takes several gradients a step, where it searches
        else:
            self.optimizer.step()

    def release(self) -> None:
        """Give the groups their own rates back."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    def keep(self, stack: Stack, index: Sequence[int]) -> None:
        """See :class:`Optimizer`."""

    def state(self) -> dict[str, Any]:
        """See :class:`Optimizer`."""
        return self.optimizer.state_dict()

    def check(self, state: dict[str, Any], place: str, settings: bool = True) -> None:
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


def make(name: str, stack: Stack, weight_decay: float) -> Optimizer:
    """Return the optimiser of that name, one of :data:`OPTIMIZERS`."""
    if name == "sgd":
        return SGD(stack, weight_decay)
    return Adam(stack, weight_decay, decoupled=name == "adamw")


def _per_network(rates: Sequence[float], parameter: Tensor) -> Tensor:
    """Return the rates (B, 1, ...) for a stacked parameter."""
    return torch.tensor(rates, dtype=parameter.dtype, device=parameter.device).view(-1, *[1] * (parameter.ndim - 1))


@torch.no_grad()
def clip_(stack: Stack, clip_norm: float) -> None:
    """Shorten each network's gradient to this norm over all its parameters where it is longer."""
    rows = [grad.reshape(len(grad), -1).double() for grad in stack.grads.values()]
    squares = torch.stack([row.square().sum(1) for row in rows]).sum(0)
    factors = (clip_norm / squares.sqrt().clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    for grad in stack.grads.values():
        grad.mul_(factors.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1)))
