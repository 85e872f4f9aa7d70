"""Surfaces: meshes to occupancies at points, occupancies on a grid back to meshes; the kind of signal "mesh"."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inrfast import spelling
from inrfast.errors import check_float, check_int, check_seed, check_tensor, needs, warn
from inrfast.grids import check_bounds
from inrfast.signals.kinds import SIGNALS, Option, Signal, SignalKind, fitted_grid, smooth
from inrfast.signals.meshes.files import SUFFIXES, check_mesh, load_mesh, save_mesh
from inrfast.signals.meshes.winding import winding_numbers
from inrfast.signals.views import of_mesh

if TYPE_CHECKING:
    import trimesh

__all__ = ["Placement", "isosurface", "load_mesh", "occupancy", "sample_occupancy", "save_mesh"]

EXTENT = 0.9
"""Half the side of the placed bounding box: a margin of [-1, 1] stays empty, so that marching cubes closes surfaces."""

INSIDE = 0.5
"""Smallest absolute winding number that counts as inside: halfway between 0 and 1."""

FIT_SIDE, RENDER_SIDE, SAMPLES = 128, 256, 200_000
"""Defaults: points per axis of the surface that is written after a fit and by ``render``; points to fit."""

TURNED = 0.05
"""Share of edges whose two faces are turned against each other, above which a user is told; at random it is a half."""

LEAST_SIDE = 2
"""Fewest points per axis for marching cubes, which needs one cell."""


# ---- placement ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """Where a mesh lies in a network's coordinates: moved and scaled, never distorted.

    Attributes
    ----------
    centre
        The point of the world that becomes the origin.
    scale
        Length in the world of a unit of the network's coordinates, above 0.
    """

    centre: tuple[float, float, float]
    scale: float

    def __post_init__(self) -> None:
        if len(self.centre) != 3:
            raise ValueError(f"centre must have 3 coordinates, got {self.centre!r}")
        object.__setattr__(self, "centre", tuple(check_float("centre", value) for value in self.centre))
        object.__setattr__(self, "scale", check_float("scale", self.scale, minimum=0.0, exclusive=True))

    @classmethod
    def of(cls, mesh: trimesh.Trimesh) -> Placement:
        """Return the placement that brings the mesh's bounding box into [-0.9, 0.9]^3, touching it."""
        low, high = check_mesh(mesh).bounds
        x, y, z = ((low + high) / 2).tolist()
        return cls((x, y, z), float((high - low).max()) / (2 * EXTENT))

    def to_unit(self, points: Tensor) -> Tensor:
        """Return points (..., 3) of the world in the network's coordinates, in their own dtype."""
        return (points - points.new_tensor(self.centre)) / self.scale

    def to_world(self, points: Tensor) -> Tensor:
        """Return points (..., 3) of the network's coordinates in the world's, in their own dtype."""
        return points * self.scale + points.new_tensor(self.centre)


# ---- occupancy ---------------------------------------------------------------------------------------------------


def occupancy(
    mesh: trimesh.Trimesh, points: Tensor, memory_budget: int | None = None, progress: bool | None = None
) -> Tensor:
    """Return whether each point is inside the mesh, bool (n,): an absolute winding number above 1/2.

    For a closed surface, whichever way its faces are turned, that is its inside, also where parts overlap. The winding
    number of an open surface passes smoothly through 1/2 in its holes: they are closed by a surface without edges.

    Parameters
    ----------
    mesh
        In any units.
    points
        Shape (n, 3), on the CPU, in the mesh's coordinates.
    memory_budget, progress
        As in :func:`inrfast.signals.meshes.winding.winding_numbers`, as are the errors.

    Source: Jacobson, Kavan, Sorkine-Hornung, Robust inside-outside segmentation using generalized winding numbers, ACM
    Transactions on Graphics 32(4), 2013.
    """
    triangles = torch.from_numpy(np.array(check_mesh(mesh).triangles, dtype=np.float64))
    return winding_numbers(triangles, points, memory_budget=memory_budget, progress=progress).abs() > INSIDE


def sample_occupancy(
    mesh: trimesh.Trimesh,
    n: int,
    near_surface: float = 0.5,
    sigma: float = 0.03,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Return points in [-1, 1]^3 and the occupancy there: what a network is fitted to.

    Parameters
    ----------
    mesh
        The surface; it is placed by :meth:`Placement.of`.
    n
        Number of points.
    near_surface
        Share of points on the surface (uniform by area) moved by Gaussian noise, the first ones returned; the others
        are uniform in the cube. Half and half is usual: the network learns the surface, and that the rest is empty.
    sigma
        Standard deviation of that noise, in placed coordinates; 0.03 is a sixtieth of the largest placed mesh.
    seed
        Of a CPU generator of its own.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.

    Returns
    -------
    coords, values
        fp32, (n, 3) and (n, 1), in placed coordinates; 1 inside, 0 outside.

    Raises
    ------
    ValueError, TypeError
        No mesh, no faces, n below 1, a share outside [0, 1], a negative sigma.
    MemoryBudgetError
        The points do not fit half of the free memory.
    """
    placement = Placement.of(mesh)
    n = check_int("n", n, minimum=1)
    near_surface = check_float("near_surface", near_surface, minimum=0.0)
    if near_surface > 1:
        raise ValueError(f"near_surface must be a share of at most 1, got {near_surface}")
    sigma = check_float("sigma", sigma, minimum=0.0)
    generator = torch.Generator().manual_seed(check_seed("seed", seed))
    near = round(near_surface * n)
    coords = points_around(mesh, n, 0, near, sigma, generator)
    inside = occupancy(mesh, placement.to_world(coords.double()), progress=progress)
    return coords, inside.float().unsqueeze(1)


def points_around(
    mesh: trimesh.Trimesh, n: int, on: int, near: int, sigma: float | Tensor, generator: torch.Generator
) -> Tensor:
    """Return points (n, 3), fp32, in the placed cube: on the surface, moved off it by Gaussian noise, uniform."""
    surface = Placement.of(mesh).to_unit(surface_points(mesh, on + near, generator))
    noise = sigma * torch.randn(near, 3, generator=generator, dtype=torch.float64, device="cpu")
    uniform = 2 * torch.rand(n - on - near, 3, generator=generator, dtype=torch.float64, device="cpu") - 1
    return torch.cat([surface[:on], (surface[on:] + noise).clamp(-1, 1), uniform]).float()


def surface_points(mesh: trimesh.Trimesh, n: int, generator: torch.Generator) -> Tensor:
    """Return points (n, 3), fp64, uniform by area."""
    triangles = torch.from_numpy(np.array(mesh.triangles, dtype=np.float64))
    below = torch.from_numpy(np.array(mesh.area_faces)).cumsum(0)
    places = below[-1] * torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
    corners = triangles[torch.searchsorted(below, places, right=True).clamp_max(len(below) - 1)]
    u, v = torch.rand(2, n, 1, generator=generator, dtype=torch.float64, device="cpu")
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    a, b, c = corners.unbind(1)
    return a + u * (b - a) + v * (c - a)


# ---- surfaces of values ------------------------------------------------------------------------------------------


def isosurface(
    values: Tensor, level: float, placement: Placement | None = None, bounds: Any = (-1, 1)
) -> trimesh.Trimesh:
    """Return the surface on which values on a grid cross a level, by marching cubes; faces look away from high values.

    Parameters
    ----------
    values
        Floating tensor (R, R, R), or of three other sizes of at least 2, on the points of
        ``inrfast.grid(shape, endpoint="inclusive", bounds=bounds)``.
    level
        Between the smallest and the largest value: 1/2 for occupancies of 0 and 1.
    placement
        Of the mesh that was fitted: the surface is returned in its world. None leaves it in the grid's coordinates.
    bounds
        ``(low, high)`` for every axis, or one such pair per axis.

    Raises
    ------
    ValueError, TypeError
        Other shapes, NaN or Inf, a level that the values do not cross.

    Source: Lewiner, Lopes, Vieira, Tavares, Efficient implementation of marching cubes' cases with topological
    guarantees, Journal of Graphics Tools 8(2), 2003 (by scikit-image).
    """
    values = check_tensor("values", values, ndim=3).detach()
    if min(values.shape) < 2:
        raise ValueError(f"values must have at least 2 points per axis, got shape {tuple(values.shape)}")
    level = check_float("level", level)
    pairs = check_bounds(bounds, 3)
    smallest, largest = float(values.min()), float(values.max())
    if not smallest < level < largest:
        raise ValueError(
            f"there is no surface: the values lie between {smallest:.6g} and {largest:.6g} and do not cross {level:.6g}"
        )
    with needs("mesh", "a surface"):
        import trimesh
        from skimage.measure import marching_cubes

    # "ascent": values rise towards the inside, the outward side is the low one.
    places, faces, _, _ = marching_cubes(values.double().cpu().numpy(), level, gradient_direction="ascent")
    lows, highs = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    steps = (highs - lows) / (torch.tensor(values.shape, dtype=torch.float64) - 1)
    vertices = lows + steps * torch.from_numpy(places.astype(np.float64, order="C"))
    if placement is not None:
        vertices = placement.to_world(vertices)
    return trimesh.Trimesh(vertices.numpy(), np.ascontiguousarray(faces), process=False)


# ---- the kind of signal ------------------------------------------------------------------------------------------


def check_libraries(path: Path, names: tuple[str, ...] = ("igl", "skimage.measure", "trimesh")) -> None:
    """Refuse to read a file without all libraries of surfaces, so that none is missing after the fit."""
    with needs("mesh", f"a fit to {path}"):
        for name in names:
            importlib.import_module(name)


def check_sides(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the three sides of a grid for marching cubes that a command line asks for."""
    size = size * 3 if len(size) == 1 else size
    if len(size) != 3 or min(size) < LEAST_SIDE:
        raise ValueError(f"--size of a mesh must be 3 sizes (or one for all) of at least 2, got {size}")
    return size


def check_inside(path: Path, mesh: trimesh.Trimesh, *inside: Tensor) -> None:
    """Refuse samples, bool, of which none is inside, and warn where the faces of a mesh are turned without an order."""
    if not all(bool(part.any()) for part in inside):
        raise ValueError(
            f"{path}: no sampled point is inside: its faces cancel (as where each is there in both directions), it is "
            "open, or it is thin; close it and turn its faces alike, or take more --samples"
        )
    share = turned_edges(mesh)
    if share > TURNED:
        warn(
            f"{path}: the two faces of {100 * share:.2g} % of its edges are turned against each other, so that what is "
            "inside is not clear; turn all faces outward"
        )


def turned_edges(mesh: trimesh.Trimesh) -> float:
    """Return the share of edges that both of their faces go along in one direction, of those with two faces."""
    corners = np.unique(np.asarray(mesh.vertices), axis=0, return_inverse=True)[1].reshape(-1)[np.asarray(mesh.faces)]
    ways = np.concatenate([corners[:, [k, (k + 1) % 3]] for k in range(3)])
    keys = ways.min(1) * len(mesh.vertices) + ways.max(1)
    _, edges, count = np.unique(keys, return_inverse=True, return_counts=True)
    upward = np.bincount(edges.reshape(-1), weights=ways[:, 0] < ways[:, 1])[count == 2]
    return float(np.mean(upward != 1)) if len(upward) else 0.0


def _load(
    path: Path,
    seed: int,
    memory_budget: int | None,
    progress: bool | None,
    size: tuple[int, ...] = (FIT_SIDE,),
    samples: int = SAMPLES,
) -> Signal:
    """Return points and occupancies, and others that are held out."""
    size = check_sides(size)
    check_libraries(path)
    mesh = load_mesh(path)
    placement = Placement.of(mesh)
    coords, inside = sample_occupancy(mesh, samples, seed=seed, progress=progress)
    # another seed, and few points, since they are only measured
    other = (seed + 1) % 2**32
    held_out = sample_occupancy(mesh, max(samples // 4, 1), seed=other, progress=progress)
    check_inside(path, mesh, inside > 0.5, held_out[1] > 0.5)
    about = {"shape": list(size), "offset": 0.5, "scale": 1.0}
    about |= {"centre": list(placement.centre), "length": placement.scale}
    return Signal(coords, inside - 0.5, about, held_out=held_out)


def _write(predictions: Tensor, about: dict[str, Any], path: Path) -> None:
    """Write the surface between outside and inside, at its place in the world."""
    placement = Placement(tuple(about["centre"]), about["length"])
    save_mesh(isosurface(predictions[..., 0], 0.0, placement), path)


def check_placement(about: dict[str, Any]) -> None:
    """Check the placement."""
    check_float("length", about["length"], minimum=0.0, exclusive=True)
    if len([check_float("centre", value) for value in about["centre"]]) != 3:
        raise ValueError("centre must have 3 coordinates")


SIGNALS.add(
    "mesh",
    SignalKind(
        called="a mesh",
        summary=".obj, .ply, .stl, .off, .glb: inside or outside at sampled points; --samples, --size of the surface",
        ending=".obj",
        axes=3,
        readable=lambda: SUFFIXES,
        writable=lambda outputs: SUFFIXES,
        load=_load,
        write=_write,
        options={
            "size": Option(f"grid of the reconstruction ({FIT_SIDE})", spelling.shape),
            "samples": Option(f"points to fit, half of them near the surface ({SAMPLES})", spelling.whole()),
        },
        render_options={"size": Option(f"points per axis of marching cubes ({RENDER_SIDE})", spelling.shape)},
        grid=lambda about, size=(RENDER_SIDE,): fitted_grid(about, size, LEAST_SIDE),
        check=check_placement,
        view=of_mesh,
        recipe=smooth,
    ),
)
