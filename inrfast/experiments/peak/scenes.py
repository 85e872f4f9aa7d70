"""The scenes of table 3: folders of the user's own in the layout of the paper's, or pictures of meshes made here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inrfast.experiments.paper import Request
from inrfast.scenes.blender import frames_of, load_blender
from inrfast.scenes.cameras import sphere_of_cameras
from inrfast.scenes.caster import render_mesh
from inrfast.scenes.views import Views

FORMULA = "gyroid-ball"
PERIODS, THICKNESS, RADIUS, CELLS = 4.0, 0.45, 0.85, 96
"""The surface by formula: a wall along a gyroid of so many radians per unit, in a ball; cells of its mesh per axis."""

POOL, DISTANCE = 100, 3.0
"""Rendered views of which those to fit are taken evenly, as the paper's folders have 100; distance of their cameras."""

BLENDER_BOX, OWN_BOX = (-1.5, 1.5), (-1.0, 1.0)
"""That hold the scenes of the NeRF paper, and placed meshes."""

UPWARD = 1
"""Axis of a mesh file that points upwards."""


@dataclass(frozen=True)
class Scene:
    """A scene by its name: a folder, the file of a mesh, or None for the formula; ``digest`` is of its content."""

    name: str
    source: Path | None
    folder: bool
    digest: str

    @property
    def settings(self) -> dict[str, Any]:
        """What its pictures depend on, beside their number and size."""
        if self.source is None:
            return {"scene": FORMULA, "periods": PERIODS, "thickness": THICKNESS, "radius": RADIUS, "mesh": CELLS}
        return {"scene": self.name, "content": self.digest}

    @property
    def bounds(self) -> tuple[float, float]:
        """The box that holds it."""
        return BLENDER_BOX if self.folder else OWN_BOX

    def check(self, side: int, count: int, held_out: int) -> None:
        """Raise what :meth:`views` would, from the poses and the first picture of a folder or the file of a mesh."""
        if not self.folder:
            if self.source is not None:
                _loaded(self.source)
            return
        assert self.source is not None
        try:
            for split, least in (("train", count), ("test", held_out)):
                there = frames_of(self.source, split)
                if there < least:
                    raise ValueError(f"the {split} views must be at least {least}, got {there}")
                load_blender(self.source, split, side, every=there)
        except ValueError as error:
            raise ValueError(f"scene {self.name}: {error}") from error

    def views(self, side: int, count: int, held_out: int) -> tuple[Views, Views]:
        """Return ``count`` views to fit and ``held_out`` others, the longer side of ``side`` pixels.

        Raises
        ------
        ValueError
            A folder has fewer views.
        """
        if self.folder:
            assert self.source is not None
            try:
                seen = load_blender(self.source, "train", side).some(count)
                return seen, load_blender(self.source, "test", side).some(held_out)
            except ValueError as error:
                raise ValueError(f"scene {self.name}: {error}") from error
        cameras = sphere_of_cameras(POOL, side, side, DISTANCE, seed=1)
        mesh, upward = (gyroid_ball(), 2) if self.source is None else (_loaded(self.source), UPWARD)
        chosen = [cameras[index * POOL // count] for index in range(count)]
        unseen = sphere_of_cameras(held_out, side, side, DISTANCE, seed=2)
        return (
            render_mesh(mesh, chosen, upward=upward, progress=False),
            render_mesh(mesh, unseen, upward=upward, progress=False),
        )


def scenes(request: Request) -> list[Scene]:
    """Return the scenes of a request: its folders, else its meshes, else the one by formula."""
    if request.scenes:
        digests = request.settings["scenes"]
        return [Scene(_cell_name(path.name), path, True, digests[path.name]) for path in request.scenes]
    if request.meshes:
        digests = request.settings["meshes"]
        return [Scene(_cell_name(path.stem), path, False, digests[path.name]) for path in request.meshes]
    return [Scene(FORMULA, None, False, "")]


def _cell_name(name: str) -> str:
    """Return a name that cells may have."""
    return re.sub(r"[^a-zA-Z0-9.=+-]", lambda odd: f"_{ord(odd[0]):x}_", name)[-60:]


def _loaded(path: Path) -> Any:
    from inrfast.signals.mesh import load_mesh  # needs what only meshes need

    return load_mesh(path)


def gyroid_ball() -> Any:
    """Return the mesh of the surface by formula, ``|sin x cos y + sin y cos z + sin z cos x| < 0.45`` in a ball."""
    from inrfast.grids import grid
    from inrfast.signals.mesh import isosurface

    points = grid((CELLS,) * 3, "inclusive", dtype=torch.float64)
    waves = PERIODS * points
    wall = THICKNESS - (waves.sin() * waves.roll(-1, 1).cos()).sum(1).abs()
    inside = torch.minimum(wall, PERIODS * (RADIUS - points.norm(dim=1)))
    return isosurface(inside.view((CELLS,) * 3), 0.0)
