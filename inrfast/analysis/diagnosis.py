"""Where a network loses rank: representations, sensitivities, weights, feature Jacobians and tangent kernel.

The full grid streams through the factor pass once, in fp64; the tangent kernel's eigenvalues are those on the full grid
too, with their error, unless fewer points are asked for; the report says which.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from inrfast.analysis.rank import check_tolerance
from inrfast.analysis.report import (
    BlockBounds,
    DiagnosisReport,
    FeatureJacobian,
    KernelDiagnosis,
    KernelSpectrum,
    PixelRanks,
    Representation,
    Sensitivity,
    Weight,
    kernel_spectrum,
    matrix_spectrum,
)
from inrfast.capture import Capture, Factors, Select
from inrfast.errors import check_coords, check_int, check_seed
from inrfast.jacobians import HOOKED_BUFFERS, PASS_BUFFERS, UNCOUNTED
from inrfast.linalg.eigenvalues import SMALL
from inrfast.linalg.spectrum import RankInterval, Spectrum
from inrfast.linalg.tsqr import CHUNK_ROWS, GRAM_RTOL, SingularValues, StreamedGram, StreamedQR, singular_values
from inrfast.memory import budget_bytes, chunks, require
from inrfast.modes import in_own_modes
from inrfast.nn import INR, SphereNorm, described_network, warn_of_dead_units
from inrfast.ops.gram import gram_diagonal
from inrfast.rounding import SAFETY
from inrfast.supported import LayerSpec
from inrfast.tangent_kernel import NTK, ntk

RTOLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The verdict depends on the tolerance, so ranks are given at five."""

JACOBIAN_ROWS = 32
"""Pixels whose feature Jacobians are held at once at most (16 MiB at width 256)."""

JACOBIAN_BUFFERS, TANGENT_BUFFERS = 4, 36
"""Numbers in fp64 that it takes for one of a feature Jacobian: slopes, rows that count, and the singular values' work;
and where a norm makes it take tangents by automatic differentiation."""

LEAST_ROWS = 16
"""Points a chunk of a layer's Jacobian at least, where its Gram matrix is added up."""

GRAMS = 3
"""Matrices as large as a Gram matrix that its eigenvalues take: itself, one without columns of zeros, and LAPACK's."""


@in_own_modes
def diagnose(
    net: nn.Module,
    coords: Tensor,
    rtols: Sequence[float] = RTOLS,
    ntk_points: int | None = None,
    ntk_coords: Tensor | None = None,
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
        :class:`inrfast.INR`, or any module of supported layers (see :mod:`inrfast.capture`); not changed.
    coords
        The full grid (N, d). Representations, sensitivities, dead units and traces are exact on all of it.
    rtols
        Relative tolerances in (0, 1), in any order.
    ntk_points
        Largest number of points of the tangent kernel; None: the full grid, whatever its size. A larger grid is
        thinned: every s-th point of every axis if it is a regular grid, else every s-th point.
    ntk_coords
        Points (N', d) of the kernel; overrides ``ntk_points``.
    jacobian_pixels
        Number of points, drawn without replacement, at which feature Jacobians are looked at.
    params, select
        As in :func:`inrfast.ntk`.
    memory_budget
        Bytes; None: half of what is free.
    seed
        Draws the pixels of the feature Jacobians, and the pivots and starts of large spectra.
    progress
        Whether to show a bar; None: on a terminal only.

    Returns
    -------
    DiagnosisReport
        ``print`` it, or call its ``to_dict``, ``to_json``, ``plot``.

    Raises
    ------
    UnsupportedModuleError
        The network cannot be captured exactly (uncalibrated or train-mode batch norm, shared layers, ...).
    ResolutionError
        A tolerance below what fp64 resolves for this network.
    MemoryBudgetError
        The budget is too small for a block of the kernel's columns.
    ValueError, TypeError
        Bad arguments.
    """
    rtols = _check_tolerances(rtols)
    ntk_points = len(coords) if ntk_points is None else check_int("ntk_points", ntk_points, minimum=1)
    jacobian_pixels = check_int("jacobian_pixels", jacobian_pixels, minimum=1)
    seed = check_seed("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    capture = Capture(net, coords, params, select, "highest")
    coords = coords.detach()
    warn_of_dead_units(net, coords, stacklevel=3)
    if ntk_coords is None:
        points, full_grid = _thinned(coords, ntk_points), len(coords) <= ntk_points
    else:
        points = check_coords("ntk_coords", ntk_coords, capture.in_features, capture.device).detach()
        full_grid = torch.equal(points, coords)
    budget = budget_bytes(memory_budget, capture.device)
    kernel = ntk(net, points, params=params, select=select, precision="highest", memory_budget=budget)

    rows = _chunk_rows(capture, budget)
    network = described_network(net) or {"class": type(net).__name__}
    jacobians_of = net.hidden_layers if isinstance(net, INR) and capture.closed_form else 0
    steps = len(range(0, len(coords), rows)) + len(kernel.specs) + 1 + jacobians_of
    with tqdm(total=steps, disable=None if progress is None else not progress, leave=False) as bar:
        representations, sensitivities = _full_grid(capture, coords, rows, rtols, bar)
        weights, products = _weights(net, capture, rtols)
        jacobians = _feature_jacobians(net, capture, _sampled(coords, jacobian_pixels, generator), rtols, budget, bar)
        whole, blocks, bounds = _kernels(kernel, rtols, seed, bar)
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
        kernel=KernelDiagnosis(len(points), len(coords), full_grid, _grid_shape(points), whole, blocks, bounds),
    )


def _check_tolerances(rtols: Sequence[float]) -> tuple[float, ...]:
    """Return the tolerances, largest first, without repetition."""
    if isinstance(rtols, (str, float, int)) or not isinstance(rtols, Iterable):
        raise TypeError(f"rtols must be a sequence of numbers in (0, 1), got {rtols!r}")
    checked = {check_tolerance("rtols", rtol) for rtol in rtols}
    if not checked:
        raise ValueError("rtols must hold at least one tolerance, got none")
    return tuple(sorted(checked, reverse=True))


# ---- the points --------------------------------------------------------------------------------------------------


def _grid_axes(coords: Tensor) -> list[Tensor] | None:
    """Return the axes whose row-major product ``coords`` is, or None if it is no such grid."""
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
    return torch.stack(torch.meshgrid(*thinned, indexing="ij"), dim=-1).reshape(-1, len(axes))


def _sampled(coords: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(coords) <= count:
        return coords
    return coords[torch.randperm(len(coords), generator=generator)[:count].sort().values.to(coords.device)]


def _chunk_rows(capture: Capture, budget: int) -> int:
    """Return the points a chunk: as many as the products like, unless factors and temporaries exceed the budget.

    Raises
    ------
    MemoryBudgetError
        The square matrices of all layers leave no room for a chunk.
    """
    blocks = [spec.block for spec in capture.layers]
    numbers = sum(b * capture.outputs + a for b, a in blocks)
    widest = max(max(block) for block in blocks)
    each = 8 * numbers * (PASS_BUFFERS if capture.plain else HOOKED_BUFFERS)
    # One for every factor, and two more like the largest: of a chunk stacked under it, and of LAPACK.
    squares = 8 * (sum(a * a + b * b for b, a in blocks) + 2 * widest * widest)
    instead = "take a narrower network or fewer of its layers (params=)"
    require(max(0, squares + each - UNCOUNTED), budget, "a diagnosis' square matrices", instead)
    return max(1, min(max(CHUNK_ROWS, widest), (budget - squares) // each))


# ---- representations and sensitivities on the full grid ----------------------------------------------------------

Key = tuple[str, str]
"""``"features"`` or ``"sensitivities"``, and the parameter layer's name."""


@dataclass
class _Tally:
    """What is counted of one parameter layer while the grid streams by."""

    alive_units: Tensor | None = None
    dead_features: int = 0
    dead_sensitivities: int = 0
    trace: float = 0.0

    def add(self, features: Tensor | None, factors: Factors, outputs: int) -> None:
        """Count one chunk; ``features`` are Z without the column of ones."""
        if features is not None:
            alive = features != 0
            units = alive.any(0)
            self.alive_units = units if self.alive_units is None else self.alive_units | units
            self.dead_features += int((~alive.any(1)).sum())
        if factors.sensitivities is not None:
            self.dead_sensitivities += int((factors.sensitivities == 0).all(2).any(1).sum())
        pair = (factors.features, factors.sensitivities)
        self.trace += float(gram_diagonal([pair], "trace", outputs).sum())


def _features(spec: LayerSpec, factors: Factors) -> Tensor | None:
    """Return Z, the input of a linear layer whose weight is differentiated."""
    if spec.kind != "linear" or not spec.with_weight or factors.features is None:
        return None
    return factors.features[:, : spec.in_features]


def _matrices(layers: Sequence[LayerSpec], factors: Sequence[Factors]) -> Iterator[tuple[Key, Tensor]]:
    """Yield [Z, 1] and S, the latter with rows (n, m), of every layer on a chunk of points."""
    for spec, layer in zip(layers, factors, strict=True):
        z = _features(spec, layer)
        if z is not None and layer.features is not None:
            # The layer's own features where it has a bias: they hold the ones already.
            yield ("features", spec.name), layer.features if spec.with_bias else F.pad(z, (0, 1), value=1.0)
        if layer.sensitivities is not None:
            yield ("sensitivities", spec.name), layer.sensitivities.flatten(0, 1)


def _full_grid(
    capture: Capture, coords: Tensor, rows: int, rtols: tuple[float, ...], bar: tqdm
) -> tuple[tuple[Representation, ...], tuple[Sensitivity, ...]]:
    """Return the spectra of both factors of every layer on all points: Gram matrices, TSQR for those they fail."""
    tallies = {spec.name: _Tally() for spec in capture.layers}
    streams: dict[Key, StreamedGram | StreamedQR] = {}
    bar.set_description("full grid")
    first = StreamedGram if rtols[-1] >= GRAM_RTOL else StreamedQR
    for factors in _passes(capture, coords, rows):
        for spec, layer in zip(capture.layers, factors, strict=True):
            tallies[spec.name].add(_features(spec, layer), layer, capture.outputs)
        for key, matrix in _matrices(capture.layers, factors):
            if key not in streams:
                streams[key] = first(matrix.shape[1], matrix.device)
            streams[key].add(matrix)
        bar.update()
    errors = _errors(capture, coords)
    spectra = {key: _singular_values(key, stream, errors[key]) for key, stream in streams.items()}
    again: dict[Key, StreamedQR] = {}
    if first is StreamedGram:
        for key, values in spectra.items():
            if any(v.floor > rtols[-1] for v in values):
                again[key] = StreamedQR(values[-1].shape[1], coords.device)
    if again:
        bar.set_description("full grid, TSQR")
        for factors in _passes(capture, coords, rows):
            for key, matrix in _matrices(capture.layers, factors):
                if key in again:
                    again[key].add(matrix)
        spectra |= {key: _singular_values(key, stream, errors[key]) for key, stream in again.items()}
    sensitivities = _sensitivities(capture, spectra, tallies, rtols, len(coords))
    return _representations(capture, spectra, tallies, rtols), sensitivities


def _passes(capture: Capture, coords: Tensor, rows: int) -> Iterator[tuple[Factors, ...]]:
    for part in chunks(len(coords), rows):
        yield capture(coords[part])


def _errors(capture: Capture, coords: Tensor) -> dict[Key, float]:
    """Return what rounding in the factor pass does to every matrix, a bound on its spectral norm."""
    found = capture.pass_errors(coords)
    errors: dict[Key, float] = {}
    for layer, spec in enumerate(capture.layers):
        errors["features", spec.name] = SAFETY * math.sqrt(float(found.features[layer]))
        errors["sensitivities", spec.name] = SAFETY * math.sqrt(float(found.sensitivities[layer]))
    return errors


def _singular_values(key: Key, stream: StreamedGram | StreamedQR, error: float) -> tuple[SingularValues, ...]:
    """Return the spectra of Z and [Z, 1], or of S, which are off by so much."""
    values = replace(stream.singular_values(), matrix_error=error)
    if key[0] != "features":
        return (values,)
    return replace(stream.singular_values(values.shape[1] - 1), matrix_error=error), values


def _representations(
    capture: Capture,
    spectra: Mapping[Key, tuple[SingularValues, ...]],
    tallies: Mapping[str, _Tally],
    rtols: tuple[float, ...],
) -> tuple[Representation, ...]:
    """Return the inputs of the linear layers, each named by the layer that it comes from."""
    found, name = [], "input"
    for spec in capture.layers:
        tally = tallies[spec.name]
        if tally.alive_units is None:
            continue
        plain, with_ones = (matrix_spectrum(values, rtols) for values in spectra["features", spec.name])
        dead = int((~tally.alive_units).sum())
        found.append(Representation(name, plain, with_ones, dead, tally.dead_features))
        name = spec.name
    return tuple(found)


def _sensitivities(
    capture: Capture,
    spectra: Mapping[Key, tuple[SingularValues, ...]],
    tallies: Mapping[str, _Tally],
    rtols: tuple[float, ...],
    points: int,
) -> tuple[Sensitivity, ...]:
    m = capture.outputs
    # The head's sensitivities are the identity at every point, and not streamed.
    head = SingularValues(torch.full((m,), math.sqrt(points), dtype=torch.float64), 0.0, (points * m, m), "identity")
    total = sum(tally.trace for tally in tallies.values())
    found = []
    for spec in capture.layers:
        (values,) = spectra.get(("sensitivities", spec.name), (head,))
        tally = tallies[spec.name]
        found.append(
            Sensitivity(
                name=spec.name,
                kind=spec.kind,
                spectrum=matrix_spectrum(values, rtols),
                dead_pixels=tally.dead_sensitivities,
                trace=tally.trace,
                trace_share=tally.trace / total if total > 0 else 0.0,
            )
        )
    return tuple(found)


# ---- weights and feature Jacobians -------------------------------------------------------------------------------


def _weights(
    net: nn.Module, capture: Capture, rtols: tuple[float, ...]
) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    """Return the spectra of the single weights, and of an INR's products ``W_{h-1} ... W_k`` without the head."""
    linear = {spec.name: net.get_submodule(spec.name).weight for spec in capture.layers if spec.kind == "linear"}
    weights = {name: w.detach().double() for name, w in linear.items() if isinstance(w, Tensor)}
    singles = tuple(_weight((name,), w, rtols) for name, w in weights.items())
    if not isinstance(net, INR) or not capture.closed_form:
        return singles, ()
    names = [f"layers.{k}" for k in range(net.hidden_layers)]
    hidden = [net.get_parameter(f"{name}.weight").detach().double() for name in names]
    products = (
        _weight(tuple(reversed(names[k:])), torch.linalg.multi_dot(hidden[k:][::-1]), rtols)
        for k in range(len(hidden) - 1)
    )
    return singles, tuple(products)


def _weight(factors: tuple[str, ...], matrix: Tensor, rtols: tuple[float, ...]) -> Weight:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.t()
    values = singular_values(lambda: [tall], rtols[-1])
    return Weight(factors, matrix_spectrum(replace(values, shape=(matrix.shape[0], matrix.shape[1])), rtols))


def _feature_jacobians(
    net: nn.Module, capture: Capture, pixels: Tensor, rtols: tuple[float, ...], budget: int, bar: tqdm
) -> tuple[FeatureJacobian, ...]:
    """Return the ranks of every hidden layer's ``d z_out / d z_in`` at ``pixels``; norms count, batch norm frozen."""
    if not isinstance(net, INR) or not capture.closed_form:
        return ()
    exact = copy.deepcopy(net).double().requires_grad_(False)
    features = pixels.double()
    if exact.encoding is not None:
        features = exact.encoding(features)
    tolerances = torch.tensor(rtols, dtype=torch.float64, device=pixels.device)
    found = []
    for index in range(exact.hidden_layers):
        bar.set_description(f"feature Jacobians of layers.{index}")
        layer = exact.layers[index]
        assert isinstance(layer, nn.Linear)
        preactivations = layer(features)
        counts = []
        buffers = TANGENT_BUFFERS if isinstance(exact.norms[index], SphereNorm) else JACOBIAN_BUFFERS
        each = 8 * buffers * layer.out_features * max(layer.in_features, layer.out_features)
        for part in chunks(len(pixels), max(1, min(JACOBIAN_ROWS, budget // (2 * each)))):
            for matrix in _slopes(exact, index, preactivations[part], layer.weight):
                alive = matrix[(matrix != 0).any(1)]  # a ReLU leaves half of the rows, or none
                values = torch.linalg.svdvals(alive).unsqueeze(1)
                counts.append((values > tolerances * values[:1]).sum(0))
        ranks = torch.stack(counts)
        found.append(
            FeatureJacobian(
                name=f"layers.{index}",
                rows=layer.out_features,
                columns=layer.in_features,
                pixels=len(pixels),
                ranks=tuple(
                    PixelRanks(rtol, int(column.min()), float(column.double().quantile(0.5)), int(column.max()))
                    for rtol, column in zip(rtols, ranks.unbind(1), strict=True)
                ),
            )
        )
        features = exact.activate(index, preactivations)
        bar.update()
    return tuple(found)


def _slopes(net: INR, index: int, preactivations: Tensor, weight: Tensor) -> Tensor:
    """Return ``d activate(u_n) / d u_n`` times the weight at every point, (n, D_out, D_in)."""
    if isinstance(net.norms[index], SphereNorm):

        def activate_one(u: Tensor) -> Tensor:
            return net.activate(index, u.unsqueeze(0)).squeeze(0)

        return torch.func.vmap(torch.func.jacfwd(activate_one))(preactivations) @ weight
    # Elementwise, so the gradient of the sum holds the whole diagonal.
    with torch.enable_grad():
        u = preactivations.detach().requires_grad_()
        (diagonal,) = torch.autograd.grad(net.activate(index, u).sum(), u)
    return diagonal.unsqueeze(2) * weight


# ---- the tangent kernel and its blocks ---------------------------------------------------------------------------


def _kernels(
    kernel: NTK, rtols: tuple[float, ...], seed: int, bar: tqdm
) -> tuple[KernelSpectrum, tuple[KernelSpectrum, ...], tuple[BlockBounds, ...]]:
    """Return the eigenvalues of the kernel and of its blocks, all counted above the same absolute thresholds."""
    bar.set_description("eigenvalues of the NTK")
    whole = kernel.spectrum(rtols[-1], seed=seed, progress=False)
    bar.update()
    largest = float(whole.eigenvalues[0])
    if (whole.method == "dense" and largest > 0) or math.isinf(whole.upper_error):
        whole.rank(rtols[-1])  # raises where fp64 does not resolve the smallest tolerance
    thresholds = {rtol: rtol * largest for rtol in rtols}
    spectra: dict[str, Spectrum] = {}
    for name, block in kernel.layers.items():
        bar.set_description(f"eigenvalues of {name}")
        spectra[name] = _block_spectrum(block, rtols[-1], thresholds[rtols[-1]], seed)
        bar.update()
    bounds = tuple(_bounds(whole, list(spectra.values()), rtol, tau) for rtol, tau in thresholds.items())
    blocks = tuple(kernel_spectrum(name, spectrum, thresholds) for name, spectrum in spectra.items())
    return kernel_spectrum("ntk", whole, thresholds), blocks, bounds


def _block_spectrum(block: NTK, rtol: float, level: float, seed: int) -> Spectrum:
    """Return the eigenvalues of one layer's kernel ``G G^T``, known at ``level``: those of ``G^T G`` where G is thin.

    G is the layer's Jacobians of all outputs side by side; its square has to fit the budget. Columns of zeros do not
    count: the head of a network with several outputs has mostly those.
    """
    n, columns = block.shape[0], block.outputs * block.rows.shape[1]
    left = block.memory_budget - block.rows.store.bytes_held - 8 * GRAMS * columns**2
    rows = min(CHUNK_ROWS, left // (2 * 8 * columns))
    if columns <= 2 * min(n, SMALL) and rows >= min(n, LEAST_ROWS):
        gram = StreamedGram(columns, block.device)
        for points in chunks(n, rows):
            gram.add(block.rows.rows(points).reshape(-1, columns))
        alive = gram.without_zeros()
        if alive < n:
            found = gram.singular_values()
            eigenvalues = torch.cat([found.values.square(), found.values.new_zeros(n - len(found.values))])
            trace = float(eigenvalues.sum())
            exact = Spectrum(eigenvalues, None, found.error, found.error, n, trace, alive, rtol, "gram")
            return exact.with_jacobian_error(block.jacobian_error)
    return block.spectrum(rtol, seed=seed, progress=False, levels=(level,) if level > 0 else ())


def _bounds(whole: Spectrum, blocks: Sequence[Spectrum], rtol: float, tau: float) -> BlockBounds:
    ranks = [block.count_above(tau, rtol) for block in blocks]
    largest = RankInterval(max(r.lower for r in ranks), max(r.upper for r in ranks), rtol)
    total = RankInterval(sum(r.lower for r in ranks), sum(r.upper for r in ranks), rtol)
    above, multiple = whole.count_above(tau, rtol), whole.count_above(len(blocks) * tau, rtol)
    hold = largest.lower <= above.upper and multiple.lower <= total.upper
    return BlockBounds(rtol, tau, largest, above, multiple, total, hold)
