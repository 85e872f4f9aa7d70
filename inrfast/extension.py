"""The native modules ``inrfast._C`` and ``inrfast._CUDA``, loaded at first use: everything works without them.

The environment variable ``INRFAST_NATIVE`` says how much of them is used:

==========  ==========================================================================================
``auto``    the best that this processor runs (default)
``avx512``  training steps, factor passes and dense kernels with these instructions; an error where the processor
            has none
``avx2``    the same
``plain``   none of these three, as on a processor with neither: PyTorch's operations take their place
``absent``  nothing, as if neither had been built
==========  ==========================================================================================
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
from types import ModuleType

from inrfast.errors import NotAvailableError, check_choice

VARIANTS = ("auto", "avx512", "avx2", "plain", "absent")
"""Values of ``INRFAST_NATIVE``."""


def native_variant() -> str:
    """Return the value of ``INRFAST_NATIVE``, ``"auto"`` where it is not set.

    Raises
    ------
    ValueError
        It is none of :data:`VARIANTS`.
    """
    return check_choice("INRFAST_NATIVE", os.environ.get("INRFAST_NATIVE") or "auto", VARIANTS)


@functools.cache
def _module_or_reason(name: str) -> ModuleType | str:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return str(error)


def load_extension() -> ModuleType:
    """Return the native module ``inrfast._C``.

    Raises
    ------
    NotAvailableError
        It is missing or does not load (the reason is the one of the first attempt), or ``INRFAST_NATIVE=absent``.
    """
    return _load("inrfast._C", "the native extension", "a C++ compiler")


def load_cuda() -> ModuleType:
    """Return ``inrfast._CUDA``, which initialises in the memory of GPUs; it needs no ``inrfast._C``.

    Raises
    ------
    NotAvailableError
        As of :func:`load_extension`.
    """
    return _load("inrfast._CUDA", "the CUDA half of the native extension", "nvcc and a C++ compiler")


def _load(name: str, what: str, needs: str) -> ModuleType:
    if native_variant() == "absent":
        raise NotAvailableError(f"INRFAST_NATIVE=absent switches {name} off; unset it")
    module = _module_or_reason(name)
    if isinstance(module, str):
        raise NotAvailableError(
            f"{what}, {name}, does not load ({module}); `pip install .` in the source tree builds it with {needs}"
        )
    return module


def cost_of_absence() -> str | None:
    """Return in a line what a machine that could have native steps loses without ``inrfast._C``, and the remedy.

    None where the module is there, where ``INRFAST_NATIVE`` asks for no native steps, and on processors for which there
    are none.
    """
    if native_variant() in ("plain", "absent") or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    try:
        load_extension()
    except NotAvailableError:
        return (
            "the native extension is missing, so training steps and dense kernels on the CPU are slower; `pip install` "
            "of the sources (with a C++ compiler) or of a wheel for this machine brings it; `inrfast info` says why; "
            "INRFAST_NATIVE=absent silences this"
        )
    return None
