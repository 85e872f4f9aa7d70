"""Progress bars: one rule for when one is shown, and a widget in notebooks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any

from tqdm import tqdm as Bar

__all__ = ["Bar", "in_notebook", "progress_bar"]


def progress_bar(
    iterable: Iterable[Any] | None = None, desc: str | None = None, *, progress: bool | None, **options: Any
) -> Bar:
    """Return a bar of tqdm.

    Parameters
    ----------
    iterable, desc, options
        As in ``tqdm``.
    progress
        Whether it is shown; None: in a notebook and where stderr is a terminal.
    """
    hidden = None if progress is None else not progress
    if in_notebook():
        return _notebook_bar()(iterable, desc, disable=bool(hidden), **options)
    # Programs without a console have no stderr.
    return Bar(iterable, desc, disable=True if sys.stderr is None else hidden, **options)


def in_notebook() -> bool:
    """Return whether this process is a Jupyter kernel, whose stderr is no terminal and yet read by somebody."""
    shell = sys.modules.get("IPython")
    return "ipykernel" in sys.modules and shell is not None and hasattr(shell.get_ipython(), "kernel")


@cache
def _notebook_bar() -> type[Bar]:
    """Return the bar of notebooks: a widget, or text where ipywidgets is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that text is not as pretty
        from tqdm.auto import tqdm
    return tqdm
