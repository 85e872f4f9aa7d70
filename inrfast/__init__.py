"""inrfast: see where an implicit neural representation loses rank, cure it, and fit it fast.

The public names are those of :mod:`inrfast.public`. Each is imported at its first use, so that ``import inrfast`` costs
nothing, and a program pays for the parts and libraries that it uses.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from inrfast.public import *  # noqa: F403
    from inrfast.public import __all__ as __all__
else:

    def _homes() -> dict[str, str]:
        """Return the module that every public name comes from, as the imports of ``public.py`` say, without them."""
        import ast

        source = importlib.util.find_spec("inrfast.public").loader.get_source("inrfast.public")
        if source is None:  # a program without its sources
            names = importlib.import_module("inrfast.public").__all__
            return dict.fromkeys(names, "inrfast.public")
        imports = (node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom))
        return {name.name: node.module for node in imports for name in node.names}

    _HOMES = _homes()
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> Any:
        """Import a public name, or a module that nobody has imported yet."""
        if not name.startswith("__"):
            home = _HOMES.get(name, "inrfast")
            if home != "inrfast":
                found = globals()[name] = getattr(__import__(home, fromlist=[name]), name)
                return found
            if importlib.util.find_spec(f"inrfast.{name}") is not None:
                return importlib.import_module(f"inrfast.{name}")
        raise AttributeError(f"module 'inrfast' has no attribute {name!r}", name=name, obj=sys.modules[__name__])

    def __dir__() -> list[str]:
        """Return the public names too, whether they have been used or not."""
        return sorted({*globals(), *__all__})
