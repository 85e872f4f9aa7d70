"""Where a network loses rank: representations, sensitivities, weights, feature Jacobians and tangent kernel.

The full grid streams through the factor pass once, in fp64; the tangent kernel's eigenvalues are those on the full grid
too, with their error, unless fewer points are asked for; the report says which. Ranks of the kernel and its blocks that
pivots would not prove, or only at a higher cost, are counted by factorisations of ``K - level I``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.analysis.feature_jacobians import feature_jacobians
from inrfast.analysis.report import (
    BlockBounds,
    DiagnosisReport,
    FeatureJacobian,
    KernelDiagnosis,
    Representation,
    Sensitivity,
    Weight,
    kernel_spectrum,
    matrix_spectrum,
)
from inrfast.analysis.representations import RTOLS, Activity, Key, check_tolerances, described, streamed
from inrfast.analysis.weight_products import weight_products, weight_spectrum
from inrfast.arrays import ArrayLike
from inrfast.calling import Select
from inrfast.errors import check_coords, check_int, check_seed
from inrfast.layers import Factors, Layer
from inrfast.linalg.eigenvalues import SMALL
from inrfast.linalg.spectrum import RankInterval, Spectrum
from inrfast.linalg.tsqr import CHUNK_ROWS, SingularValues, StreamedGram
from inrfast.memory import DEVICE_ROWS, budget_bytes, chunks, require
from inrfast.modes import in_own_modes
from inrfast.nn import described_network
from inrfast.ops.gram import gram_diagonal
from inrfast.progress import Bar, progress_bar
from inrfast.rounding import SAFETY, PassErrors
from inrfast.tangent.capture import Capture
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.local import NTK, ntk
from inrfast.tangent.store import HOOKED_BUFFERS, PASS_BUFFERS, UNCOUNTED, FactorStore, backend_for
from inrfast.wrapped import unwrapped

SHARED = 4
"""Share of the budget, its inverse, that the full grid may take beside factors that the kernel keeps."""

LEAST_ROWS = 16
"""Points a chunk of a layer's Jacobian at least, where its Gram matrix is added up."""

WIDE = 4096
"""Parameters up to which rows by automatic differentiation are looked at as a matrix of sensitivities. Larger ones,
such as the tables of an encoding, have a block of the kernel only: their Gram matrix would be too large."""

GRAMS = 3
"""Matrices as large as a Gram matrix that its eigenvalues take: itself, one without columns of zeros, and LAPACK's."""


@in_own_modes
def diagnose(
    net: nn.Module,
    coords: ArrayLike,
    rtols: Sequence[float] = RTOLS,
    ntk_points: int | None = None,
    ntk_coords: ArrayLike | None = None,
    jacobian_pixels: int = 256,
    params: Iterable[str] | None = None,
    select: Select = None,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> DiagnosisReport:
    """Return where along its layers a network loses rank (Inlet Rank Collapse, arXiv 2602.01526).

    Everything is computed in fp64 from the first layer on. Ranks of matrices count singular values relative to sigma_1,
    those of the tangent kernel and its blocks eigenvalues relative to lambda_1 of the whole kernel.

    Parameters
    ----------
    net
        As in :func:`inrfast.ntk`; not changed.
    coords
        The full grid (N, d), or (..., d) as in :func:`inrfast.ntk`. Representations, sensitivities, dead units and
        traces are exact on all of it.
    rtols
        Relative tolerances in (0, 1), in any order.
    ntk_points
        Largest number of points of the tangent kernel; None: the full grid, whatever its size. A larger grid is
        thinned: every s-th point of every axis if it is a regular grid, else every s-th point. 0: no kernel is looked
        at, which is most of the work, and ``report.kernel`` is None.
    ntk_coords
        Points (N', d) of the kernel; overrides ``ntk_points``.
    jacobian_pixels
        Number of points, drawn without replacement, at which feature Jacobians are looked at; 0: they are left out.
    params, select
        As in :func:`inrfast.ntk`.
    memory_budget
        Bytes; None: half of what is free.
    seed
        Draws the pixels of the feature Jacobians, and the pivots and starts of large spectra.
    progress
        Whether to show a bar; None: on a terminal and in a notebook.

    Returns
    -------
    DiagnosisReport
        ``print`` it, or call its ``to_dict``, ``to_json``, ``plot``.

    Raises
    ------
    UnsupportedModuleError
        The network cannot be captured exactly (uncalibrated or train-mode batch norm, coupled points, ...).
    ResolutionError
        A tolerance below what fp64 resolves for this network.
    MemoryBudgetError
        The budget is too small for a block of the kernel's columns.
    ValueError, TypeError
        Bad arguments.
    """
    rtols = check_tolerances(rtols)
    ntk_points = None if ntk_points is None else check_int("ntk_points", ntk_points, minimum=0)
    jacobian_pixels = check_int("jacobian_pixels", jacobian_pixels, minimum=0)
    seed = check_seed("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    capture = Capture(net, coords, params, select, "highest", memory_budget)
    net = unwrapped(net)
    coords = check_coords("coords", coords, capture.in_features, capture.device).detach()
    budget, kernel, points = budget_bytes(memory_budget, capture.device), None, None
    if ntk_coords is not None:
        points = check_coords("ntk_coords", ntk_coords, capture.in_features, capture.device).detach()
        kernel = ntk(
            net,
            capture.network.with_axes(points),
            params=params,
            select=select,
            precision="highest",
            memory_budget=budget,
        )
    elif ntk_points != 0:  # of the same snapshot, whose probes looked at these points
        points = _thinned(coords, len(coords) if ntk_points is None else ntk_points)
        store = FactorStore(capture, points, budget // 2, backend_for(capture, "auto"))
        kernel = NTK(LayerwiseJacobian(store, budget), None, "trace")

    grid = _grid(capture, coords, kernel if points is coords else None, budget)
    network = described_network(net) or {"class": type(net).__name__}
    wanted = capture.mlp if jacobian_pixels > 0 else None
    steps = len(range(0, len(coords), grid.rows)) + (0 if wanted is None else len(wanted.hidden))
    steps += 0 if kernel is None else len(kernel.specs) + 1
    with progress_bar(total=steps, progress=progress, leave=False) as bar:
        representations, sensitivities = _full_grid(grid, rtols, bar)
        weights, products = _weights(net, capture, rtols)
        jacobians: tuple[FeatureJacobian, ...] = ()
        if wanted is not None:
            pixels = _sampled(coords, jacobian_pixels, generator)
            jacobians = feature_jacobians(wanted, capture.inputs(pixels), rtols, budget, bar)
        spectra = None if kernel is None or points is None else _kernels(kernel, points, coords, rtols, seed, bar)
    return DiagnosisReport(
        network=network,
        points=len(coords),
        outputs=capture.outputs,
        parameters=capture.columns,
        rtols=rtols,
        representations=representations,
        sensitivities=sensitivities,
        weights=weights,
        weight_products=products,
        feature_jacobians=jacobians,
        kernel=spectra,
    )


# ---- the points --------------------------------------------------------------------------------------------------


def _grid_axes(coords: Tensor) -> list[Tensor] | None:
    """Return the axes whose row-major product ``coords`` is, on the CPU, or None if it is no such grid."""
    coords = coords.cpu()
    axes = [torch.unique(column) for column in coords.unbind(1)]
    if math.prod(len(axis) for axis in axes) != len(coords):
        return None
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(coords.shape)
    return axes if torch.equal(mesh, coords) else None


def _grid_shape(coords: Tensor) -> tuple[int, ...] | None:
    axes = _grid_axes(coords)
    return None if axes is None else tuple(len(axis) for axis in axes)


def _thinned(coords: Tensor, limit: int) -> Tensor:
    """Return at most ``limit`` points: a coarser grid with the same stride on every axis, or every s-th point."""
    if len(coords) <= limit:
        return coords
    axes = _grid_axes(coords)
    if axes is None:
        return coords[:: -(-len(coords) // limit)]
    stride = 1
    while math.prod(-(-len(axis) // stride) for axis in axes) > limit:
        stride += 1
    # Centred: what the last step leaves over is shared between both ends.
    thinned = [axis[(len(axis) - 1) % stride // 2 :: stride] for axis in axes]
    return torch.stack(torch.meshgrid(*thinned, indexing="ij"), dim=-1).reshape(-1, len(axes)).to(coords.device)


def _sampled(coords: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(coords) <= count:
        return coords
    return coords[torch.randperm(len(coords), generator=generator)[:count].sort().values.to(coords.device)]


@dataclass(frozen=True)
class _Grid:
    """The full grid, whose factors come in chunks of so many points: computed here, or those that the kernel keeps."""

    capture: Capture
    coords: Tensor
    rows: int
    store: FactorStore | None
    pass_errors: Callable[[], PassErrors]

    def passes(self) -> Iterator[Sequence[Factors]]:
        """Yield the factors of all points, chunk by chunk."""
        if self.store is not None:
            for _, factors in self.store.chunks(self.rows):
                yield factors
        else:
            for part in chunks(len(self.coords), self.rows):
                yield self.capture(self.coords[part])


def _grid(capture: Capture, coords: Tensor, kernel: NTK | None, budget: int) -> _Grid:
    """Return the full grid; ``kernel`` is that on all of it, if there is one.

    Raises
    ------
    MemoryBudgetError
        The square matrices of all layers leave no room for a chunk.
    """
    if kernel is None:
        return _Grid(capture, coords, _chunk_rows(capture, budget), None, lambda: capture.pass_errors(coords))
    store = kernel.left.store
    squares, each = _chunk_bytes(capture)
    # Kept factors take half of the budget, and a pass that makes them half of that.
    shared = store.fits and squares + each * min(CHUNK_ROWS, len(coords)) <= budget // SHARED
    rows = _chunk_rows(capture, budget // SHARED if shared else budget)
    return _Grid(capture, coords, rows, store if shared else None, lambda: store.pass_errors)


def _chunk_bytes(capture: Capture) -> tuple[int, int]:
    """Return the bytes of the square matrices of all layers, and of a point in a chunk."""
    blocks = [layer.block for layer in capture.layers if _is_looked_at(layer)]
    held = [own if layer.sparse else layer.block for layer, own in zip(capture.layers, capture.stored, strict=True)]
    numbers = sum(b * capture.outputs + a for a, b in held)
    widest = max((max(block) for block in blocks), default=1)
    each = 8 * numbers * (PASS_BUFFERS if capture.plain else HOOKED_BUFFERS)
    # One for every factor, and two more like the largest: of a chunk stacked under it, and of LAPACK.
    return 8 * (sum(a * a + b * b for a, b in blocks) + 2 * widest * widest), each


def _chunk_rows(capture: Capture, budget: int) -> int:
    """Return the points per chunk: as many as the products like, unless factors and temporaries exceed the budget."""
    squares, each = _chunk_bytes(capture)
    widest = max((max(layer.block) for layer in capture.layers if _is_looked_at(layer)), default=1)
    instead = "take a narrower network or fewer of its layers (params=)"
    require(max(0, squares + each - UNCOUNTED), budget, "a diagnosis' square matrices", instead)
    liked = max(CHUNK_ROWS, widest) if capture.device.type == "cpu" else DEVICE_ROWS
    return max(1, min(liked, (budget - squares) // each))


# ---- representations and sensitivities on the full grid ----------------------------------------------------------


class _Tally:
    """What is counted of one parameter layer while the grid streams by, on the device of the factors."""

    def __init__(self, device: torch.device) -> None:
        self.activity = Activity(device)
        # Dead sensitivities, a number that fp64 holds exactly, and the trace.
        self.numbers = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, features: Tensor | None, factors: Factors, outputs: int) -> None:
        """Count one chunk; ``features`` are Z without the column of ones."""
        if features is not None:
            self.activity.add(features)
        if factors.sensitivities is not None:
            self.numbers[0] += (~(factors.sensitivities != 0).any(2).all(1)).sum()
        pair = (factors.features, factors.sensitivities)
        self.numbers[1] += gram_diagonal([pair], "trace", outputs).sum()


@dataclass(frozen=True)
class _Counts:
    """What was counted of one layer; ``dead_units`` is None where it has no features of its own."""

    dead_units: int | None
    dead_features: int
    dead_sensitivities: int
    trace: float


def _read(tallies: Mapping[str, _Tally]) -> dict[str, _Counts]:
    """Return what was counted, all of it in one transfer."""
    parts = [part for t in tallies.values() for part in (t.numbers, t.activity.dead_units, t.activity.dead_points)]
    rows = torch.cat(parts).view(-1, 4).tolist()
    return {
        name: _Counts(None if tally.activity.units is None else int(units), int(features), int(sensitivities), trace)
        for (name, tally), (sensitivities, trace, units, features) in zip(tallies.items(), rows, strict=True)
    }


def _is_looked_at(layer: Layer) -> bool:
    """Return whether the singular values of a layer's S are asked for: not of sparse rows, nor of long ones."""
    return not layer.sparse and (layer.block[1] > 1 or layer.columns <= WIDE)


def _matrices(layers: Sequence[Layer], factors: Sequence[Factors]) -> Iterator[tuple[Key, Tensor]]:
    """Yield [Z, 1] and S, the latter with rows (n, m), of every layer on a chunk of points."""
    for layer, own in zip(layers, factors, strict=True):
        z = layer.representation(own)
        if z is not None and own.features is not None:
            # The layer's own features where it has a bias: they hold the ones already.
            yield ("features", layer.name), own.features if layer.ends_with_ones else F.pad(z, (0, 1), value=1.0)
        if own.sensitivities is not None and _is_looked_at(layer):
            yield ("sensitivities", layer.name), own.sensitivities.flatten(0, 1)


def _full_grid(
    grid: _Grid, rtols: tuple[float, ...], bar: Bar
) -> tuple[tuple[Representation, ...], tuple[Sensitivity, ...]]:
    """Return the spectra of both factors of every layer on all points: Gram matrices, TSQR for those they fail."""
    capture = grid.capture
    tallies = {spec.name: _Tally(grid.coords.device) for spec in capture.layers}

    def passes(first: bool) -> Iterator[Iterable[tuple[Key, Tensor]]]:
        bar.set_description("full grid" if first else "full grid, TSQR")
        for factors in grid.passes():
            yield _matrices(capture.layers, factors)
            if first:
                for layer, own in zip(capture.layers, factors, strict=True):
                    tallies[layer.name].add(layer.representation(own), own, capture.outputs)
                bar.update()

    spectra = streamed(passes, rtols[-1], lambda: _errors(grid))
    counts = _read(tallies)
    sensitivities = _sensitivities(capture, spectra, counts, rtols, len(grid.coords))
    return _representations(capture, spectra, counts, rtols), sensitivities


def _errors(grid: _Grid) -> dict[Key, float]:
    """Return what rounding in the factor pass does to every matrix, a bound on its spectral norm."""
    found = grid.pass_errors()
    squares = torch.stack([found.features, found.sensitivities]).tolist()
    errors: dict[Key, float] = {}
    for spec, features, sensitivities in zip(grid.capture.layers, *squares, strict=True):
        errors["features", spec.name] = SAFETY * math.sqrt(features)
        errors["sensitivities", spec.name] = SAFETY * math.sqrt(sensitivities)
    return errors


def _representations(
    capture: Capture,
    spectra: Mapping[Key, tuple[SingularValues, ...]],
    counts: Mapping[str, _Counts],
    rtols: tuple[float, ...],
) -> tuple[Representation, ...]:
    """Return the inputs of the linear layers, each named by the layer that it comes from."""
    layers = [layer.name for layer in capture.layers if counts[layer.name].dead_units is not None]
    names, found = capture.input_names(layers), []
    for layer in layers:
        if layer not in names:  # of a filter, which takes the coordinates
            continue
        own = counts[layer]
        assert own.dead_units is not None
        values = spectra["features", layer]
        found.append(described(names[layer], values, rtols, own.dead_units, own.dead_features))
    return tuple(found)


def _sensitivities(
    capture: Capture,
    spectra: Mapping[Key, tuple[SingularValues, ...]],
    counts: Mapping[str, _Counts],
    rtols: tuple[float, ...],
    points: int,
) -> tuple[Sensitivity, ...]:
    m = capture.outputs
    # The head's sensitivities are the identity at every point, and not streamed.
    head = SingularValues(torch.full((m,), math.sqrt(points), dtype=torch.float64), 0.0, (points * m, m), "identity")
    total = sum(own.trace for own in counts.values())
    found = []
    for spec in filter(_is_looked_at, capture.layers):
        (values,) = spectra.get(("sensitivities", spec.name), (head,))
        own = counts[spec.name]
        found.append(
            Sensitivity(
                name=spec.name,
                kind=spec.kind,
                spectrum=matrix_spectrum(values, rtols),
                dead_pixels=own.dead_sensitivities,
                trace=own.trace,
                trace_share=own.trace / total if total > 0 else 0.0,
            )
        )
    return tuple(found)


# ---- weights -------------------------------------------------------------------------------


def _weights(
    net: nn.Module, capture: Capture, rtols: tuple[float, ...]
) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    """Return the spectra of the single weights, and of an MLP's products ``W_{h-1} ... W_k`` without the head."""
    modules = dict(net.named_modules())
    found = {layer.name: layer.matrix(modules[layer.module]) for layer in capture.layers}
    weights = {name: w.detach().double().cpu() for name, w in found.items() if w is not None}
    singles = tuple(weight_spectrum((name,), w, rtols) for name, w in weights.items())
    return singles, () if capture.mlp is None else weight_products(capture.mlp, rtols=rtols)


# ---- the tangent kernel and its blocks ---------------------------------------------------------------------------


def _kernels(
    kernel: NTK, points: Tensor, coords: Tensor, rtols: tuple[float, ...], seed: int, bar: Bar
) -> KernelDiagnosis:
    """Return the eigenvalues of the kernel on some points or on all of ``coords``, and of its blocks.

    All are counted above the same absolute thresholds.
    """
    bar.set_description("eigenvalues of the NTK")
    shown = not bar.disable
    whole = _on_cpu(kernel.spectrum(rtols, seed=seed, progress=shown))
    bar.update()
    largest = float(whole.eigenvalues[0])
    if (whole.method == "dense" and largest > 0) or math.isinf(whole.upper_error):
        whole.rank(rtols[-1])  # raises where fp64 does not resolve the smallest tolerance
    thresholds = {rtol: rtol * largest for rtol in rtols}
    spectra: dict[str, Spectrum] = {}
    for name, block in kernel.layers.items():
        bar.set_description(f"eigenvalues of {name}")
        spectra[name] = _on_cpu(_block_spectrum(block, rtols[-1], tuple(thresholds.values()), seed, shown))
        bar.update()
    bounds = tuple(_bounds(whole, list(spectra.values()), rtol, tau) for rtol, tau in thresholds.items())
    blocks = tuple(kernel_spectrum(name, spectrum, thresholds) for name, spectrum in spectra.items())
    entry, all_points = kernel_spectrum("ntk", whole, thresholds), torch.equal(points, coords)
    return KernelDiagnosis(len(points), len(coords), all_points, _grid_shape(points), entry, blocks, bounds)


def _on_cpu(spectrum: Spectrum) -> Spectrum:
    """Return a spectrum that is counted on the CPU, many times."""
    return replace(spectrum, eigenvalues=spectrum.eigenvalues.cpu())


def _block_spectrum(block: NTK, rtol: float, levels: tuple[float, ...], seed: int, progress: bool) -> Spectrum:
    """Return the eigenvalues of one layer's kernel ``G G^T``, known at ``levels``: those of ``G^T G`` where G is thin.

    G is the layer's Jacobians of all outputs side by side; its square has to fit the budget. Columns of zeros do not
    count: the head of a network with several outputs has mostly those.
    """
    n, columns = block.shape[0], block.outputs * block.left.shape[1]
    left = block.memory_budget - block.left.store.bytes_held - 8 * GRAMS * columns**2
    on_cpu = block.device.type == "cpu"
    # Beside a chunk of rows what makes it, and the sums of its blocks where it is long.
    rows = min(CHUNK_ROWS if on_cpu else DEVICE_ROWS, left // ((2 if on_cpu else 3) * 8 * columns))
    if columns <= 2 * min(n, SMALL) and rows >= min(n, LEAST_ROWS):
        gram = StreamedGram(columns, block.device)
        for points in chunks(n, rows):
            gram.add(block.left.rows(points).reshape(-1, columns))
        alive = gram.without_zeros()
        if alive < n:
            found = gram.singular_values()
            eigenvalues = torch.cat([found.values.square(), found.values.new_zeros(n - len(found.values))])
            trace = float(eigenvalues.sum())
            exact = Spectrum(eigenvalues, None, found.error, found.error, n, trace, alive, rtol, "gram")
            return exact.with_jacobian_error(block.jacobian_error)
    return block.spectrum(rtol, seed=seed, progress=progress, levels=levels if min(levels) > 0 else ())


def _bounds(whole: Spectrum, blocks: Sequence[Spectrum], rtol: float, tau: float) -> BlockBounds:
    ranks = [block.count_above(tau, rtol) for block in blocks]
    largest = RankInterval(max(r.lower for r in ranks), max(r.upper for r in ranks), rtol)
    total = RankInterval(sum(r.lower for r in ranks), sum(r.upper for r in ranks), rtol)
    above, multiple = whole.count_above(tau, rtol), whole.count_above(len(blocks) * tau, rtol)
    hold = largest.lower <= above.upper and multiple.lower <= total.upper
    return BlockBounds(rtol, tau, largest, above, multiple, total, hold)
