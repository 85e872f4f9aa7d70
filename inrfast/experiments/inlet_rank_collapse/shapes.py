"""The shapes of Fig. 8 as arrays: points with their occupancy, of a mesh or of a formula, and occupancies on a grid."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.experiments.paper import Cell, Found, Request, Work
from inrfast.grids import grid

SETS = ("trial", "judge", "train", "held-out")
"""Sets of points, each of a seed of its own: to choose learning rates with, and to judge them; to fit, and to score."""

SIGMA = 0.03
"""Deviation of points near the surface from it, in coordinates of [-1, 1]."""

LEAST_SHARE = 1e-4
"""Share of the grid that a surface must enclose: with less, an IoU on the grid says nothing."""

GYROID = "gyroid-ball"
PERIODS, THICKNESS, RADIUS = 4.0, 0.45, 0.85
"""The surface by formula: a wall along a gyroid of this many radians per unit, within a ball."""


@dataclass(frozen=True)
class Sizes:
    """How many points a shape has in each of :data:`SETS`, and per axis of its grid."""

    points: tuple[int, int, int, int]
    side: int


@dataclass(frozen=True)
class Shape:
    """A shape before its points are drawn: a mesh's file, or None for the formula.

    ``name`` is that of its cells, ``label`` that of its figure.
    """

    name: str
    label: str
    file: Path | None
    digest: str

    @property
    def settings(self) -> dict[str, Any]:
        """What its points depend on beside their number and seed."""
        if self.file is None:
            return {"shape": GYROID, "periods": PERIODS, "thickness": THICKNESS, "radius": RADIUS}
        return {"shape": self.label, "mesh": self.digest}

    def cell(self, sizes: Sizes, seed: int) -> Cell:
        """Return the cell that draws its points, which alone needs the mesh."""
        settings = {**self.settings, "points": list(sizes.points), "grid": sizes.side, "sigma": SIGMA, "seed": seed}
        return Cell(f"shape-{self.name}", settings, lambda work: self._sampled(work, sizes, seed), cost=0.3)

    def _sampled(self, work: Work, sizes: Sizes, seed: int) -> Found:
        dense = grid((sizes.side,) * 3, endpoint="center", dtype=torch.float64)
        drawn, inside, open_edges = (
            _of_formula(sizes, seed, dense)
            if self.file is None
            else _of_mesh(self.file, sizes, seed, dense, work.progress)
        )
        share = float(inside.double().mean())
        if share < LEAST_SHARE:
            raise ValueError(
                f"mesh must enclose a part of space, and {self.label} encloses {int(inside.sum())} of the "
                f"{len(inside):,} points of a grid around it: it is an open sheet, or too thin to be compared on a grid"
            )
        arrays = {"grid": np.packbits(inside.numpy())}
        for name, (coords, values) in zip(SETS, drawn, strict=True):
            arrays |= {f"{name} coords": coords.numpy(), f"{name} inside": np.packbits(values[:, 0].numpy() > 0)}
        return Found({"share": share, "open edges": open_edges}, arrays)


def shapes(request: Request) -> list[Shape]:
    """Return the shapes of a request: its meshes, or the one by formula."""
    if not request.meshes:
        return [Shape(GYROID, GYROID, None, "")]
    return [Shape(_cell_name(path), path.name, path, request.settings["meshes"][path.name]) for path in request.meshes]


def _cell_name(path: Path) -> str:
    """Return a name for files that no other mesh of the request has: their names are not alike."""
    return re.sub(r"[^a-zA-Z0-9.=+-]", lambda odd: f"_{ord(odd[0]):x}_", path.name)[-100:]


def points(found: Found, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a set of points, fp32 (n, 3), and their occupancies, fp32 (n, 1) of 0 and 1."""
    coords = torch.from_numpy(found.arrays[f"{name} coords"])
    inside = np.unpackbits(found.arrays[f"{name} inside"], count=len(coords))
    return coords.to(device), torch.from_numpy(inside).float()[:, None].to(device)


def on_grid(found: Found, side: int) -> np.ndarray:
    """Return the occupancy on the grid, bool (side, side, side)."""
    return np.unpackbits(found.arrays["grid"], count=side**3).astype(bool).reshape(side, side, side)


# ---- a mesh ------------------------------------------------------------------------------------------------------


Drawn = tuple[list[tuple[Tensor, Tensor]], Tensor, int]
"""Points and values of each set, occupancy at the points of the grid, and edges with a face on one side only."""


def _of_mesh(file: Path, sizes: Sizes, seed: int, dense: Tensor, progress: bool | None) -> Drawn:
    from inrfast.signals.mesh import Placement, load_mesh, occupancy, sample_occupancy  # needs what only meshes need

    mesh = load_mesh(file)
    inside = occupancy(mesh, Placement.of(mesh).to_world(dense), progress=progress)
    drawn = [
        sample_occupancy(mesh, count, sigma=SIGMA, seed=_seed(seed, number), progress=progress)
        for number, count in enumerate(sizes.points)
    ]
    return drawn, inside, _open_edges(np.asarray(mesh.vertices), np.asarray(mesh.faces))


def _open_edges(vertices: np.ndarray, faces: np.ndarray) -> int:
    """Return how many edges belong to one face only; vertices at one place are one, as some formats repeat them."""
    _, same = np.unique(vertices, axis=0, return_inverse=True)
    corners = same.reshape(-1)[faces]
    edges = np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]]), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    return int((counts == 1).sum())


def _seed(seed: int, number: int) -> int:
    return (len(SETS) * seed + number) % 2**32


# ---- the formula -------------------------------------------------------------------------------------------------


def gyroid_ball(coords: Tensor) -> Tensor:
    """Return whether points (n, 3) lie in the shape by formula, bool (n,).

    It is ``|sin x cos y + sin y cos z + sin z cos x| < 0.45`` in a ball of radius 0.85, where x, y, z are the
    coordinates times 4: a wall, curved everywhere.
    """
    waves = PERIODS * coords
    values = (waves.sin() * waves.roll(-1, 1).cos()).sum(1)
    return (values.abs() < THICKNESS) & (coords.norm(dim=1) < RADIUS)


def _of_formula(sizes: Sizes, seed: int, dense: Tensor) -> Drawn:
    drawn = [
        sampled(gyroid_ball, count, torch.Generator().manual_seed(_seed(seed, number)))
        for number, count in enumerate(sizes.points)
    ]
    return drawn, gyroid_ball(dense), 0


def sampled(inside: Callable[[Tensor], Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points in [-1, 1]^3, half near the surface and half uniform, and their occupancies.

    Near the surface are points from which a Gaussian step of deviation :data:`SIGMA` leads to its other side.
    """
    near: list[Tensor] = []
    while sum(map(len, near)) < count // 2:
        tried = 2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1
        there = tried + SIGMA * torch.randn(count, 3, generator=generator, dtype=torch.float64)
        near.append(tried[inside(tried) != inside(there)])
    uniform = 2 * torch.rand(count - count // 2, 3, generator=generator, dtype=torch.float64) - 1
    coords = torch.cat([torch.cat(near)[: count // 2], uniform]).float()
    return coords, inside(coords.double()).float()[:, None]
