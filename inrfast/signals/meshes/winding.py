"""Generalised winding numbers of triangle soups by libigl: how often a surface, closed or not, goes round a point."""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.errors import check_float, check_tensor, needs
from inrfast.memory import budget_bytes, chunks, require
from inrfast.progress import progress_bar

TRIANGLE_BYTES, POINT_BYTES = 512, 64
"""Bytes per triangle (273 measured in libigl's tree, and the corners in fp64 twice) and per point, at most."""

POINTS = 2**16
"""Points per call: Ctrl-C and the progress bar wait for one call."""


def winding_numbers(
    triangles: Tensor,
    points: Tensor,
    accuracy: float = 2.0,
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Return the winding number of a triangle soup at every point, fp64 (n,).

    The sum of the signed solid angles of all triangles over ``4 pi``: 1 inside and 0 outside a closed surface whose
    triangles are counterclockwise seen from outside, -1 inside if they are clockwise, and a number in between, harmonic
    away from the surface, if it is open. On the surface it has the value of either side, or one between them.

    Triangles near a point count exactly; those of a tree's node far from it count together, by the Taylor expansion of
    their field up to second order. libigl computes in fp32, on all cores (``LIBIGL_NUM_THREADS`` sets another number),
    after this function has moved and scaled the triangles to [-1, 1]^3 in fp64.

    Parameters
    ----------
    triangles
        Corners (F, 3, 3): triangle, corner, coordinate; any units. Triangles without area count nothing.
    points
        Shape (n, 3), in the units of the triangles.
    accuracy
        A node is far from points at least ``accuracy`` times its radius away. 2, as in the source, keeps errors below
        0.01, measured (0.001 in the mean), where the border between inside and outside is at 0.5.
    memory_budget
        Bytes for the tree, the points and the result; None takes half of what is free.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.

    Raises
    ------
    ValueError, TypeError
        Other shapes or dtypes, tensors on a GPU, NaN or Inf, no triangle, an accuracy of 1 or less (the expansion does
        not converge).
    MemoryBudgetError
        The budget does not hold the tree and the points.
    MissingLibraryError
        libigl is not installed.

    Source: Barill, Dickson, Schmidt, Levin, Jacobson, Fast winding numbers for soups and clouds, ACM Transactions on
    Graphics 37(4), 2018, sections 3 and 4.
    """
    accuracy = check_float("accuracy", accuracy, minimum=1.0, exclusive=True)
    triangles, points = _check(triangles, points)
    require(
        TRIANGLE_BYTES * len(triangles) + POINT_BYTES * len(points),
        budget_bytes(memory_budget),
        f"a tree of {len(triangles)} triangles with {len(points)} points",
        "take fewer of them at a time",
    )
    with needs("mesh", "the inside of a mesh"):
        import igl  # only meshes need it
    tree = igl.FastWindingNumberBVH()
    tree.init(triangles.reshape(-1, 3).numpy(), torch.arange(3 * len(triangles)).view(-1, 3).numpy())
    values = torch.empty(len(points), dtype=torch.float64)
    with progress_bar(total=len(points), progress=progress, unit="point") as bar:
        for rows in chunks(len(points), POINTS):
            values[rows] = torch.from_numpy(tree.winding_number(points[rows].numpy(), accuracy))
            bar.update(rows.stop - rows.start)
    return values


def _check(triangles: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in fp64, moved and scaled so that the triangles fill [-1, 1]^3: no power of a distance overflows."""
    triangles = check_tensor("triangles", triangles).detach()
    points = check_tensor("points", points, nonempty=False).detach()
    for argument, tensor, trailing in (("triangles", triangles, (3, 3)), ("points", points, (3,))):
        if tensor.shape[1:] != trailing:
            raise ValueError(
                f"{argument} must have shape (n, {', '.join(map(str, trailing))}), got {tuple(tensor.shape)}"
            )
        if tensor.device.type != "cpu":
            raise ValueError(f"{argument} must be on the CPU, got {tensor.device}")
    triangles, points = triangles.double(), points.double()
    low, high = triangles.amin((0, 1)), triangles.amax((0, 1))
    middle, scale = low / 2 + high / 2, float((high / 2 - low / 2).max())
    if scale > 0:
        triangles, points = (triangles - middle) / scale, (points - middle) / scale
    return triangles, points
