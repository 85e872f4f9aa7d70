"""What a loss or a schedule of the user's own holds: modules that nobody trains, and what tells it from another."""

from __future__ import annotations

import dis
import functools
import hashlib
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.activations import BoundActivation
from inrfast.training.objective import Objective

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
"""Values that are what they print."""

SHOWN = (*PLAIN, np.generic, np.dtype, slice, range, Enum, PurePath)
"""Values that are told from others by what they print."""

LIBRARIES = ("torch", "numpy", "inrfast")
"""Packages whose code is taken as known."""

MARKS = ("torch._dynamo", "dataclasses", "logging")
"""Packages of what changes no number: loggers, and what compilers and data classes add to what the user wrote."""

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]} "
"""Begins every hash of code: other Pythons have other instructions for the same text."""

UNKNOWN = "an object of "
"""Begins the description of what is not looked into."""

MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Where torch keeps functions that watch or change passes and gradients."""

GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "IMPORT_NAME")
"""Instructions that read a global, or import a module: other names in code are those of attributes."""

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
        yield from own_attributes(given)


def own_attributes(given: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object itself, those in slots of its classes included."""
    yield from getattr(given, "__dict__", {}).items()
    for kind in type(given).__mro__:
        if "__slots__" in vars(kind):
            for name, slot in vars(kind).items():
                if isinstance(slot, MemberDescriptorType) and hasattr(given, name):
                    yield name, getattr(given, name)


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function reaches: closure, defaults, attributes, globals, what it names of modules."""
    codes = list(_codes(function.__code__))
    used = dict.fromkeys(name for code in codes for name in code.co_names)
    for name, value in itertools.chain(_bound(function), _global(function, codes)):
        if value is os.environ or value is os.getenv or value is os:
            if value is not os or not used.keys().isdisjoint(("environ", "getenv")):
                yield from _of_environment(codes, function.__doc__)
        elif isinstance(value, ModuleType):
            yield from _of_module(name, value, used, 0)
        else:
            yield name, value


def _bound(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    yield from zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    yield from vars(function).items()


def _global(function: FunctionType, codes: Iterable[CodeType]) -> Iterator[tuple[str, Any]]:
    """Yield the globals that a function reads, and modules that it imports itself; none of a package's function."""
    if _foreign(function.__module__) or _installed(function.__module__):
        return
    for name, imported in dict.fromkeys(pair for code in codes for pair in _names_read(code)):
        if imported:
            if isinstance(module := sys.modules.get(name), ModuleType):
                yield name, module
        elif name in function.__globals__:
            yield name, function.__globals__[name]


@functools.lru_cache(maxsize=1024)
def _names_read(code: CodeType) -> tuple[tuple[str, bool], ...]:
    """Return the names that code looks up among globals, each with whether it imports it."""
    read = [(i.argval, i.opname == "IMPORT_NAME") for i in dis.get_instructions(code) if i.opname in GLOBALS]
    return tuple(dict.fromkeys(read))


def _of_module(name: str, module: ModuleType, used: Iterable[str], depth: int) -> Iterator[tuple[str, Any]]:
    """Yield what is in a module under one of the names ``used``; of installed packages, plain values and arrays."""
    if _foreign(module.__name__) or depth > DEEPEST:
        return
    installed = _installed(module.__name__)
    for key in used:
        value = vars(module).get(key)
        if isinstance(value, ModuleType):
            yield from _of_module(f"{name}.{key}", value, [own for own in used if own != key], depth + 1)
        elif key in vars(module) and (not installed or isinstance(value, (*SHOWN, Tensor, np.ndarray))):
            yield f"{name}.{key}", value


def _of_environment(codes: Iterable[CodeType], doc: str | None) -> Iterator[tuple[str, Any]]:
    """Yield hashes of the variables of the environment that code may name: they may be secrets."""
    texts = (constant for code in codes for constant in code.co_consts if isinstance(constant, str))
    for name in dict.fromkeys(text for text in texts if text != doc and len(text) < 100):
        value = os.environ.get(name)
        hashed = None if value is None else hashlib.sha256(os.fsencode(value)).hexdigest()[:16]
        yield f"os.environ[{name!r}]", hashed


def _installed(module: str | None) -> bool:
    """Return whether a module is one of an installed package, whose functions reach further than anybody can look."""
    found = sys.modules.get(module or "")
    file = vars(found).get("__file__") if isinstance(found, ModuleType) else None
    return "-packages" in str(file)


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") or hasattr(type(value), "__slots__")


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _known(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARIES


def _foreign(module: str | None) -> bool:
    """Return whether a module's code is taken as known, and no text of the user's: a library's or Python's own."""
    return _known(module) or (module or "").partition(".")[0] in sys.stdlib_module_names


# ---- modules that nobody trains ----------------------------------------------------------------------------------


def check_trained(objective: Objective, nets: Sequence[nn.Module], many: bool = False, select: Any = None) -> None:
    """Refuse functions of an objective, and a function ``select``, that hold what asks to be trained and will not be.

    ``many`` networks have one function in common, which must ask for modules of their own.

    Raises
    ------
    ValueError
        It is a part neither of the networks nor of the objective's modules; the message names it.
    """
    given = [(term.place, term.call) for term in objective.terms]
    for place, call in [*given, *([("select", select)] if callable(select) else [])]:
        found = untrained(call, [*nets, *objective.modules])
        if found:
            instead = "hand it over (modules=[...]; a bare tensor goes into a module)"
            if many:
                instead = (
                    "hand over one per network (modules=[...]), and let the function ask for them by name, modules, "
                    "as in lambda net, coords, step, modules: modules[0](net, coords, step)"
                )
            raise ValueError(
                f"{place} holds {', '.join(found)}, which asks to be trained, and the fit does not train it: "
                f"{instead}, or freeze it (requires_grad_(False)) if it is meant to stay"
            )


def untrained(loss: Callable[..., Any], nets: Sequence[nn.Module]) -> list[str]:
    """Return names of what a function holds that asks to be trained and is no part of these modules.

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
        elif not _known(type(value).__module__) and (callable(value) or _is_object(value)):
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
    elif isinstance(value, FunctionType) and _foreign(value.__module__):
        found[name] = f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, np.ufunc):
        found[name] = value.__name__
    elif isinstance(value, (BuiltinFunctionType, type)):
        found[name] = value.__qualname__
        if isinstance(value, type) and depth < DEEPEST:
            _describe_classes(name, value.__mro__, found, seen, depth + 1)
    elif isinstance(value, ModuleType) or value is os.environ or _is_mark(type(value).__module__):
        return
    elif isinstance(value, BoundActivation):
        found[name] = f"{value.name} {value.named}"
        _describe(f"{name}.value", value.kind.value, found, seen, depth)
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


def _is_mark(module: str) -> bool:
    return any(module == mark or module.startswith(f"{mark}.") for mark in MARKS)


def _describe_inside(name: str, value: Any, found: dict[str, str], seen: set[int], depth: int) -> None:
    """Describe what a container, a callable or an object holds."""
    if isinstance(value, Mapping):
        for key, own in value.items():
            _describe(f"{name}[{key!r:.40}]", own, found, seen, depth)
    elif isinstance(value, (list, tuple, deque)):
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
        _describe_classes(name, type(value).__mro__, found, seen, depth)
    elif _is_object(value) and not _known(type(value).__module__):
        _describe_classes(name, type(value).__mro__, found, seen, depth)
        for inner, own in own_attributes(value):
            _describe(f"{name}.{inner}".removeprefix("."), own, found, seen, depth)
    else:
        found[name] = f"{UNKNOWN}{type(value).__qualname__}"


def names_in_state(callback: Any) -> set[str] | None:
    """Return the names that a callback's ``state_dict`` keeps values under, or None: it keeps something else."""
    try:
        state = callback.state_dict() if hasattr(callback, "state_dict") else {}
    except Exception:  # it may have none yet
        return None
    return {str(key).strip("_") for key in state} if isinstance(state, Mapping) else None


def of_callback(callback: Any, state: set[str] | None) -> dict[str, str]:
    """Return what tells a callback from another: its class, code, and attributes that are plain, arrays or functions.

    Those that are ``state``, or may be (None), are left out, and so is what cannot be compared: what a callback only
    watches with is no part of the fit.
    """
    found: dict[str, str] = {"__class__": type(callback).__name__}
    seen: set[int] = {id(callback)}
    for name, value in own_attributes(callback) if state is not None else ():
        simple = isinstance(value, (*SHOWN, Tensor, np.ndarray, FunctionType, functools.partial))
        if name.strip("_") not in (state or ()) and (simple or _plain(value) is not None):
            _describe(name, value, found, seen, 0)
    _describe_classes("", type(callback).__mro__, found, seen, 0)
    return {key: text for key, text in found.items() if not text.startswith(UNKNOWN)}


def attributes(net: nn.Module, seen: set[int] | None = None) -> dict[str, str]:
    """Return what tells a module from another of the same text: attributes, arrays, functions, hooks and classes.

    Parameters and buffers are left out: they are state. So is what torch and this library define, and what a class
    names in ``_not_compared``, such as a budget of memory, which changes no number. Objects that were
    ``seen`` are not described again.
    """
    found: dict[str, str] = {}
    classes: dict[type, None] = {}
    overrides: list[str] = []
    seen = set() if seen is None else seen
    seen.update(map(id, net.modules()))
    inside = set(vars(nn.Module())) | {"_parameters", "_buffers", "_modules"}
    for name, module in net.named_modules():
        own: dict[str, str] = {}
        kind = type(module)
        for key, value in vars(module).items():
            beside = key in inside or key in getattr(kind, "_not_compared", ()) or key.startswith("_torchdynamo")
            if not beside and not isinstance(value, nn.Module):
                _describe(f"{name}.{key}".removeprefix("."), value, own, seen, 0)
                overrides += [f"{name}.{key}".removeprefix(".")] if hasattr(kind, key) else []
        theirs = _known(kind.__module__)  # whose printed form tells what they are
        found.update({key: text for key, text in own.items() if not (theirs and text.startswith(UNKNOWN))})
        found[f"{name}.__class__".removeprefix(".")] = kind.__name__
        classes.update(dict.fromkeys(kind.__mro__))
    found["overrides"] = ", ".join(overrides) or "none"
    _describe_hooks(net, found, seen)
    _describe_classes("", classes, found, seen, 0)
    return found


def _describe_hooks(net: nn.Module, found: dict[str, str], seen: set[int]) -> None:
    """Describe the hooks of a network's modules and parameters, and say which there are, if none."""
    there = []
    for name, owner in itertools.chain(net.named_modules(), net.named_parameters()):
        for key in MODULE_HOOKS if isinstance(owner, nn.Module) else PARAMETER_HOOKS:
            hooks = list((getattr(owner, key, None) or {}).values())
            title = f"{name}.{key.strip('_')}".removeprefix(".")
            there += [f"{len(hooks)} {title}"] if hooks else []
            for place, hook in enumerate(hooks):
                _describe(f"{title}[{place}]", hook, found, seen, 0)
    found["hooks"] = ", ".join(there) or "none"


def _describe_classes(name: str, kinds: Iterable[type], found: dict[str, str], seen: set[int], depth: int) -> None:
    """Describe classes of the user's own: names of bases, a hash of their functions, and what those and they hold."""
    for kind in kinds:
        if _foreign(kind.__module__) or id(kind) in seen:
            continue
        seen.add(id(kind))
        above: type = type(kind)
        _describe_classes(name, above.__mro__, found, seen, depth)
        title = f"class {kind.__qualname__}"
        while f"{title}.__bases__" in found:  # of another of this name
            title += "'"

        def key(inner: str, title: str = title) -> str:
            return f"{name} ({title}{inner})" if name else f"{title}{inner}"

        methods = [(own, value) for own, value in vars(kind).items() if isinstance(value, FunctionType)]
        codes = [f"{own} {hash_of_code(value)}" for own, value in methods]
        found[key("")] = PYTHON + hashlib.sha256("\n".join(codes).encode()).hexdigest()[:16]
        found[key(".__bases__")] = ", ".join(base.__name__ for base in kind.__bases__)
        if _installed(kind.__module__):
            plain = {key(f".{own}"): _plain(value) for own, value in vars(kind).items() if not own.startswith("__")}
            found.update({own: text for own, text in plain.items() if text is not None})
            continue
        for attribute, value in vars(kind).items():
            functions = _functions(value)
            for place, function in enumerate(functions):
                if not isinstance(value, FunctionType):
                    found[key(f".{attribute}.code[{place}]")] = hash_of_code(function)
                for inner, own in _of_function(function) if not _foreign(function.__module__) else ():
                    _describe(key(f".{attribute}.{inner}"), own, found, seen, depth)
            if isinstance(value, functools.partialmethod):
                _describe(key(f".{attribute}.args"), [value.args, value.keywords], found, seen, depth)
            mark = attribute.startswith(("__", "_abc_")) or hasattr(type(value), "__get__")
            if not functions and not (mark and _foreign(type(value).__module__)):
                _describe(key(f".{attribute}"), value, found, seen, depth)


def _functions(value: Any) -> list[FunctionType]:
    """Return the functions of a method, a property, or another of Python's descriptors."""
    if not _foreign(type(value).__module__):
        return []
    inside = [value, *(getattr(value, name, None) for name in ("__func__", "fget", "fset", "fdel", "func"))]
    return [function for function in inside if isinstance(function, FunctionType)]


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
            wrong.append(key if code else f"{key} (now {_brief(mine)}, in the checkpoint {_brief(other)})")
    return wrong


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


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
