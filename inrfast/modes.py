"""Isolation from the caller's torch modes: autocast, gradients, inference mode and default device change no result.

Public functions enter them; there a failed allocation also becomes an error of this package.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from inrfast.errors import called
from inrfast.memory import refusals_told

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Run a block without the caller's autocast, which would round fp32 products to 16 bits."""
    with ExitStack() as stack:
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Give every module its own train or eval mode back at the end."""
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


_read: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)
_write: Callable[[str, str, str], None] | None = getattr(torch._C, "_set_fp32_precision_setter", None)
"""torch's second setting for fp32 products (since 2.9), per backend and operation. torch's public properties write one
of them (``mkldnn``, ``all``) to another place."""

BACKENDS = ("cuda", "mkldnn")


class products:
    """Context in which fp32 products, on CPU and GPU, have the precision named as in ``set_float32_matmul_precision``.

    Since 2.9 torch has two settings. The second exists per operation, per backend and globally, where ``"none"`` defers
    to the next level; the getters of the first raise if the caller has set the two to different values. Inside, both
    are ``precision``; afterwards each has its old value, also where it was deferred or the getters raise. The settings
    hold for the whole process.

    Parameters
    ----------
    precision
        ``"highest"`` (IEEE fp32), ``"high"`` (TF32) or ``"medium"`` (TF32 on a GPU, bfloat16 on a CPU).
    """

    def __init__(self, precision: str = "highest") -> None:
        self.precision = precision
        self.before: tuple[str, list[tuple[str, str]]] | None = None

    def __enter__(self) -> None:
        # If the first setting can be read and is the highest, torch guarantees that the second agrees.
        if self.precision != "highest" or not products_are_full():
            self.before = _settings_of_products()
            torch.set_float32_matmul_precision(self.precision)

    def __exit__(self, *exception: object) -> None:
        if self.before is not None:
            first, second = self.before
            torch.set_float32_matmul_precision(first)
            if _write is not None:
                for backend, own in second:
                    _write(backend, "matmul", own)


def products_are_full() -> bool:
    """Return whether both of torch's settings leave all fp32 products in fp32."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        return False


def _settings_of_products() -> tuple[str, list[tuple[str, str]]]:
    """Return the first setting, and the second per backend, in a form that can be restored."""
    if _read is None or _write is None:
        return torch.get_float32_matmul_precision(), []
    second = [(backend, _own_setting(_read, _write, backend, "matmul")) for backend in BACKENDS]
    try:
        return torch.get_float32_matmul_precision(), second
    except RuntimeError:
        for backend in BACKENDS:
            _write(backend, "matmul", "ieee")  # agrees with any value of the first
        return torch.get_float32_matmul_precision(), second


def _own_setting(
    read: Callable[[str, str], str], write: Callable[[str, str, str], None], backend: str, operation: str
) -> str:
    """Return an operation's own second setting: ``"none"`` where it defers to the level above.

    torch returns the effective value. Where both levels agree, the one above is changed briefly to see whether the
    operation follows.
    """
    found = read(backend, operation)
    above = (backend, "all") if operation != "all" else ("generic", "all")
    if found == "none" or backend == "generic" or found != read(*above):
        return found
    kept = _own_setting(read, write, *above)
    write(*above, "ieee" if found == "tf32" else "tf32")
    try:
        return found if read(backend, operation) == found else "none"
    finally:
        write(*above, kept)


@contextmanager
def training_modes() -> Iterator[None]:
    """Run training code without the caller's autocast, inference mode and default device; gradients stay as they are.

    Autocast caches 16-bit copies of weights until its outermost block ends, and would use stale copies after an update:
    inside there is no cache, and the caller's cache is cleared at the end.
    """
    with ExitStack() as stack:
        stack.enter_context(refusals_told())
        stack.callback(torch.clear_autocast_cache)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(products())
        stack.enter_context(torch.inference_mode(False))
        for device in AUTOCAST_DEVICES:
            stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        yield


def own_modes() -> AbstractContextManager[None]:
    """Run a block without the caller's autocast, gradients, inference mode, reduced precision and default device.

    Tensors made in inference mode could not be changed later. Code that differentiates switches gradients on itself.
    """
    return refusals_told() if _are_own() else _own_modes()  # the first as in a method that another public one calls


@contextmanager
def _own_modes() -> Iterator[None]:
    with refusals_told(), ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if any(map(torch.is_autocast_enabled, AUTOCAST_DEVICES)):
            stack.enter_context(without_autocast())
        with products(), torch.inference_mode(False), torch.no_grad():
            yield


def _are_own() -> bool:
    """Return whether everything that :func:`own_modes` switches off is off already."""
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.get_default_device().type != "cpu":
        return False
    if any(torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES):
        return False
    return products_are_full()


def in_own_modes(function: F) -> F:
    """Decorate a function so that it runs in :func:`own_modes`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with own_modes():
            return called(function, args, kwargs)

    return run  # type: ignore[return-value]


def in_training_modes(function: F) -> F:
    """Decorate a function so that it runs in :func:`training_modes`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with training_modes():
            return called(function, args, kwargs)

    return run  # type: ignore[return-value]


def methods_in_own_modes(cls: C) -> C:
    """Decorate a class so that its public methods and products ``@`` run in :func:`own_modes` (generators do not)."""
    for name, member in list(vars(cls).items()):
        public = not name.startswith("_") or name == "__matmul__"
        if public and inspect.isfunction(member) and not inspect.isgeneratorfunction(member):
            setattr(cls, name, in_own_modes(member))
    return cls
