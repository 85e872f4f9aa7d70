"""Exceptions of inrfast, the checks every public function makes at its door, and warnings at the caller's line."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from inrfast.arrays import as_tensor, is_array
from inrfast.words import check_choice as check_choice
from inrfast.words import nearest as nearest

F = TypeVar("F", bound=Callable[..., Any])


class InrfastError(Exception):
    """Base class of the errors that are particular to inrfast."""


class UnsupportedModuleError(InrfastError, ValueError):
    """A network whose tangent kernel cannot be captured exactly; the message names the culprit."""


class NotAvailableError(InrfastError, RuntimeError):
    """A backend, method or option that is absent here; the message says why and what works instead."""


class MissingLibraryError(NotAvailableError, ImportError):
    """A library that only some users need and that is not installed here; the message says how it is."""


class MemoryBudgetError(InrfastError, MemoryError):
    """A request larger than its memory budget, raised before it is allocated; or memory that the system refused.

    Attributes
    ----------
    needed
        The smallest ``memory_budget`` (bytes) that would do, where one is known; else None.
    what, instead
        The request and the way out, as the message has them.
    """

    needed: int | None = None
    what: str = ""
    instead: str = ""


class ResolutionError(InrfastError, ValueError):
    """A rank asked for below the tolerance that the computed spectrum resolves."""


class RangeError(InrfastError, ArithmeticError):
    """Results outside the range of the dtype that was asked for; the message names a precision that holds them."""


class DivergedError(InrfastError, ArithmeticError):
    """A fit met a NaN or Inf; the network holds its last good state."""


DISTRIBUTIONS = {"skimage": "scikit-image", "igl": "libigl", "av": "PyAV"}
"""Names under which libraries are known and installed, where modules have others."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import libraries of an optional extra in this block; one that is not there is named, and how it is installed.

    Parameters
    ----------
    extra
        The extra of the package that brings them, such as ``"audio"``.
    what
        What is about to be done, as the subject of a sentence: ``"reading speech.flac"``.

    Raises
    ------
    MissingLibraryError
        A library is not installed, or cannot be loaded.
    """
    try:
        yield
    except (ImportError, OSError) as error:  # OSError: a library of C that a package has not found
        name = (getattr(error, "name", None) or "").partition(".")[0]
        library = DISTRIBUTIONS.get(name, name) or f"the libraries of inrfast[{extra}]"
        if isinstance(error, ModuleNotFoundError):
            raise MissingLibraryError(f"{what} needs {library}: pip install 'inrfast[{extra}]'") from error
        raise MissingLibraryError(
            f"{what} needs {library}, which cannot be loaded, though it may be installed ({error}); install it again"
        ) from error


INNER = ("inrfast", "torch", "contextlib", "functools")
"""Packages whose frames lie between a warning and the line of the user's that it is about."""


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the line outside this library that called into it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in INNER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


class Hinting:
    """Base of classes that name the nearest attribute where one is asked for that they have not."""

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name):
            if hasattr(type(self), name):  # it is there, and raised: tell that error
                return object.__getattribute__(self, name)
            hint = "" if name.startswith("_") else nearest(name, (own for own in dir(type(self)) if own[0] != "_"))
            told = f"{type(self).__name__!r} object has no attribute {name!r}.{hint}"
            raise AttributeError(told, name=name, obj=self)


def called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return ``function(*args, **kwargs)``; of an argument whose name it does not know, the nearest one is said.

    Raises
    ------
    TypeError
        The call does not fit the signature; what the function itself raises is left alone.
    """
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # of the function itself, whose frame follows
        told = _unknown(function, kwargs)
        if not told:
            raise
        raise TypeError(told) from None


def _unknown(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> str:
    """Return what is said of the first argument whose name a function does not know; nothing if there is none."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    unknown = next((name for name in kwargs if name not in names), None)
    if unknown is None:
        return ""
    cure = nearest(unknown, names)
    what = function.__qualname__.removesuffix(".__init__")
    return f"{what}() takes no argument {unknown!r}.{cure or ' It takes ' + ', '.join(names)}"


def tells_arguments(function: F) -> F:
    """Decorate a function so that an argument of an unknown name is refused with the nearest one that it takes."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return called(function, args, kwargs)

    return run  # type: ignore[return-value]


def check_module(argument: str, got: Any) -> nn.Module:
    """Return ``got`` if it is a module; a class of modules is told from its objects."""
    if isinstance(got, nn.Module):
        return got
    if isinstance(got, type) and issubclass(got, nn.Module):
        raise TypeError(
            f"{argument} must be a torch.nn.Module, got the class {got.__name__}; write {got.__name__}(...)"
        )
    raise TypeError(f"{argument} must be a torch.nn.Module, got {type(got).__name__}")


def check_int(argument: str, got: Any, minimum: int | None = None) -> int:
    """Return ``got`` as an int; booleans and fractions are refused."""
    if isinstance(got, bool) or not hasattr(got, "__index__"):
        raise TypeError(f"{argument} must be an integer, got {got!r} ({type(got).__name__})")
    value = int(got.__index__())
    if minimum is not None and value < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, got {value}")
    return value


def check_seed(argument: str, got: Any, bits: int = 32) -> int:
    """Return ``got`` as an int of so many bits; larger ones would draw the numbers of their last bits.

    ``bits`` is 32 where a generator of torch on the CPU is seeded, which takes no more of what it is given.
    """
    value = check_int(argument, got, minimum=0)
    if value >= 2**bits:
        raise ValueError(f"{argument} must be from 0 to {2**bits - 1}, as only {bits} bits of it count, got {value}")
    return value


def check_float(argument: str, got: Any, *, minimum: float | None = None, exclusive: bool = False) -> float:
    """Return ``got`` as a finite float, at least (or, if ``exclusive``, above) ``minimum``."""
    if isinstance(got, (bool, str)) or not hasattr(got, "__float__"):
        raise TypeError(f"{argument} must be a number, got {got!r} ({type(got).__name__})")
    try:
        value = float(got)
    except OverflowError:
        raise ValueError(f"{argument} must be at most 1.8e308 in size, got a larger integer") from None
    except (ValueError, TypeError, RuntimeError):  # an array or a tensor of several numbers, or of complex ones
        raise TypeError(f"{argument} must be one number, got {type(got).__name__}{_shape(got)}") from None
    if not math.isfinite(value):
        raise ValueError(f"{argument} must be finite, got {value}")
    if minimum is not None and (value <= minimum if exclusive else value < minimum):
        raise ValueError(f"{argument} must be {'above' if exclusive else 'at least'} {minimum}, got {value}")
    return value


def _shape(got: Any) -> str:
    return f" of shape {tuple(got.shape)}" if hasattr(got, "shape") else ""


def check_tensor(
    argument: str,
    got: Any,
    *,
    ndim: int | None = None,
    floating: bool = True,
    finite: bool = True,
    nonempty: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Return ``got``, a tensor or what :func:`inrfast.arrays.as_tensor` makes one of, if it is of the asked kind.

    Otherwise say what came and what is accepted. ``device`` is where NumPy arrays go.
    """
    got = as_tensor(argument, got, device)
    if ndim is not None and got.ndim != ndim:
        raise ValueError(f"{argument} must have {ndim} dimensions, got shape {tuple(got.shape)}")
    if floating and not got.is_floating_point():
        raise TypeError(f"{argument} must have a floating-point dtype, got {got.dtype}{_cure(argument, got.dtype)}")
    if nonempty and got.numel() == 0:
        raise ValueError(f"{argument} must not be empty, got shape {tuple(got.shape)}")
    if finite:
        check_readable(argument, got)
    if finite and got.is_floating_point() and not _is_finite(got):
        bad = int((~torch.isfinite(got)).sum())
        raise ValueError(f"{argument} must be finite, got {bad} NaN or Inf among its {got.numel()} entries")
    return got


def _cure(argument: str, dtype: torch.dtype) -> str:
    """Return how numbers of another dtype become floating ones."""
    if dtype.is_complex:
        return "; only real numbers are taken"
    if argument.endswith("coords") and dtype != torch.bool:
        return "; of numbers of pixels inrfast.grid((H, W)) has the coordinates in [-1, 1], else .float() makes one"
    return (
        "; pixels of 8 bits: .float() / 255"
        if dtype == torch.uint8
        else ('; .float() makes one (.double() in fp64; of a NumPy array .astype("float32"))')
    )


def check_readable(argument: str, got: Tensor) -> None:
    """Refuse tensors whose entries are not there, or that torch hardly computes with."""
    if got.layout != torch.strided or got.is_nested:
        kind = "a nested tensor" if got.is_nested else f"layout {got.layout}; call .to_dense()"
        raise TypeError(f"{argument} must be a dense tensor, got {kind}")
    if got.is_floating_point() and got.dtype.itemsize < 2:
        raise TypeError(f"{argument} must have a floating-point dtype of 16 bits or more, got {got.dtype}")
    if got.device.type == "meta":
        raise ValueError(f"{argument} is on the meta device, which holds no numbers")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all entries are finite, without a tensor beside this one: a NaN is both smallest and largest."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_block(argument: str, got: Any, rows: int, device: torch.device) -> Tensor:
    """Return a finite vector (rows,) or block of vectors (rows, k) on the kernel's device as a block, detached."""
    block = check_tensor(argument, got, finite=False, device=device)
    if block.ndim not in (1, 2) or block.shape[0] != rows:
        raise ValueError(f"{argument} must have shape ({rows},) or ({rows}, k), got {tuple(block.shape)}")
    if block.device != device:
        raise ValueError(f"{argument} is on {block.device} but the kernel is on {device}")
    check_tensor(argument, block)
    return block.detach().reshape(rows, -1)


def check_index(argument: str, got: Any, count: int) -> Tensor:
    """Return an int, a slice or a sequence of ints that names some of ``count`` columns as numbers from 0 on (k,)."""
    if isinstance(got, slice):
        wanted = torch.tensor(range(count)[got], dtype=torch.int64)
    elif is_array(got):
        wanted = as_tensor(argument, got)
        if wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool or wanted.ndim != 1:
            raise TypeError(f"{argument} must be one-dimensional and integer, got {wanted.dtype} {tuple(wanted.shape)}")
        wanted = wanted.to("cpu", torch.int64)
    else:
        given = list(got) if isinstance(got, Sequence) else [got]
        wanted = torch.tensor([check_int(argument, i) for i in given], dtype=torch.int64)
    if len(wanted) == 0:
        raise ValueError(f"{argument} must name at least one column")
    if bool(((wanted < -count) | (wanted >= count)).any()):
        raise IndexError(f"{argument} is out of range for {count} columns: {int(wanted.min())} to {int(wanted.max())}")
    return wanted % count


def check_coords(argument: str, got: Any, in_features: int | None = None, device: torch.device | None = None) -> Tensor:
    """Return finite, non-empty coordinates ``(..., d)`` on the network's device as points ``(N, d)``, row-major."""
    coords = check_tensor(argument, got, finite=False, device=device)
    if coords.ndim < 2:
        raise ValueError(f"{argument} must have shape (N, d), or (..., d) with more axes, got {tuple(coords.shape)}")
    if in_features is not None and coords.shape[-1] != in_features:
        raise ValueError(
            f"{argument} must have shape (N, {in_features}), or (..., {in_features}) with more axes, for this network, "
            f"got {tuple(coords.shape)}{_coords_cure(argument, tuple(coords.shape), in_features)}"
        )
    if device is not None and coords.device != device:
        raise ValueError(f"{argument} is on {coords.device} but the network is on {device}; move one of them")
    check_tensor(argument, coords)
    return coords if coords.ndim == 2 else coords.reshape(-1, coords.shape[-1])


def _coords_cure(argument: str, shape: tuple[int, ...], in_features: int) -> str:
    """Return how points of another shape become those of a network, where that can be told."""
    if shape[0] == in_features:
        axes = ", ".join(map(str, [*range(1, len(shape)), 0]))
        return f"; {argument}.permute({axes}) has the coordinates of a point in its last axis"
    if shape[-1] == in_features + 1 and len(shape) == 2:
        return "; the grid of an image (H, W, C) is inrfast.grid(image.shape[:2])" if in_features == 2 else ""
    return ""


def check_entries(argument: str, config: Mapping[str, Any], kind: type) -> None:
    """Check that a description has entries that a class takes, and all those without a default."""
    parameters = inspect.signature(kind).parameters
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    for entry in config:
        if entry not in named and len(named) == len(parameters):
            raise ValueError(f"{argument} takes the entries {', '.join(named)}, got {entry!r}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in config:
            raise ValueError(f"{argument} misses the entry {name!r}")


def check_flag(argument: str, got: Any) -> bool:
    """Return ``got`` if it is True or False."""
    if not isinstance(got, bool):
        raise TypeError(f"{argument} must be True or False, got {got!r}")
    return got


def check_takes(argument: str, call: Any, positional: Sequence[str], named: Sequence[str] = ()) -> None:
    """Refuse a function that cannot be called with these arguments, ``named`` ones by keyword; or a class of such."""
    if isinstance(call, type):
        raise TypeError(
            f"{argument} must be a function or an object, got the class {call.__name__}; write {call.__name__}(...)"
        )
    try:
        signature = inspect.signature(call.forward if isinstance(call, torch.nn.Module) else call)
    except (TypeError, ValueError):  # some callables of C have none
        return
    try:
        signature.bind(*positional, **dict.fromkeys(named))
    except TypeError as error:
        raise TypeError(
            f"{argument} is called with ({', '.join((*positional, *named))}), and {getattr(call, '__name__', call)} "
            f"does not take them: {error}"
        ) from None


def check_device(argument: str, got: Any) -> torch.device:
    """Return a device of this machine that can hold numbers (``meta`` cannot), from its name or as it is."""
    if not isinstance(got, str | torch.device):
        raise TypeError(f"{argument} must be a name or a torch.device, got {got!r} ({type(got).__name__})")
    try:
        one = torch.ones(1, device=got)
        one.item()
    except Exception as error:  # each backend raises its own type
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise ValueError(f"{argument} must be one of this machine, such as 'cpu', got {str(got)!r}: {reason}") from None
    return one.device
