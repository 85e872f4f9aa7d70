"""Watching: every torch function that takes one of some parameters, a view of one, or what was made of them alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inrfast.layers.bare_constant import PRODUCTS
from inrfast.layers.bare_linear import LINEAR
from inrfast.layers.bare_rows import put_in
from inrfast.layers.calls import EXPANDS, REPEATS, Call, Made, Put, tensors_in

OF_THE_FIRST = frozenset({Tensor.to, Tensor.type_as, Tensor.view_as, Tensor.reshape_as, Tensor.expand_as})
"""Functions that take only shape, dtype or device of the tensors behind their first one."""


class Watching(TorchFunctionMode):
    """Shows the calls that take watched parameters, in a block; the calls that ``make`` makes are what is run.

    Parameters
    ----------
    root
        The module that the parameters' names begin at.
    names
        The parameters to watch.
    points
        Number of points that it runs on.
    make
        ``make(call, idle)`` makes a call and returns its result; ``idle(result)`` tells whether the call only gave a
        view of the parameter, no tensor, or a tensor of parameters alone, whose calls are shown in their turn.

    Attributes
    ----------
    made
        What is made of a watched parameter itself and of other parameters, by its name.
    recording
        Whether that counts: activation checkpointing makes it once more in the backward pass.
    """

    def __init__(
        self,
        root: nn.Module,
        names: Sequence[str],
        points: int,
        make: Callable[[Call, Callable[[Any], bool]], Any],
    ) -> None:
        super().__init__()
        own = dict(root.named_parameters(remove_duplicate=False))  # of a scripted module too
        self.parameters: Mapping[str, Tensor] = {name: own[name] for name in names}
        self.points, self.make = points, make
        self.made: dict[str, list[Made]] = {}
        self.recording = True
        self._owners: dict[int, tuple[str, ...]] = {
            address_of(parameter): (name,) for name, parameter in self.parameters.items()
        }
        self._own = frozenset(self._owners)
        self._fixed = {address_of(tensor) for tensor in (*root.parameters(), *root.buffers())}
        self._alive: list[Tensor] = []  # so that no other tensor comes to lie at their address

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, by ``make`` if it takes a watched parameter and may be differentiated."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        given = [*tensors_in(args), *tensors_in(kwargs)]
        views: dict[str, dict[int, Tensor]] = {}
        for tensor in tensors_in(args[:1]) if function in OF_THE_FIRST else given:
            for name in self._owners.get(address_of(tensor), ()) if tensor.requires_grad else ():
                views.setdefault(name, {})[id(tensor)] = tensor
        if not views:
            result = function(*args, **kwargs)
            if given and all(address_of(tensor) in self._fixed for tensor in given):
                self._fix(result)
            return result
        hidden = any(torch.func.debug_unwrap(tensor) is not tensor for tensor in given)
        own = {name: () if hidden else tuple(found.values()) for name, found in views.items()}
        call = Call(
            function, args, kwargs, self.points, own, self.parameters, repeated=_in_checkpoint(), made=self.made
        )
        alone = not hidden and all(self._is_watched(tensor) or address_of(tensor) in self._fixed for tensor in given)
        if alone and function not in EXPANDS | REPEATS:
            result = self._made(call)
            self._watch(result, call)
            return result
        return self.make(call, lambda result: self._idle(call, result, alone))

    def _is_watched(self, tensor: Tensor) -> bool:
        return tensor.requires_grad and address_of(tensor) in self._owners

    def _fix(self, result: Any) -> None:
        """Take one row that was made of fixed tensors alone as fixed."""
        for tensor in tensors_in(result):
            if address_of(tensor) != -1 and (tensor.ndim == 0 or tensor.numel() == tensor.shape[-1]):
                self._fixed.add(address_of(tensor))
                self._alive.append(tensor)

    def _made(self, call: Call) -> Any:
        """Make a call that takes parameters alone, and note what it makes of a watched parameter itself."""
        result = call()
        fresh = any(tensor.requires_grad and address_of(tensor) not in self._own for tensor in tensors_in(result))
        owners = [
            name
            for name, views in call.views.items()
            if fresh and any(address_of(view) == address_of(self.parameters[name]) for view in views)
        ]
        whole = isinstance(result, Tensor) and (call.function in LINEAR or call.function in PRODUCTS)
        made = Made(replace(call, made={}), result if whole else None)  # without what would hold the tensor itself
        for name in owners if self.recording else ():
            self.made.setdefault(name, []).append(made)
        # A copy, so that an operation in place that follows does not change what was made.
        return result.clone() if owners and whole else result

    def _watch(self, result: Any, call: Call) -> None:
        """Watch what was made of parameters alone in their place."""
        for tensor in tensors_in(result):
            address = address_of(tensor)
            if not tensor.requires_grad or address in self._own:
                continue
            if address not in self._owners:
                self._alive.append(tensor)
            # What is written into it in place belongs to it too.
            self._owners[address] = tuple(dict.fromkeys((*self._owners.get(address, ()), *call.views)))

    def _idle(self, call: Call, result: Any, alone: bool) -> bool:
        if result is None:
            return call.name == "__get__"
        if alone:
            self._watch(result, call)
        return all(address_of(tensor) in self._owners or not tensor.requires_grad for tensor in tensors_in(result))


def _in_checkpoint() -> bool:
    """Return whether activation checkpointing called what runs now."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename != torch.utils.checkpoint.__file__:
        frame = frame.f_back
    return frame is not None


def address_of(tensor: Tensor) -> int:
    """Return where a tensor's memory begins; -1 for one without memory of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return -1


def uses_of(
    root: nn.Module, names: Sequence[str], run: Callable[[Tensor], Tensor], coords: Tensor
) -> dict[str, list[Call]]:
    """Return the calls that take parameters while ``run`` runs the module at points (n, d), by the parameter's name."""
    found: dict[str, list[Call]] = {name: [] for name in names}

    def make(call: Call, idle: Callable[[Any], bool]) -> Any:
        for name in call.views if call.function in EXPANDS | REPEATS else ():
            if isinstance(put := put_in(call, name), Put):  # its copies are no longer the parameter
                for one in call.views:
                    found[one].append(call)
                return put.call()
        result = call()
        seen = replace(call, idle=idle(result))
        for name in call.views:
            found[name].append(seen)
        return result

    with Watching(root, names, len(coords), make), torch.enable_grad():
        run(coords)
    return found
