"""Signed distances: of meshes, exactly; networks of them back to surfaces; the kind of signal "sdf"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast import spelling
from inrfast.errors import check_float, check_int, check_seed, check_tensor, needs
from inrfast.memory import budget_bytes, chunks, require
from inrfast.metrics import chamfer, iou
from inrfast.progress import progress_bar
from inrfast.signals.kinds import SIGNALS, Option, Signal, SignalKind, fitted_grid, smooth
from inrfast.signals.mesh import (
    FIT_SIDE,
    LEAST_SIDE,
    RENDER_SIDE,
    SAMPLES,
    Placement,
    check_inside,
    check_libraries,
    check_placement,
    check_sides,
    isosurface,
    occupancy,
    points_around,
    surface_points,
)
from inrfast.signals.meshes.files import SUFFIXES, check_mesh, load_mesh, save_mesh
from inrfast.signals.meshes.winding import POINTS
from inrfast.signals.views import of_distances
from inrfast.training.regularizers.eikonal import Eikonal

if TYPE_CHECKING:
    import trimesh

__all__ = ["sample_sdf", "signed_distance"]

FACE_BYTES, POINT_BYTES = 512, 96
"""Bytes per triangle of libigl's tree, and per point, at most."""

BATCH = 8192
"""Points per update, unless others are asked for."""

ON_SURFACE = 0.2
"""Share of points on a surface."""

BOX, ROWS_PER_STEP = 100_000, 1024
"""Points of the box for regularisers, and how many take part in a step."""

COMPARED = 30_000
"""Points on both surfaces for their chamfer distance."""

MEASURED = 4096
"""Points at which the eikonal residual is measured."""

ROWS = 8192
"""Points at which a network is evaluated at once."""


def signed_distance(
    mesh: trimesh.Trimesh, points: Tensor, memory_budget: int | None = None, progress: bool | None = None
) -> Tensor:
    """Return the signed distance of a mesh at every point, fp64 (n,): negative inside, as in SIREN, DeepSDF and IGR.

    The distance to the nearest triangle is exact, by libigl in fp64. The sign is that of
    :func:`inrfast.signals.mesh.occupancy`: an open surface counts as closed in its holes, where the distance, which is
    that of the triangles there are, jumps from one sign to the other.

    Parameters
    ----------
    mesh
        In any units.
    points
        Shape (n, 3), on the CPU, in the mesh's coordinates.
    memory_budget
        Bytes for the trees, the points and the result; None takes half of what is free.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.

    Raises
    ------
    ValueError, TypeError
        No mesh, no faces, points of another shape, with NaN or Inf, or on a GPU.
    MemoryBudgetError
        The budget does not hold the tree and the points.
    MissingLibraryError
        libigl is not installed.
    """
    placement = Placement.of(check_mesh(mesh))
    points = check_tensor("points", points, nonempty=False).detach().double()
    inside = occupancy(mesh, points, memory_budget, progress)  # which checks the shape too
    require(
        FACE_BYTES * len(mesh.faces) + POINT_BYTES * len(points),
        budget_bytes(memory_budget),
        f"a tree of {len(mesh.faces)} triangles with {len(points)} points",
        "take fewer of them at a time",
    )
    with needs("mesh", "a signed distance"):
        import igl
    # Placed, so that no square of a coordinate overflows.
    vertices = placement.to_unit(torch.from_numpy(np.array(mesh.vertices, dtype=np.float64))).numpy()
    faces, tree = np.array(mesh.faces, dtype=np.int64), igl.AABB()
    tree.init(vertices, faces)
    values = torch.empty(len(points), dtype=torch.float64)
    with progress_bar(total=len(points), progress=progress, unit="point") as bar:
        for rows in chunks(len(points), POINTS):
            squares = tree.squared_distance(vertices, faces, placement.to_unit(points[rows]).numpy())[0]
            values[rows] = torch.from_numpy(np.sqrt(squares))
            bar.update(rows.stop - rows.start)
    return torch.where(inside, -values, values) * placement.scale


def sample_sdf(
    mesh: trimesh.Trimesh,
    n: int,
    on_surface: float = ON_SURFACE,
    near_surface: float = 0.5,
    sigma: float = 0.05,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Return points in [-1, 1]^3 and the signed distances there: what a network is fitted to.

    Parameters
    ----------
    mesh
        The surface; it is placed by :meth:`inrfast.signals.mesh.Placement.of`.
    n
        Number of points.
    on_surface, near_surface
        Shares of points on the surface (uniform by area), the first ones returned, and of such points moved by Gaussian
        noise, which come next; the others are uniform in the cube.
    sigma
        Standard deviation of that noise, in placed coordinates. Half of the points take it, the other half a tenth.
    seed
        Of a CPU generator of its own.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.

    Returns
    -------
    coords, distances
        fp32, (n, 3) and (n, 1), both in placed coordinates: times ``Placement.of(mesh).scale`` in the mesh's units.

    Raises
    ------
    ValueError, TypeError
        No mesh, no faces, n below 1, shares that are negative or more than 1 in sum, a negative sigma.
    MemoryBudgetError
        The points do not fit half of the free memory.
    """
    placement = Placement.of(mesh)
    n = check_int("n", n, minimum=1)
    on_surface = check_float("on_surface", on_surface, minimum=0.0)
    near_surface = check_float("near_surface", near_surface, minimum=0.0)
    if on_surface + near_surface > 1:
        raise ValueError(
            f"on_surface and near_surface must be shares of at most 1 in sum, got {on_surface} and {near_surface}"
        )
    sigma = check_float("sigma", sigma, minimum=0.0)
    generator = torch.Generator().manual_seed(check_seed("seed", seed))
    on = round(on_surface * n)
    near = min(round(near_surface * n), n - on)
    spread = torch.full((near, 1), sigma, dtype=torch.float64, device="cpu")
    spread[::2] *= 0.1
    coords = points_around(mesh, n, on, near, spread, generator)
    distances = signed_distance(mesh, placement.to_world(coords.double()), progress=progress) / placement.scale
    return coords, distances.float().unsqueeze(1)


def box_points(seed: int) -> Tensor:
    """Return random points of the box [-1, 1]^3, fp32 (n, 3), of which regularisers draw some in each step."""
    return 2 * torch.rand(BOX, 3, generator=torch.Generator().manual_seed(seed), device="cpu") - 1


# ---- quality -----------------------------------------------------------------------------------------------------


def evaluated(net: nn.Module, coords: Tensor) -> Tensor:
    """Return the values (n,) of a network at points (n, d), in fp64 on the CPU."""
    like = next(net.parameters())
    with torch.no_grad():
        return torch.cat([net(coords[rows].to(like))[:, 0].double().cpu() for rows in chunks(len(coords), ROWS)])


def residual(net: nn.Module, seed: int) -> float:
    """Return the mean of ``| |grad f| - 1 |`` at random points of the box."""
    like = next(net.parameters())
    points = 2 * torch.rand(MEASURED, 3, generator=torch.Generator().manual_seed(seed), device="cpu") - 1
    return float(Eikonal(points.to(like), rows="all")(net, 0).detach())


def apart(predictions: Tensor, others: Tensor, seed: int) -> dict[str, float]:
    """Return the chamfer distance of the surface of a grid of distances (R, R, R, 1) and points (n, 3) of another.

    In placed coordinates; nothing where the grid has no surface.
    """
    try:
        surface = isosurface(-predictions[..., 0], 0.0)
    except ValueError:
        return {}
    drawn = surface_points(surface, COMPARED, torch.Generator().manual_seed(seed))
    return {"chamfer": chamfer(drawn, others)}


def measured(
    mesh: trimesh.Trimesh, held_out: tuple[Tensor, Tensor], seed: int
) -> Callable[[nn.Module, Tensor], dict[str, float]]:
    """Return what measures networks of a mesh's distances, lengths in the units of the file."""
    placement = Placement.of(mesh)
    coords, truth = held_out[0], held_out[1][:, 0].double()

    def measure(net: nn.Module, predictions: Tensor) -> dict[str, float]:
        values = evaluated(net, coords)
        on = placement.to_unit(surface_points(mesh, COMPARED, torch.Generator().manual_seed(seed)))
        lengths = {"distance_error": float((values - truth).abs().mean()), **apart(predictions, on, seed + 1)}
        found = {name: value * placement.scale for name, value in lengths.items()}
        return {"iou": iou(values < 0, truth < 0), "eikonal_residual": residual(net, seed), **found}

    return measure


# ---- the kind of signal ------------------------------------------------------------------------------------------


def _load(
    path: Path,
    seed: int,
    memory_budget: int | None,
    progress: bool | None,
    size: tuple[int, ...] = (FIT_SIDE,),
    samples: int = SAMPLES,
    eikonal: float | None = None,
) -> Signal:
    """Return points and distances, and what measures a network at others."""
    size = check_sides(size)
    check_libraries(path)
    mesh = load_mesh(path)
    placement = Placement.of(mesh)
    coords, distances = sample_sdf(mesh, samples, seed=seed, progress=progress)
    other = (seed + 1) % 2**32
    held_out = sample_sdf(mesh, max(samples // 4, 1), 0.0, seed=other, progress=progress)
    check_inside(path, mesh, distances[round(ON_SURFACE * samples) :] < 0, held_out[1] < 0)  # not those on the surface
    about = {"shape": list(size), "offset": 0.0, "scale": 1.0}
    about |= {"centre": list(placement.centre), "length": placement.scale}
    terms = () if eikonal is None else ((Eikonal(box_points(seed), rows=ROWS_PER_STEP, seed=seed), eikonal),)
    return Signal(
        coords,
        distances,
        about,
        loss="l1",
        batch_size=min(BATCH, samples),
        regularizers=terms,
        measure=measured(mesh, held_out, other),
    )


def write(predictions: Tensor, about: dict[str, Any], path: Path) -> None:
    """Write the surface where distances (R, R, R, 1) are 0, at its place in the world."""
    placement = Placement(tuple(about["centre"]), about["length"])
    save_mesh(isosurface(-predictions[..., 0], 0.0, placement), path)


RENDER_OPTIONS = {"size": Option(f"points per axis of marching cubes ({RENDER_SIDE})", spelling.shape)}


def grid_of(about: dict[str, Any], size: tuple[int, ...] = (RENDER_SIDE,)) -> tuple[list[int], tuple[float, float]]:
    """Return the points per axis of a surface to render, and the bounds of all axes."""
    return fitted_grid(about, size, LEAST_SIDE)


SIGNALS.add(
    "sdf",
    SignalKind(
        called="a mesh",
        summary="a mesh with --as sdf: signed distances at sampled points, negative inside; --samples, --size",
        ending=".obj",
        axes=3,
        readable=tuple,
        writable=lambda outputs: SUFFIXES,
        load=_load,
        write=write,
        options={
            "size": Option(f"grid of the reconstruction ({FIT_SIDE})", spelling.shape),
            "eikonal": Option("factor of the mean of ||gradient| - 1|, such as 0.05 (none)", spelling.level),
            "samples": Option(f"points to fit, 7 of 10 on or near the surface ({SAMPLES})", spelling.whole()),
        },
        render_options=RENDER_OPTIONS,
        grid=grid_of,
        check=check_placement,
        shared=lambda: SUFFIXES,
        recipe=smooth,
        view=of_distances,
    ),
)
