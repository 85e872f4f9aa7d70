"""The native module ``inrfast._C``, loaded at first use: everything else works without it.

The environment variable ``INRFAST_NATIVE`` says how much of it is used:

==========  ==========================================================================================
``auto``    the best that this processor runs (default)
``avx512``  training steps, factor passes and dense kernels with these instructions; an error where the processor
            has none
``avx2``    the same
``plain``   none of these three, as on a processor with neither: PyTorch's operations take their place
``absent``  nothing, as if the extension had not been built
==========  ==========================================================================================
"""

from __future__ import annotations

import functools
import importlib
import os
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
def _extension_or_reason() -> ModuleType | str:
    try:
        return importlib.import_module("inrfast._C")
    except ImportError as error:
        return str(error)


def load_extension() -> ModuleType:
    """Return the native module ``inrfast._C``.

    Raises
    ------
    NotAvailableError
        It is missing or does not load (the reason is the one of the first attempt), or ``INRFAST_NATIVE=absent``.
    """
    if native_variant() == "absent":
        raise NotAvailableError("INRFAST_NATIVE=absent switches the native extension inrfast._C off; unset it")
    extension = _extension_or_reason()
    if isinstance(extension, str):
        raise NotAvailableError(
            f"the native extension inrfast._C does not load ({extension}); "
            "`pip install .` in the source tree builds it with a C++ compiler"
        )
    return extension
