"""Snapshots of networks: independent copies, in the network's own dtype or converted to fp64."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.errors import UnsupportedModuleError

WIDE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}

TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))

REGISTERED = frozenset({"_parameters", "_buffers", "_modules"})

FOREIGN = frozenset({"torch", "numpy", "builtins", "collections", "functools", "threading", "logging"})
"""Packages whose objects are not searched for tensors."""


def twin(net: nn.Module) -> nn.Module:
    """Return a copy that shares the parameters, to run without side effects; the network itself if it has no copy."""
    try:
        return snapshot(net, parameters=False)
    except UnsupportedModuleError:
        return net


def snapshot(net: nn.Module, parameters: bool = True) -> nn.Module:
    """Return a copy of a network, with its ``parameters`` or with those of the network itself.

    Tensors that a module keeps from a forward pass (activations, pruned weights) belong to an autograd graph, which
    cannot be copied: the copy holds their values.

    Raises
    ------
    UnsupportedModuleError
        An attribute cannot be copied; the message names it.
    """
    memo: dict[int, Any] = {} if parameters else {id(parameter): parameter for parameter in net.parameters()}
    for tensor in _tensors(net, set()):
        if not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
    try:
        copied = copy.deepcopy(net, memo)
    except Exception as error:
        raise UnsupportedModuleError(
            f"{_culprit(net)} cannot be copied ({type(error).__name__}: {error}), and factors are made by a copy of "
            "the network. Take it off the module (del), make it a property or hold it outside, or give its class "
            "__deepcopy__"
        ) from error
    for module in copied.modules():
        own = vars(module)
        if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:  # slow to import
            own["forward"] = module._modules["_orig_mod"]
        own.pop("_compiled_call_impl", None)
    return copied


def _culprit(net: nn.Module) -> str:
    """Return the name of the attribute that cannot be copied."""
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            if key not in TORCH_ATTRIBUTES:
                try:
                    copy.deepcopy(value)
                except Exception:
                    return f"attribute {key!r} of module {name or type(net).__name__!r}"
    return "net"


def widen_(net: nn.Module) -> nn.Module:
    """Convert a copy of a network to fp64 in place: parameters, buffers and tensors in plain attributes.

    ``nn.RMSNorm(eps=None)`` takes its epsilon from the dtype; the copy keeps the epsilon of the old dtype, and so stays
    the same function.
    """
    own = own_dtype(net)
    for module in net.modules():
        if isinstance(module, nn.RMSNorm) and module.eps is None:
            dtype = own if module.weight is None else module.weight.dtype
            module.eps = rms_norm_epsilon(dtype)
    net.double()  # net.to(torch.float64) would make complex buffers real
    _convert(net, _widened, {})
    return net


def own_dtype(net: nn.Module) -> torch.dtype:
    """Return the dtype of a network: that of its first floating parameter."""
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)


def rms_norm_epsilon(dtype: torch.dtype) -> float:
    """Return the epsilon that ``nn.RMSNorm(eps=None)`` adds for inputs of ``dtype``, measured.

    For 16-bit inputs some versions of torch take the epsilon of fp32, others that of the dtype.
    """
    entry = 1e-4
    if dtype == torch.float64:
        return torch.finfo(dtype).eps
    z = torch.full((1, 4), entry, dtype=dtype)
    found = float(F.rms_norm(z, [4])[0, 0].double())
    measured = max(float(z[0, 0].double()) ** 2 * (1 / found**2 - 1), 1e-30)
    known = [torch.finfo(torch.float32).eps, torch.finfo(dtype).eps]
    return min(known, key=lambda eps: abs(math.log(eps / measured)))


def _widened(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        wide = torch.float64
    else:
        wide = WIDE.get(tensor.dtype, tensor.dtype)
    if tensor.dtype == wide:
        return tensor
    if isinstance(tensor, nn.Parameter):
        tensor.data = tensor.data.to(wide)
        return tensor
    return tensor.detach().to(wide)


# ---- tensors in plain attributes ---------------------------------------------------------------------------------


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object of a user's class; None for objects that are not searched."""
    if isinstance(value, (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
        return None
    if not isinstance(value, nn.Module) and type(value).__module__.partition(".")[0] in FOREIGN:
        return None
    return getattr(value, "__dict__", None)


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield every tensor that is reached from ``value`` through attributes, lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen or isinstance(value, (str, bytes, int, float)):
        return
    seen.add(id(value))
    if isinstance(value, types.MethodType):
        yield from _tensors(value.__self__, seen)
    elif isinstance(value, Mapping):
        for item in list(value.values()):
            yield from _tensors(item, seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in list(value):
            yield from _tensors(item, seen)
    else:
        for item in list((_attributes(value) or {}).values()):
            yield from _tensors(item, seen)


def _convert(value: Any, change: Callable[[Tensor], Tensor], seen: dict[int, tuple[Any, Any]]) -> Any:
    """Return ``value`` with its tensors changed; lists, dictionaries and objects are changed in place.

    ``seen`` holds what was converted before, so that what was one object stays one.
    """
    if isinstance(value, (str, bytes, int, float)):
        return value
    if id(value) not in seen:
        seen[id(value)] = (value, value)  # already seen: cycles end here
        seen[id(value)] = (value, _converted(value, change, seen))
    return seen[id(value)][1]


def _converted(value: Any, change: Callable[[Tensor], Tensor], seen: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [_convert(item, change, seen) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        value[:] = [_convert(item, change, seen) for item in value]
        return value
    attributes = value if isinstance(value, dict) else _attributes(value)
    for key, item in list((attributes or {}).items()):
        if isinstance(value, nn.Module) and key in TORCH_ATTRIBUTES - REGISTERED:
            continue
        new = _convert(item, change, seen)
        if new is not item:
            assert attributes is not None
            attributes[key] = new
    return value
