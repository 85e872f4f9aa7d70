"""inrfast: see where an implicit neural representation loses rank, cure it, and fit it fast."""

import importlib
import importlib.util
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def _is_command() -> bool:
    """Return whether this process is the command line, ``inrfast`` or ``python -m inrfast.cli``."""
    words = sys.orig_argv
    return ("-m", "inrfast.cli") in itertools.pairwise(words) or os.path.basename(sys.argv[0]) == "inrfast"


if TYPE_CHECKING or not _is_command():
    from inrfast.public import *  # noqa: F403
    from inrfast.public import __all__ as __all__
# The command line must have its say, and Ctrl-C its ear, before the libraries are there: it takes what it needs.

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a module that nobody has imported yet, or, in the command line, all public names."""
        if not name.startswith("__"):
            if importlib.util.find_spec(f"inrfast.{name}") is not None:
                return importlib.import_module(f"inrfast.{name}")
            if _is_command():
                return getattr(importlib.import_module("inrfast.public"), name)
        raise AttributeError(f"module 'inrfast' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
