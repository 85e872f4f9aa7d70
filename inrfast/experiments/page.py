"""A finished figure for readers: as Markdown, and all of a paper's figures as one self-contained HTML page."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from inrfast.experiments.paper import Figure, Outcome, Paper

Described = dict[str, Any]

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
nav a { margin-right: 1rem; }
footer { color: #555; font-size: 0.85rem; margin-top: 3rem; }
"""


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
    links = " ".join(f'<a href="#{escape(found["figure"])}">{escape(found["figure"])}</a>' for found, _ in figures)
    asked = ", ".join(
        f"{name} {escape('as the preset has it' if value is None else str(value))}"
        for name, value in settings.items()
        if not isinstance(value, dict)
    )
    files = [
        f"{kind} given: {', '.join(map(escape, settings[kind])) or 'none (bundled)'}"
        for kind in ("images", "meshes", "weights", "masks", "scenes")
        if kind in settings
    ]
    sections = "".join(_section(found, pictures) for found, pictures in figures)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(paper.title)}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>{escape(paper.title)}</h1>\n<p>{escape(paper.source)}. "
        f"Settings: {asked}; {'; '.join(files)}. "
        f"Each figure says which images it used.</p>\n<nav>{links}</nav>\n{sections}</body></html>\n"
    )


def _section(found: Described, pictures: Mapping[str, bytes]) -> str:
    parts = [f'<section id="{escape(found["figure"])}">\n<h2>{escape(found["title"])}</h2>']
    for name, data in pictures.items():
        code = base64.b64encode(data).decode()
        parts.append(f'<p><img alt="{escape(name)}" src="data:image/png;base64,{code}"></p>')
    parts += [f"<p>{escape(text)}</p>" for text in found["text"]]
    if found["rows"]:
        parts.append(_html_table(HEAD, found["rows"]))
    for title, head, rows in found["tables"]:
        parts.append(f"<h3>{escape(title)}</h3>\n{_html_table(head, rows)}")
    parts.append(f"<footer>{escape(_how(found))}</footer>\n</section>\n")
    return "\n".join(parts)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{top}</tr>\n{lines}\n</table>"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
