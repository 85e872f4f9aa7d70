"""Clouds of points: in from files, with normals or estimates of them; the kind of signal "points"."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from inrfast import spelling
from inrfast.errors import MemoryBudgetError, check_int, check_seed, check_tensor, warn
from inrfast.memory import budget_bytes, chunks, require
from inrfast.signals.kinds import SIGNALS, Option, Signal, SignalKind, smooth
from inrfast.signals.mesh import EXTENT, FIT_SIDE, Placement, check_libraries, check_placement, check_sides
from inrfast.signals.meshes.files import GROWTH, SUFFIXES
from inrfast.signals.meshes.ply import has_faces, read_ply_points
from inrfast.signals.meshes.xyz import read_npy, read_xyz
from inrfast.signals.paths import readable
from inrfast.signals.sdf import RENDER_OPTIONS, ROWS_PER_STEP, apart, box_points, evaluated, grid_of, residual, write
from inrfast.signals.views import of_distances
from inrfast.training.regularizers.eikonal import Eikonal, NormalAlignment, OffSurface

__all__ = ["PointCloud", "estimate_normals", "load_points", "sample_cloud"]

READERS: dict[str, Callable[[bytes], tuple[np.ndarray, np.ndarray | None]]] = {
    ".npy": read_npy,
    ".ply": read_ply_points,
    ".xyz": read_xyz,
}
"""A file's content to points, fp64 (n, 3), and normals of any length, fp64 (n, 3), if there are any."""

NEIGHBOURS = 16
"""Points of which a plane is fitted for a normal."""

NEIGHBOUR_BYTES = 320
"""Bytes per point and neighbour while normals are estimated."""

BATCH = 4096
"""Points per update."""

PLANES, GAPS = 2048, 4.0
"""Planes of a hull that are looked at, at most; distances that are taken, in spacings of the points."""

FLAT = 1e-6
"""Share of the largest singular value of a cloud below which another is rounding: numbers of 32 bits leave 1e-7."""

LEAST_AROUND = 5000
"""Points of the box, at least, of which those outside of a cloud's hull are taken."""

HELD_OUT, MOST_HELD_OUT = 0.1, 5000
"""Share and number of a cloud's points that are kept for measuring."""

EIKONAL, NORMAL, OFF = 0.3, 0.1, 0.03
"""Factors beside the mean distance of the surface from the points."""


@dataclass(frozen=True)
class PointCloud:
    """Points of a surface.

    Attributes
    ----------
    points
        Floating tensor (n, 3), in any units; the same point may come again.
    normals
        Floating tensor (n, 3) of outward directions, which are scaled to length 1; None where they are not known.

    Raises
    ------
    ValueError, TypeError
        No point, other shapes, NaN or Inf, all points in one place, a normal of length 0.
    """

    points: Tensor
    normals: Tensor | None = None

    def __post_init__(self) -> None:
        points = check_tensor("points", self.points, ndim=2).detach().double().cpu()
        if points.shape[1] != 3:
            raise ValueError(f"points must have shape (n, 3), got {tuple(points.shape)}")
        if not float((points.amax(0) - points.amin(0)).max()) > 0:
            raise ValueError(f"points must be in more than one place, got {len(points)} at {points[0].tolist()}")
        object.__setattr__(self, "points", points)
        if self.normals is None:
            return
        normals = check_tensor("normals", self.normals, ndim=2).detach().double().cpu()
        if normals.shape != points.shape:
            raise ValueError(f"normals must have the shape of points {tuple(points.shape)}, got {tuple(normals.shape)}")
        lengths = torch.linalg.vector_norm(normals, dim=1, keepdim=True)
        if bool((lengths == 0).any()):
            raise ValueError(f"normals must have a direction, got length 0 in row {int(lengths.argmin())}")
        object.__setattr__(self, "normals", normals / lengths)

    @property
    def placement(self) -> Placement:
        """The placement that brings the points' bounding box into [-0.9, 0.9]^3, touching it."""
        low, high = self.points.amin(0), self.points.amax(0)
        x, y, z = ((low + high) / 2).tolist()
        return Placement((x, y, z), float((high - low).max()) / (2 * EXTENT))


def load_points(path: str | os.PathLike[str]) -> PointCloud:
    """Return the points in a file, with their normals if it has any.

    Parameters
    ----------
    path
        ``.ply``: its vertices, with ``nx``, ``ny``, ``nz`` as normals; faces are left out. ``.xyz``: text, a point per
        line, three numbers, or six with a normal of length 1. ``.npy``: an array (n, 3), or (n, 6) with normals of
        length 1, of floating or whole numbers.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file is missing, a folder, or not readable.
    ValueError
        The file is empty, damaged, cut, of another format or without points; NaN or Inf; a normal of length 0; numbers
        in the place of normals that are none, such as colours.
    MemoryBudgetError
        The points do not fit half of the free memory.
    TypeError
        ``path`` is no path.
    """
    file = readable(path, "a cloud of points", tuple(READERS))
    require(GROWTH * file.stat().st_size, budget_bytes(None), "its points", "take a smaller one")
    try:
        points, normals = READERS[file.suffix.lower()](file.read_bytes())
        if len(points) == 0:
            raise ValueError("it holds no point")
        return PointCloud(torch.from_numpy(points), None if normals is None else torch.from_numpy(normals))
    except ValueError as error:
        raise ValueError(f"{file} is no cloud of points that can be read: {error}") from error
    except MemoryError as error:
        raise MemoryBudgetError(f"{file} does not fit the memory: {error or 'the system refuses it'}") from error


def _spread(points: Tensor) -> int:
    """Return the dimensions in which points (n, 3) extend, 1 to 3: on a line, in a plane, or in space."""
    placed = (points - points.amin(0)) / (points.amax(0) - points.amin(0)).max()
    values = torch.linalg.svdvals(placed.double() - placed.double().mean(0))
    return int((values > FLAT * values[0]).sum())


def _check_spread(points: Tensor) -> int:
    """Return the dimensions in which points extend; a line is refused."""
    spread = _spread(points)
    if spread == 1:
        raise ValueError(f"points must be of a surface, got {len(points)} on one line")
    return spread


def estimate_normals(points: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return outward normals of points of a closed surface, fp64 (n, 3) of length 1.

    The normal of a point is that of the plane through its nearest points. Signs go from point to point along the tree
    of neighbours that turns the least, from the point farthest from the middle of each part that hangs together.
    Directions are good where the points are denser than the surface bends. Signs can be wrong as a whole where they are
    not: at sheets thinner than the spacing of the points, and on the walls of a hole inside a body, which look inward.

    Parameters
    ----------
    points
        Shape (n, 3), at least ``neighbours + 1`` of them in different places.
    neighbours
        Nearest points of each plane, at least 3.

    Raises
    ------
    ValueError, TypeError
        Fewer points, or all on one line; another shape, NaN or Inf.
    MemoryBudgetError
        The neighbours do not fit half of the free memory.

    Source: Hoppe, DeRose, Duchamp, McDonald, Stuetzle, Surface reconstruction from unorganized points, SIGGRAPH 1992,
    section 3.
    """
    cloud = PointCloud(points).points
    neighbours = check_int("neighbours", neighbours, minimum=3)
    _check_spread(cloud)
    places, back = torch.unique(cloud, dim=0, return_inverse=True)
    if len(places) <= neighbours:
        raise ValueError(
            f"points must be in at least {neighbours + 1} different places for {neighbours} neighbours, got "
            f"{len(places)}"
        )
    require(
        NEIGHBOUR_BYTES * len(places) * neighbours, budget_bytes(None), "the neighbours of all points", "take fewer"
    )
    from scipy.spatial import cKDTree  # slow to import, and not needed by fits

    own = places.numpy()
    own = (own - own.mean(0)) / np.abs(own - own.mean(0)).max()
    near = cKDTree(own).query(own, neighbours + 1)[1]
    normals = np.empty_like(own)
    for rows in chunks(len(own), 2**14):
        group = own[near[rows]]
        group = group - group.mean(1, keepdims=True)
        normals[rows] = np.linalg.eigh(group.transpose(0, 2, 1) @ group)[1][..., 0]
    return torch.from_numpy(normals * _signs(own, normals, near)[:, None])[back]


def _signs(points: np.ndarray, normals: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the sign of each normal that makes neighbours agree, and the outermost one of each part look outward."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

    count, others = near.shape[0], near.shape[1] - 1
    first, second = np.repeat(np.arange(count), others), near[:, 1:].ravel()
    turn = 1 - np.abs((normals[first] * normals[second]).sum(1)) + 1e-9  # an edge of 0 is none
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, kept = np.unique(low * count + high, return_index=True)
    graph = coo_array((turn[kept], (low[kept], high[kept])), shape=(count, count)).tocsr()
    tree = minimum_spanning_tree(graph)
    signs = np.ones(count)
    parts = connected_components(tree, directed=False)[1]
    order = np.argsort(parts, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(parts[order])) + 1):
        out = points[part] - points[part].mean(0)
        root = int(np.square(out).sum(1).argmax())
        signs[part[root]] = 1.0 if (normals[part[root]] * out[root]).sum() >= 0 else -1.0
        walk, before = breadth_first_order(tree, part[root], directed=False)
        agree = np.sign((normals[walk[1:]] * normals[before[walk[1:]]]).sum(1))
        for place, parent, sign in zip(walk[1:].tolist(), before[walk[1:]].tolist(), agree.tolist(), strict=True):
            signs[place] = signs[parent] * (sign or 1.0)
    return signs


# ---- the kind of signal ------------------------------------------------------------------------------------------


def sample_cloud(cloud: PointCloud, seed: int = 0) -> tuple[Tensor, Tensor, tuple[tuple[nn.Module, float], ...]]:
    """Return points, distances and regularisers that make a network the signed distance of a cloud's closed surface.

    ``coords, distances, terms = sample_cloud(cloud)``, then ``inr.fit(net, coords, distances, loss="l1",
    regularizers=terms)``: SIREN's loss for shapes, and beside it what is known without normals: outside of the convex
    hull of the cloud the distance is that of the nearest point. (On a torus of 20,000 points the mean error in the box
    was 0.18 without these after 300 steps, and 0.002 with them: away from the surface SIREN's loss leaves the sign
    open.)

    Parameters
    ----------
    cloud
        Of a closed surface, in any units; normals are estimated (:func:`estimate_normals`) where it has none.
    seed
        Of a CPU generator of its own.

    Returns
    -------
    coords, distances
        fp32, (n, 3) and (n, 1), in placed coordinates (:attr:`PointCloud.placement`): the points, with 0, and half as
        many points around them. A cloud in one plane, which has no hull, gets none of these.
    regularizers
        Pairs of module and factor: the length of the gradient in the box [-1, 1]^3, its direction at the points, and
        values that are not 0 elsewhere.

    Raises
    ------
    ValueError
        Too few points for normals, or all of them on one line.
    MemoryBudgetError
        The neighbours of the points do not fit half of the free memory.

    Source: Sitzmann et al., SIREN, NeurIPS 2020, equation 6.
    """
    _check_spread(cloud.points)
    normals = estimate_normals(cloud.points) if cloud.normals is None else cloud.normals
    return _sampled(cloud.placement.to_unit(cloud.points).float(), normals.float(), check_seed("seed", seed))


def _sampled(points: Tensor, normals: Tensor, seed: int) -> tuple[Tensor, Tensor, tuple[tuple[nn.Module, float], ...]]:
    """Return what :func:`sample_cloud` does, of placed points (n, 3) and their normals, fp32."""
    box = box_points(seed)
    around, distances = _outside(points, box[: max(len(points) // 2, LEAST_AROUND)])
    few = min(ROWS_PER_STEP, len(points))
    terms = (
        (Eikonal(box, rows=ROWS_PER_STEP, seed=seed), EIKONAL),
        (NormalAlignment(points, normals, rows=few, seed=seed), NORMAL),
        (OffSurface(box, rows=ROWS_PER_STEP, seed=seed), OFF),
    )
    return torch.cat([points, around]), torch.cat([points.new_zeros(len(points), 1), distances]), terms


def _outside(cloud: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Return those points of a box that are outside of a cloud's convex hull, and their distances to the cloud.

    There the sign of a closed surface is known. Points so near that the gaps between the cloud's points count are left
    out. A cloud in one plane has no hull, and gets none.
    """
    from scipy.spatial import ConvexHull, QhullError, cKDTree  # slow to import

    if _spread(cloud) < 3:
        return box[:0], box[:0, :1]
    points = torch.unique(cloud, dim=0).double().numpy()
    try:
        planes = ConvexHull(points).equations
    except QhullError:
        return box[:0], box[:0, :1]
    planes = planes[:: -(-len(planes) // PLANES)]  # beyond any of them is outside
    parts = chunks(len(box), 2**12)
    beyond = np.concatenate([(box[rows].numpy() @ planes[:, :3].T + planes[:, 3]).max(1) for rows in parts])
    away, tree = box[torch.from_numpy(beyond > 0)], cKDTree(points)
    distances = torch.from_numpy(tree.query(away.numpy())[0]).float().unsqueeze(1)
    spacing = float(np.median(tree.query(points[:: -(-len(points) // PLANES)], 2)[0][:, 1]))
    far = distances[:, 0] > GAPS * spacing
    return away[far], distances[far]


def _load(
    path: Path, seed: int, memory_budget: int | None, progress: bool | None, size: tuple[int, ...] = (FIT_SIDE,)
) -> Signal:
    """Return points where the distance is 0, with what makes it a distance."""
    size = check_sides(size)
    check_libraries(path, ("skimage.measure", "trimesh"))
    cloud = load_points(path)
    normals = cloud.normals
    try:
        spread = _check_spread(cloud.points)
        normals = estimate_normals(cloud.points) if normals is None else normals
    except ValueError as error:
        hint = "; give more of them, or their normals too (nx, ny, nz)" if "different places" in str(error) else ""
        raise ValueError(f"{path} is no cloud of a surface that can be fitted: {error}{hint}") from error
    if spread == 2:
        warn(f"{path}: all points are in one plane, so that nothing says what is inside; a closed surface is expected")
    elif cloud.normals is None:
        warn(
            f"{path} has no normals, without which nothing says what is inside: they are estimated from neighbouring "
            "points, which is right for points denser than the surface bends"
        )
    placement, placed = cloud.placement, cloud.placement.to_unit(cloud.points).float()
    order = torch.randperm(len(placed), generator=torch.Generator().manual_seed(seed))
    held = min(int(HELD_OUT * len(placed)), MOST_HELD_OUT)
    unseen, seen = placed[order[:held]], order[held:]
    coords, distances, terms = _sampled(placed[seen], normals[seen].float(), seed)

    def measure(net: nn.Module, predictions: Tensor) -> dict[str, float]:
        lengths = {"distance_error": float(evaluated(net, unseen).abs().mean())} if len(unseen) else {}
        lengths |= apart(predictions, placed, seed)
        found = {name: value * placement.scale for name, value in lengths.items()}
        return {"eikonal_residual": residual(net, seed), **found}

    about = {"shape": list(size), "offset": 0.0, "scale": 1.0}
    about |= {"centre": list(placement.centre), "length": placement.scale}
    return Signal(
        coords,
        distances,
        about,
        loss="l1",
        batch_size=min(BATCH, len(coords)),
        regularizers=terms,
        measure=measure,
    )


def _is_cloud(path: Path) -> bool:
    """Return whether a .ply file states points and no faces."""
    if path.suffix.lower() != ".ply" or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return not has_faces(file.read(2**16))


SIGNALS.add(
    "points",
    SignalKind(
        called="a cloud of points",
        summary=".xyz, .ply without faces, .npy with --as points: signed distances, negative inside; --size",
        ending=".obj",
        axes=3,
        readable=lambda: [".xyz"],
        writable=lambda outputs: SUFFIXES,
        load=_load,
        write=write,
        options={"size": Option(f"grid of the reconstruction ({FIT_SIDE})", spelling.shape)},
        render_options=RENDER_OPTIONS,
        grid=grid_of,
        check=check_placement,
        shared=lambda: [".ply", ".npy"],
        claims=_is_cloud,
        recipe=smooth,
        view=of_distances,
    ),
)
