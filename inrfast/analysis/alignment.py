"""Kernel alignment: the cosine between a kernel and a target, or between two kernels, plain and centred."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from inrfast.analysis.optimal_kernel import OptimalKernel
from inrfast.arrays import ACCEPTED, ArrayLike, is_array
from inrfast.errors import ResolutionError, check_flag, check_tensor
from inrfast.memory import chunks, require_free
from inrfast.modes import in_own_modes
from inrfast.progress import progress_bar
from inrfast.tangent.kernel import TangentKernel

BLOCK_BYTES = 2**27
"""Bytes of a block of rows of one kernel, in fp64."""

CANCELLED = {torch.float32: 0.05, torch.float64: 1e-8}
"""Share of ``|K|^2`` that a centred kernel must keep, or the difference of sums that gives it loses too many digits:
entries are right to 1e-6 and 1e-15."""

CONSTANT = 1e-20
"""Share of ``|K|^2`` below which a centred kernel is rounding."""

Kernel = TangentKernel | OptimalKernel | ArrayLike


class Factored:
    """A kernel ``A A^T`` of few columns: a target, or the optimal kernel of samples."""

    def __init__(self, name: str, factor: Tensor, centered: bool) -> None:
        factor = factor.to(torch.float64)
        largest = float(factor.abs().amax())
        if largest == 0:
            raise ValueError(f"{name} must not be zero everywhere: it has no direction")
        self.factor = factor / largest  # or its fourth powers would over- or underflow
        self.rows, self.device = len(factor), factor.device
        if centered:
            self.factor = self.factor - self.factor.mean(0)
            if float(self.factor.abs().amax()) <= self.rows * torch.finfo(torch.float64).eps:
                raise ValueError(
                    f"{name} must not be constant: less its mean nothing is left of it; use centered=False"
                )

    def norm(self) -> float:
        """Return the Frobenius norm, from the smaller of both products."""
        small = min(self.factor.shape)
        require_free(8 * small * small, f"the products of {small} columns", "give fewer columns", self.factor.device)
        product = self.factor.t() @ self.factor if small == self.factor.shape[1] else self.factor @ self.factor.t()
        return float(torch.linalg.matrix_norm(product))

    def form(self, factor: Tensor) -> float:
        """Return ``<A A^T, B B^T>_F``."""
        return float((self.factor.t() @ factor).square().sum())


class Dense:
    """A kernel whose entries are there."""

    def __init__(self, name: str, matrix: Tensor, centered: bool) -> None:
        self.rows, self.device = len(matrix), matrix.device
        eps = torch.finfo(matrix.dtype).eps
        largest = float(matrix.abs().amax())
        if largest == 0:
            raise ValueError(f"{name} must not be zero everywhere: it has no direction")
        require_free(24 * matrix.numel(), "the kernel in fp64", "give the lazy kernel of inrfast.ntk", matrix.device)
        matrix = matrix.to(torch.float64) / largest
        off = float((matrix - matrix.t()).abs().amax())
        if off > math.sqrt(eps):
            raise ValueError(
                f"{name} must be symmetric, got entries that differ from their mirror images by {off:.1e} of the "
                f"largest; a target has shape (N,) or (N, M) with other M than N = {self.rows} (its kernel is Y @ Y.T)"
            )
        if centered:
            means = matrix.mean(0)
            matrix = matrix - means - means.unsqueeze(1) + means.mean()
            if float(matrix.abs().amax()) <= 4 * self.rows * torch.finfo(torch.float64).eps:  # of entries as given
                raise ValueError(f"{name} must not be constant: centred, nothing is left of it; use centered=False")
        self.matrix = matrix

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(torch.linalg.matrix_norm(self.matrix))

    def form(self, factor: Tensor) -> float:
        """Return ``<K, B B^T>_F``; a centred factor centres the kernel too."""
        return float((factor * (self.matrix @ factor)).sum())

    def block(self, rows: slice) -> Tensor:
        """Return some rows."""
        return self.matrix[rows]


class Lazy:
    """A tangent kernel, of which at most a block of rows is there."""

    def __init__(self, name: str, kernel: TangentKernel, centered: bool) -> None:
        if not kernel.symmetric:
            raise ValueError(f"{name} must be a kernel between the same points; this one was made with coords2")
        self.name, self.kernel, self.centered = name, kernel, centered
        self.rows, self.device = kernel.shape[0], kernel.device
        self.sums: Tensor | None = None

    def norm(self) -> float:
        """Return the Frobenius norm: ``|HKH|^2 = |K|^2 - 2 |K 1|^2 / N + (1^T K 1)^2 / N^2`` of a centred one.

        Where fp32 does not resolve that, the kernel becomes that of fp64, for all that follows.
        """
        whole = self.kernel.frobenius()
        if whole == 0:
            raise ValueError(f"{self.name} must not be zero everywhere: it has no direction")
        if not self.centered:
            return whole
        sums = self.kernel.row_sums().double() / whole
        share = 1 - 2 / self.rows * float(sums.square().sum()) + (float(sums.sum()) / self.rows) ** 2
        if share > CANCELLED[self.kernel.dtype]:
            return whole * math.sqrt(share)
        if self.kernel.dtype != torch.float64:
            self.kernel, self.sums = self.kernel.at_precision("highest"), None
            return self.norm()
        square = sum(float(self.block(part).square().sum()) for part in self.parts())
        if square <= CONSTANT * whole**2:
            raise ResolutionError(
                f"{self.name} is constant to rounding: centred, {math.sqrt(square) / whole:.1e} of it is left; use "
                "centered=False"
            )
        return math.sqrt(square)

    def form(self, factor: Tensor) -> float:
        """Return ``<K, B B^T>_F``, the trace of ``B^T K B``."""
        return float(torch.as_tensor(self.kernel.quadratic_form(factor)).trace())

    def parts(self) -> list[slice]:
        """Return the blocks of rows that are computed at a time."""
        budget = min(BLOCK_BYTES, self.kernel.memory_budget // 8)
        return list(chunks(self.rows, max(1, budget // (8 * self.rows))))

    def block(self, rows: slice) -> Tensor:
        """Return some rows in fp64, centred if the kernel is."""
        block = self.kernel.columns(rows).t().double()
        if self.centered:
            if self.sums is None:
                self.sums = self.kernel.row_sums().double() / self.rows
            block = block - self.sums - self.sums[rows].unsqueeze(1) + self.sums.mean()
        return block


View = Factored | Dense | Lazy


def inner(first: Dense | Lazy, second: Dense | Lazy, progress: bool | None) -> float:
    """Return ``<K, K'>_F`` by blocks of rows, added up in fp64."""
    lazy = next((one for one in (first, second) if isinstance(one, Lazy)), None)
    parts = [slice(0, first.rows)] if lazy is None else lazy.parts()
    total = 0.0
    for part in progress_bar(parts, desc="alignment", unit="block", progress=progress, leave=False, delay=1.0):
        total += float((first.block(part) * second.block(part)).sum())
    return total


@in_own_modes
def alignment(K: Kernel, other: Kernel, centered: bool = False, progress: bool | None = None) -> float:
    """Return the alignment of a kernel with a target, or of two kernels: ``<K, K'>_F / (|K|_F |K'|_F)``.

    Of a target Y (N, M) the kernel is ``Y Y^T``. 1 says that both kernels are the same but for a positive factor; for
    positive semidefinite ones it is from 0 on. Signs and the scale of either do not matter.

    Parameters
    ----------
    K
        A kernel on N points: of :func:`inrfast.ntk`, lazy; of :func:`inrfast.optimal_kernel`; or a dense symmetric
        array (N, N) of any floating dtype. It need not be positive semidefinite.
    other
        A target, (N,) or (N, M), or another kernel. An array (N, N) is a kernel. For a kernel with ``output="full"``
        a target is (N M,) with the output index fast, or (N, M), which is flattened so.
    centered
        Whether ``H K H`` takes the place of K and ``H Y`` that of Y, with ``H = I - 1 1^T / N``, over all rows of the
        kernel: a constant that a kernel adds to all entries, or a target has as its mean, then does not count. The
        plain alignment of a ReLU network's kernel is mostly about that constant.
    progress
        Whether to show a bar while two lazy kernels are compared; None: on a terminal and in a notebook.

    Returns
    -------
    float
        Computed in fp64 of the kernel's entries, those of an array as they are given: beside a large constant, rounding
        to a narrow dtype is a part of what centring leaves. Those of a lazy kernel are right to
        ``e sqrt(K_ii K_jj)``, with e = 1e-6 for ``precision="high"`` and some 1e-15 for ``"highest"``; the alignment is
        then right to ``2 e tr(K) / |K|_F``, and centred to ``2 e tr(K) |K|_F / |H K H|_F^2``, where fp64 is taken by
        itself as soon as ``|H K H|_F^2`` is below 0.05 of ``|K|_F^2``.

    Raises
    ------
    ValueError, TypeError
        Kernels or targets of other sizes, not symmetric, not finite, zero everywhere, or centred and constant.
    ResolutionError
        A lazy kernel whose centred part is rounding.
    MemoryBudgetError
        A dense kernel, or a block, beyond the memory.

    Notes
    -----
    Cost of a lazy kernel and a target: one Frobenius norm, of N^2 / 2 entries that are computed in tiles and not kept,
    and one quadratic form. Of two lazy kernels: their norms, and N^2 entries of each in blocks of rows of at most
    128 MiB; nothing is N x N. Where the kernel's ``memory_budget`` does not hold its factors they are computed again
    for every block.

    Examples
    --------
    >>> import torch, inrfast as inr
    >>> coords = inr.grid((16, 16))
    >>> K = inr.ntk(inr.INR(2, 1, width=32, hidden_layers=1), coords)
    >>> slow, fast = torch.sin(coords[:, 0]), torch.sin(20 * coords[:, 0])
    >>> inr.alignment(K, slow, centered=True) > 10 * inr.alignment(K, fast, centered=True)
    True

    Source: Cristianini, Shawe-Taylor, Elisseeff, Kandola, On kernel-target alignment, NIPS 2001; centred: Cortes,
    Mohri, Rostamizadeh, Algorithms for learning kernels based on centered alignment, JMLR 2012, equations 1 and 2.
    """
    centered = check_flag("centered", centered)
    shown = None if progress is None else check_flag("progress", progress)
    first = view("K", K, centered)
    full = K.outputs if isinstance(K, TangentKernel) and K.output == "full" else None
    second = view("other", other, centered, first.rows, full, first.device)
    norms = first.norm() * second.norm()
    if isinstance(second, Factored):
        product = first.form(second.factor)
    elif isinstance(first, Factored):
        product = second.form(first.factor)
    else:
        product = inner(first, second, shown)
    return max(-1.0, min(1.0, product / norms))


def view(
    name: str,
    given: Any,
    centered: bool,
    rows: int | None = None,
    outputs: int | None = None,
    device: torch.device | None = None,
) -> View:
    """Return a kernel, or of ``other`` a target, checked against the rows, outputs and device of K."""
    found = getattr(given, "device", device) if isinstance(given, TangentKernel | OptimalKernel | Tensor) else device
    if device is not None and found != device:
        raise ValueError(f"{name} is on {found} but K is on {device}; move one of them")
    if isinstance(given, TangentKernel | OptimalKernel) and rows is not None and given.shape[0] != rows:
        raise ValueError(f"{name} must be a kernel of {rows} rows as K is, got shape {given.shape}")
    if isinstance(given, TangentKernel):
        return Lazy(name, given, centered)
    if isinstance(given, OptimalKernel):
        return Factored(name, given.factor, centered)
    if not is_array(given):
        raise TypeError(
            f"{name} must be a kernel of inrfast.ntk or inrfast.optimal_kernel, or an array ({ACCEPTED}), got "
            f"{type(given).__name__}"
        )
    array = check_tensor(name, given, device=device).detach()
    if rows is None:
        if array.ndim != 2 or array.shape[0] != array.shape[1]:
            raise ValueError(f"{name} must be a kernel, (N, N), got shape {tuple(array.shape)}; targets come second")
        return Dense(name, array, centered)
    if tuple(array.shape) == (rows, rows) and rows > 1:
        return Dense(name, array, centered)
    if outputs is not None and tuple(array.shape) == (rows // outputs, outputs):
        array = array.reshape(rows)
    if array.ndim not in (1, 2) or len(array) != rows:
        raise ValueError(
            f"{name} must be a target of shape ({rows},) or ({rows}, M), or a kernel ({rows}, {rows}), got "
            f"{tuple(array.shape)}"
        )
    return Factored(name, array.reshape(rows, -1), centered)
