"""The caller's modes of torch, kept out: autocast, gradients, inference and default device change no result.

They are entered at the doors of the library, where also memory that the system refuses becomes an error of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

from inrfast.memory import refusals_told

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Run a block without the caller's autocast: it would round fp32 products to 16 bits."""
    with ExitStack() as stack:
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _full_products() -> Iterator[None]:
    """Run a block in which fp32 products on a CPU are fp32, also if the caller lets PyTorch take bfloat16 (with AMX).

    The setting is the whole process's. PyTorch refuses to read the old one where the new one, of 2.9, says otherwise.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        flags: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        own, flags.fp32_precision = flags.fp32_precision, "ieee"
        try:
            yield
        finally:
            flags.fp32_precision = own
        return
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


@contextmanager
def training_modes() -> Iterator[None]:
    """Run a block that trains without autocast, inference mode and another default device; gradients stay as they are.

    Autocast keeps 16-bit copies of weights until its outermost block ends, and would go on with those of weights that
    have changed since: inside there is no such memory, and the caller's is emptied at the end.
    """
    with ExitStack() as stack:
        stack.enter_context(refusals_told())
        stack.callback(torch.clear_autocast_cache)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_full_products())
        stack.enter_context(torch.inference_mode(False))
        for device in AUTOCAST_DEVICES:
            stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        yield


@contextmanager
def own_modes() -> Iterator[None]:
    """Run a block without autocast, gradients, inference mode, narrow products and another default device.

    Tensors made in inference mode could not be changed after it. A block that differentiates switches gradients on
    itself.
    """
    if _are_own():  # as in a method called by another
        with refusals_told():
            yield
        return
    with ExitStack() as stack:
        stack.enter_context(refusals_told())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for mode in (without_autocast(), _full_products(), torch.inference_mode(False), torch.no_grad()):
            stack.enter_context(mode)
        yield


def _are_own() -> bool:
    """Return whether everything is off already that :func:`own_modes` switches off."""
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.get_default_device().type != "cpu":
        return False
    if any(torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        return False


def in_own_modes(function: F) -> F:
    """Decorate a function that runs in :func:`own_modes`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with refusals_told() if _are_own() else own_modes():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def in_training_modes(function: F) -> F:
    """Decorate a function that runs in :func:`training_modes`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with training_modes():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def methods_in_own_modes(cls: C) -> C:
    """Decorate a class whose public methods, and products ``@``, run in :func:`own_modes` (generators do not)."""
    for name, member in list(vars(cls).items()):
        public = not name.startswith("_") or name == "__matmul__"
        if public and inspect.isfunction(member) and not inspect.isgeneratorfunction(member):
            setattr(cls, name, in_own_modes(member))
    return cls
