"""How signals lie on the eigenvectors of a kernel: energy above a level of the eigenvalues, and kernel norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.errors import ResolutionError
from inrfast.linalg.spectrum import Spectrum
from inrfast.records import Record

OPEN = 0.01
"""Width of an interval, of an energy between 0 and 1 or relative to a norm, from which on its middle is no answer."""

NORMALISATIONS = ("energy", "printed")


@dataclass(frozen=True, eq=False)
class Energy(Record):
    """How much of the energy of signals lies on atoms of large eigenvalues: E(lambda).

    Source: Yüce et al., *A Structured Dictionary Perspective on INRs* (arXiv 2112.01917), equation 11.

    Attributes
    ----------
    thresholds
        Levels lambda relative to the largest eigenvalue, of any shape.
    lower, upper
        Bounds for each signal, (signals, *thresholds): what lies on the atoms whose eigenvalues surely, or possibly,
        reach the threshold. They differ where an eigenvalue lies within its error of the threshold, and below the
        eigenvalues listed by all the energy that the atoms listed leave.
    whole
        All of each signal's energy, (signals,): 1, or ``1 / |g|^2`` where it is normalised as printed.
    floor
        Level below which eigenvalues cannot be told from zero (:attr:`inrfast.Spectrum.floor`).
    smallest
        The smallest eigenvalue listed, relative to the largest; 0 if all are listed.
    demeaned
        Whether it is the energy of signals less their means.
    """

    thresholds: Tensor
    lower: Tensor
    upper: Tensor
    whole: Tensor
    floor: float
    smallest: float
    demeaned: bool = False

    def __repr__(self) -> str:
        count = len(self.lower)
        mean = ("less its mean" if count == 1 else "less their means") if self.demeaned else "as given"
        what = f"{count} signal{'s' * (count > 1)} {mean}"
        levels = self.thresholds.numel()
        reached = ""
        if levels:
            at = int(self.thresholds.flatten().argmin())
            low, high = (float(bound.flatten()[at]) for bound in self.interval)
            reached = f", {_range(low, high)} above {float(self.thresholds.flatten()[at]):g} of the largest eigenvalue"
        return f"Energy({what}, thresholds={levels}{reached})"

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """Bounds on the mean over the signals, each of the shape of the thresholds."""
        return self.lower.mean(0), self.upper.mean(0)

    @property
    def mean(self) -> Tensor:
        """E(lambda): the mean over the signals, of the shape of the thresholds, correct to 0.01 of the whole.

        Raises
        ------
        ResolutionError
            The eigenvalues leave it open; :attr:`interval` says how far.
        """
        low, high = self.interval
        far = high - low > OPEN * self.whole.mean()
        if bool(far.any()):
            at = float(self.thresholds[far].amax())
            index = int((self.thresholds.flatten() == at).nonzero()[0])
            where = f"between {float(low.flatten()[index]):.3g} and {float(high.flatten()[index]):.3g}"
            why = (
                f"only the atoms down to {self.smallest:.1e} of the largest eigenvalue are listed; ask for more"
                if at < self.smallest
                else f"eigenvalues within their error, some {self.floor:.1e} of the largest, count either way"
            )
            raise ResolutionError(f"the energy at the threshold {at:g} is open, {where}: {why}, or read interval")
        return (low + high) / 2


@dataclass(frozen=True, eq=False)
class KernelNorm(Record):
    """Squared norm ``|g|^2`` of signals in the kernel's space, the larger, the harder to learn.

    Source: Yüce et al., arXiv 2112.01917, equation 10.

    Attributes
    ----------
    counted
        ``sum <phi_i, g>^2 / (lambda_i + ridge)`` over the atoms counted, (signals,): the norm of each signal's
        projection on them.
    lower, upper
        Bounds on the whole norm, (signals,), for any eigenvalues within their errors. Without a ridge it has no upper
        bound where energy is left on eigenvalues that may be zero.
    uncounted
        Share of each signal's energy that is not on the atoms counted, (signals,).
    atoms
        Number of atoms counted: those whose eigenvalue, with the ridge, is known to 1 %.
    """

    counted: Tensor
    lower: Tensor
    upper: Tensor
    uncounted: Tensor
    atoms: int

    def __repr__(self) -> str:
        first = _range(float(self.lower[0]), float(self.upper[0]))
        more = f" and {len(self.lower) - 1} more" if len(self.lower) > 1 else ""
        return f"KernelNorm({first}{more}, {self.atoms} atoms counted)"

    @property
    def value(self) -> Tensor:
        """The norm of each signal, (signals,), correct to 1 %.

        Raises
        ------
        ResolutionError
            It is not known to that; the message says what share of the energy is not counted.
        """
        far = ~(self.upper - self.lower <= OPEN * self.lower)
        if bool(far.any()):
            i = int(far.nonzero()[0])
            raise ResolutionError(
                f"the kernel norm of signal {i} lies between {float(self.lower[i]):.4g} and "
                f"{float(self.upper[i]):.4g}: {float(self.uncounted[i]):.1e} of its energy is not on the {self.atoms} "
                "atoms that are counted, whose eigenvalues are resolved; use ridge=, or read counted, lower and "
                "uncounted"
            )
        return (self.lower + self.upper) / 2


def _range(low: float, high: float) -> str:
    """Return one number, or two where they differ in the digits shown."""
    first, last = f"{low:.4g}", f"{high:.4g}"
    return first if first == last else f"{first} to {last}"


def concentration(spectrum: Spectrum, rows: Tensor, levels: Tensor, normalisation: str) -> Energy:
    """Return the energy of signals, the rows (signals, n), at levels relative to lambda_1, of any shape.

    Arguments and errors as in :meth:`inrfast.Dictionary.energy`.
    """
    shares, lengths = _shares(spectrum, rows)
    values, listed = spectrum.eigenvalues, len(spectrum.eigenvalues)
    least, most = spectrum.bounds()
    surely, perhaps = least.clamp_min(0) / most[0], most / least[0].clamp_min(0)
    surely[0] = perhaps[0] = 1.0  # of lambda_1 itself
    column = levels.flatten()
    lower = shares @ (surely.unsqueeze(1) >= column).to(rows)
    upper = shares @ (perhaps.unsqueeze(1) >= column).to(rows)
    smallest = 0.0
    if listed < spectrum.size:
        smallest = float(values[-1] / values[0])
        upper += _unlisted(shares) * (min(spectrum.beyond, float(most[-1])) / float(least[0]) >= column)
    whole = 1 / lengths.square() if normalisation == "printed" else torch.ones_like(lengths)
    sizes = (len(rows), *levels.shape)
    lower, upper = ((part.clamp_max(1) * whole).reshape(sizes) for part in (lower, torch.maximum(lower, upper)))
    return Energy(levels, lower, upper, whole[:, 0], spectrum.floor, smallest)


def squared_norm(spectrum: Spectrum, rows: Tensor, ridge: float, cut: float) -> KernelNorm:
    """Return the norm of signals, the rows (signals, n), in the kernel's space.

    With ``|K - Q Lambda Q^T| <= e`` it lies between the norms for ``Lambda + e`` and ``Lambda - e``. Arguments and
    errors as in :meth:`inrfast.Dictionary.kernel_norm`.
    """
    shares, lengths = _shares(spectrum, rows)
    values = spectrum.eigenvalues
    least = (values - spectrum.lower_error).clamp_min(0) + ridge
    most = (values + spectrum.upper_error).clamp_min(0) + ridge
    n = int(((most - least <= OPEN * least) & (values >= cut * values[0])).sum())
    energies, squares = shares * lengths.square(), lengths.square()
    counted = (energies[:, :n] / (values[:n].clamp_min(0) + ridge)).sum(1)
    lower, upper = (_over(energies, bound).sum(1) for bound in (most, least))
    uncounted = shares[:, n:].sum(1)
    if len(values) < spectrum.size:
        rest = _unlisted(shares)
        uncounted = uncounted + rest[:, 0]
        lower = lower + (rest * squares)[:, 0] / (min(spectrum.beyond, float(most[-1]) - ridge) + ridge)
        upper = upper + _over(rest * squares, least.new_tensor(ridge))[:, 0]
    return KernelNorm(counted, lower, upper, uncounted, n)


def _over(energies: Tensor, values: Tensor) -> Tensor:
    """Return a quotient that is 0 where there is no energy, infinite where there is and the eigenvalue is 0."""
    return torch.where(energies > 0, energies / values, 0.0)


def _shares(spectrum: Spectrum, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of each signal's energy on each eigenvector, (signals, k), and its length, (signals, 1)."""
    assert spectrum.eigenvectors is not None
    largest = rows.abs().amax(1, keepdim=True)
    if bool((largest == 0).any()):
        which = int((largest == 0).nonzero()[0, 0])
        raise ValueError(f"signals must not be zero everywhere (signal {which} is): it has no energy")
    scaled = rows / largest  # or its squares would over- or underflow
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return ((scaled / lengths) @ spectrum.eigenvectors).square(), lengths * largest


def _unlisted(shares: Tensor) -> Tensor:
    """Return the share of each signal's energy that is on no eigenvector listed, (signals, 1)."""
    return (1 - shares.sum(1, keepdim=True)).clamp_min(0)
