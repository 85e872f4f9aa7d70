"""A network as a dictionary: the eigenfunctions of its tangent kernel as atoms, and how well they encode signals."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inrfast import notebook
from inrfast.analysis.energy import NORMALISATIONS, Energy, KernelNorm, concentration, squared_norm
from inrfast.arrays import ArrayLike, as_tensor, is_array
from inrfast.calling import Select
from inrfast.errors import (
    ResolutionError,
    check_choice,
    check_coords,
    check_flag,
    check_float,
    check_int,
    check_tensor,
    warn,
)
from inrfast.grids import check_shape
from inrfast.linalg.eigenvalues import SMALL
from inrfast.linalg.spectrum import Spectrum
from inrfast.memory import CACHED_BYTES, chunks
from inrfast.modes import in_own_modes, methods_in_own_modes
from inrfast.records import Record
from inrfast.tangent.kernel import TangentKernel
from inrfast.tangent.local import ntk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("auto", "dense", "cholesky", "lanczos")
"""Methods of a spectrum that find eigenvectors."""

MANY = 256
"""Atoms that are computed by default where there are too many points for all of them."""

TIE = 1e-6
"""Entries of an atom that differ by less in size, relative to the largest, count as equal where its sign is chosen."""


@methods_in_own_modes
@dataclass(frozen=True, eq=False)
class Dictionary(Record):
    """The eigenfunctions of a tangent kernel as the atoms of a dictionary.

    Source: Yüce et al., *A Structured Dictionary Perspective on INRs* (arXiv 2112.01917), sections 5.1 and 5.2.

    Built by :func:`dictionary`, or by :meth:`of` from a kernel or a spectrum that is already there.

    Inner products of atoms and signals are sums over points and outputs, as in that paper's equation 67, and the atoms
    have length 1 in them. Its equation 10 takes means over points instead: an eigenfunction is then
    ``sqrt(points)`` times an atom, and its (Mercer) eigenvalue ``lambda / points``. Energies and kernel norms are the
    same either way.

    An eigenvector has no sign of its own. Here the entry largest in size is positive (of several that agree to 1e-6 the
    first). Atoms of equal eigenvalues are any basis of their space.

    Signals have their own axes last, and at most one axis in front, which counts signals. One signal is of shape
    ``(points,)`` or the grid's; where the kernel's rows are points times M outputs (``output="full"``), of shape
    ``(points, M)``, the grid's with M behind it, or ``(points M,)`` with the output fast. An axis of length 1 may stand
    behind it if there is one output. Any floating dtype; computed in fp64.

    Attributes
    ----------
    spectrum
        The eigenvalues with their certified errors, and the atoms with their signs fixed.
    shape
        The grid's shape; None where the points are no grid.
    coords
        The points (N, d); None if they are not known.
    """

    left_out = ("coords",)

    spectrum: Spectrum
    shape: tuple[int, ...] | None
    coords: Tensor | None

    @staticmethod
    @in_own_modes
    def of(
        source: TangentKernel | Spectrum,
        k: int | None = None,
        *,
        coords: ArrayLike | None = None,
        shape: Sequence[int] | None = None,
        rtol: float = 1e-6,
        method: str = "auto",
        seed: int = 0,
        progress: bool | None = None,
    ) -> Dictionary:
        """Return the dictionary of a kernel, or of a spectrum that was computed with eigenvectors.

        Parameters
        ----------
        source
            A kernel between the same points, as of :func:`inrfast.ntk`; or a :class:`inrfast.Spectrum`, whose vectors
            are copied.
        coords
            The points (N, d) of a spectrum; None: not known, and a kernel has its own.
        k, shape, rtol, method, seed, progress
            As in :func:`dictionary`; of a spectrum ``k`` keeps the largest, and the last four have no meaning.
        """
        known = None if coords is None else check_coords("coords", coords)
        if isinstance(source, TangentKernel):
            check_choice("method", method, METHODS)
            if coords is not None:
                raise ValueError("coords must be None where a kernel is given: it has its own")
            known = source.coords
            order = source.shape[0]
            if k is not None and check_int("k", k, minimum=1) > order:
                raise ValueError(f"k must be at most the {order} rows of the kernel, got {k}")
            wanted = min(MANY, order) if k is None and order > SMALL else k
            points = order // (source.outputs if source.output == "full" else 1)
            sizes = check_shape(shape, points, known)
            found = source.spectrum(rtol, wanted, method, eigenvectors=True, seed=seed, progress=progress)
            own = True
            _warn_of_few(found, wanted, every=wanted is None and method == "auto")
        elif isinstance(source, Spectrum):
            found, own = source, False
            if found.eigenvectors is None:
                raise ValueError("source must hold eigenvectors: ask for spectrum(eigenvectors=True)")
            if k is not None:
                if check_int("k", k, minimum=1) > len(found.eigenvalues):
                    raise ValueError(f"k must be at most the {len(found.eigenvalues)} eigenvalues listed, got {k}")
                found = found.truncated(k)
            points = found.size // (found.outputs if found.output == "full" else 1)
            if known is not None and len(known) != points:
                raise ValueError(f"coords must have the spectrum's {points} points, got {len(known)}")
            sizes = check_shape(shape, points, known)
        else:
            raise TypeError(f"source must be a kernel (inrfast.ntk) or a Spectrum, got {type(source).__name__}")
        if float(found.eigenvalues[0]) <= 0:
            raise ValueError("the kernel is zero everywhere: it has no atoms")
        assert found.eigenvectors is not None
        atoms = _signed_(found.eigenvectors if own else found.eigenvectors.clone())
        return Dictionary(replace(found, eigenvectors=atoms), sizes, None if known is None else known.detach())

    # ---- what it holds -----------------------------------------------------------------------------------------

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues (k,) of the kernel's matrix, descending, fp64; below the floor they are rounding."""
        return self.spectrum.eigenvalues

    @property
    def atoms(self) -> Tensor:
        """Orthonormal columns (rows, k), fp64, in the order of the eigenvalues; rows are points times outputs."""
        assert self.spectrum.eigenvectors is not None
        return self.spectrum.eigenvectors

    @property
    def floor(self) -> float:
        """Eigenvalues below this, relative to the largest, cannot be told from zero."""
        return self.spectrum.floor

    @property
    def outputs(self) -> int:
        """Number of outputs that the rows count beside the points: M for ``output="full"``, else 1."""
        return self.spectrum.outputs if self.spectrum.output == "full" else 1

    @property
    def points(self) -> int:
        """Number of points."""
        return self.spectrum.size // self.outputs

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def __repr__(self) -> str:
        where = f"{self.points} points" if self.shape is None else f"shape={self.shape}"
        most, least = (float(self.eigenvalues[i]) for i in (0, -1))
        return f"Dictionary({len(self)} atoms of {self.spectrum.size}, {where}, eigenvalues {most:.3g} to {least:.3g})"

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        def figure() -> Figure:
            from inrfast.analysis.dictionary_figure import row

            return row(self)

        most, least = (float(self.eigenvalues[i]) for i in (0, -1))
        rows = [
            ("quantity", "value"),
            ("atoms", f"{len(self):,} of {self.spectrum.size:,}"),
            ("points", f"{self.points:,}" + ("" if self.shape is None else f", a grid {self.shape}")),
            ("eigenvalues", f"{most:.4g} to {least:.4g}"),
            ("floor", f"{self.floor:.2g} of the largest"),
        ]
        return notebook.Page(
            f"Dictionary of {len(self):,} atoms", rows, figure=self.spectrum.plot if self.shape is None else figure
        )

    def images(self, k: int | None = None) -> Tensor:
        """Return the first k atoms (None: all) on the grid, (k, *shape), or (k, *shape, M) where rows count outputs.

        Raises
        ------
        ValueError
            The points are no grid, or ``k`` exceeds the number of atoms.
        """
        if self.shape is None:
            raise ValueError("images needs points on a grid, row after row: give shape=, or read atoms")
        sizes = self.shape if self.spectrum.output != "full" else (*self.shape, self.outputs)
        return self.atoms[:, : self._count(k)].t().reshape(-1, *sizes)

    # ---- signals -----------------------------------------------------------------------------------------------

    def coefficients(self, signals: ArrayLike) -> Tensor:
        """Return ``<phi_i, g>``, (k,) of one signal or (signals, k) of a set (arXiv 2112.01917, equation 67)."""
        rows, single = self._rows(signals)
        found = rows @ self.atoms
        return found[0] if single else found

    def energy(
        self,
        signals: ArrayLike,
        threshold: float | Sequence[float] | ArrayLike | None = None,
        *,
        normalisation: str = "energy",
        demean: bool = True,
    ) -> Energy:
        """Return E(lambda): the share of energy, of signals less their means, on eigenvalues of at least lambda.

        Of one signal or of a set (arXiv 2112.01917, equation 11 and figure 4). Means count too with ``demean=False``.
        For each signal, the sum of ``<phi_i, g>^2 / |g|^2`` over the atoms with ``lambda_i / lambda_1 >= lambda``; of
        a set :attr:`Energy.mean` is the mean of these shares, so that every signal counts alike. The bounds are for the
        errors of the eigenvalues; the atoms are taken as computed. Those of eigenvalues a few errors apart may be mixed
        with each other, which moves a little energy across a threshold between them.

        Parameters
        ----------
        signals
            One signal or a set, see above.
        threshold
            Levels lambda relative to the largest eigenvalue, in (0, 1]; None: from 1 to 1e-10, ten a decade.
        normalisation
            ``"energy"`` divides by ``|g|^2``, as the authors' code does. ``"printed"`` divides by ``|<g, g>|^2 =
            |g|^4``, as equation 11 is printed: that is the former over ``|g|^2``, no share but a number in units of
            ``1 / g^2``, in which signals of low contrast count most.
        demean
            Whether to subtract each signal's mean over the points, per output, as the authors' code does: a picture's
            brightness is most of its energy and hides where its contents lie. False: signals as they are.

        Raises
        ------
        ValueError, TypeError
            Other shapes or dtypes; NaN; a signal without energy (zero or, with ``demean``, constant); a threshold
            outside (0, 1].
        """
        check_choice("normalisation", normalisation, NORMALISATIONS)
        rows, _ = self._rows(signals)
        levels = self._levels(threshold)
        if check_flag("demean", demean):
            rows = self._demeaned(rows)
        return replace(concentration(self.spectrum, rows, levels, normalisation), demeaned=demean)

    def kernel_norm(self, signals: ArrayLike, *, ridge: float = 0.0, cut: float | None = None) -> KernelNorm:
        """Return ``|g|^2 = sum <phi_i, g>^2 / lambda_i``, which learning g costs, with bounds.

        With means over points and Mercer eigenvalues, as equation 10 of arXiv 2112.01917 has it, and with sums and the
        matrix's eigenvalues it is the same number, ``g^T K^-1 g``. It is of the kernel as given: one that sums over M
        outputs (``output="trace"``) is some M times that of one output, and its norms are some M times smaller.

        Parameters
        ----------
        signals
            One signal or a set, as they are: nothing is subtracted.
        ridge
            Added to every eigenvalue, in the matrix's units: ``g^T (K + ridge I)^-1 g``.
        cut
            Count only atoms with ``lambda_i / lambda_1`` at least this, in :attr:`KernelNorm.counted`. None: all whose
            eigenvalue, with the ridge, is known to 1 %.

        Raises
        ------
        ValueError, TypeError
            Bad arguments; a signal that is zero everywhere.
        """
        ridge = check_float("ridge", ridge, minimum=0.0)
        cut = 0.0 if cut is None else check_float("cut", cut, minimum=0.0)
        return squared_norm(self.spectrum, self._rows(signals)[0], ridge, cut)

    # ---- two dictionaries --------------------------------------------------------------------------------------

    def principal_cosines(self, other: Dictionary, k: int | None = None) -> Tensor:
        """Return the cosines of the k principal angles between the spans of the first k atoms of each, descending.

        Parameters
        ----------
        other
            A dictionary on the same points, with rows of the same outputs.
        k
            Number of atoms of each; None: as many as both have.

        Raises
        ------
        ResolutionError
            The k-th and the next eigenvalue of one of the two are equal within their error: the span of the first k is
            not determined.
        ValueError, TypeError
            Another number of points, other coordinates, more atoms than there are.
        """
        self._check_comparable(other)
        count = min(len(self), len(other)) if k is None else self._count(k)
        for which in (self, other):
            which._count(count)
            which._check_gap(count)
        product = self.atoms[:, :count].t() @ other.atoms[:, :count].to(self.atoms)
        return torch.linalg.svdvals(product).clamp_max(1)

    def cosine(self, other: Dictionary, k: int | None = None) -> float:
        """Return the root mean square of :meth:`principal_cosines`: 1 if the first k atoms span the same space.

        That is ``|A^T B|_F / sqrt(k)`` for atoms A, B, whatever their signs and their order; random spaces of n rows
        have ``sqrt(k / n)``. Arguments and errors as there.
        """
        return float(self.principal_cosines(other, k).square().mean().sqrt())

    # ---- figure ------------------------------------------------------------------------------------------------

    def plot(
        self, k: int = 10, path: str | os.PathLike[str] | None = None, *, signals: ArrayLike | None = None
    ) -> Figure:
        """Return a figure of the first k atoms, the eigenvalues and the energy of ``signals``.

        Atoms are pictures on two axes, curves on one, and the middle slice of the first axis on three; each with its
        eigenvalue relative to the largest. Red is positive, blue negative; three outputs are one picture in colour
        around grey, other numbers stand side by side.

        Parameters
        ----------
        k
            Number of atoms drawn, all if there are fewer.
        path
            Of a .png, .pdf or .svg to write it to, whole or not at all; None: none is written.
        signals
            Whose :meth:`energy` is drawn, de-meaned; None: no energy curve.
        """
        from inrfast.analysis.dictionary_figure import draw  # most draw nothing

        given = None if signals is None else as_tensor("signals", signals, self.atoms.device)
        return draw(self, min(check_int("k", k, minimum=1), len(self)), path, given)

    # ---- checks ------------------------------------------------------------------------------------------------

    def _count(self, k: Any) -> int:
        """Return a number of atoms, at most those there are; None: all."""
        if k is None:
            return len(self)
        if check_int("k", k, minimum=1) > len(self):
            raise ValueError(f"k must be at most the {len(self)} atoms of this dictionary, got {k}")
        return int(k)

    def _rows(self, signals: ArrayLike) -> tuple[Tensor, bool]:
        """Return signals as rows (signals, rows of the kernel) in fp64, and whether there was one alone."""
        signals = check_tensor("signals", signals, device=self.atoms.device)
        forms: list[tuple[int, ...]] = [(self.points,)]
        if self.shape is not None and self.shape not in forms:
            forms.append(self.shape)
        behind = [(*form, self.outputs) for form in forms]
        shapes = [*forms, *behind] if self.outputs == 1 else [(self.spectrum.size,), *behind]
        given = tuple(signals.shape)
        single = given in shapes
        if not single and given[1:] not in shapes:
            accepted = " or ".join(str(one) for one in shapes)
            hint = ""
            if len(given) == 2 and given[0] in (self.spectrum.size, self.points):
                hint = "; signals as columns: give signals.t()"
            elif self.spectrum.output == "trace" and self.spectrum.outputs > 1 and given[-1] == self.spectrum.outputs:
                hint = f'; all {given[-1]} outputs at once are signals of a kernel with output="full"'
            raise ValueError(
                f"signals must be one of shape {accepted}, or a set (signals, ...) of them, got {given}{hint}"
            )
        return signals.detach().to(self.atoms).reshape(1 if single else given[0], self.spectrum.size), single

    def _demeaned(self, rows: Tensor) -> Tensor:
        """Return signals less their mean over the points, of each output its own; constant ones are refused."""
        by_point = rows.reshape(len(rows), self.points, self.outputs)
        centred = (by_point - by_point.mean(1, keepdim=True)).flatten(1)
        rounding = self.points * torch.finfo(rows.dtype).eps * rows.abs().amax(1)
        flat = centred.abs().amax(1) <= rounding
        if bool(flat.any()):
            raise ValueError(
                f"signals must not be constant (signal {int(flat.nonzero()[0])} is): less its mean it has no energy; "
                "demean=False takes signals as they are"
            )
        return centred

    def _levels(self, threshold: Any) -> Tensor:
        """Return thresholds as an fp64 tensor of their shape."""
        if threshold is None:
            return torch.logspace(0, -10, 101, dtype=torch.float64, device=self.atoms.device)
        try:
            given = as_tensor("threshold", threshold) if is_array(threshold) else torch.as_tensor(threshold)
            given = given.detach()
            if given.is_complex() or given.dtype == torch.bool:
                raise TypeError(f"no {given.dtype}")
            levels = given.to(self.atoms)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"threshold must be a number or a sequence of them, got {threshold!r:.80}: {error}"
            ) from None
        if levels.numel() == 0 or not bool(((levels > 0) & (levels <= 1)).all()):
            raise ValueError(f"threshold must be in (0, 1], relative to the largest eigenvalue, got {threshold!r:.80}")
        return levels

    def _check_comparable(self, other: Any) -> None:
        if not isinstance(other, Dictionary):
            raise TypeError(f"other must be a Dictionary, got {type(other).__name__}")
        if (self.points, self.outputs) != (other.points, other.outputs):
            raise ValueError(
                f"other must have the same {self.points} points and {self.outputs} outputs, got {other.points} and "
                f"{other.outputs}"
            )
        if self.coords is None or other.coords is None:
            return
        mine, theirs = self.coords.double(), other.coords.to(self.coords.device).double()
        near = 1e-6 * float(mine.abs().amax())  # the same grid in another dtype
        if mine.shape != theirs.shape or float((mine - theirs).abs().amax()) > near:
            raise ValueError("other must be on the same points, in the same order: its coords are others")

    def _check_gap(self, count: int) -> None:
        """Refuse the first so many atoms where the next eigenvalue, as far as it is listed, may be equal."""
        if count < len(self):
            least, most = self.spectrum.bounds()
            if not float(least[count - 1]) > float(most[count]):
                here, after = (float(self.eigenvalues[i]) for i in (count - 1, count))
                raise ResolutionError(
                    f"eigenvalues {count} and {count + 1} ({here:.4g} and {after:.4g}) are equal within their error, "
                    f"some {self.floor:.1e} of the largest: the span of the first {count} atoms is not determined; "
                    "take another k"
                )


@in_own_modes
def dictionary(
    net: nn.Module,
    coords: ArrayLike,
    k: int | None = None,
    *,
    shape: Sequence[int] | None = None,
    output: str | int = "trace",
    params: Iterable[str] | None = None,
    select: Select = None,
    rtol: float = 1e-6,
    method: str = "auto",
    backend: str = "auto",
    memory_budget: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Dictionary:
    """Return the eigenfunctions of the tangent kernel of ``net`` on ``coords`` as a dictionary.

    Source: Yüce et al., arXiv 2112.01917, section 5.2.

    Computed in fp64, with certified errors of the eigenvalues: down to some 1e-12 of the largest,
    :attr:`Dictionary.floor`.

    Parameters
    ----------
    net
        As in :func:`inrfast.ntk`; copied.
    coords
        Points (N, d), or (..., d) as in :func:`inrfast.ntk`, a grid for instance.
    k
        Number of atoms, those of the largest eigenvalues. None: all of up to 4,096 rows, 256 of more. Where all do not
        fit the memory budget, as many as it leaves, with a warning.
    shape
        The grid's shape, row-major; None: found from ``coords`` if they are a grid in ``"ij"`` or ``"xy"`` order. If
        they are one on two or more axes, no other shape is taken.
    output, params, select, backend, memory_budget
        As in :func:`inrfast.ntk`. ``output="full"``: atoms are functions with all M outputs, such as RGB images.
    rtol, method, seed, progress
        As in :meth:`inrfast.NTK.spectrum`: with ``k`` beyond 4,096 rows, eigenvalues are known to ``rtol`` times the
        largest.

    Warns
    -----
    RuntimeWarning
        The memory budget leaves fewer atoms than were asked for.

    Raises
    ------
    UnsupportedModuleError, MemoryBudgetError, NotAvailableError, ResolutionError, ValueError, TypeError
        As in :func:`inrfast.ntk` and :meth:`inrfast.NTK.spectrum`.

    Examples
    --------
    >>> import inrfast as inr
    >>> D = inr.dictionary(inr.INR(2, 1, width=16, activation="sine", init="siren"), inr.grid((8, 8)))
    >>> D.images(3).shape, D.energy(inr.grid((8, 8))[:, 0], [1e-1, 1e-3]).mean.shape
    (torch.Size([3, 8, 8]), torch.Size([2]))
    """
    if isinstance(net, TangentKernel | Spectrum):
        raise TypeError(
            f"net must be a torch.nn.Module, got {type(net).__name__}; Dictionary.of takes kernels and spectra"
        )
    kernel = ntk(
        net,
        coords,
        output=output,
        params=params,
        select=select,
        precision="highest",
        backend=backend,
        memory_budget=memory_budget,
    )
    return Dictionary.of(kernel, k, shape=shape, rtol=rtol, method=method, seed=seed, progress=progress)


def _warn_of_few(found: Spectrum, wanted: int | None, every: bool) -> None:
    """Warn where the memory budget left fewer atoms than were asked for, ``every`` one or so many."""
    listed, most = len(found.eigenvalues), min(found.size, found.rank_bound)
    asked = most if wanted is None else min(wanted, most)
    if listed < asked and (every or found.floor > found.rtol):
        note = f" ({found.note})" if found.note else ""
        warn(
            f"the memory budget left {listed} of {asked} atoms, those of the largest eigenvalues; give a larger "
            f"memory_budget or fewer points, or ask for fewer atoms by k{note}"
        )


def _signed_(vectors: Tensor) -> Tensor:
    """Give every column the sign that makes the first of its entries largest in size positive, in place."""
    rows, count = vectors.shape
    for part in chunks(count, max(1, CACHED_BYTES // (8 * rows))):
        columns = vectors[:, part]
        sizes = columns.abs()
        first = (sizes >= (1 - TIE) * sizes.amax(0)).to(torch.uint8).argmax(0)
        columns *= torch.where(columns.gather(0, first.unsqueeze(0)) < 0, -1.0, 1.0)
    return vectors
