"""Fused training steps of coordinate MLPs by Triton kernels, one network or many of one shape: memory and launches.

The reference is fp64 automatic differentiation of the same network. Relative to the gradient's norm the error is within
``c u sqrt(layers)`` with u the unit roundoff of the operands, 2^-11 (``"fp16"``, c = 16), 2^-22 (``"tf32x3"``: fp32
operands in three TF32 products, c = 8) or 2^-53 (``"fp64"``, c = 8), where no activation amplifies rounding and no gate
of ReLU is near 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inrfast import backends
from inrfast.activations import Activation
from inrfast.losses import BoundLoss, loss_of
from inrfast.memory import chunks, require
from inrfast.mlp import MLP
from inrfast.ops.fused_norms import HEAD, FusedNorms, NormPlace, Part, Statistics

if TYPE_CHECKING:
    from types import ModuleType

OPERANDS = {"fp16": torch.float16, "tf32x3": torch.float32, "fp64": torch.float64}
"""Dtype of features, errors and weights in products, by kind."""

FEW = 8
"""Inputs up to which the first layer takes them in full precision; more are operands like features."""

MOST_OUTPUTS = 16
"""Most outputs of a network."""

MOST_COLUMNS = 2**14
"""Widest layer or input: offsets within a weight then fit 32 bits."""

CHAIN = 2**17
"""Most points of a sum within the tensor cores, which truncate: terms of 16 bits and one sign lose 2^-10 of it then."""

MEAN_SQUARE = loss_of("mse")

RATES = 4
"""Values per step and network in the rates table: see :meth:`FusedMLP.update`."""


@dataclass(frozen=True)
class Shape:
    """What networks must have in common: inputs of the first layer, width, hidden layers, outputs, activation.

    ``numbers`` are those of each hidden layer's activation. ``places`` are where weight and bias (-1: none) of each
    layer begin among the Q numbers of a network, the head last. ``norms`` are the batch norms behind activations.
    """

    inputs: int
    width: int
    hidden: int
    outputs: int
    activation: Activation
    numbers: tuple[tuple[float, ...], ...]
    places: tuple[tuple[int, int], ...]
    norms: tuple[NormPlace, ...] = ()

    @property
    def bias(self) -> bool:
        """Whether layers have biases."""
        return self.places[0][1] >= 0

    @property
    def encoded(self) -> bool:
        """Whether the first layer's inputs are too many to be taken in full precision."""
        return self.inputs > FEW


@dataclass(frozen=True)
class Points:
    """What networks are fitted to; a first axis of 1 stands for what they share.

    ``inputs`` (B or 1, N, D) of the first layer, in the operands' dtype where they are more than :data:`FEW`;
    ``target`` (B or 1, N, M); ``weight`` (B or 1, N, 1 or M) or None.
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor | None


@dataclass(frozen=True)
class Update:
    """An optimiser that the kernels know: ``"adam"``, ``"adamw"`` or ``"sgd"``; the constants are Adam's."""

    name: str
    beta1: float = 0.0
    beta2: float = 0.0
    epsilon: float = 0.0


@dataclass(frozen=True)
class Draws:
    """The points of some steps: ``order`` (B or 1, draws), int64, of which each step takes ``size`` consecutive."""

    order: Tensor
    size: int


class FusedMLP:
    """Forward, backward and update of B networks on points of their own or in common.

    Parameters
    ----------
    shape
        Of all networks.
    parameters
        (B, Q), fp32 or fp64, contiguous; they change in place.
    trained
        (Q,) bytes: 0 for what stays as it is.
    points
        See :class:`Points`.
    rows
        Most points of a step.
    kind
        ``"fp16"``, ``"tf32x3"`` or ``"fp64"``, see :data:`OPERANDS`.
    steps
        Most steps between two readings of the losses.
    budget
        Bytes for the buffers; the points of a step pass through them in chunks.
    gradient
        Whether gradients are wanted, or predictions alone.
    loss
        One with a Triton function; evaluations are mean squared errors, whatever it is.
    statistics
        Of each norm the running mean and variance (B, width) and the number of batches (B,), which change in place.

    Raises
    ------
    MemoryBudgetError
        Not even one tile of points fits the budget; with norms, not all points of a step.
    """

    def __init__(
        self,
        shape: Shape,
        parameters: Tensor,
        trained: Tensor,
        points: Points,
        rows: int,
        kind: str,
        steps: int = 1,
        budget: int = 2**62,
        gradient: bool = True,
        loss: BoundLoss = MEAN_SQUARE,
        statistics: Sequence[Statistics] = (),
    ) -> None:
        self.loss = loss
        self.shape, self.parameters, self.trained, self.points = shape, parameters, trained, points
        self.kind, self.gradient, self.models = kind, gradient, len(parameters)
        self.device, kernels, operands = parameters.device, _kernels(), OPERANDS[kind]
        # What products take: the parameters themselves or, in layers above a norm, with the norm folded in.
        self.weights = torch.empty_like(parameters) if shape.norms else parameters
        self.operands = self.weights if operands == parameters.dtype else parameters.to(operands)
        self.tile, self.tile_back, self.on_chip = kernels.passes_configs(
            kind, shape.width, shape.activation.device_name, _is_large(self.device)
        )
        self.weight_tile = kernels.weight_gradients_config(kind, shape.width, shape.encoded)
        self.multiprocessors = _multiprocessors(self.device)

        self.dense = ((shape.hidden - 1) * shape.width + shape.inputs * shape.encoded) * shape.width
        self.thin = (shape.hidden + shape.inputs * (not shape.encoded) + shape.outputs) * shape.width + shape.outputs
        self.splits = self._splits(rows)
        self.thin_at = self.splits * self.dense
        fixed = self.thin_at * gradient * parameters.dtype.itemsize * self.models
        tile_bytes = self.models * self.tile_bytes(shape, kind, gradient)
        require(fixed + tile_bytes, budget, "a fused step", "fewer networks at once or backend='torch' would fit")
        self.tiles = min(-(-rows // self.tile.rows), (budget - fixed) // tile_bytes)
        self.capacity = self.tiles * self.tile.rows
        if shape.norms and gradient:
            whole = fixed + -(-rows // self.tile.rows) * tile_bytes
            require(whole, budget, f"a fused step over {rows} points at once", "a smaller batch_size would fit")
        self.norms_at = self.thin_at + self.tiles * self.thin
        self.partial_model = (self.norms_at + 2 * shape.width * len(shape.norms)) if gradient else 0

        def buffer(columns: int, dtype: torch.dtype, wanted: bool = True) -> Tensor:
            size = (self.models, shape.hidden, self.capacity, columns) if wanted else (1,)
            return torch.empty(size, dtype=dtype, device=self.device)

        self.features = buffer(shape.width, operands)
        self.slopes = buffer(shape.width, operands, gradient and shape.activation.keeps != "mask")
        self.errors = buffer(shape.width, operands, gradient)
        self.masks = buffer(-(-shape.width // 8), torch.uint8, gradient and shape.activation.keeps == "mask")
        self.head_errors = torch.empty(self.models, self.capacity, shape.outputs, dtype=operands, device=self.device)
        self.partials = parameters.new_empty(self.models, self.partial_model)
        self.totals = parameters.new_empty(self.models, 2 if loss.is_mean_square else 3, self.tiles)
        self.numbers = parameters.new_tensor(loss.numbers) if loss.numbers else parameters.new_empty(1)
        self.factors = parameters.new_empty(self.models)
        # Where nothing was trained yet, errors are taken to be those of predictions of 0.
        self.scales = torch.ones(steps + 1, self.models, dtype=torch.float32, device=self.device)
        target = points.target.double()
        errors = target if loss.is_mean_square else loss.slope(torch.zeros_like(target), target)
        self.scales[:] = _power(errors.square().mean((1, 2)))
        self.losses = parameters.new_zeros(steps, self.models)
        self.rates = parameters.new_zeros(steps, self.models, RATES)
        self.norms = FusedNorms(self, statistics)
        self.table = self._table().to(self.device)
        numbers = [[*own, *[0.0] * (kernels.NUMBERS.value - len(own))] for own in shape.numbers]
        parts = [[_split(number) for number in own] for own in numbers]
        self.activation_numbers = torch.tensor(parts, dtype=torch.float32, device=self.device)

    def tile_bytes(self, shape: Shape, kind: str, gradient: bool) -> int:
        """Return the bytes of one tile of points of one network between the passes."""
        size = OPERANDS[kind].itemsize
        slopes = -(-shape.width // 8) if shape.activation.keeps == "mask" else shape.width * size
        row = shape.hidden * (shape.width * size * (1 + gradient) + slopes * gradient)
        sums = self.thin + 2 + 2 * shape.width * len(shape.norms)
        return self.tile.rows * (row + shape.outputs * size) + sums * self.parameters.dtype.itemsize

    # ---- steps ---------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take over parameters that changed by other means than :meth:`update`."""
        if self.operands is not self.parameters:
            self.operands.copy_(self.parameters)

    def gradients(self, count: int, draws: Draws | None = None, step: int = 0, track: bool = True) -> None:
        """Leave the partial sums of the gradients over the first ``count`` points, or the drawn ones of a step.

        ``count`` is the number of ``rows`` that this was made for. The loss is written to ``losses[step]``. ``track``:
        the running statistics of norms move.
        """
        if self.shape.norms:
            self.norms.gradients(slice(0, count), draws, step, track)
            return
        for some in chunks(count, self.capacity):
            self.forward(some, self.points.weight, True, draws, step)
            self.backward(some, draws, step)
            if self.dense:
                self.weight_gradients(some, draws, step)

    def mean_square(self) -> Tensor:
        """Return the mean squared errors (B,) over all points, unweighted, in fp64, with running statistics."""
        self.norms.freeze()
        count = self.points.target.shape[1]
        for some in chunks(count, self.capacity):
            self.forward(some, None, False, None, 0)
        totals = self.totals.view(-1)[: 2 * self.models * self.tiles].view(self.models, 2, self.tiles)
        return totals[:, 0].double().sum(1) / (count * self.shape.outputs)

    def update(
        self, gradients: Tensor, means: Tensor, squares: Tensor, optimizer: Update | None, reduce: bool, step: int
    ) -> None:
        """Add up the partial sums (``reduce``), and update the parameters by an optimiser, if there is one.

        ``gradients`` (B, Q) are written where there is no optimiser, and read where nothing is added up. ``rates`` hold
        a step's learning rate, the rate over Adam's first bias correction, the root of its second, the weight decay.
        """
        kernels, optimizer = _kernels(), optimizer or Update("none")
        with backends.launching_on(self.device):
            kernels.mlp_update[(len(self.table), self.models)](
                self.parameters,
                self.operands,
                gradients,
                means,
                squares,
                self.trained,
                self.partials,
                self.table,
                self.rates,
                self.factors,
                step,
                self.parameters.stride(0),
                self.partial_model,
                REDUCE=reduce,
                OPTIMIZER=optimizer.name,
                BETA1=optimizer.beta1,
                BETA2=optimizer.beta2,
                EPSILON=optimizer.epsilon,
                COPY=self.operands.dtype != self.parameters.dtype,
                **kernels.update_constants(self.kind),
            )

    def forward(
        self,
        some: slice,
        weight: Tensor | None,
        gradient: bool,
        draws: Draws | None,
        step: int,
        part: Part | None = None,
    ) -> None:
        part = part or Part(0, self.shape.hidden, HEAD)
        kernels, products, shape, points = _kernels(), _products(), self.shape, self.points
        n, places = some.stop - some.start, shape.places
        order, size = self._drawn(draws)
        hidden_at, hidden_pitch, bias_at = self._hidden_places()
        with backends.launching_on(self.device):
            kernels.mlp_forward[(-(-n // self.tile.rows), self.models)](
                points.inputs,
                points.target,
                points.target if weight is None else weight,
                self.numbers,
                self.weights,
                self.operands,
                self.activation_numbers,
                order,
                self.scales,
                self.features,
                self.slopes,
                self.masks,
                self.head_errors,
                self.totals,
                self.partials,
                self.norms.moments,
                n,
                some.start,
                size,
                step,
                int(some.start > 0),
                shape.hidden,
                1 if weight is None else weight.shape[2],
                self.capacity,
                *(_pitch(t) for t in (points.inputs, points.target, weight, None if draws is None else order)),
                self.parameters.stride(0),
                self.partial_model,
                places[0][1],
                hidden_at,
                hidden_pitch,
                bias_at,
                *places[-1],
                self.thin_at + self.thin - shape.outputs,
                self.thin,
                max(part.low, 1),
                part.top,
                part.norm,
                len(shape.norms),
                FIRST=part.low == 0,
                HEAD=part.norm == HEAD,
                GRADIENT=gradient,
                GATHERED=draws is not None,
                WEIGHTED=weight is not None,
                **self._constants(self.loss if gradient else MEAN_SQUARE),
                **products.common(self.kind, self.tile),
                **products.resources(self.tile),
            )

    def backward(self, some: slice, draws: Draws | None, step: int, part: Part | None = None) -> None:
        part = part or Part(0, self.shape.hidden, HEAD)
        kernels, products, shape, points = _kernels(), _products(), self.shape, self.points
        n = some.stop - some.start
        order, size = self._drawn(draws)
        hidden_at, hidden_pitch, _ = self._hidden_places()
        with backends.launching_on(self.device):
            kernels.mlp_backward[(-(-n // self.tile.rows), self.models)](
                points.inputs,
                self.weights,
                self.operands,
                order,
                self.features,
                self.slopes,
                self.masks,
                self.head_errors,
                self.errors,
                self.totals,
                self.factors,
                self.losses,
                self.scales,
                self.partials,
                self.norms.corrections,
                n,
                some.start,
                size,
                step,
                int(some.start > 0),
                shape.hidden,
                self.capacity,
                _pitch(points.inputs),
                _pitch(None if draws is None else order),
                self.parameters.stride(0),
                self.partial_model,
                hidden_at,
                hidden_pitch,
                shape.places[-1][0],
                self.thin_at,
                self.thin,
                min(part.top, shape.hidden - 1),
                part.low,
                part.norm,
                len(shape.norms),
                HEAD=part.top == shape.hidden,
                SUMS=part.norm == HEAD,
                ERRORS=part.low < shape.hidden,
                NORMED=part.norm != HEAD,
                GATHERED=draws is not None,
                **self._constants(self.loss),
                **products.common(self.kind, self.tile_back),
                **products.resources(self.tile_back),
            )

    def weight_gradients(self, some: slice, draws: Draws | None, step: int, part: Part | None = None) -> None:
        part = part or Part(0, self.shape.hidden, HEAD)
        if not self._weight_tiles(part):
            return
        kernels, products, shape, points = _kernels(), _products(), self.shape, self.points
        n, config = some.stop - some.start, self.weight_tile
        length = -(-n // (self.splits * config.terms)) * config.terms
        order, size = self._drawn(draws)
        with backends.launching_on(self.device):
            kernels.mlp_weight_gradients[(self._weight_tiles(part), self.splits, self.models)](
                points.inputs,
                order,
                self.features,
                self.errors,
                self.partials,
                n,
                some.start,
                size,
                step,
                int(some.start > 0),
                length,
                shape.hidden,
                self.capacity,
                _pitch(points.inputs),
                _pitch(None if draws is None else order),
                self.partial_model,
                0,
                self.dense,
                max(part.low, 1),
                part.top,
                width=shape.width,
                depth=shape.inputs,
                ENCODED=shape.encoded,
                GATHERED=draws is not None,
                **products.common(self.kind, config),
                **products.resources(config),
            )

    def _drawn(self, draws: Draws | None) -> tuple[Tensor, int]:
        """Return order and size of draws; where all points are taken, what stands for them."""
        return (self.points.target, 0) if draws is None else (draws.order, draws.size)

    def _hidden_places(self) -> tuple[int, int, int]:
        """Return where the layers between hidden ones begin, how far apart they are, and where their biases are."""
        (weight, bias), (above, _) = (*self.shape.places, (0, 0))[1:3]
        return (weight, above - weight, bias - weight) if self.shape.hidden > 1 else (0, 0, 0)

    def _constants(self, loss: BoundLoss) -> dict[str, Any]:
        """Return the compile-time choices that both passes share."""
        shape = self.shape
        return {
            "width": shape.width,
            "depth": shape.inputs,
            "outputs": shape.outputs,
            "ACTIVATION": shape.activation.device_name,
            "BIAS": shape.bias,
            "COORDINATES": not shape.encoded,
            "LOSS": loss.kind.triton,
            "SCALED": self.kind == "fp16",
            "ON_CHIP": self.on_chip,
        }

    # ---- sizes ---------------------------------------------------------------------------------------------------

    def _weight_tiles(self, part: Part) -> int:
        """Return the tiles of the weights that a part of the backward pass has errors for."""
        shape, tile = self.shape, self.weight_tile
        down, across = -(-shape.width // tile.rows), -(-shape.width // tile.columns)
        first = down * -(-shape.inputs // tile.columns) if shape.encoded and part.low == 0 else 0
        return (part.top - max(part.low, 1)) * down * across + first

    def _splits(self, rows: int) -> int:
        """Return into how many ranges the points of the weight gradients fall, to give every multiprocessor two."""
        tiles = self._weight_tiles(Part(0, self.shape.hidden, HEAD)) * self.models
        wanted = max(-(-2 * self.multiprocessors // max(tiles, 1)), -(-rows // CHAIN))
        return max(1, min(wanted, rows // (4 * self.weight_tile.terms)))

    def _table(self) -> Tensor:
        """Return what each program of the update does: see ``mlp_update``."""
        shape, block = self.shape, _kernels().BLOCK
        thin, width, few = self.thin_at, shape.width, 0 if shape.encoded else shape.inputs
        rows: list[tuple[int, ...]] = []

        def parameter(
            place: int, size: int, columns: int, source: int, down: int, across: int, thin_sums: bool | None
        ) -> None:
            parts = (0, 1) if thin_sums is None else (self.thin, self.tiles) if thin_sums else (self.dense, self.splits)
            for first in range(0, size if place >= 0 else 0, block):
                rows.append((place, first, size, columns, source, down, across, *parts))

        for layer, (weight, bias) in enumerate(shape.places[:-1]):
            if layer == 0 and few:  # its columns lie one after another
                parameter(weight, width * few, few, thin + shape.hidden * width, 1, width, True)
            elif layer == 0:
                last = (shape.hidden - 1) * width * width
                parameter(weight, width * shape.inputs, shape.inputs, last, shape.inputs, 1, False)
            else:
                parameter(weight, width * width, width, (layer - 1) * width * width, width, 1, False)
            parameter(bias, width, width, thin + layer * width, width, 1, True)
        weight, bias = shape.places[-1]
        head = thin + (shape.hidden + few) * width
        parameter(weight, shape.outputs * width, width, head, width, 1, True)
        parameter(bias, shape.outputs, shape.outputs, head + shape.outputs * width, shape.outputs, 1, True)
        for norm, own in enumerate(shape.norms):
            for number, place in enumerate((own.scale, own.shift)):
                parameter(place, width, width, self.norms_at + (2 * norm + number) * width, width, 1, None)
        return torch.tensor(rows, dtype=torch.int64)

    def describe(self) -> dict[str, object]:
        """Return what decides about the last digits of a gradient."""
        return {
            "products": self.kind,
            "rows": self.capacity,
            "tiles": [(tile.rows, tile.columns, tile.terms) for tile in (self.tile, self.tile_back)],
            "on chip": self.on_chip,
            "ranges": self.splits,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        buffers = (self.features, self.slopes, self.errors, self.masks, self.head_errors, self.partials)
        return sum(tensor.numel() * tensor.element_size() for tensor in buffers)


def reason_against(mlp: MLP, dtype: torch.dtype) -> str | None:
    """Return why networks of this shape, on points of ``dtype``, take no fused steps, or None.

    That backpropagation is written out for them at all (no norms, fixed encodings) is asked elsewhere.
    """
    kinds = {activation.kind for activation in mlp.activations}
    if len(kinds) > 1:
        return f"its layers have different activations ({', '.join(sorted(kind.name for kind in kinds))})"
    kind = mlp.activations[0].kind
    if kind.device is None or kind.keeps == "nothing":
        return f"the activation {kind.name!r} has no fused step"
    widths = sorted(set(mlp.widths))
    if len(widths) > 1:
        return f"its hidden layers have different widths ({', '.join(map(str, widths))})"
    if len({layer.bias is not None for layer in mlp.layers}) > 1:
        return "some of its layers have a bias and others have none"
    if len(mlp.parameters) < sum(len(layer.parameters) for layer in mlp.layers):
        return "its layers share parameters"
    if mlp.outputs > MOST_OUTPUTS:
        return f"it has {mlp.outputs} outputs, and a fused step takes {MOST_OUTPUTS} at most"
    columns = max(*mlp.widths, mlp.columns)
    if columns > MOST_COLUMNS:
        return f"it has a layer of {columns} columns, and a fused step takes {MOST_COLUMNS} at most"
    if dtype not in (torch.float32, torch.float64):
        return f"its dtype is {dtype}"
    return None


def _kernels() -> ModuleType:
    from inrfast.kernels import fused_mlp  # imports triton

    return fused_mlp


def _products() -> ModuleType:
    from inrfast.kernels import fused_linear  # imports triton

    return fused_linear


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def _is_large(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    _, capability, shared = backends.gpu(device)
    return capability >= (9, 0) and shared >= _kernels().LARGE_SHARED


def _pitch(tensor: Tensor | None) -> int:
    """Return how many elements the parts of two networks are apart: none where they share one."""
    return 0 if tensor is None or len(tensor) == 1 else tensor.stride(0)


def _split(number: float) -> tuple[float, float, float]:
    """Return three fp32 numbers whose sum is the fp64 number."""
    rest, parts = number, []
    for _ in range(3):
        parts.append(float(torch.tensor(rest, dtype=torch.float32)))
        rest -= parts[-1]
    return parts[0], parts[1], parts[2]


def _power(mean_square: Tensor) -> Tensor:
    """Return the powers of two that bring numbers of these mean squares near 1, within those that the kernel takes."""
    most: int = _kernels().LARGEST_SCALE.value
    exponents = [-math.floor(math.log2(max(number, 1e-30)) / 2) for number in mean_square.tolist()]
    return torch.tensor([2.0 ** min(max(e, -most), most) for e in exponents], dtype=torch.float32)
