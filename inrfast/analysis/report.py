"""The report of a diagnosis: plain numbers in a versioned schema, with a table, JSON and a figure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from inrfast import notebook
from inrfast.analysis.proofs import RankProof, proof
from inrfast.analysis.report_text import findings, network_name, ranks_by_layer, table
from inrfast.errors import ResolutionError
from inrfast.files import write_whole
from inrfast.linalg.spectrum import RankInterval, Spectrum
from inrfast.linalg.tsqr import SingularValues
from inrfast.records import Record, in_a_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "inrfast.diagnosis/1"


@dataclass(frozen=True)
class MatrixSpectrum(Record):
    """Singular values of one matrix and what follows from them.

    Attributes
    ----------
    rows, columns
        Shape of the matrix.
    singular_values
        Descending; those below ``floor * sigma_1`` cannot be told from zero and are left out.
    floor
        Relative tolerance down to which they are resolved.
    method
        ``"gram"``, ``"tsqr"``, or ``"identity"`` where they are known beforehand.
    ranks
        Number of singular values above ``rtol * sigma_1``, one interval a tolerance.
    stable_rank
        ``|A|_F^2 / sigma_1^2``.
    effective_rank
        ``exp(H)``, H the entropy of ``sigma^2 / |A|_F^2``: the effective rank of ``A A^T``, as for kernels.
    """

    rows: int
    columns: int
    singular_values: tuple[float, ...]
    floor: float
    method: str
    ranks: tuple[RankInterval, ...]
    stable_rank: float
    effective_rank: float


@dataclass(frozen=True)
class Representation(Record):
    """What enters one linear layer, on the full grid.

    Attributes
    ----------
    name
        ``"input"`` (encoded, if there is an encoding), then the layer whose activated output it is.
    spectrum, with_ones
        Of Z (N x D), and of [Z, 1], which is what the next layer's weights and bias see.
    dead_units
        Columns of Z that are zero at every point.
    dead_pixels
        Rows of Z that are zero: points that this layer does not see.
    """

    name: str
    spectrum: MatrixSpectrum
    with_ones: MatrixSpectrum
    dead_units: int
    dead_pixels: int

    def __repr__(self) -> str:
        parts = [f"{self.name!r}", f"{self.spectrum.rows:,} x {self.spectrum.columns:,}"]
        parts.append("ranks " + ", ".join(f"{rank} at {rank.rtol:.3g}" for rank in self.spectrum.ranks))
        parts += [f"dead_units={self.dead_units}", f"dead_pixels={self.dead_pixels}"]
        return in_a_line("Representation", parts)


@dataclass(frozen=True)
class Sensitivity(Record):
    """How the outputs depend on one parameter layer, on the full grid.

    Attributes
    ----------
    name, kind
        The layer, and the kind of it: one of two factors, ``"linear"`` or ``"conv"``, or one whose S is its Jacobian
        itself, such as ``"affine"`` (a norm's own parameters), ``"positions"`` or ``"autodiff"``, of up to 4,096
        parameters.
    spectrum
        Of S ((N M) x D_out), rows ``d f_m(x_n) / d u``; the head's is the identity at every point.
    dead_pixels
        Points where a row of S is zero: there the layer learns nothing, and the lower bound ``rank(G_k) >=
        rank([Z, 1])`` of proposition 3 of arXiv 2602.01526 does not hold.
    trace, trace_share
        Trace of the layer's own kernel, exact, and its share of the whole kernel's.
    """

    name: str
    kind: str
    spectrum: MatrixSpectrum
    dead_pixels: int
    trace: float
    trace_share: float


@dataclass(frozen=True)
class Weight(Record):
    """One weight matrix, or a product of consecutive ones in the order of multiplication, the head left out."""

    factors: tuple[str, ...]
    spectrum: MatrixSpectrum


@dataclass(frozen=True)
class PixelRanks(Record):
    """Rank of a matrix that differs from pixel to pixel, at one tolerance: minimum, median, maximum over pixels."""

    rtol: float
    minimum: int
    median: float
    maximum: int


@dataclass(frozen=True)
class FeatureJacobian(Record):
    """The Jacobian of one hidden layer's output in its input, ``diag(a_n) W``, at sampled pixels.

    Source: Zheng et al., arXiv 2602.01526, equations 18-20.
    """

    name: str
    rows: int
    columns: int
    pixels: int
    ranks: tuple[PixelRanks, ...]


@dataclass(frozen=True)
class KernelSpectrum(Record):
    """Eigenvalues of the tangent kernel, or of one layer's block of it.

    Attributes
    ----------
    name
        ``"ntk"`` or the layer's name.
    size
        Order of the matrix.
    eigenvalues
        Descending; those that cannot be told from zero are left out.
    lower_error, upper_error
        Every true eigenvalue lies in ``[lambda - lower_error, lambda + upper_error]``.
    method
        How they were computed.
    ranks
        Number of eigenvalues above ``tau = rtol * lambda_1(K)``, the same absolute threshold for the whole kernel
        and all its blocks.
    trace, stable_rank, effective_rank
        ``trace / lambda_1`` and ``exp`` of the entropy of ``lambda / trace``, relative to this kernel's own values; the
        latter is None where too much of the trace lies in eigenvalues that were not computed.
    proofs
        How each rank was found, and how probable it is that its interval is wrong; none in reports of earlier versions.
    """

    name: str
    size: int
    eigenvalues: tuple[float, ...]
    lower_error: float
    upper_error: float
    method: str
    ranks: tuple[RankInterval, ...]
    trace: float
    stable_rank: float
    effective_rank: float | None
    proofs: tuple[RankProof, ...] = ()


@dataclass(frozen=True)
class BlockBounds(Record):
    """Proposition 1 of arXiv 2602.01526 for numerical ranks, at one absolute threshold ``tau`` and L layers.

    ``max_k r_tau(K_k) <= r_tau(K)`` and ``r_{L tau}(K) <= sum_k r_tau(K_k)``: theorems (Weyl) for the exact kernels, so
    a violation would be an error of the computation.

    Attributes
    ----------
    largest_block, whole
        The two sides of the first.
    whole_at_multiple, sum_of_blocks
        The two sides of the second.
    hold
        Whether the intervals admit both.
    """

    rtol: float
    tau: float
    largest_block: RankInterval
    whole: RankInterval
    whole_at_multiple: RankInterval
    sum_of_blocks: RankInterval
    hold: bool


@dataclass(frozen=True)
class KernelDiagnosis(Record):
    """The tangent kernel (output trace) and its layers' blocks on ``points`` of the ``grid_points`` points.

    Attributes
    ----------
    points, grid_points, full_grid
        Size of the set the kernel was computed on and of the grid that was diagnosed; whether they are the same set.
        Ranks on fewer points are ranks of the smaller matrix, never of the full grid.
    shape
        Points an axis where the set is a regular grid, else None.
    whole, blocks, bounds
        The kernel, its layers, and one check of the block bounds a tolerance.
    """

    points: int
    grid_points: int
    full_grid: bool
    shape: tuple[int, ...] | None
    whole: KernelSpectrum
    blocks: tuple[KernelSpectrum, ...]
    bounds: tuple[BlockBounds, ...]

    @property
    def label(self) -> str:
        """The set of points in words, with both sizes unless it is the full grid."""
        shape = "" if self.shape is None else " (" + "x".join(map(str, self.shape)) + ")"
        if self.full_grid:
            return f"full grid, {self.points:,} points{shape}"
        return f"{self.points:,} points{shape}, not the full grid of {self.grid_points:,}"


@dataclass(frozen=True)
class DiagnosisReport(Record):
    """Where a network loses rank: the result of :func:`inrfast.diagnose`.

    Attributes
    ----------
    network
        What describes the network, as plain values.
    points, outputs, parameters
        N, M and the number of differentiated parameters.
    rtols
        Relative tolerances, descending; every ``ranks`` has one entry for each, in this order.
    representations, sensitivities
        On the full grid, from the input to the head.
    weights, weight_products
        Single weights, and products ``W_{h-1} ... W_k`` of the hidden layers without the head (arXiv 2602.01526,
        equation 10). Products are given for :class:`inrfast.INR` alone, whose layers are known to be a chain.
    feature_jacobians
        Of the hidden layers, at sampled pixels; for :class:`inrfast.INR` alone, and where they were asked for.
    kernel
        The tangent kernel and its blocks; None where they were not asked for.
    schema
        Name and version of this layout.
    """

    network: dict[str, Any]
    points: int
    outputs: int
    parameters: int
    rtols: tuple[float, ...]
    representations: tuple[Representation, ...]
    sensitivities: tuple[Sensitivity, ...]
    weights: tuple[Weight, ...]
    weight_products: tuple[Weight, ...]
    feature_jacobians: tuple[FeatureJacobian, ...]
    kernel: KernelDiagnosis | None
    schema: str = SCHEMA

    def __repr__(self) -> str:
        parts = [f"{self.points:,} points", f"{self.parameters:,} parameters", f"{self.outputs} output(s)"]
        if self.kernel is not None:
            whole = self.kernel.whole
            ranks = ", ".join(f"{rank} at {rank.rtol:.3g}" for rank in (whole.ranks[0], whole.ranks[-1]))
            parts.append(f"NTK of order {whole.size:,}, ranks {ranks}")
        return in_a_line("DiagnosisReport", [network_name(self.network), *parts])

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        def figure() -> Figure:
            from inrfast.analysis.report_figure import ranks

            return ranks(self)

        title = f"Diagnosis of {network_name(self.network)}"
        return notebook.Page(title, ranks_by_layer(self), self.findings(), figure=figure)

    def __str__(self) -> str:
        return table(self)

    def findings(self) -> list[str]:
        """Return what the numbers say, in sentences computed from them."""
        return findings(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DiagnosisReport:
        """Return the report that :meth:`to_dict` (or JSON made from it) holds; the schema must be this one."""
        if not isinstance(data, Mapping):
            raise TypeError(f"data must be a mapping, got {type(data).__name__}")
        if data.get("schema") != SCHEMA:
            raise ValueError(f"data must have the schema {SCHEMA!r}, got {data.get('schema')!r}")
        return _build(cls, data)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the report as JSON (no NaN, no Infinity); with ``path``, also write it there, whole or not at all.

        Raises
        ------
        OSError
            The folder does not exist or cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            write_whole(path, (text + "\n").encode())
        return text

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the report as one self-contained HTML page: figures, tables, and what the numbers say and mean.

        With ``path``, also write it there, whole or not at all. The page needs nothing else: no network, no script.

        Raises
        ------
        OSError
            The folder does not exist or cannot be written.
        """
        from inrfast.analysis.report_page import page

        made = page(self)
        if path is not None:
            made.write(path)
        return made.html()

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return a figure of the report; with ``path`` (.png, .pdf, .svg), also write it there, whole or not at all.

        From the left: ranks of the representations against the tolerance; singular values of the representations
        (solid) and of the weights (dashed), figure 2 of arXiv 2602.01526; eigenvalues of the tangent kernel and its
        blocks, with the intervals of the kernel's ranks at the tolerances as black bars (left out without a kernel).
        """
        from inrfast.analysis.report_figure import draw  # most draw nothing

        return draw(self, path)


def matrix_spectrum(values: SingularValues, rtols: Sequence[float], refuse: bool = True) -> MatrixSpectrum:
    """Return the report's entry of a matrix; a tolerance below the floor is refused, or gives a wide interval."""
    resolved = values.values[values.values > values.floor * values.values[0]]
    return MatrixSpectrum(
        rows=values.shape[0],
        columns=values.shape[1],
        singular_values=tuple(resolved.tolist()),
        floor=min(values.floor, 1.0),
        method=values.method,
        ranks=tuple(_rank(values, rtol) if refuse else values.interval(rtol) for rtol in rtols),
        stable_rank=values.stable_rank(),
        effective_rank=values.effective_rank(),
    )


def _rank(values: SingularValues, rtol: float) -> RankInterval:
    """Return the rank of a matrix; of one that rounding does not tell from zero, nothing is known."""
    if float(values.lower[0]) == 0 < values.floor:
        return RankInterval(0, len(values.values), rtol)
    return values.rank(rtol)


def kernel_spectrum(name: str, spectrum: Spectrum, thresholds: Mapping[float, float]) -> KernelSpectrum:
    """Return the report's entry of a kernel whose eigenvalues are counted above ``thresholds[rtol]``."""
    zero = float(spectrum.eigenvalues[0]) <= 0  # a dead layer
    resolved = spectrum.eigenvalues[spectrum.bounds()[0] > 0]
    return KernelSpectrum(
        name=name,
        size=spectrum.size,
        eigenvalues=tuple(resolved.tolist()),
        lower_error=spectrum.lower_error,
        upper_error=spectrum.upper_error,
        method=spectrum.method,
        ranks=tuple(spectrum.count_above(tau, rtol) for rtol, tau in thresholds.items()),
        trace=spectrum.trace,
        stable_rank=0.0 if zero else spectrum.stable_rank(),
        effective_rank=0.0 if zero else _effective_rank(spectrum),
        proofs=tuple(proof(spectrum, tau, rtol) for rtol, tau in thresholds.items()),
    )


def _effective_rank(spectrum: Spectrum) -> float | None:
    try:
        return spectrum.effective_rank()
    except ResolutionError:
        return None


def _build(kind: Any, data: Any) -> Any:
    """Rebuild a value of type ``kind`` from plain values."""
    if get_origin(kind) is UnionType:  # optional
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        return None if data is None else _build(kind, data)
    if get_origin(kind) is tuple:
        return tuple(_build(get_args(kind)[0], entry) for entry in data)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        given = [field.name for field in fields(kind) if field.name in data or field.default is MISSING]
        return kind(**{name: _build(hints[name], data[name]) for name in given})
    return data
