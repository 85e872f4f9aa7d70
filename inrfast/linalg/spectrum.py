"""Results of eigenvalue computations: ranks as intervals, spectra with their error, and what follows from them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from inrfast import notebook
from inrfast.arrays import ArrayLike
from inrfast.backends import warn_once
from inrfast.errors import ResolutionError, check_float, check_int, check_tensor
from inrfast.linalg.certificates import CertifiedCount, kernel_error
from inrfast.records import Record, in_a_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 1e-12
"""Share by which a level's interval is widened, so that rounding of the level itself does not leave it."""

LEAST_RTOL = 1e-13
"""Smallest tolerance for which a spectrum is computed: below it rounding of an fp64 kernel is larger."""

SHOWN_RTOLS = (1e-2, 1e-4, 1e-6)
"""Tolerances of the ranks that a notebook shows, where they are resolved."""

MOST_TOLD = 6
"""Levels that a message names at most."""


@dataclass(frozen=True)
class RankInterval(Record):
    """A numerical rank that is known to lie in ``[lower, upper]`` at the relative tolerance ``rtol``."""

    lower: int
    upper: int
    rtol: float

    def __str__(self) -> str:
        return f"{self.lower}" if self.lower == self.upper else f"[{self.lower}, {self.upper}]"

    def __contains__(self, rank: int) -> bool:
        return self.lower <= rank <= self.upper


class Counts(Protocol):
    """An estimate of how many eigenvalues exceed a level."""

    def count(self, rtol: float) -> RankInterval:
        """Return how many exceed ``rtol lambda_1``, with error bars for bounds."""

    def smallest_rtol(self) -> float:
        """Return the smallest level that is resolved, relative to lambda_1."""


@dataclass(frozen=True)
class Spectrum(Record):
    """Eigenvalues of a symmetric positive semidefinite operator, with their error.

    Attributes
    ----------
    eigenvalues
        Descending, fp64; all of them or the k largest.
    eigenvectors
        Orthonormal columns (n, k) in the order of the eigenvalues, or None. A residual ``|K q - lambda q|`` is at most
        the larger of the two errors.
    lower_error, upper_error
        Every true eigenvalue lies in ``[lambda - lower_error, lambda + upper_error]``: of the network in exact
        arithmetic, whose parameters, buffers and coordinates are the numbers they hold.
    size
        Order n of the operator.
    trace
        Its trace, exact to rounding.
    rank_bound
        A bound on its rank known beforehand (the smaller of n and the number of parameters).
    rtol
        The smallest tolerance the computation was asked to resolve.
    method
        How it was computed.
    beyond
        Bound on every eigenvalue that is not listed; infinite if nothing is known, or if all are listed.
    note
        Why this method, in words; empty where there was no choice.
    counts
        Estimates of counts below the floor (:class:`inrfast.linalg.quadrature.QuadratureCounts`), or None.
    jacobian_error
        Of an operator ``J J^T``, a bound on the spectral norm of the error of J; the errors above hold what follows
        from it for the largest eigenvalue. Of smaller ones less follows: a singular value of J moves by at most this,
        so that ``lambda`` moves by some ``2 sqrt(lambda)`` times as much, and ranks use that.
    output
        Of a tangent kernel: ``"trace"`` if it sums over the network's outputs, ``"full"`` if its rows are points times
        outputs, the number of the output if it is of one. None for every other operator.
    outputs
        Number M of the network's outputs; 1 for an operator that is no kernel.
    certified
        Numbers of eigenvalues above some levels that were proven apart from the errors, of the same network: by falling
        level, each level once, and none of a level that was decided without (one above lambda_1, or that the
        eigenvalues listed resolve). :meth:`count_above` and :meth:`rank` answer for the levels asked.
    largest
        An interval that holds lambda_1, where a narrower one is known than the errors above give; or None.

    An error or a bound that is NaN says nothing, and is held as an infinite one.
    """

    left_out = ("eigenvectors",)

    eigenvalues: Tensor
    eigenvectors: Tensor | None
    lower_error: float
    upper_error: float
    size: int
    trace: float
    rank_bound: int
    rtol: float
    method: str
    beyond: float = math.inf
    note: str = ""
    counts: Counts | None = None
    jacobian_error: float = 0.0
    output: str | int | None = None
    outputs: int = 1
    certified: tuple[CertifiedCount, ...] = ()
    largest: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("lower_error", "upper_error", "beyond", "jacobian_error"):
            if math.isnan(getattr(self, name)):
                object.__setattr__(self, name, math.inf)
        if self.largest is not None and any(map(math.isnan, self.largest)):
            object.__setattr__(self, "largest", None)

    def __repr__(self) -> str:
        values = [float(self.eigenvalues[place]) for place in ((0, -1) if len(self.eigenvalues) > 1 else (0,))]
        parts = [f"{len(self.eigenvalues):,} of {self.size:,} eigenvalues: {' to '.join(f'{v:.4g}' for v in values)}"]
        with suppress(ResolutionError):
            parts.append(f"rank {self.rank()} at rtol={self.rtol:.3g}")
        if self.certified:
            parts.append(f"certified counts: {len(self.certified)}")
        error = max(self.lower_error, self.upper_error)
        parts += [f"error={error:.2g}", f"trace={self.trace:.4g}", f"method={self.method!r}"]
        return in_a_line("Spectrum", [*parts, *(["with eigenvectors"] if self.eigenvectors is not None else [])])

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        rows = [("quantity", "value"), ("eigenvalues", f"{len(self.eigenvalues):,} of {self.size:,}")]
        rows.append(("largest", f"{float(self.eigenvalues[0]):.6g}"))
        rows += [("trace", f"{self.trace:.6g}"), ("error, at most", f"{max(self.lower_error, self.upper_error):.2g}")]
        for rtol in dict.fromkeys((*SHOWN_RTOLS, self.rtol)):
            with suppress(ResolutionError, ValueError):
                rows.append((f"rank at {rtol:.3g}", str(self.rank(rtol))))
        rows.append(("eigenvectors", "yes" if self.eigenvectors is not None else "no"))
        title = f"Spectrum of order {self.size:,}, {self.method}"
        return notebook.Page(title, rows, [self.note] if self.note else [], figure=self.plot)

    def plot(self, path: str | os.PathLike[str] | None = None, *, rtols: Sequence[float] | None = None) -> Figure:
        """Return a figure of the eigenvalues relative to the largest, between their bounds, over their index.

        Below the floor the ground is grey: there zero cannot be told from an eigenvalue. Black bars are certified
        counts, an orange band estimated ones.

        Parameters
        ----------
        path
            Of a .png, .pdf or .svg to write it to, whole or not at all; None: none is written.
        rtols
            Tolerances in (0, 1) to draw as lines, each with the rank at it, or what is known of it; None: that one for
            which the spectrum was computed.

        Raises
        ------
        ValueError, TypeError
            No eigenvalue is positive; a tolerance outside (0, 1); another suffix.
        """
        from inrfast.linalg.spectrum_figure import draw  # most draw nothing

        if rtols is None:
            rtols = [self.rtol] if LEAST_RTOL <= self.rtol < 1 else []
        if isinstance(rtols, str) or not isinstance(rtols, Iterable):  # type: ignore[unreachable]
            raise TypeError(f"rtols must be a sequence of tolerances, got {type(rtols).__name__}")
        wanted = [check_tolerance("rtols", rtol) for rtol in rtols]
        if not 0 < float(self.eigenvalues[0]) < math.inf:
            raise ValueError("a spectrum without a positive eigenvalue cannot be drawn: the operator is zero")
        return draw(self, wanted, path)

    def with_jacobian_error(self, error: float) -> Spectrum:
        """Return the same spectrum for the ``J J^T`` of an exact J, where it is of one that is off by ``error``.

        Errors add up: :attr:`jacobian_error` of the result is this spectrum's own and ``error``.
        """
        if error == 0:
            return self
        lower, upper = self._own_errors()
        total = self.jacobian_error + error
        more = kernel_error(total, float(self.eigenvalues[0]) + upper)
        return replace(
            self,
            lower_error=lower + more,
            upper_error=upper + more,
            beyond=self.beyond if math.isinf(self.beyond) else _raised(self.beyond, error),
            jacobian_error=total,
            certified=tuple(count.with_jacobian_error(error) for count in self.certified),
            largest=None
            if self.largest is None
            else (_lowered(self.largest[0], error), _raised(self.largest[1], error)),
        )

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return a lower and an upper bound of every eigenvalue listed, (k,) each.

        Tighter than :attr:`lower_error` and :attr:`upper_error` for small eigenvalues, where the error of J counts, and
        where :attr:`certified` counts or :attr:`largest` say more.
        """
        error, values = self.jacobian_error, self.eigenvalues
        if error == 0:
            lower, upper = values - self.lower_error, values + self.upper_error
        else:
            own_lower, own_upper = self._own_errors()
            lower = ((values - own_lower).clamp_min(0).sqrt() - error).clamp_min(0).square()
            upper = ((values + own_upper).clamp_min(0).sqrt() + error).square()
        for count in self.certified:
            lower[: count.lower] = lower[: count.lower].clamp_min(count.high)
            upper[count.upper :] = upper[count.upper :].clamp_max(count.low)
        if self.largest is not None:
            lower[:1], upper = lower[:1].clamp_min(self.largest[0]), upper.clamp_max(self.largest[1])
        return lower, upper

    @property
    def slack(self) -> float:
        """Relative error of the largest eigenvalue listed: levels relative to it are known to this."""
        value = float(self.eigenvalues[0])
        if value <= 0:
            return 0.0
        error = max(self.lower_error, self.upper_error)
        if self.largest is not None:
            error = min(error, max(value - self.largest[0], self.largest[1] - value, 0.0))
        return error / value

    def _own_errors(self) -> tuple[float, float]:
        """Return the lower and upper errors without what the error of J adds."""
        error = self.jacobian_error
        if error == 0:
            return self.lower_error, self.upper_error
        if math.isinf(error) or math.isinf(self.upper_error):
            return math.inf, math.inf
        largest = float(self.eigenvalues[0])
        # upper_error = own + error (2 sqrt(largest + own) + error), solved for own.
        root = math.sqrt(max(largest + self.upper_error, 0.0)) - error
        more = kernel_error(error, root * root)
        return max(self.lower_error - more, 0.0), max(self.upper_error - more, 0.0)

    @property
    def floor(self) -> float:
        """Relative tolerance below which a zero eigenvalue cannot be told from one above the threshold."""
        largest = float(self.eigenvalues[0]) - self.lower_error
        if largest <= 0:
            return math.inf
        beside = [count.low for count in self.certified if count.upper <= len(self.eigenvalues) < self.size]
        return min([_raised(self._own_errors()[1], self.jacobian_error), *(b for b in beside if b > 0)]) / largest

    def rank(self, rtol: float | None = None) -> RankInterval:
        """Return the number of eigenvalues above ``rtol * lambda_1`` as an interval that contains it.

        Parameters
        ----------
        rtol
            Relative tolerance, in (0, 1): one whose count is certified, or one that the eigenvalues listed resolve, at
            least the one computed for. None: that one.

        Raises
        ------
        ResolutionError
            ``rtol`` is below the computed tolerance or the floor, or needs eigenvalues that were not computed. The
            message says what is known of this count, and at which levels more is certified.
        """
        if rtol is None and self.rtol < LEAST_RTOL:
            raise ResolutionError(
                "rtol must be given: this spectrum was computed for absolute levels; of these, ask count_above(level)"
            )
        rtol = self.rtol if rtol is None else check_tolerance("rtol", rtol)
        if self.trace == 0 == self.jacobian_error:  # positive semidefinite without a trace: the zero operator
            return RankInterval(0, 0, rtol)
        level, slack = rtol * float(self.eigenvalues[0]), self.slack
        found = self.count_above(level, rtol)
        narrow = self.certified and found.lower == found.upper
        if narrow or any(count.covers(level * (1 - slack), level * (1 + slack)) for count in self.certified):
            return found
        if rtol < self.floor:
            raise ResolutionError(
                f"rtol={rtol:g} is below the floor {self.floor:.2e} of this spectrum ({self.method}); at least "
                f"{found.lower} eigenvalues are above it{self._known(found)}"
            )
        if rtol < self.rtol * (1 - 1e-12):
            raise ResolutionError(
                f"rtol={rtol:g} is below rtol={self.rtol:g}, for which this spectrum was computed{self._known(found)}"
            )
        listed = len(self.eigenvalues)
        if listed < self.size and found.upper > listed:
            if self.certified:
                raise ResolutionError(f"the count at rtol={rtol:g} is not certified{self._known(found)}")
            raise ResolutionError(
                f"all {listed} computed eigenvalues may exceed rtol={rtol:g} times the largest; compute more of them"
                + (", or estimated_rank" if self.counts is not None else "")
            )
        return found

    def _known(self, found: RankInterval) -> str:
        """Return in words what certified counts say instead of an answer, and how to have one; empty without any."""
        if not self.certified:
            return ""
        places = sorted({f"{count.high:.4g}" for count in self.certified}, key=float, reverse=True)
        told = ", ".join(places[:MOST_TOLD]) + (", ..." if len(places) > MOST_TOLD else "")
        value = float(self.eigenvalues[0])
        other = f"spectrum(rtol={found.rtol:g}), or for " if found.rtol >= LEAST_RTOL else ""
        return (
            f": by the counts certified at the levels {told} (lambda_1 is {value:.4g}) it lies in "
            f"[{found.lower}, {found.upper}]; ask for {other}"
            f"levels=[{found.rtol * value:.4g}, ...] at once"
        )

    def estimated_rank(self, rtol: float) -> RankInterval:
        """Return the rank at ``rtol`` where :meth:`rank` cannot: with error bars of three standard errors, no proof.

        Raises
        ------
        ResolutionError
            Nothing was estimated, or ``rtol`` is below what the estimate resolves.
        """
        if self.counts is None:
            raise ResolutionError(f"this spectrum ({self.method}) holds no estimates; use method='quadrature'")
        return self.counts.count(rtol)

    def count_above(self, threshold: float, rtol: float | None = None) -> RankInterval:
        """Return how many eigenvalues exceed an absolute ``threshold``, as wide an interval as it takes.

        Parameters
        ----------
        threshold
            The level, in the operator's units.
        rtol
            Label of the result, where the threshold is this many times lambda_1 as far as it is known: then it may be
            off by as much as lambda_1, relative to it. None: the threshold is exact, and the label is its ratio to
            lambda_1.

        Raises
        ------
        ValueError, TypeError
            ``threshold`` is no finite number.
        """
        threshold = check_float("threshold", threshold)
        most_of_all = self.rank_bound if threshold >= 0 else self.size  # zeros exceed a negative threshold
        largest, slack = float(self.eigenvalues[0]), 0.0 if rtol is None else self.slack
        if rtol is None:
            rtol = threshold / largest if largest > 0 else math.inf
        least, most = self.bounds()
        low, high = threshold - slack * abs(threshold), threshold + slack * abs(threshold)
        # Where a bound is NaN it says nothing.
        lower, upper = int((least > high).sum()), int((~(most <= low)).sum())
        if len(self.eigenvalues) < self.size and not self.beyond <= low:
            upper = self.size
        lower = max([lower, *(count.lower for count in self.certified if high <= count.high)])
        upper = min([upper, most_of_all, *(count.upper for count in self.certified if count.low <= low)])
        return RankInterval(lower, max(lower, upper), rtol)

    def truncated(self, k: int, eigenvectors: Tensor | None = None) -> Spectrum:
        """Return the k largest eigenvalues alone (all, if they are fewer), with these or their own eigenvectors."""
        vectors = self.eigenvectors if eigenvectors is None else eigenvectors
        cut = len(self.eigenvalues) > k
        return replace(
            self,
            eigenvalues=self.eigenvalues[:k],
            eigenvectors=None if vectors is None else vectors[:, :k],
            beyond=float(self.eigenvalues[k]) + self.upper_error if cut else self.beyond,
        )

    def effective_rank(self) -> float:
        """Return ``exp(H)`` with H the entropy of ``lambda / trace`` (Roy and Vetterli, EUSIPCO 2007).

        0 for the zero operator. Where eigenvalues are not listed, what they add lies between two bounds: their sum is
        known, each is at most :attr:`beyond`. The middle is returned if the bounds are within 1 %.

        Raises
        ------
        ResolutionError
            They are not.
        """
        if self.trace <= 0:
            return 0.0
        p = self.eigenvalues.clamp_min(0)
        unlisted = self.size - len(p)
        total = float(p.sum()) if unlisted == 0 else self.trace
        p = p[p > 0] / total
        entropy = -float((p * p.log()).sum())
        rest = 1 - float(p.sum()) if unlisted > 0 else 0.0
        if rest <= 0:
            return math.exp(entropy)
        least, most = -rest * math.log(min(rest, self.beyond / total)), rest * math.log(unlisted / rest)
        if most - least > 0.01:
            raise ResolutionError(
                f"effective_rank needs all {self.size} eigenvalues, and the {len(self.eigenvalues)} that were computed "
                f"leave {rest:.1e} of the trace"
            )
        return math.exp(entropy + (least + most) / 2)

    def stable_rank(self) -> float:
        """Return ``trace / lambda_1``; 0 for the zero operator."""
        return self.trace / float(self.eigenvalues[0]) if self.trace > 0 else 0.0

    def energy(self, target: ArrayLike) -> Tensor:
        """Return the share of a signal's energy in each eigendirection: ``(q_i . y)^2 / |y|^2``, a tensor (k,).

        Eigenvectors of equal eigenvalues, those of the null space (eigenvalues within the error of 0) among them, are
        any basis of their space: only the sum of their shares has a meaning.

        Parameters
        ----------
        target
            One signal (n,), or c of them as the columns of (n, c): then the mean of their shares, so that each signal
            counts alike whatever its size (equation 11 of arXiv 2112.01917 is an expectation over signals). Of a kernel
            with ``output="full"`` n counts points times outputs; a signal may also be of shape (points, M).

        Raises
        ------
        ValueError
            A signal that is zero everywhere has no energy to share.
        """
        vectors, given = self._vectors("energy"), self._given("target", target)
        y = self._function("target", given)
        largest = y.abs().amax(0)
        if bool((largest == 0).any()):
            which = "" if given.ndim == 1 else f" (column {int((largest == 0).nonzero()[0])})"
            raise ValueError(f"target must not be zero everywhere{which}: it has no energy to share")
        y = y / largest  # or its squares would over- or underflow
        return (vectors.t() @ (y / torch.linalg.vector_norm(y, dim=0))).square().mean(1)

    def predict(self, target: ArrayLike, y0: ArrayLike, lr: float, steps: int) -> Tensor:
        """Return the outputs after ``steps`` of gradient descent under the linearised dynamics, always a tensor.

        ``Y_n = Y + Q (I - lr Lambda)^n Q^T (Y_0 - Y)`` for the loss ``1/2 sum |f - Y|^2`` (Zheng et al., arXiv
        2602.01526, equations 2-3).
        Directions whose eigenpairs were not computed are taken as not learned.

        A kernel that sums over M outputs (``output="trace"``) is M times that of one output. Its eigenvalues are
        divided by M: that is right where the outputs have one kernel and share no direction of the parameters, as at
        infinite width, and approximate elsewhere, of which a warning tells once. ``output="full"`` is exact.

        Parameters
        ----------
        target, y0
            Target and initial outputs, (n,) or (n, c): c signals, or the M outputs of a kernel that sums over them; n
            counts rows of the kernel. With ``output="full"`` also (points, M), as the network returns them.
        lr
            Learning rate; stable below ``2 / lambda_1``, M times that for a sum over outputs.
        steps
            Number of steps, 0 or more.

        Raises
        ------
        ValueError, TypeError
            Other shapes; a rate that is not positive; no eigenvectors.
        """
        vectors = self._vectors("predict")
        wanted, given = self._given("target", target), self._given("y0", y0)
        y, start = self._function("target", wanted), self._function("y0", given)
        if wanted.shape != given.shape:
            raise ValueError(f"y0 must have the shape of target {tuple(wanted.shape)}, got {tuple(given.shape)}")
        lr, steps = check_float("lr", lr, minimum=0.0, exclusive=True), check_int("steps", steps, minimum=0)
        summed = self.outputs if self.output == "trace" else 1
        if summed > 1:
            warn_once(
                f"predict takes each of the {summed} outputs to have 1/{summed} of the summed kernel; "
                'ntk(..., output="full") predicts without that assumption'
            )
        error = start - y
        decay = _powers(1 - lr * self.eigenvalues / summed, steps) - 1
        if not bool(torch.isfinite(decay).all()):
            raise ValueError(f"lr={lr:g} diverges beyond fp64 in {steps} steps; stable is a rate below 2 / lambda_1")
        return (start + vectors @ (decay.unsqueeze(1) * (vectors.t() @ error))).reshape(wanted.shape)

    def _vectors(self, what: str) -> Tensor:
        if self.eigenvectors is None:
            methods = ' with another method, as "inertia" counts alone' if self.method == "inertia" else ""
            raise ValueError(f"{what} needs eigenvectors: ask for spectrum(eigenvectors=True){methods}")
        return self.eigenvectors

    def _given(self, argument: str, given: ArrayLike) -> Tensor:
        return check_tensor(argument, given, device=self.eigenvalues.device)

    def _function(self, argument: str, given: Tensor) -> Tensor:
        """Return signals as columns (size, c), fp64; of a kernel of all outputs also those of shape (points, M)."""
        points, full = self.size // self.outputs, self.output == "full"
        if given.ndim == 0 or (given.shape[0] != self.size and not (full and given.shape == (points, self.outputs))):
            accepted = f"{self.size} rows"
            if full:
                accepted += (
                    f" ({points} points times {self.outputs} outputs, output fast) or shape {points, self.outputs}"
                )
            elif self.output == "trace" and self.outputs > 1:
                accepted += f", one per point, as the kernel sums over its {self.outputs} outputs"
            raise ValueError(f"{argument} must have {accepted}, got shape {tuple(given.shape)}")
        return given.detach().to(self.eigenvalues).reshape(self.size, -1)


def check_tolerance(argument: str, got: float) -> float:
    """Return a relative tolerance, a number in (0, 1)."""
    rtol = check_float(argument, got, minimum=0.0, exclusive=True)
    if rtol >= 1:
        raise ValueError(f"{argument} must be below 1 (it is relative to the largest value), got {rtol:g}")
    return rtol


def dense_spectrum(
    matrix: Tensor,
    matrix_error: float,
    rtol: float,
    rank_bound: int,
    k: int | None = None,
    eigenvectors: bool = False,
) -> Spectrum:
    """Return the spectrum of a dense symmetric fp64 ``matrix`` (n, n) through LAPACK.

    Parameters
    ----------
    matrix
        Symmetric, fp64; overwritten where the library allows.
    matrix_error
        Spectral-norm bound on the error with which the matrix itself was computed; added to the solver's backward
        error ``n u lambda_1`` (LAPACK Users' Guide, section 4.7).
    rtol, rank_bound, k, eigenvectors
        As in :class:`Spectrum`; ``k`` keeps the largest.
    """
    n = len(matrix)
    if eigenvectors:
        values, vectors = torch.linalg.eigh(matrix)
        vectors = vectors.flip(1)[:, :k]
    else:
        values, vectors = torch.linalg.eigvalsh(matrix), None
    values = values.flip(0)
    error = matrix_error + n * torch.finfo(torch.float64).eps / 2 * float(values.abs().amax())
    trace = float(matrix.diagonal().sum())
    whole = Spectrum(values, vectors, error, error, n, trace, min(rank_bound, n), rtol, "dense")
    return whole if k is None else whole.truncated(k)


def _powers(base: Tensor, steps: int) -> Tensor:
    """Return the powers of the entries of ``base``, of exponents beyond those that fp64 tells from their neighbours."""
    if steps < 2**53:
        return base**steps
    found = base.abs() ** float(min(steps, 2**1000))
    return found * base.sign() if steps % 2 else found


def _raised(eigenvalue: float, jacobian_error: float) -> float:
    """Return what an eigenvalue of ``J J^T`` may be for another J, that is off by so much."""
    return (math.sqrt(max(eigenvalue, 0.0)) + jacobian_error) ** 2


def _lowered(eigenvalue: float, jacobian_error: float) -> float:
    """Return what an eigenvalue of ``J J^T`` is at least for another J, that is off by so much."""
    return max(math.sqrt(max(eigenvalue, 0.0)) - jacobian_error, 0.0) ** 2
