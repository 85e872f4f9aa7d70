"""Mesh files: in, with everything that they hold of a surface, and out."""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inrfast.errors import MemoryBudgetError, needs
from inrfast.files import write_whole
from inrfast.memory import budget_bytes, chunks, require
from inrfast.signals.meshes.glb import read_glb
from inrfast.signals.meshes.obj import read_obj
from inrfast.signals.meshes.off import read_off
from inrfast.signals.meshes.ply import read_ply
from inrfast.signals.meshes.stl import read_stl
from inrfast.signals.paths import readable, writable

if TYPE_CHECKING:
    import trimesh

READERS: dict[str, Callable[[bytes], tuple[np.ndarray, np.ndarray]]] = {
    ".glb": read_glb,
    ".obj": read_obj,
    ".off": read_off,
    ".ply": read_ply,
    ".stl": read_stl,
}
"""A file's content to vertices, fp64 (n, 3), and triangles, int64 (m, 3): all of them, or a ValueError.

trimesh looks for what it knows in a file and passes over the rest, so that one written a little differently, or cut, is
a smaller mesh without a word. These take every line and every byte, and refuse what they do not know."""

SUFFIXES = tuple(READERS)
"""In lower case; the same are written."""

GROWTH = 6
"""Bytes of memory that reading takes for one of a file, about: 2 to 9 measured, more for very short lines."""

ROWS = 2**14
"""Triangles whose areas are computed at once."""

ROUNDING = 2.0**-20
"""Share of a mesh's size by which a format may move a vertex: numbers of 32 bits round by 2^-24 of themselves."""

DIGITS = 17
"""Of a number of 64 bits in text, so that it comes back."""


def load_mesh(path: str | PathLike[str]) -> trimesh.Trimesh:
    """Return the triangles in a mesh file as one mesh; several parts are joined at their places in the scene.

    Parameters
    ----------
    path
        ``.obj``, ``.ply``, ``.stl``, ``.off`` or ``.glb``. Polygons are cut into triangles; colours, textures, names,
        points and lines are left out, and so are faces without area, vertices of no face, and what the scene of a
        ``.glb`` does not show. All else that a file holds is read, or the file is refused. (Two formats do not state
        all sizes, so that a file which ends early may be another mesh without a word: ASCII ``.stl`` that ends between
        two solids misses the others; ``.obj`` misses the faces, and corners of a polygon, from its end on, and if it
        ends within a vertex's number in a face, without a line end, that corner is the vertex of the digits there.)

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file is missing, a folder, or not readable.
    ValueError
        The file is empty, damaged, cut, of another format, without faces (a cloud of points), with NaN or Inf among the
        vertices of its faces, or all its faces are without area; or it states a surface in a way that is not read. The
        message names the line of a text.
    MemoryBudgetError
        The mesh does not fit half of the free memory.
    TypeError
        ``path`` is no path.
    """
    file = readable(path, "a mesh", SUFFIXES)
    try:
        return _surface(file, *_read(file))
    except MemoryError as error:
        raise MemoryBudgetError(f"{file} does not fit the memory: {error or 'the system refuses it'}") from error


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all vertices and triangles of a file."""
    require(GROWTH * file.stat().st_size, budget_bytes(None), "its mesh", "take a smaller one")
    try:
        return READERS[file.suffix.lower()](file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not a {file.suffix} mesh that can be read, or damaged: {error}") from error


def _surface(file: Path, vertices: np.ndarray, faces: np.ndarray) -> trimesh.Trimesh:
    """Return the triangles with an area, and their vertices."""
    if len(faces) == 0:
        raise ValueError(f"{file} is a mesh without faces; an occupancy needs a surface")
    finite = np.isfinite(vertices).all(axis=1)
    if not finite.all() and not finite[faces].all():
        raise ValueError(f"{file} holds NaN or Inf among the vertices of its faces")
    with needs("mesh", f"the mesh of {file}"):
        import trimesh  # slow to import

    kept = _have_area(vertices, faces)
    if not kept.any():
        raise ValueError(f"{file} holds no face with an area")
    return trimesh.Trimesh(*_used(vertices, faces if kept.all() else faces[kept]), process=False)


def save_mesh(mesh: trimesh.Trimesh, path: str | PathLike[str]) -> None:
    """Write a mesh in the format of the suffix. The file is whole or absent.

    Parameters
    ----------
    mesh
        With at least one face.
    path
        Ends in ``.obj``, ``.ply``, ``.stl``, ``.off`` or ``.glb``; its folder must exist. An older file is replaced.
        Text (``.obj``, ``.off``) gives vertices back to the rounding of fp64, the others hold numbers of 32 bits.

    Raises
    ------
    ValueError, TypeError
        No mesh, no faces, NaN or Inf among the vertices, another suffix, or coordinates so small or large that the
        format's 32 bits would move them by more than 2^-20 of the mesh's size.
    FileNotFoundError, NotADirectoryError, OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    mesh = check_mesh(mesh)
    target = writable(path, "a mesh", SUFFIXES)
    write_whole(target, _exported(mesh, target))


def check_mesh(mesh: Any) -> trimesh.Trimesh:
    """Return ``mesh`` if it is one with faces."""
    with needs("mesh", "a mesh"):
        import trimesh

    if not isinstance(mesh, trimesh.Trimesh):
        raise TypeError(f"mesh must be a trimesh.Trimesh, got {type(mesh).__name__}")
    if len(mesh.faces) == 0:
        raise ValueError("mesh must have at least one face, got none")
    return mesh


def _have_area(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return which triangles have an area, bool (m,), however small or large they are."""
    kept = np.empty(len(faces), dtype=bool)
    for rows in chunks(len(faces), ROWS):
        corners = vertices[faces[rows]]
        found = _spans(corners, 0)
        for corner in (1, 2):  # from a corner far away the two others may look like one
            flat = np.flatnonzero(~found)
            found[flat] = _spans(corners[flat], corner)
        kept[rows] = found
    return kept


def _spans(corners: np.ndarray, at: int) -> np.ndarray:
    """Return which triangles' two sides from one corner, rounded to fp64, have different directions, bool (m,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        sides = corners[:, [at - 2, at - 1]] - corners[:, at : at + 1]
        # Each by its own power of two, so that the product of its sides neither vanishes nor overflows.
        exponents = np.frexp(np.abs(sides).max(axis=(1, 2), keepdims=True, initial=0.0))[1]
        sides *= np.ldexp(1.0, np.clip(-exponents, -1000, 1000))
        return np.asarray(np.cross(sides[:, 0], sides[:, 1]).any(axis=1))


def _used(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out the vertices that no face has."""
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    if used.all():
        return vertices, faces
    return vertices[used], (used.cumsum() - 1)[faces]


def _exported(mesh: trimesh.Trimesh, target: Path) -> bytes:
    """Return the content of a file for a mesh."""
    vertices = np.asarray(mesh.vertices)
    if not np.isfinite(vertices).all():
        raise ValueError("mesh holds NaN or Inf among its vertices")
    kind = target.suffix.lower().removeprefix(".")
    options: dict[str, Any] = {}
    if kind in ("obj", "off"):
        # trimesh writes as many digits behind the point as it is told: as many as the largest coordinate leaves.
        largest = float(np.abs(vertices).max())
        options["digits"] = max(DIGITS - math.floor(math.log10(largest)), 1) if largest else 1
    else:
        _check_rounding(vertices, target)
    content = mesh.export(file_type=kind, **options)
    return content if isinstance(content, bytes) else str(content).encode()


def _check_rounding(vertices: np.ndarray, target: Path) -> None:
    """Refuse vertices that numbers of 32 bits would move too far."""
    size = float(np.ptp(vertices, axis=0).max())
    with np.errstate(over="ignore"):
        moved = float(np.abs(vertices.astype(np.float32) - vertices).max())
    if not moved <= ROUNDING * size:
        raise ValueError(
            f"cannot write {target}: the format has numbers of 32 bits, which would move a mesh of size {size:.3g} by "
            f"{moved:.3g}; take .obj or .off, or another unit or origin"
        )
