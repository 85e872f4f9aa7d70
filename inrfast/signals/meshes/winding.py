"""Generalised winding numbers of triangle soups: how often a surface, closed or not, goes round a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement, permutations
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from inrfast.errors import check_float, check_tensor
from inrfast.memory import budget_bytes, chunks, require
from inrfast.threads import MOST_THREADS, one_core, share

POINTS, TRIANGLES = 128, 32
"""Points of a block and triangles of a leaf: small enough to tell near from far, large enough for dense work."""

BLOCKS = 64
"""Blocks that are led down the tree together: the steps of a single one would cost more than their work."""

TILE = 128
"""Triangles, or nodes, that a block meets at a time: their buffers stay in a core's cache."""

EXACT_TILE = 32
"""The same without buffers: what an operation makes then comes from memory that is at hand."""

TREE_NUMBERS, POINT_NUMBERS = 200, 24
"""Numbers in fp64 a triangle and a point, at the most that is there at a time."""

PAIRS, TRIPLES = (list(combinations_with_replacement(range(3), degree)) for degree in (2, 3))
"""The products of two and of three coordinates, by their numbers."""


def winding_numbers(
    triangles: Tensor,
    points: Tensor,
    accuracy: float = 2.0,
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Return the winding number of a triangle soup at every point, fp64 (n,).

    The solid angle of all triangles, with sign, over ``4 pi``: 1 inside and 0 outside a closed surface whose triangles
    are counterclockwise seen from outside, -1 inside if they are clockwise, and a number in between, harmonic away from
    the surface, if it is open. On the surface it has the value of either side, or their mean.

    Triangles near a block of points count exactly; those of a tree's node far from it count together, by the Taylor
    expansion of their field up to second order (the first three terms).

    Parameters
    ----------
    triangles
        Corners (F, 3, 3): triangle, corner, coordinate; any units. Triangles without area count nothing.
    points
        Shape (n, 3), in the units of the triangles.
    accuracy
        A node is far if the block's nearest point is at least ``accuracy`` times the node's radius away from the node's
        centre. 2, as in the source, keeps errors below 0.01, measured (0.001 in the mean), where the border between
        inside and outside is at 0.5; each doubling divides the error by 8 or more. (Nearer to a corner than 1e-7 of the
        mesh's size, rounding adds to it.)
    memory_budget
        Bytes for the tree, the points in their order, the result and the buffers; None takes half of what is free.
    progress
        Whether to show a progress bar; None shows it on a terminal only.

    Raises
    ------
    ValueError, TypeError
        Other shapes or dtypes, tensors on a GPU, NaN or Inf, no triangle, an accuracy of 1 or less (the expansion does
        not converge).
    MemoryBudgetError
        The budget does not hold the tree, the points, or the buffers.

    Source: Barill, Dickson, Schmidt, Levin, Jacobson, Fast winding numbers for soups and clouds, ACM Transactions on
    Graphics 37(4), 2018, sections 3 and 4; solid angles as in :func:`exact_winding_numbers`.
    """
    accuracy = check_float("accuracy", accuracy, minimum=1.0, exclusive=True)
    triangles, points = _check(triangles, points)
    threads = min(torch.get_num_threads(), MOST_THREADS)
    require(
        8 * (TREE_NUMBERS * len(triangles) + POINT_NUMBERS * len(points))
        + 8 * threads * (2 * BLOCKS * len(triangles) // TRIANGLES + 60 * POINTS * TILE),
        budget_bytes(memory_budget),
        f"a tree of {len(triangles)} triangles with {len(points)} points",
        "take fewer of them at a time",
    )
    values = torch.empty(len(points), dtype=torch.float64)

    with one_core(), tqdm(total=len(points), disable=None if progress is None else not progress, unit="point") as bar:
        tree = _Tree(triangles)
        blocks = [rows for rows in (rows[rows < len(points)] for rows in _balanced(points, POINTS)) if len(rows)]

        def worker() -> Callable[[slice], None]:
            room = _Room()

            def compute(some: slice) -> None:
                found = tree.winding([points[rows] for rows in blocks[some]], accuracy, room)
                values[torch.cat(blocks[some])] = torch.cat(found)
                bar.update(sum(map(len, found)))

            return compute

        pieces = list(chunks(len(blocks), BLOCKS))
        share(pieces, [worker() for _ in range(max(1, min(threads, len(pieces))))])
    return values


def exact_winding_numbers(triangles: Tensor, points: Tensor) -> Tensor:
    """Return the winding numbers from every triangle's solid angle, fp64 (n,): the reference, n F steps.

    For corners a, b, c seen from the point, the solid angle Omega has
    ``tan(Omega / 2) = a . (b x c) / (|a||b||c| + (a . b)|c| + (b . c)|a| + (c . a)|b|)``.

    Parameters and errors as in :func:`winding_numbers`.

    Source: Van Oosterom, Strackee, The solid angle of a plane triangle, IEEE Transactions on Biomedical Engineering
    BME-30(2), 1983, equation 8.
    """
    triangles, points = _check(triangles, points)
    values = torch.zeros(len(points), dtype=torch.float64)
    with one_core():
        for rows in chunks(len(points), POINTS):
            for part in chunks(len(triangles), EXACT_TILE):
                values[rows] += _half_angles(triangles[part], points[rows]).sum(1) / (2 * math.pi)
    return values


def _half_angles(triangles: Tensor, points: Tensor) -> Tensor:
    """Return half the solid angle of every triangle at every point, (m, T)."""
    # Coordinates first: what is summed over then lies apart, which costs a tenth.
    corners = triangles.permute(1, 2, 0).contiguous().unsqueeze(2) - points.t().contiguous().unsqueeze(2)
    normals = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    (a, b, c), normal = corners, normals.t().contiguous().unsqueeze(1)
    aa, bb, cc = (_dot(corner, corner).sqrt() for corner in (a, b, c))
    determinant = _dot(a, normal)
    denominator = aa * bb * cc + _dot(a, b) * cc + _dot(b, c) * aa + _dot(c, a) * bb
    # In a triangle's plane the angle jumps from -2 pi to 2 pi, or is 0: its mean is 0.
    return torch.where(determinant == 0, 0.0, torch.atan2(determinant, denominator))


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """Return the products of vectors whose coordinates are in the first axis."""
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


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


class _Room:
    """The buffers of one thread, by name."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised fp64 tensor; the same memory for the same name."""
        size = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[name] = torch.empty(size, dtype=torch.float64)
        return buffer[:size].view(shape)


# ---- near: solid angles ------------------------------------------------------------------------------------------


def _angle_table(leaves: Tensor) -> Tensor:
    """Return the table (leaves, 7, size, 5) of what :func:`_near` multiplies with ``(|q|^2, x, y, z, 1)`` of points q.

    For corners A, B, C and a = A - q, ...: the squares of a, b, c, the products a . b, b . c, c . a, and the
    determinant ``a . (b x c) = a . ((B - A) x (C - A))``, which are polynomials in q.
    """
    a, b, c = leaves.unbind(2)
    normals = torch.linalg.cross(b - a, c - a)
    # Without an area there is no angle; in one point it is a safe 0.
    flat = (normals == 0).all(2, keepdim=True)
    b, c = torch.where(flat, a, b), torch.where(flat, a, c)
    one = torch.ones_like(a[..., :1])
    rows = [
        torch.cat([one, -(u + v), (u * v).sum(2, keepdim=True)], 2)
        for u, v in ((a, a), (b, b), (c, c), (a, b), (b, c), (c, a))
    ]
    rows.append(torch.cat([0 * one, -normals, (a * normals).sum(2, keepdim=True)], 2))
    return torch.stack(rows, 1)


def _near(table: Tensor, points: Tensor, room: _Room) -> Tensor:
    """Return the sum of half the solid angles of some leaves' triangles at the points, (m,)."""
    leaves, _, size, _ = table.shape
    q = torch.cat([points.square().sum(1, keepdim=True), points, torch.ones_like(points[:, :1])], 1)
    rows = torch.mm(table.view(-1, 5), q.t(), out=room.take("near", leaves * 7 * size, len(points)))
    products = rows.view(leaves, 7, size, len(points))
    a, b, c = products[:, :3].clamp_min_(0).sqrt_().unbind(1)
    ab, bc, ca, determinant = products[:, 3:].unbind(1)
    denominator = ab.addcmul_(a, b).mul_(c).addcmul_(bc, a).addcmul_(ca, b)
    return torch.atan2(determinant, denominator, out=determinant).sum((0, 1))


# ---- far: expansions of a tree's nodes ---------------------------------------------------------------------------


def _balanced(places: Tensor, most: int) -> Tensor:
    """Return the rows of ``places`` (n, 3) in 2^k groups of equal size at most ``most``, (2^k, size): halves of halves.

    Every group is cut at its median along its longest axis. What is missing in the last groups is the number n.
    """
    n = len(places)
    groups = 1 << max(0, math.ceil(math.log2(max(n, 1) / most)))
    size = math.ceil(n / groups)
    order = torch.arange(groups * size).clamp_max(n).view(1, -1)
    padded = torch.cat([places, places.new_full((1, 3), math.inf)])
    while order.shape[0] < groups:
        inside = padded[order]
        lows, highs = inside.amin(1), inside.masked_fill(inside.isinf(), -math.inf).amax(1)
        axis = (highs - lows).nan_to_num(nan=0.0).argmax(1)
        keys = inside.gather(2, axis[:, None, None].expand(-1, order.shape[1], 1)).squeeze(2)
        order = order.gather(1, keys.argsort(dim=1, stable=True)).view(2 * order.shape[0], -1)
    return order


class _Tree:
    """A complete binary tree over the triangles, its nodes in one table: the root, its two children, and so on.

    The leaves hold the same number of triangles each, in the order of the table of solid angles.
    """

    def __init__(self, triangles: Tensor) -> None:
        order = _balanced(triangles.mean(1), TRIANGLES)
        pad = triangles[-1:, :1].expand(1, 3, 3)  # a triangle without area counts nothing
        leaves = torch.cat([triangles, pad])[order]  # (leaves, size, 3, 3)
        self.leaves = _angle_table(leaves)
        corners = leaves.flatten(0, 2)
        levels = [_leaf_moments(leaves)]
        while len(levels[0].centres) > 1:
            levels.insert(0, _merged(levels[0]))
        self.table = torch.cat([_expansions(moments) for moments in levels]).t().contiguous()  # (22, nodes)
        self.radii = torch.cat([_radii(corners, moments.centres) for moments in levels])
        self.centres = self.table[:3].t().contiguous()

    def winding(self, blocks: list[Tensor], accuracy: float, room: _Room) -> list[Tensor]:
        """Return the winding numbers at the points (m, 3) of each block."""
        found = []
        for points, far, near in zip(blocks, *self._far_and_near(blocks, accuracy), strict=True):
            total = torch.zeros(len(points), dtype=torch.float64)
            for part in far.split(TILE):
                total += _far(self.table[:, part], points, room)
            for part in near.split(max(1, TILE // self.leaves.shape[2])):
                total += _near(self.leaves[part], points, room)
            found.append(total / (2 * math.pi))
        return found

    def _far_and_near(self, blocks: list[Tensor], accuracy: float) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return, for each block, the nodes far from all its points, near the root, and the leaves not in them."""
        centres = torch.stack([points.mean(0) for points in blocks])
        reach = [(points - centre).square().sum(1).max() for points, centre in zip(blocks, centres, strict=True)]
        radii = torch.stack(reach).sqrt()
        block, node = torch.arange(len(blocks)), torch.zeros(len(blocks), dtype=torch.long)
        found, start, count = [], 0, 1
        while True:
            place = node + start
            apart = torch.linalg.vector_norm(self.centres[place] - centres[block], dim=1) - radii[block]
            is_far = apart > accuracy * self.radii[place]
            found.append(torch.stack([block[is_far], place[is_far]]))
            block, node = block[~is_far], node[~is_far]
            if count == len(self.leaves):
                break
            block, node = block.repeat_interleave(2), torch.stack([2 * node, 2 * node + 1], 1).flatten()
            start, count = start + count, 2 * count
        far_block, far = torch.cat(found, 1)
        order = far_block.argsort(stable=True)
        return tuple(
            nodes.split(torch.bincount(of, minlength=len(blocks)).tolist())
            for of, nodes in ((far_block[order], far[order]), (block, node))
        )


class _Moments(NamedTuple):
    """What the expansions of some nodes are made from, with d from a node's centre to its surface."""

    centres: Tensor  # (nodes, 3), weighted by area
    areas: Tensor  # (nodes,), above 0
    zeroth: Tensor  # (nodes, 3): N_k = int n_k
    first: Tensor  # (nodes, 3, 3): C_ik = int d_i n_k
    second: Tensor  # (nodes, 3, 3, 3): T_ijk = int d_i d_j n_k


def _leaf_moments(leaves: Tensor) -> _Moments:
    """Return the moments of leaves whose triangles are (leaves, size, 3, 3)."""
    a, b, c = leaves.unbind(2)
    normals = torch.linalg.cross(b - a, c - a) / 2
    areas = torch.linalg.vector_norm(normals, dim=2) + torch.finfo(torch.float64).tiny
    middles = leaves.mean(2)
    centres = (middles * areas.unsqueeze(2)).sum(1) / areas.sum(1, keepdim=True)
    corners, middles = leaves - centres[:, None, None], middles - centres[:, None]
    # The integral of d d^T over a triangle is its area times (sum of its corners' d d^T + 9 m m^T) / 12.
    squares = (corners.mT @ corners + 9 * middles.unsqueeze(3) * middles.unsqueeze(2)) / 12
    second = (squares.flatten(2).mT @ normals).view(-1, 3, 3, 3)
    return _Moments(centres, areas.sum(1), normals.sum(1), middles.mT @ normals, second)


def _merged(children: _Moments) -> _Moments:
    """Return the moments of the parents: those of two children each, moved to the common centre, and added."""
    centres, areas, n, c, t = (moment.unflatten(0, (-1, 2)) for moment in children)
    common = (centres * areas.unsqueeze(2)).sum(1) / areas.sum(1, keepdim=True)
    s = centres - common.unsqueeze(1)
    first = c + s.unsqueeze(3) * n.unsqueeze(2)
    # d_i d_j n_k with d + s for d; the middle terms are those in first, symmetric in i and j.
    second = t + s[..., :, None, None] * first[..., None, :, :] + s[..., None, :, None] * c[..., :, None, :]
    return _Moments(common, areas.sum(1), n.sum(1), first.sum(1), second.sum(1))


def _radii(corners: Tensor, centres: Tensor) -> Tensor:
    """Return how far the corners (n, 3), in equal shares, reach from the centres of their nodes."""
    return torch.linalg.vector_norm(corners.view(len(centres), -1, 3) - centres.unsqueeze(1), dim=2).amax(1)


def _expansions(moments: _Moments) -> Tensor:
    """Return the nodes' expansions, (nodes, 22): the centre, N, and the coefficients of S and U.

    With r from the point to the node's centre, the field ``n . x / |x|^3`` at ``x = r + d`` integrates to, up to second
    order in d, ``N . r / |r|^3 + S(r, r) / |r|^5 + U(r, r, r) / |r|^7`` where

    ``S = tr(C) I - 3 C`` and ``U(r, r, r) = 15/2 T(r, r, r) - 3/2 (2 a + b) . r |r|^2`` with ``a_i = sum_k T_ikk``,
    ``b_k = sum_i T_iik``; coefficients by :data:`PAIRS` and :data:`TRIPLES`.
    """
    eye = torch.eye(3, dtype=torch.float64)
    c, t = moments.first, moments.second
    second = c.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * eye - 3 * c
    vector = 2 * t.diagonal(dim1=2, dim2=3).sum(2) + t.diagonal(dim1=1, dim2=2).sum(2)
    third = 7.5 * t - 1.5 * vector[:, :, None, None] * eye
    coefficients = [_coefficients(second, PAIRS), _coefficients(third, TRIPLES)]
    return torch.cat([moments.centres, moments.zeroth, *coefficients], 1)


def _coefficients(form: Tensor, monomials: list[tuple[int, ...]]) -> Tensor:
    """Return the coefficients (nodes, monomials) of the polynomial that a tensor (nodes, 3, ..., 3) stands for."""
    columns = []
    for monomial in monomials:
        places = set(permutations(monomial))  # the tensor is not symmetric: all its entries of this product
        entries = [form.flatten(1)[:, sum(axis * 3**power for power, axis in enumerate(place))] for place in places]
        columns.append(torch.stack(entries).sum(0))
    return torch.stack(columns, 1)


def _far(table: Tensor, points: Tensor, room: _Room) -> Tensor:
    """Return half the sum of the expansions (22, nodes) at the points, (m,)."""

    def take(name: str) -> Tensor:
        return room.take(name, len(points), table.shape[1])

    r = [torch.sub(table[axis], points[:, axis, None], out=take(f"r{axis}")) for axis in range(3)]
    linear = torch.mul(r[0], table[3], out=take("linear")).addcmul_(r[1], table[4]).addcmul_(r[2], table[5])
    quadratic, cubic = take("quadratic").zero_(), take("cubic").zero_()
    product, inner, square = take("product"), take("inner"), take("square").zero_()
    thirds = iter(table[12:])
    for (i, j), coefficient in zip(PAIRS, table[6:12], strict=True):
        torch.mul(r[i], r[j], out=product)
        quadratic.addcmul_(product, coefficient)
        torch.mul(r[j], next(thirds), out=inner)
        for k in range(j + 1, 3):
            inner.addcmul_(r[k], next(thirds))
        cubic.addcmul_(product, inner)
        if i == j:
            square.add_(product)
    inverse = square.reciprocal_()
    total = cubic.mul_(inverse).add_(quadratic).mul_(inverse).add_(linear).mul_(inverse)
    return total.mul_(inverse.sqrt_()).sum(1) / 2
