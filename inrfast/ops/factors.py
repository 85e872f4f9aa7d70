"""The factor pass: features Z and sensitivities S of every layer of a coordinate MLP, in closed form.

For parameter layer ``l`` with pre-activation ``u_l = Z_{l-1} W_l^T + b_l`` the tangent kernel needs
``Z_{l-1}`` (N x D_in) and ``S_l[n, m, :] = d f_m(x_n) / d u_l(x_n)`` (N x M x D_out), nothing else.

:func:`mlp_factors` computes them with torch, on any device; :func:`mlp_operands` writes them in one launch of a Triton
kernel, for one network or many, as the operands of the Gram kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inrfast import backends
from inrfast.activations import ACTIVATIONS, BoundActivation
from inrfast.memory import chunks
from inrfast.ops.batching import as_models, points_of_models
from inrfast.ops.gemm import exact_products
from inrfast.ops.operands import (
    CHUNK,
    NARROW,
    LayerShape,
    Layout,
    Operands,
    Output,
    Place,
    Plan,
    Ranges,
    allocate,
    pack,
    row_range,
    write_slabs,
)


@dataclass(frozen=True)
class BatchStatistics:
    """A batch norm with frozen statistics: ``scale * (u - mean) * inverse_std + shift``, each of shape (D,)."""

    mean: Tensor
    inverse_std: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class HiddenLayer:
    """One hidden layer: ``weight`` (D_out, D_in), ``bias`` (D_out,) or None, activation and norm.

    ``norm`` is None, ``"sphere"`` or the statistics of a batch norm; it stands before the activation unless
    ``norm_after``.
    """

    weight: Tensor
    bias: Tensor | None
    activation: BoundActivation
    norm: BatchStatistics | str | None = None
    norm_after: bool = False


@dataclass(frozen=True)
class MLP:
    """A coordinate MLP as plain tensors: hidden layers and the linear head (M, D)."""

    hidden: tuple[HiddenLayer, ...]
    head_weight: Tensor
    head_bias: Tensor | None


@dataclass(frozen=True)
class NormFactors:
    """Factors of a batch norm's own parameters: normalised input (n, D) and sensitivities of its output (n, M, D)."""

    normalised: Tensor
    sensitivities: Tensor


@dataclass(frozen=True)
class MLPFactors:
    """What :func:`mlp_factors` returns, each a tuple over the hidden layers unless said otherwise.

    Attributes
    ----------
    features
        The input of every linear layer with a column of ones, the head's last: ``hidden + 1`` tensors (n, D_in + 1).
    sensitivities
        ``d f / d u_l`` of every hidden layer, (n, M, D_out); the head's is the identity and not stored.
    norms
        Factors of the batch norms, None for layers without one.
    outputs
        The network's values (n, M).
    """

    features: tuple[Tensor, ...]
    sensitivities: tuple[Tensor, ...]
    norms: tuple[NormFactors | None, ...]
    outputs: Tensor


def _sphere(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the projection of the rows on the sphere of radius sqrt(m), and ``sqrt(m) / |z|`` (0 at z = 0)."""
    # Dividing by the largest entry first keeps |z|^2 from under- or overflowing.
    scale = z.abs().amax(-1, keepdim=True)
    zero = scale < torch.finfo(z.dtype).tiny
    scale = scale.masked_fill(zero, 1.0)
    unit = z / scale
    factor = z.shape[-1] ** 0.5 / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).masked_fill(zero, 1.0)
    return (unit * factor).masked_fill(zero, 0.0), (factor / scale).masked_fill(zero, 0.0)


def _sphere_backward(gradient: Tensor, projected: Tensor, factor: Tensor) -> Tensor:
    """Apply the (symmetric, not diagonal) Jacobian of the projection: ``factor (g - y (y . g) / m)``."""
    y = projected.unsqueeze(1)
    along = (gradient * y).sum(-1, keepdim=True) / projected.shape[-1]
    return factor.unsqueeze(1) * (gradient - y * along)


class Room:
    """Memory of a pass, used again by the next one: fresh pages cost as much as the pass itself.

    What a pass returns lies in its room and lasts until the next pass in the same room.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return uninitialised memory of this shape, and of the dtype and device of ``like``."""
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or len(memory) < size:
            memory = self._memory[name] = like.new_empty(size)
        return memory[:size].view(*shape)


def linear(z: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Return ``z weight^T + bias`` through one library call."""
    return torch.mm(z, weight.t(), out=out) if bias is None else torch.addmm(bias, z, weight.t(), out=out)


def mlp_factors(mlp: MLP, inputs: Tensor, room: Room | None = None) -> MLPFactors:
    """Return features, sensitivities and norm factors of an MLP at ``inputs`` (n, D_in), in the dtype of the weights.

    One forward and one backward pass, the backward for all M outputs at once: ``4 n P`` FLOP for M = 1. Autograd must
    be off. The result lies in ``room``; None: in memory of its own.
    """
    room = Room() if room is None else room
    n, outputs = len(inputs), len(mlp.head_weight)
    features, gates, norm_states = [_with_ones(inputs, room, "inputs")], [], []
    for index, layer in enumerate(mlp.hidden):
        z, gate, state = _hidden_forward(layer, features[-1][:, :-1], room, index)
        features.append(z)
        gates.append(gate)
        norm_states.append(state)
    values = linear(features[-1][:, :-1], mlp.head_weight, mlp.head_bias)

    sensitivities: list[Tensor] = []
    norms: list[NormFactors | None] = []
    for index in reversed(range(len(mlp.hidden))):
        width = len(mlp.hidden[index].weight)
        gradient = room.take(f"sensitivities {index}", (n, outputs, width), inputs)
        if sensitivities:
            above = sensitivities[-1].flatten(0, 1)
            torch.mm(above, mlp.hidden[index + 1].weight, out=gradient.view(n * outputs, width))
        else:
            gradient.copy_(mlp.head_weight)
        s, norm = _hidden_backward(mlp.hidden[index], gradient, gates[index], norm_states[index])
        sensitivities.append(s)
        norms.append(norm)
    return MLPFactors(tuple(features), tuple(reversed(sensitivities)), tuple(reversed(norms)), values)


def _with_ones(z: Tensor, room: Room, name: str) -> Tensor:
    """Return ``[z, 1]``."""
    out = room.take(name, (len(z), z.shape[1] + 1), z)
    out[:, :-1] = z
    out[:, -1] = 1
    return out


def _hidden_forward(
    layer: HiddenLayer, z: Tensor, room: Room, index: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Return the layer's output with a column of ones, its activation's derivative, what the norm's backward needs."""
    n, width = len(z), len(layer.weight)
    u = linear(z, layer.weight, layer.bias, out=room.take(f"slope {index}", (n, width), z))
    state = None
    if layer.norm is not None and not layer.norm_after:
        u, state = _norm_forward(layer.norm, u)
        if state[0] is u:  # the norm's backward needs the values that the activation overwrites with its slope
            u = u.clone()
    features = room.take(f"features {index}", (n, width + 1), z)
    features[:, -1] = 1
    values = features[:, :-1]
    layer.activation.in_place(u, values, room.take("scratch", (n, width), z))
    if layer.norm is not None and layer.norm_after:
        normalised, state = _norm_forward(layer.norm, values)
        values.copy_(normalised)
    return features, u, state


def _norm_forward(norm: BatchStatistics | str, u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if isinstance(norm, BatchStatistics):
        normalised = (u - norm.mean) * norm.inverse_std
        return normalised * norm.scale + norm.shift, (normalised, norm.scale * norm.inverse_std)
    projected, factor = _sphere(u)
    return projected, (projected, factor)


def _hidden_backward(
    layer: HiddenLayer, gradient: Tensor, gate: Tensor, state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, NormFactors | None]:
    """Return ``d f / d u`` from ``d f / d z`` (n, M, D) of one hidden layer, and the factors of its batch norm.

    ``gradient`` is overwritten.
    """
    gate = gate.unsqueeze(1)
    if state is None:
        return gradient.mul_(gate), None
    if layer.norm_after:
        gradient, norm = _norm_backward(layer, gradient, state)
        return gradient.mul_(gate), norm
    return _norm_backward(layer, gradient.mul_(gate), state)


def _norm_backward(
    layer: HiddenLayer, gradient: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, NormFactors | None]:
    if isinstance(layer.norm, BatchStatistics):
        normalised, slope = state
        return gradient * slope, NormFactors(normalised, gradient.contiguous())
    return _sphere_backward(gradient, *state), None


class Slopes(NamedTuple):
    """The derivative of a hidden layer's output in its pre-activations: ``diag(left) (I - v v^T) diag(right)``.

    Each of shape (n, D), v being ``direction``; without a sphere norm, which alone mixes units, ``diag(left)``.
    """

    left: Tensor
    direction: Tensor | None = None
    right: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Slopes:
        """Return the same with every tensor changed."""
        direction, right = (None if t is None else change(t) for t in (self.direction, self.right))
        return Slopes(change(self.left), direction, right)


def hidden_slopes(layer: HiddenLayer, inputs: Tensor) -> tuple[Tensor, Slopes]:
    """Return a hidden layer's output (n, D) at ``inputs`` (n, D_in), and its derivative. Autograd must be off."""
    values, gate, state = _hidden_forward(layer, inputs, Room(), 0)
    values = values[:, :-1]
    if layer.norm != "sphere":
        slopes, _ = _hidden_backward(layer, torch.ones_like(gate).unsqueeze(1), gate, state)
        return values, Slopes(slopes.squeeze(1))
    assert state is not None
    projected, factor = state
    direction = projected / projected.shape[1] ** 0.5  # where one unit is left, a one: its derivative vanishes exactly
    if layer.norm_after:
        return values, Slopes(factor.expand_as(gate), direction, gate)
    return values, Slopes(gate * factor, direction)


# ---- the fused pass ----------------------------------------------------------------------------------------------

SCRATCH_BYTES = 1 << 28
"""Scratch of all programs of a fused pass at most."""


def layer_shapes(mlp: MLP) -> tuple[LayerShape, ...]:
    """Return the shapes of an MLP's factors, all its parameters differentiated (batch norms apart)."""
    linear = [(h.weight, h.bias) for h in mlp.hidden]
    shapes = [LayerShape(w.shape[1], w.shape[0], b is not None) for w, b in linear]
    return (*shapes, LayerShape(mlp.head_weight.shape[1], 0, mlp.head_bias is not None))


def fusible(mlp: MLP, output: Output) -> bool:
    """Return whether the fused pass covers this network: one activation, no norm, biases everywhere or nowhere.

    Widths from 9 on, any of them; with ``"full"`` up to 8 outputs.
    """
    biases = {h.bias is not None for h in mlp.hidden} | {mlp.head_bias is not None}
    return (
        len({h.activation.kind for h in mlp.hidden}) == 1
        and mlp.hidden[0].activation.kind.device is not None
        and len(biases) == 1
        and all(h.norm is None and len(h.weight) > NARROW for h in mlp.hidden)
        and (output != "full" or len(mlp.head_weight) <= NARROW)
    )


def mlp_operands(mlps: Sequence[MLP], inputs: Tensor, plan: Plan) -> Operands:
    """Return the operands of one or more :func:`fusible` MLPs of one shape at ``inputs``.

    ``inputs`` are (n, D_in) for all of them, or (1 or models, n, D_in).
    """
    first, layout = mlps[0], plan.layout
    assert fusible(first, layout.output) and all(layer_shapes(mlp) == layout.shapes for mlp in mlps)
    parameters = torch.stack([flat_parameters(mlp) for mlp in mlps])
    inputs = (inputs if inputs.ndim == 3 else inputs.unsqueeze(0)).to(torch.float64)
    tensors = mlp_slabs(
        inputs.contiguous(),
        parameters,
        [shape.features for shape in layout.shapes] + [layout.outputs],
        first.head_bias is not None,
        first.hidden[0].activation.name,
        [number for h in first.hidden for number in h.activation.numbers],
        str(layout.output),
        layout.format,
        list(plan.exponents),
    )
    return Operands(plan, inputs.shape[1] * layout.fold, *tensors)


def by_layer(numbers: Sequence[float], layers: int) -> list[tuple[float, ...]]:
    """Return the numbers of each layer's activation, equally many a layer, from all of them in one list."""
    count = len(numbers) // layers
    return [tuple(numbers[index * count : (index + 1) * count]) for index in range(layers)]


def flat_parameters(mlp: MLP) -> Tensor:
    """Return the weights and biases of an MLP in one fp64 vector: each layer's weight, then its bias."""
    linear = [*((h.weight, h.bias) for h in mlp.hidden), (mlp.head_weight, mlp.head_bias)]
    return torch.cat([t.flatten().to(torch.float64) for pair in linear for t in pair if t is not None])


def feature_ranges(mlp: MLP, inputs: Tensor) -> Ranges:
    """Return the range of every layer's features, computed in fp32.

    A few digits are enough for a scale; bounded activations beside a bias need not be computed.
    """
    bounds = [h.activation.bound if h.bias is not None else None for h in mlp.hidden]
    if None not in bounds:
        return [row_range(inputs.abs().amax(1)), *[(bound, bound) for bound in bounds if bound is not None]]
    largest: list[list[Tensor]] = [[] for _ in range(len(mlp.hidden) + 1)]
    with exact_products(inputs.device):
        for points in chunks(len(inputs), CHUNK):
            z = inputs[points].to(torch.float32)
            largest[0].append(z.abs().amax(1))
            for index, layer in enumerate(mlp.hidden):
                bias = None if layer.bias is None else layer.bias.to(torch.float32)
                u = linear(z, layer.weight.to(torch.float32), bias)
                z = layer.activation.value(u)
                largest[index + 1].append(z.abs().amax(1))
    return [row_range(torch.cat(parts)) for parts in largest]


@torch.library.custom_op("inrfast::mlp_slabs", mutates_args=())
def mlp_slabs(
    inputs: Tensor,
    parameters: Tensor,
    widths: Sequence[int],
    bias: bool,
    activation: str,
    numbers: Sequence[float],
    output: str,
    format: str,
    exponents: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return slabs, narrow columns and scales (:class:`inrfast.ops.operands.Operands`) of MLPs of one shape.

    ``inputs`` (1 or models, n, D_in) and ``parameters`` (models, Q) in fp64; ``widths`` from D_in to M. The Triton
    kernel where it runs, else the reference.
    """
    plan = Plan(_layout(widths, bias, output, format), tuple(exponents))
    if backends.reason_against_triton(inputs.device) is not None:
        result = mlp_operands_reference(inputs, parameters, plan, activation, numbers)
    else:
        result = _launch(inputs, parameters, plan, activation, numbers)
    return result.slabs, result.narrow, result.scale


@mlp_slabs.register_fake
def _(inputs, parameters, widths, bias, activation, numbers, output, format, exponents):  # type: ignore[no-untyped-def]
    layout = _layout(widths, bias, output, format)
    made = allocate(Plan(layout, tuple(exponents)), len(parameters), inputs.shape[1] * layout.fold, inputs.device)
    return made.slabs, made.narrow, made.scale


@mlp_slabs.register_vmap
def _(info, in_dims, inputs, parameters, *rest):  # type: ignore[no-untyped-def]
    """Take the batch as more models."""
    size = info.batch_size
    (q,) = as_models(size, in_dims[1:2], (parameters,))
    found = mlp_slabs(points_of_models(size, in_dims[0], inputs, len(q) // size), q, *rest)
    return tuple(t.unflatten(0, (size, -1)) for t in found), (0, 0, 0)


def _layout(widths: Sequence[int], bias: bool, output: str, format: str) -> Layout:
    pairs = list(itertools.pairwise(widths))
    shapes = [LayerShape(a, b if index < len(pairs) - 1 else 0, bias) for index, (a, b) in enumerate(pairs)]
    return Layout(tuple(shapes), int(output) if output.isdigit() else output, widths[-1], format)


def mlp_operands_reference(
    inputs: Tensor,
    parameters: Tensor,
    plan: Plan,
    activation: str,
    numbers: Sequence[float],
) -> Operands:
    """Return what the fused pass computes, by :func:`mlp_factors` and plain torch, network by network."""
    made = []
    for index, vector in enumerate(parameters):
        mlp = _unflatten(vector, plan.layout, activation, numbers)
        found = mlp_factors(mlp, inputs[index if len(inputs) > 1 else 0])
        factors = zip(found.features, [*found.sensitivities, None], strict=True)
        made.append(pack(plan, [(z[:, :-1], s) for z, s in factors]))
    tensors = (torch.cat([getattr(m, name) for m in made]) for name in ("slabs", "narrow", "scale"))
    return Operands(plan, made[0].rows, *tensors)


def _unflatten(vector: Tensor, layout: Layout, activation: str, numbers: Sequence[float]) -> MLP:
    """Return the MLP of a vector as :func:`flat_parameters` makes it."""
    layers, start = [], 0
    for shape in layout.shapes:
        out = shape.sensitivities or layout.outputs
        weight = vector[start : start + out * shape.features].view(out, shape.features)
        start += weight.numel()
        layers.append((weight, vector[start : start + out] if shape.bias else None))
        start += out * shape.bias
    hidden = [
        HiddenLayer(*layer, BoundActivation(ACTIVATIONS[activation], own))
        for layer, own in zip(layers[:-1], by_layer(numbers, len(layers) - 1), strict=True)
    ]
    return MLP(tuple(hidden), *layers[-1])


def _launch(
    inputs: Tensor,
    parameters: Tensor,
    plan: Plan,
    activation: str,
    numbers: Sequence[float],
) -> Operands:
    from inrfast.kernels import factors as kernel  # imports triton

    device, n, models = inputs.device, inputs.shape[1], len(parameters)
    layout, exponents = plan.layout, plan.exponents
    made = allocate(plan, models, n * layout.fold, device)
    single = isinstance(layout.output, int)
    outputs = 1 if single else layout.outputs
    places = sorted(layout.places, key=lambda place: place.layer)
    table, constants, start = [], [], 0
    own = by_layer(numbers, len(layout.shapes) - 1)
    for index, shape in enumerate(layout.shapes[:-1]):
        weight = shape.features * shape.sensitivities
        bias = start + weight if shape.bias else -1
        table.append([shape.features, shape.sensitivities, start, bias, *_starts(places, index)])
        constants.append([(*own[index], 1.0)[0], 2.0 ** exponents[index + 1], 2.0 ** -exponents[index]])
        start += weight + shape.sensitivities * shape.bias
    hidden, width = len(table), -(-max(max(row[:2]) for row in table) // kernel.BLOCK) * kernel.BLOCK
    slots = 2 + hidden * (1 + outputs) + -(-(2 * hidden + 2) // width)
    blocks = -(-n // kernel.POINTS)
    wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    programs = max(1, min(blocks, wanted, SCRATCH_BYTES // (8 * models * slots * kernel.POINTS * width)))
    if n > 0:
        with backends.launching_on(device):
            kernel.launch(
                layout.format,
                inputs.contiguous(),
                parameters.contiguous(),
                torch.tensor(table, dtype=torch.int64, device=device),
                torch.tensor(constants, dtype=torch.float64, device=device),
                made.slabs,
                made.scale,
                torch.empty(models, programs, slots, kernel.POINTS, width, dtype=torch.float64, device=device),
                head=start,
                outputs=outputs,
                first_output=int(layout.output) if single else 0,
                floor=2.0 ** -exponents[-1],
                activation=ACTIVATIONS[activation].device_name,
                input_scale=0.0 if places[0].narrow == "features" else 2.0 ** exponents[0],
                full=layout.output == "full",
            )
    _write_inputs(made, inputs)
    return made


def _starts(places: Sequence[Place], layer: int) -> tuple[int, int]:
    """Return the slabs at which a hidden layer's own features, the next layer's input, and its sensitivities begin."""
    return places[layer + 1].features, places[layer].sensitivities


def _write_inputs(made: Operands, inputs: Tensor) -> None:
    """Write what no hidden layer computes: the inputs, and the constants beside them and for the head."""
    layout, exponents, rows = made.plan.layout, made.plan.exponents, slice(0, made.rows)
    first, head = (next(p for p in layout.places if p.layer == k) for k in (0, len(layout.shapes) - 1))
    x = inputs.repeat_interleave(layout.fold, 1)
    if first.narrow == "features":
        end = first.features + x.shape[2]
        made.narrow[:, first.features : end, rows] = x.mT.to(made.narrow.dtype)
        if layout.shapes[0].bias:
            made.narrow[:, end, rows] = 1
    else:
        for model in range(len(made.slabs)):
            values = x[model if len(x) > 1 else 0] * 2.0 ** exponents[0]
            write_slabs(made, model, first.features, values.unsqueeze(1), rows)
    # Powers of two: a correction in the scale is of a thousandth at most.
    up = 2.0 ** (-exponents[-1] - made.scale[:, rows].log2().round())
    if layout.output == "full":
        unit = torch.eye(layout.outputs, dtype=up.dtype, device=up.device).repeat(1, inputs.shape[1])
        made.narrow[:, head.sensitivities : head.sensitivities + layout.outputs, rows] = unit * up.unsqueeze(1)
    else:
        made.narrow[:, head.sensitivities, rows] = up
