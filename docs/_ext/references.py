"""Docstrings made ready for the site: signs that are no markup, and names that have no entry of their own.

A docstring may say ``(*grid, M)`` or ``|C|``, where reStructuredText sees markup. And it may name a
module, class or function that has no page: such a name is looked up by importing it. If it is one of the public names
under another path, it becomes a link to that; if it exists, it is shown as code; else the build warns of it.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import fields, is_dataclass
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from inrfast import public
from inrfast.records import Record

KEPT = re.compile(r"``.+?``|`[^`]+`|(?<![\w*])\*\*?(?=[^\s*()])[^*()]+\*\*?(?!\w)", re.DOTALL)
"""What keeps its stars: literals, roles and emphasis, of words without brackets."""
SIGN = re.compile(r"([*|])")


def escaped(text: str) -> str:
    """Return a docstring whose stars and bars outside of literals and emphasis are escaped."""
    parts, end = [], 0
    for kept in KEPT.finditer(text):
        parts += [SIGN.sub(r"\\\1", text[end : kept.start()]), kept[0]]
        end = kept.end()
    return "".join([*parts, SIGN.sub(r"\\\1", text[end:])])


def prepare(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Escape stars in the text of a docstring; its examples stay as they are."""
    text = "\n".join(lines)
    start, mark, examples = text.partition("\n>>> ")
    lines[:] = (escaped(start) + mark + examples).split("\n")


def called(app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str, returned: str) -> Any:
    """Leave out how a result is constructed: it is made by the function that its docstring names."""
    made = re.search(r"(?i)(?:built|made|returned) by (?:``|:(?:func|meth):)", getattr(thing, "__doc__", None) or "")
    if what == "class" and (made or issubclass(thing, Record)):
        return "", None
    return None


def found(name: str) -> Any:
    """Return what a dotted name stands for; None where there is no such thing."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if is_dataclass(thing) and part in {field.name for field in fields(thing)}:
                return part
            if part in getattr(thing, "__annotations__", {}) and not hasattr(thing, part):
                return part
            thing = getattr(thing, part, None)
        return thing
    return None


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, child: nodes.Element) -> nodes.Node | None:
    """Link a name to its public entry, or show it as code if it exists."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not target.startswith("inrfast."):
        return None
    thing = found(target)
    if thing is None:
        return None
    for name in public.__all__:
        if getattr(public, name) is thing and target != f"inrfast.{name}":
            entry = env.get_domain("py").resolve_any_xref(
                env, node["refdoc"], app.builder, f"inrfast.{name}", node, child
            )
            if entry:
                return entry[0][1]
    return child


def setup(app: Sphinx) -> dict[str, Any]:
    """Prepare docstrings and resolve what has no entry."""
    app.connect("autodoc-process-docstring", prepare, priority=400)
    app.connect("autodoc-process-signature", called)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
