"""What a loss or a schedule of the user's own holds: modules that nobody trains, and what tells it from another."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
"""Values that are what they print."""

SHOWN = (*PLAIN, np.generic, np.dtype, slice, range, Enum, PurePath)
"""Values that are told from others by what they print."""

LIBRARIES = ("torch", "numpy", "inrfast")
"""Packages whose code is taken as known."""

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]} "
"""Begins every hash of code: other Pythons have other instructions for the same text."""

UNKNOWN = "an object of "
"""Begins the description of what is not looked into."""

DEEPEST = 8
"""Containers and objects inside each other that are looked into."""

MOST = 10_000
"""Objects that are looked at: a loss may hold whole data sets."""


# ---- what a callable holds ---------------------------------------------------------------------------------------


def held(given: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a callable can reach, with a name: closure, defaults, globals, bound object, arguments, attributes."""
    if isinstance(given, functools.partial):
        yield "func", given.func
        yield from ((f"args[{i}]", value) for i, value in enumerate(given.args))
        yield from given.keywords.items()
    elif isinstance(given, MethodType):
        yield "__self__", given.__self__
        yield "__func__", given.__func__
    elif isinstance(given, FunctionType):
        yield from _of_function(given)
    elif not isinstance(given, (BuiltinFunctionType, type)):
        call = next((vars(kind)["__call__"] for kind in type(given).__mro__ if "__call__" in vars(kind)), None)
        if isinstance(call, FunctionType):
            yield "__call__", call
        yield from getattr(given, "__dict__", {}).items()


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    names = inspect.signature(function).parameters
    yield from ((name, p.default) for name, p in names.items() if p.default is not inspect.Parameter.empty)
    if not _known(function.__module__):
        used = dict.fromkeys(name for code in _codes(function.__code__) for name in code.co_names)
        yield from ((name, function.__globals__[name]) for name in used if name in function.__globals__)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _known(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARIES


# ---- modules that nobody trains ----------------------------------------------------------------------------------


def warn_of_untrained(loss: Any, nets: Sequence[nn.Module], stacklevel: int) -> None:
    """Warn if a loss holds what asks to be trained and will not be."""
    found = untrained(loss, nets) if callable(loss) else []
    if found:
        warnings.warn(
            f"the loss holds {', '.join(found)}, which the fit does not train: it trains the parameters of the network "
            "alone. Make it a part of the network (net.name = module) to train it, or freeze it "
            "(requires_grad_(False)) if it is meant to stay",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def untrained(loss: Callable[..., Any], nets: Sequence[nn.Module]) -> list[str]:
    """Return names of what a loss holds that asks to be trained and is no part of the networks.

    Modules with trainable parameters, and leaf tensors that require gradients, in what :func:`held` finds, in
    containers, and in the attributes of objects there.
    """
    trained = {id(parameter) for net in nets for parameter in net.parameters()}
    seen: set[int] = set()
    found: list[str] = []

    def look(name: str, value: Any, depth: int) -> None:
        if id(value) in seen or depth > DEEPEST or len(seen) > MOST or isinstance(value, (ModuleType, *PLAIN)):
            return
        seen.add(id(value))
        if isinstance(value, nn.Module):
            own = [parameter for parameter in value.parameters() if parameter.requires_grad]
            if any(id(parameter) not in trained for parameter in own):
                found.append(f"{name} ({type(value).__name__})")
        elif isinstance(value, Tensor):
            if value.is_leaf and value.requires_grad and id(value) not in trained:
                found.append(f"{name} (tensor {tuple(value.shape)})")
        elif isinstance(value, Mapping):
            for key, inner in itertools.islice(value.items(), MOST):
                look(f"{name}[{key!r}]", inner, depth + 1)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for place, inner in enumerate(itertools.islice(value, MOST)):
                look(f"{name}[{place}]", inner, depth + 1)
        elif not _known(type(value).__module__) and (callable(value) or hasattr(value, "__dict__")):
            for inner_name, inner in held(value):
                inside = f"{name}.{inner_name}" if not isinstance(value, FunctionType) else inner_name
                look(inside.replace(".__self__", "").replace(".__func__", ""), inner, depth + 1)

    look(getattr(loss, "__name__", type(loss).__name__), loss, 0)
    return found


# ---- what tells one from another ---------------------------------------------------------------------------------


def described(given: Any) -> dict[str, str]:
    """Return what tells a callable from another of the same name: hashes of code, and plain values and tensors held.

    What it calls in libraries, and their objects, are not looked into: of those the description is their class.
    """
    found: dict[str, str] = {}
    _describe("", given, found, set(), 0)
    return found


def _describe(name: str, value: Any, found: dict[str, str], seen: set[int], depth: int) -> None:
    if isinstance(value, SHOWN):
        found[name] = repr(value)
    elif isinstance(value, Tensor):
        found[name] = _hash_of_tensor(value)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        found[name] = hashlib.sha256(f"{value.shape} {value.dtype}".encode() + value.tobytes()).hexdigest()[:16]
    elif isinstance(value, (list, tuple, set, frozenset, Mapping)) and (text := _plain(value)) is not None:
        found[name] = text
    elif isinstance(value, FunctionType) and _known(value.__module__):
        found[name] = f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, (BuiltinFunctionType, type)):
        found[name] = value.__qualname__
    elif isinstance(value, ModuleType):
        return
    elif isinstance(value, nn.Module):
        if id(value) not in seen:
            found.update({f"{name}.{key}".removeprefix("."): text for key, text in attributes(value, seen).items()})
    elif id(value) in seen:
        return
    elif depth >= DEEPEST or len(seen) > MOST:
        found[name] = f"{UNKNOWN}{type(value).__qualname__}"
    else:
        seen.add(id(value))
        _describe_inside(name, value, found, seen, depth + 1)


def _describe_inside(name: str, value: Any, found: dict[str, str], seen: set[int], depth: int) -> None:
    """Describe what a container, a callable or an object holds."""
    if isinstance(value, Mapping):
        for key, own in value.items():
            _describe(f"{name}[{key!r:.40}]", own, found, seen, depth)
    elif isinstance(value, (list, tuple)):
        for place, own in enumerate(value):
            _describe(f"{name}[{place}]", own, found, seen, depth)
    elif callable(value):
        if isinstance(value, FunctionType):
            found[f"{name}.code".removeprefix(".")] = hash_of_code(value)
        inside = list(held(value))
        for inner, own in inside:
            _describe(f"{name}.{inner}".removeprefix("."), own, found, seen, depth)
        if not inside and not isinstance(value, FunctionType):
            found[name] = f"{UNKNOWN}{type(value).__qualname__}"
    elif hasattr(value, "__dict__") and not _known(type(value).__module__):
        found.update({f"{name} ({key})": text for key, text in _of_classes(type(value).__mro__).items()})
        for inner, own in vars(value).items():
            _describe(f"{name}.{inner}".removeprefix("."), own, found, seen, depth)
    else:
        found[name] = f"{UNKNOWN}{type(value).__qualname__}"


def attributes(net: nn.Module, seen: set[int] | None = None) -> dict[str, str]:
    """Return what tells a module from another of the same text: attributes, arrays and functions, and its classes.

    Parameters and buffers are left out: they are state. So is what torch and this library define. Objects that were
    ``seen`` are not described again.
    """
    found: dict[str, str] = {}
    classes: set[type] = set()
    seen = set() if seen is None else seen
    seen.update(map(id, net.modules()))
    inside = set(vars(nn.Module())) | {"_parameters", "_buffers", "_modules"}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            if key not in inside and not isinstance(value, nn.Module):
                _describe(f"{name}.{key}".removeprefix("."), value, found, seen, 0)
        classes.update(kind for kind in type(module).__mro__ if not _known(kind.__module__))
    return {**found, **_of_classes(classes)}


def _of_classes(kinds: Iterable[type]) -> dict[str, str]:
    """Return what tells classes from others of their names: plain values, and a hash of their functions."""
    found = {}
    for kind in (kind for kind in kinds if kind.__module__ != "builtins" and not _known(kind.__module__)):
        for key, value in vars(kind).items():
            text = None if key.startswith("__") else _plain(value)
            if text is not None:
                found[f"class {kind.__qualname__}.{key}"] = text
        codes = [f"{key} {hash_of_code(value)}" for key, value in vars(kind).items() if isinstance(value, FunctionType)]
        if codes:
            found[f"class {kind.__qualname__}"] = PYTHON + hashlib.sha256("\n".join(codes).encode()).hexdigest()[:16]
    return found


def uncompared(now: dict[str, str], then: dict[str, str]) -> list[str]:
    """Return the entries of a description that tell nothing, or nothing beside those of another Python."""
    unknown = [f"{key} ({text})" for key, text in sorted(now.items()) if text.startswith(UNKNOWN)]
    for key in sorted(now.keys() & then.keys()):
        versions = [text.partition(" ")[0] for text in (now[key], then[key])]
        if now[key].startswith(PYTHON) and versions[0] != versions[1]:
            unknown.append(f"{key} (its code is of {versions[1]})")
    return unknown


def different(now: dict[str, str], then: dict[str, str]) -> list[str]:
    """Return the entries of two descriptions that both have and that differ; other Pythons' code is not compared."""
    wrong = []
    for key in sorted(now.keys() & then.keys()):
        mine, other = now[key], then[key]
        code = mine.startswith(PYTHON) or other.startswith("python")
        if mine != other and not (code and mine.partition(" ")[0] != other.partition(" ")[0]):
            wrong.append(key if code else f"{key} (now {mine}, in the checkpoint {other})")
    return wrong


def hash_of_code(function: FunctionType) -> str:
    """Return a hash of what a function does: its instructions, names and constants, its docstring and lines aside."""
    digest = hashlib.sha256()
    for code in _codes(function.__code__):
        digest.update(code.co_code)
        constants = [c for c in code.co_consts if not isinstance(c, CodeType) and c != function.__doc__]
        digest.update(repr((code.co_names, code.co_freevars, [_plain(c) for c in constants])).encode())
    return PYTHON + digest.hexdigest()[:16]


def _plain(value: Any) -> str | None:
    """Return a value in words if it and all inside it are plain, the same in every process; else None."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, Mapping):
        parts = [(_plain(key), _plain(inner)) for key, inner in value.items()]
        return None if any(None in part for part in parts) else repr(sorted(map(str, parts)))
    if isinstance(value, (list, tuple, Set)):
        texts = [_plain(inner) for inner in value]
        if any(text is None for text in texts):
            return None
        return f"{type(value).__name__}{sorted(map(str, texts)) if isinstance(value, Set) else texts}"
    return None


def _hash_of_tensor(tensor: Tensor) -> str:
    kept = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(kept.view(torch.uint8).numpy().data if kept.numel() else b"")
    return digest.hexdigest()[:16]
