"""A finished figure for readers: as Markdown, and all of a paper's figures as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any
from urllib.parse import quote

from inrfast.experiments.paper import Figure, Outcome, Paper
from inrfast.pages import Block, Entries, Page, Picture, Pictures, Section, Table, Text
from inrfast.pages.page import PNG

Described = dict[str, Any]


def description(paper: Paper, figure: Figure, outcome: Outcome) -> Described:
    """Return a figure as JSON holds it."""
    return {
        "paper": paper.name,
        "figure": figure.name,
        "title": figure.title,
        "rows": [[row.what, row.paper, row.ours, row.settings] for row in outcome.rows],
        "text": list(outcome.text),
        "tables": [[table.title, list(table.head), [list(row) for row in table.rows]] for table in outcome.tables],
        "drawings": list(outcome.drawings),
        "numbers": dict(outcome.numbers),
    }


HEAD = ("", "paper", "ours", "settings")


def markdown(found: Described) -> str:
    """Return a figure in Markdown; pictures lie beside it."""
    parts = [f"# {words(found['title'])}", *(f"![{words(name)}]({quote(name)}.png)" for name in found["drawings"])]
    parts += map(words, found["text"])
    if found["rows"]:
        parts.append(_markdown_table(HEAD, found["rows"]))
    parts += [f"**{words(title)}**\n\n{_markdown_table(head, rows)}" for title, head, rows in found["tables"]]
    parts.append(words(_how(found)))
    return "\n\n".join(parts) + "\n"


def words(text: str) -> str:
    """Return Markdown that shows a text of one line as it is: no HTML, emphasis, link, list or heading arises from it.

    An underscore inside a word stays, as in ``Z_0``, since it marks nothing there.
    """
    text = LIVE.sub(r"\\\g<0>", " ".join(text.split()))
    return escape(NUMBERED.sub(r"\1\\\2", text), quote=False)


LIVE = re.compile(
    r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])"  # marks of code, emphasis, links, tables and formulas
    r"|:(?=//)|(?<=www)\.|@"  # addresses, which become links by themselves
    r"|^[-+](?= |$)|^[-=](?=[-= ]*$)|^#",  # lists, lines and headings
    re.IGNORECASE,
)
"""Characters of a text that Markdown would take for its own."""

NUMBERED = re.compile(r"^(\d{1,9})([.)])(?= |$)")
"""The beginning of a numbered list."""


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head, *rows = [[words(cell) for cell in row] for row in (head, *rows)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _how(found: Described) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    used = f"Images used: {', '.join(found['images'])}. " if found.get("images") else ""
    return f"{used}{found['cells']} cells, {found['seconds']:,.0f} s in all, on {found['machine']}; {versions}."


def html(paper: Paper, settings: Mapping[str, Any], figures: Sequence[tuple[Described, Mapping[str, bytes]]]) -> str:
    """Return one page with all finished figures, pictures inside."""
    titles = "; ".join(found["title"].partition(":")[0] for found, _ in figures)
    rows = sum(len(found["rows"]) for found, _ in figures)
    lead = f"A reproduction of {paper.source}. "
    lead += f"Finished so far: {titles}." if figures else "No figure is finished yet."
    facts = {
        "figures and tables": f"{len(figures)} of {len(paper.figures)}",
        "the paper's claims and numbers beside ours": f"{rows:,}",
        "sizes": "the paper's" if settings["preset"] == "paper" else f"{settings['preset']}",
        "time in all": f"{sum(found['seconds'] for found, _ in figures):,.0f} s",
    }
    warnings = [] if settings["preset"] == "paper" else [SMALL]
    sections = [_section(found, pictures) for found, pictures in figures]
    sections.append(Section("Settings", [Entries(_asked(settings))], "settings of all figures"))
    return Page(paper.title, lead, sections, facts, warnings).html()


SMALL = "Small sizes: they show that everything runs and which way the numbers point, not the paper's own numbers."


def _asked(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what a reproduction was asked for, in words."""
    asked = {
        name: "as the preset has it" if value is None else str(value)
        for name, value in settings.items()
        if not isinstance(value, dict)
    }
    return asked | {
        f"{kind} given": ", ".join(settings[kind]) or "none (bundled)"
        for kind in ("images", "meshes", "weights", "masks", "scenes")
        if kind in settings
    }


def _section(found: Described, pictures: Mapping[str, bytes]) -> Section:
    blocks: list[Block] = [Text(text) for text in found["text"]]
    whole = {name: data for name, data in pictures.items() if data.startswith(PNG)}
    if whole:
        several = len(pictures) > 1
        blocks.insert(0, Pictures([_picture(found, name, data, several) for name, data in whole.items()]))
    blocks += [Text(f"The drawing {name}.png is damaged.", tone="warning") for name in pictures if name not in whole]
    if found["rows"]:
        blocks.append(Table(HEAD, found["rows"], "The paper and ours"))
    blocks += [Table(head, rows, title) for title, head, rows in found["tables"]]
    blocks.append(Text(_how(found), tone="note"))
    return Section(found["title"], blocks, found["figure"])


def _picture(found: Described, name: str, data: bytes, several: bool) -> Picture:
    """Return a drawing, beside others where it is not wider than a column."""
    made = Picture(data, f"{found['title']} ({name})", name.replace("_", " ") if several else "")
    width, height = made.size
    return replace(made, wide=width > WIDE * height)


WIDE = 1.6
"""Width over height above which a drawing takes the whole width of the page."""


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
