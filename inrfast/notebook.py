"""Results in notebooks: a little HTML with a table and a figure, escaped and quick, and never an error."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 80

ROWS = 12
"""Rows of a table that are shown, at most; the last of them says how many there are more."""

MISSING = "There is a figure of this where matplotlib is installed: pip install 'inrfast[plots]'"

Row = Sequence[str]

NUMBER = re.compile(r"\W*\d")
"""How a cell begins that is a number, an interval, or a number with its unit."""

NO_NUMBER = ("", "-", "none", "nan", "inf")
"""Cells of columns of numbers that are none."""


@dataclass(frozen=True)
class Page:
    """What is shown of a result.

    Attributes
    ----------
    title
        One line.
    table
        Rows of cells, the head first; none: no table.
    lines
        Sentences below the table.
    code
        A line to copy; empty: none.
    figure
        Draws the figure; None: there is none.
    """

    title: str
    table: Sequence[Row] = ()
    lines: Sequence[str] = ()
    code: str = ""
    figure: Callable[[], Figure] | None = field(default=None)


def shown(make: Callable[[Any], Page]) -> Callable[[Any], str | None]:
    """Make a ``_repr_html_`` of a method that returns a page; where it fails, notebooks show the ``repr``."""

    @wraps(make)
    def html(result: Any) -> str | None:
        try:
            return written(make(result))
        except Exception:
            return None

    return html


def written(page: Page) -> str:
    """Return a page as HTML that needs nothing from elsewhere."""
    parts = [f"<p><strong>{escape(page.title)}</strong></p>"]
    if page.table:
        parts.append(_table(page.table))
    parts += [f"<p>{escape(line)}</p>" for line in page.lines]
    if page.code:
        parts.append(f"<pre>{escape(page.code)}</pre>")
    if page.figure is not None:
        parts.append(_figure(page.figure, page.title))
    return f'<div class="inrfast-result">{"".join(parts)}</div>'


def _table(rows: Sequence[Row]) -> str:
    head, *others = rows
    more = len(others) - ROWS
    if more > 0:
        others = [*others[: ROWS - 1], (f"... {more + 1} more",)]
    styles = [_style(index, others) for index in range(max(map(len, rows)))]
    cells = "".join(f"<th{style}>{escape(cell)}</th>" for cell, style in zip(head, styles, strict=False))
    lines = [
        f"<tr>{''.join(f'<td{style}>{escape(cell)}</td>' for cell, style in zip(row, styles, strict=False))}</tr>"
        for row in others
    ]
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _style(column: int, rows: Sequence[Row]) -> str:
    """Return the style of a column's cells, which stands for that of Jupyter elsewhere: numbers end on the right."""
    cells = [row[column] for row in rows if column < len(row) and len(row) > 1]
    numbers = bool(cells) and all(NUMBER.match(cell) or cell in NO_NUMBER for cell in cells)
    return f' style="padding:.2em .7em;text-align:{"right" if numbers else "left"}"'


def _figure(draw: Callable[[], Figure], title: str) -> str:
    """Return a figure inside its own address, or what to install for it; nothing where it cannot be drawn."""
    try:
        file = io.BytesIO()
        draw().savefig(file, format="png", dpi=DPI)
    except ImportError:
        return f"<p><em>{escape(MISSING)}</em></p>"
    except Exception:
        return ""
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="Figure: {escape(title)}" src="data:image/png;base64,{data}" style="max-width:100%"/>'
