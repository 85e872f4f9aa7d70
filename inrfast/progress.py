"""Progress bars: one rule for when one is shown, and a widget in notebooks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from tqdm import tqdm as Bar

__all__ = ["Bar", "in_notebook", "parts_told", "progress_bar"]

Tell = Callable[[str, int, int], None]
"""``tell(part, number, parts)``: which part of some work begins, from 1."""

_TELLERS: list[Tell] = []


@contextmanager
def parts_told(tell: Tell) -> Iterator[None]:
    """Call ``tell`` at each part of work whose bar is not shown, as where stderr is a file, within this block."""
    _TELLERS.append(tell)
    try:
        yield
    finally:
        _TELLERS.remove(tell)


class _Told(Bar):
    """A hidden bar that tells its parts by their descriptions."""

    def __init__(self, iterable: Iterable[Any] | None, desc: str | None, tell: Tell, total: int) -> None:
        super().__init__(iterable, desc, disable=True, total=total)
        self._tell, self._parts, self._done = tell, total, 0

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Tell the part that begins."""
        self._tell(desc or "", min(self._done + 1, self._parts), self._parts)

    def update(self, n: float | None = 1) -> bool | None:
        """Count the parts that are done."""
        self._done += int(n or 0)
        return None


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
    if _TELLERS and progress is None and options.get("total") and not (sys.stderr and sys.stderr.isatty()):
        return _Told(iterable, desc, _TELLERS[-1], options["total"])
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
