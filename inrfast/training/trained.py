"""What a fit trains: nobody else trains it meanwhile, and callbacks leave its parameters where they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from inrfast import system

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where torch keeps the functions that a module calls in its passes."""


class ChangedError(ValueError):
    """Code of the user's own has changed what is trained so that the fit cannot go on, nor be saved."""


# ---- one fit at a time -------------------------------------------------------------------------------------------

_in_training: dict[int, tuple[object, Tensor]] = {}
_lock = threading.Lock()
system.after_fork(_in_training.clear)  # the fits of other threads are not there


@contextmanager
def sole_trainer(given: Mapping[str, nn.Module]) -> Iterator[None]:
    """Train the parameters of these modules, by what they are called, in this block, and nobody else.

    Raises
    ------
    RuntimeError
        Another fit of this process trains one of them.
    """
    fit = object()
    try:
        with _lock:
            for argument, module in given.items():
                for name, parameter in module.named_parameters():
                    if not parameter.requires_grad:
                        continue
                    if _in_training.setdefault(id(parameter), (fit, parameter))[0] is not fit:
                        raise RuntimeError(
                            f"{argument}.{name} is being trained by another fit, in another thread or around this "
                            "callback; wait for its end, or fit a copy (copy.deepcopy)"
                        )
        yield
    finally:
        with _lock:
            for key in [key for key, (owner, _) in _in_training.items() if owner is fit]:
                del _in_training[key]


# ---- where parameters are ----------------------------------------------------------------------------------------


class Layout:
    """Modules, hooks and parameters of a network as they were when its fit took them.

    Parameters
    ----------
    given
        The network and what is trained with it, by what they are called in messages.
    hooks
        Whether hooks that come later would not be called.
    """

    def __init__(self, given: Mapping[str, nn.Module], hooks: bool) -> None:
        self.given, self.hooks = dict(given), hooks
        self.before = _facts(self.given.values(), hooks)
        self.named = self._named()
        # Or an address could be that of another object by now.
        self.held = [(list(module.modules()), list(module.parameters())) for module in self.given.values()]

    def _named(self) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        for argument, root in self.given.items():
            for name, module in root.named_modules():
                found[f"{argument}.{name}".removesuffix(".")] = (id(module), *_hooks_of(module, self.hooks))
            found.update({f"{argument}.{name}": _of_parameter(p, self.hooks) for name, p in root.named_parameters()})
        return found

    def change(self) -> str | None:
        """Say in words what is another now; None if all is as it was. Numbers may be others."""
        if _facts(self.given.values(), self.hooks) == self.before:
            return None
        now = self._named()
        for name, was in self.named.items():
            if name not in now:
                return f"{name} is gone"
            if (new := now[name]) == was:
                continue
            if new[0] != was[0]:
                return f"{name} was replaced"
            if len(was) == 6 and new[1:5] != was[1:5]:  # a parameter
                if new[4] != was[4]:
                    return f"{name} was {'unfrozen' if new[4] else 'frozen'}"
                return f"{name} is {new[2]} now" if new[2] != was[2] else f"{name} has other memory (.data = ...)"
            return f"hooks of {name} were added or removed"
        return f"{next(iter(now.keys() - self.named.keys()), 'something')} is new"


def _facts(roots: Any, hooks: bool) -> list[Any]:
    """Return what identifies the modules and parameters of some modules; quickly, since every step may ask."""
    found: list[Any] = []
    todo, seen = list(roots), set()
    while todo:
        module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found += (id(module), *_hooks_of(module, hooks))
        for parameter in module._parameters.values():
            if parameter is not None:
                found += _of_parameter(parameter, hooks)
        todo += [child for child in module._modules.values() if child is not None]
    return found


def _hooks_of(module: nn.Module, hooks: bool) -> tuple[int, ...]:
    return tuple(len(getattr(module, key)) for key in HOOKS) if hooks else ()


def _of_parameter(parameter: Tensor, hooks: bool) -> tuple[Any, ...]:
    own = parameter._backward_hooks if hooks else None
    return (
        id(parameter),
        parameter.data_ptr(),
        parameter.dtype,
        parameter.shape,
        parameter.requires_grad,
        len(own) if own else 0,
    )


def named_of(net: nn.Module, modules: Sequence[nn.Module], index: int | None) -> dict[str, nn.Module]:
    """Return a network and what is trained with it by what they are called; ``index``: its place in ``fit_many``."""
    place = "" if index is None else f"[{index}]"
    return {"net" if index is None else f"nets{place}": net} | {
        f"modules{place}[{i}]": module for i, module in enumerate(modules)
    }
