"""Biharmonic interpolation: the smoothest picture through the known pixels, by conjugate gradients at any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.memory import budget_bytes, require

RTOL, MOST = 1e-5, 400
"""Of the conjugate gradients at every size: the relative residual at which they end, and the most steps."""

COARSEST = 16
"""Longest side of a picture that is solved without a start of half its size."""

PIXEL_BYTES = 24 * 8
"""Bytes per pixel: two sparse matrices of five entries a row, and the vectors of the solver."""


def biharmonic(values: Tensor, known: Tensor, memory_budget: int | None = None) -> Tensor:
    """Return ``values`` with the missing pixels filled so that the sum of squares of the Laplacian is least.

    At the edges the picture goes on as it is (the normal derivative vanishes). The normal equations
    ``L_m^T L_m u = -L_m^T L_k y`` of the missing pixels m and the known ones k are solved by conjugate gradients, which
    start from the solution at half the size. The result is linear in the values.

    Parameters
    ----------
    values
        (H, W, C), floating; at missing pixels they may be anything, NaN too.
    known
        Booleans (H, W), at least one True.
    memory_budget
        Bytes; None: half of what is free.

    Returns
    -------
    Tensor
        fp64 (H, W, C), on the CPU; known pixels have their values.

    Raises
    ------
    MemoryBudgetError
        It does not fit.

    Source: biharmonic interpolation is that of Damelin and Hoang, On surface completion and image inpainting by
    biharmonic functions, 2018, which ``skimage.restoration.inpaint_biharmonic`` solves by a factorisation.
    """
    known = known.cpu()
    height, width, channels = values.shape
    what = f"interpolating {height}x{width} pixels"
    require(
        (PIXEL_BYTES + 32 * channels) * height * width,
        budget_bytes(memory_budget),
        what,
        "take a smaller picture",
    )
    filled = torch.where(known.unsqueeze(-1), values.detach().cpu().double(), 0.0)
    return filled if bool(known.all()) else _solved(filled, known)


def _solved(values: Tensor, known: Tensor) -> Tensor:
    """Return the interpolation of ``values`` (H, W, C), 0 at missing pixels."""
    import scipy.sparse.linalg as solvers  # slow to import

    height, width, channels = values.shape
    missing = ~known.flatten().numpy()
    laplacian = _laplacian(height, width).tocsc()
    free = laplacian[:, missing]
    flat = values.reshape(-1, channels).numpy()
    right = -(free.T @ (laplacian @ flat))  # the missing pixels are 0
    free, adjoint = free.tocsr(), free.T.tocsr()
    normal: Any = solvers.LinearOperator((free.shape[1],) * 2, matvec=lambda u: adjoint @ (free @ u), dtype=np.float64)
    diagonal = np.asarray(adjoint.multiply(adjoint).sum(1)).ravel()
    scaled: Any = solvers.LinearOperator(normal.shape, matvec=lambda u: u / diagonal, dtype=np.float64)
    start = _half(values, known).reshape(-1, channels).numpy()[missing]
    for channel in range(channels):
        found, _ = solvers.cg(normal, right[:, channel], start[:, channel], rtol=RTOL, maxiter=MOST, M=scaled)
        flat[missing, channel] = found
    return torch.from_numpy(flat).view(height, width, channels)


def _half(values: Tensor, known: Tensor) -> Tensor:
    """Return the interpolation at half the size, enlarged; at the coarsest size the mean of the known pixels."""
    height, width, channels = values.shape
    if max(height, width) <= COARSEST:
        return values.flatten(0, 1).sum(0).div(known.sum()).expand(height, width, channels)
    windows = [min(2, side) for side in (height, width)]
    share = F.avg_pool2d(known[None].double(), windows, ceil_mode=True)
    mean = F.avg_pool2d(values.permute(2, 0, 1), windows, ceil_mode=True) / share.clamp_min(1e-12)
    some = share[0] > 0
    coarse = mean.permute(1, 2, 0).contiguous()
    solved = coarse if bool(some.all()) else _solved(coarse, some)
    large = F.interpolate(solved.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", align_corners=False)
    return large[0].permute(1, 2, 0)


def _laplacian(height: int, width: int) -> Any:
    """Return the five-point Laplacian of a picture in row-major order, sparse, whose rows sum to 0."""
    import scipy.sparse as sparse  # slow to import

    def second(side: int) -> Any:
        ones = np.ones(side)
        centre = -2 * ones
        centre[0] += 1
        centre[-1] += 1
        return sparse.diags_array([ones[1:], centre, ones[1:]], offsets=[-1, 0, 1], format="csr")

    return sparse.kron(second(height), sparse.eye_array(width)) + sparse.kron(sparse.eye_array(height), second(width))
