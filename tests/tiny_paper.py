"""A made-up paper of two figures, registered while a test runs, whose cells can be made to fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.paper import PAPERS, Cell, Figure, Found, Outcome, Paper, Row, Table

NAME = "tiny"
HOSTILE = "<img src=http://x.test onerror=alert(1)> & \"'|\n# `"


class Tiny(Figure):
    """Three cells, of which the last depends on the first; ``before`` is told each cell before it runs."""

    title = f"A figure {HOSTILE}"

    def __init__(self, name: str, before: Callable[[str], None]) -> None:
        self.name, self.before = name, before

    def cells(self, request, found):
        def cell(name, draw):
            def run(work):
                self.before(f"{self.name}/{name}")
                values = np.random.default_rng(draw).random(50)
                return Found({"sum": float(values.sum())}, {"values": values} if name != "b" else {})

            used = {"images": [path.name for path in request.images[:1]]} if request.images else {}
            return Cell(name, {"draw": draw, "quick": request.quick, **used}, run, cost=draw + 1)

        made = [cell("a", request.seed), cell("b", request.seed + 1)]
        return made if "a" not in found else [*made, cell("c", int(100 * found["a"].numbers["sum"]))]

    def outcome(self, request, found):
        drawing = Drawing(figsize=(1, 1))
        drawing.subplots().plot(found["c"].arrays["values"])
        total = sum(cell.numbers["sum"] for cell in found.values())
        rows = [Row(f"sum {HOSTILE}", "—", f"{total:.9f}", HOSTILE)]
        table = Table(HOSTILE, ("x", HOSTILE), [["1", HOSTILE]])
        return Outcome(rows, {"picture": drawing}, [HOSTILE], [table], {"total": total})


@contextlib.contextmanager
def registered(before: Callable[[str], None] = lambda name: None) -> Iterator[None]:
    """Have the paper known for the block."""
    figures = {name: Tiny(name, before) for name in ("one", "two")}
    PAPERS.add(NAME, Paper(NAME, HOSTILE, "nobody", figures), replace=True)
    try:
        yield
    finally:
        del PAPERS._items[NAME]
