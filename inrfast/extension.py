"""The native module ``inrfast._C``: loaded at its first use, since all that needs none works without it."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from inrfast.errors import NotAvailableError


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
        It is missing or does not load; the reason is the one of the first attempt.
    """
    extension = _extension_or_reason()
    if isinstance(extension, str):
        raise NotAvailableError(
            f"the native extension inrfast._C does not load ({extension}); "
            "`pip install .` in the source tree builds it with a C++ compiler"
        )
    return extension
