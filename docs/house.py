"""Draws docs/house.svg from the layers that import-linter checks: python docs/house.py."""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]

FLOORS = {
    "users": ("public", "testing", "cli", "experiments", "choosing", "info"),
    "fits": ("distributed", "importing", "inverse", "scenes", "signals", "training"),
    "papers": ("analysis", "pages"),
    "kernel": (
        "tangent",
        "switches",
        "doubts",
        "rounding",
        "linalg",
        "init",
        "linear_calls",
        "snapshot",
        "pointwise",
        "calling",
        "layers",
    ),
    "networks": (
        "calibration",
        "boxes",
        "nn",
        "initialisers",
        "ops",
        "modulations",
        "mlp",
        "norms",
        "grids",
        "activations",
        "encodings",
        "losses",
        "metrics",
        "pixels",
        "seeds",
    ),
    "ground": (
        "backends",
        "extension",
        "threads",
        "modes",
        "memory",
        "plots",
        "files",
        "registry",
        "wrapped",
        "spelling",
        "errors",
        "words",
        "arrays",
        "notebook",
        "records",
        "system",
        "progress",
    ),
    "devices": ("kernels",),
}
"""Rooms by floor, from the top; a room imports what stands on its own floor to its right, or below."""

REGISTRIES = {
    "activations": "ACTIVATIONS",
    "encodings": "ENCODINGS",
    "importing": "LAYOUTS",
    "layers": "LAYERS",
    "linalg": "PRECONDITIONERS",
    "losses": "LOSSES",
    "modulations": "MODULATIONS",
    "norms": "NORMS",
    "signals": "SIGNALS",
    "training": "ENGINES, OPTIMIZERS",
}
"""Rooms that hold a registry."""

WIDTH, MARGIN, ROW, GAP, LABEL = 960, 16, 44, 10, 120
PER_ROW = 5


def rooms() -> list[str]:
    """Return the rooms of the package in the order of their imports, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    found = [room.strip(" ()") for layer in layers for room in layer.split(":")]
    return [room for room in found if not room.startswith("__")]


def drawing() -> str:
    """Return the house as SVG."""
    shapes, top = [], MARGIN
    width = (WIDTH - LABEL - 2 * MARGIN - (PER_ROW - 1) * GAP) / PER_ROW
    for floor, held in FLOORS.items():
        lines = -(-len(held) // PER_ROW)
        height = lines * (ROW + GAP) + GAP
        shapes.append(f'<rect x="{MARGIN}" y="{top}" width="{WIDTH - 2 * MARGIN}" height="{height}" class="floor"/>')
        shapes.append(f'<text x="{MARGIN + 12}" y="{top + height / 2 + 5}" class="label">{escape(floor)}</text>')
        for number, room in enumerate(held):
            x = MARGIN + LABEL + (number % PER_ROW) * (width + GAP) - GAP
            y = top + GAP + number // PER_ROW * (ROW + GAP)
            held_by = REGISTRIES.get(room, "")
            shapes.append(
                f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{ROW}" rx="4" '
                f'class="{"registry" if held_by else "room"}"/>'
            )
            middle = y + (18 if held_by else 27)
            shapes.append(f'<text x="{x + width / 2:g}" y="{middle}" class="name">{escape(room)}</text>')
            if held_by:
                shapes.append(f'<text x="{x + width / 2:g}" y="{y + 35}" class="small">{escape(held_by)}</text>')
        top += height + GAP
    style = (
        "text{font-family:sans-serif;fill:#222}.label{font-size:14px;font-weight:bold}.name{font-size:14px;"
        "text-anchor:middle}.small{font-size:10px;text-anchor:middle;fill:#345}.floor{fill:#f4f1ea;stroke:#cbb}"
        ".room{fill:#fff;stroke:#888}.registry{fill:#dcebf7;stroke:#357}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
    return "\n".join([head, f"<style>{style}</style>", *shapes, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "house.svg").write_text(drawing())
