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
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrfast import backends
from inrfast.activations import ACTIVATIONS, BoundActivation
from inrfast.memory import chunks
from inrfast.mlp import MLP, MODULATED, HiddenLayer, LinearLayer
from inrfast.norms import NormFactors
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
class MLPFactors:
    """What :func:`mlp_factors` returns, each a tuple over the hidden layers unless said otherwise.

    Attributes
    ----------
    features
        The input of every linear layer with a column of ones, the head's last: ``hidden + 1`` tensors (n, D_in + 1).
    sensitivities
        ``d f / d u_l`` of every hidden layer, (n, M, D_out); the head's is the identity and not stored.
    norms
        Factors of the norms' own weights, None for layers without such.
    outputs
        The network's values (n, M).
    filters
        Sensitivities of the filters of the coordinates, None for layers without one.
    """

    features: tuple[Tensor, ...]
    sensitivities: tuple[Tensor, ...]
    norms: tuple[NormFactors | None, ...]
    outputs: Tensor
    filters: tuple[FilterFactors | None, ...] = ()


class FilterFactors(NamedTuple):
    """Sensitivities (n, M, D) of a filter (:mod:`inrfast.modulations`): of its values, and of its ``linear``."""

    values: Tensor
    linear: Tensor


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


def mlp_factors(mlp: MLP, inputs: Tensor, room: Room | None = None, coords: Tensor | None = None) -> MLPFactors:
    """Return features, sensitivities and norm factors of an MLP at ``inputs`` (n, D_in), in the dtype of the weights.

    One forward and one backward pass, the backward for all M outputs at once: ``4 n P`` FLOP for M = 1. Autograd must
    be off. The result lies in ``room``; None: in memory of its own. ``coords`` (n, d) are what filters take; None:
    the inputs.
    """
    room = Room() if room is None else room
    n, outputs = len(inputs), mlp.outputs
    features, gates, states, filters = [_with_ones(inputs, room, "inputs")], [], [], []
    for index, layer in enumerate(mlp.hidden):
        z, gate, state = _hidden_forward(layer, features[-1][:, :-1], room, index)
        filters.append(_modulate_(layer, z[:, :-1], inputs if coords is None else coords))
        features.append(z)
        gates.append(gate)
        states.append(state)
    values = linear(features[-1][:, :-1], mlp.head.weight, mlp.head.bias)

    sensitivities: list[Tensor] = []
    norms: list[NormFactors | None] = []
    filtered: list[FilterFactors | None] = []
    for index in reversed(range(len(mlp.hidden))):
        width = mlp.widths[index]
        gradient = room.take(f"sensitivities {index}", (n, outputs, width), inputs)
        if sensitivities:
            above = sensitivities[-1].flatten(0, 1)
            torch.mm(above, mlp.layers[index + 1].weight, out=gradient.view(n * outputs, width))
        else:
            gradient.copy_(mlp.head.weight)
        filtered.append(_through_filter_(gradient, filters[index]))
        s, norm = _hidden_backward(mlp.hidden[index], gradient, gates[index], states[index])
        sensitivities.append(s)
        norms.append(norm)
    for found in (sensitivities, norms, filtered):
        found.reverse()
    return MLPFactors(tuple(features), tuple(sensitivities), tuple(norms), values, tuple(filtered))


def mlp_features(mlp: MLP, inputs: Tensor, depth: int, room: Room | None = None) -> Tensor:
    """Return ``[Z, 1]`` (n, D + 1), Z the output of the first ``depth`` hidden layers at ``inputs`` (n, D_in).

    Those of :func:`mlp_factors` by its forward pass alone, which stops there. Autograd must be off. The result lies in
    ``room``; None: in memory of its own.
    """
    room = Room() if room is None else room
    features = _with_ones(inputs, room, "inputs")
    for index, layer in enumerate(mlp.hidden[:depth]):
        features = _hidden_forward(layer, features[:, :-1], room, index % 2)[0]
    return features


def _with_ones(z: Tensor, room: Room, name: str) -> Tensor:
    """Return ``[z, 1]``."""
    out = room.take(name, (len(z), z.shape[1] + 1), z)
    out[:, :-1] = z
    out[:, -1] = 1
    return out


def _hidden_forward(layer: HiddenLayer, z: Tensor, room: Room, index: int) -> tuple[Tensor, Tensor, Any]:
    """Return the layer's output with a column of ones, its activation's derivative, what the norm's backward needs."""
    n, width = len(z), layer.linear.outputs
    u = linear(z, layer.linear.weight, layer.linear.bias, out=room.take(f"slope {index}", (n, width), z))
    state = None
    if layer.norm is not None and not layer.norm_after:
        u, state = layer.norm.forward(u)
        if any(kept is u for kept in (state if isinstance(state, tuple) else (state,))):
            u = u.clone()  # the activation overwrites it with its slope
    features = room.take(f"features {index}", (n, width + 1), z)
    features[:, -1] = 1
    values = features[:, :-1]
    layer.activation.in_place(u, values, room.take("scratch", (n, width), z))
    if layer.norm is not None and layer.norm_after:
        normalised, state = layer.norm.forward(values)
        values.copy_(normalised)
    return features, u, state


def _hidden_backward(
    layer: HiddenLayer, gradient: Tensor, gate: Tensor, state: Any
) -> tuple[Tensor, NormFactors | None]:
    """Return ``d f / d u`` from ``d f / d z`` (n, M, D) of one hidden layer, and the factors of its norm's weights.

    ``gradient`` is overwritten.
    """
    gate = gate.unsqueeze(1)
    if layer.norm is None:
        return gradient.mul_(gate), None
    if layer.norm_after:
        gradient, norm = layer.norm.backward(gradient, state)
        return gradient.mul_(gate), norm
    return layer.norm.backward(gradient.mul_(gate), state)


class Filtered(NamedTuple):
    """What the way back through a filter needs: ``h``, the features before it, and both times its slope, (n, D)."""

    value: Tensor
    features: Tensor
    slope: Tensor


def _modulate_(layer: HiddenLayer, features: Tensor, coords: Tensor) -> Filtered | None:
    """Multiply a hidden layer's features (n, D) by its filter of the coordinates (n, d), if it has one."""
    if layer.modulation is None:
        return None
    with torch.no_grad():  # threads have a mode of their own, and filters live parameters
        value, slope = layer.modulation.derivative(coords)  # type: ignore[operator]
    before = features.clone()
    features.mul_(value)
    return Filtered(value, before, slope.mul_(before))


def _through_filter_(gradient: Tensor, own: Filtered | None) -> FilterFactors | None:
    """Make of ``d f / d z`` (n, M, D) behind a filter that before it; return the filter's own sensitivities."""
    if own is None:
        return None
    found = FilterFactors(gradient * own.features.unsqueeze(1), gradient * own.slope.unsqueeze(1))
    gradient.mul_(own.value.unsqueeze(1))
    return found


class Slopes(NamedTuple):
    """The derivative of a hidden layer's output in its pre-activations: ``diag(left) (I - V^T V) diag(right)``.

    ``left`` and ``right`` have the shape (n, D), None for ones. ``directions`` are V (n, K, D), whose rows are
    orthogonal to each other; None for K = 0: only some norms mix units.
    """

    left: Tensor
    directions: Tensor | None = None
    right: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Slopes:
        """Return the same with every tensor changed."""
        directions, right = (None if t is None else change(t) for t in (self.directions, self.right))
        return Slopes(change(self.left), directions, right)


def hidden_slopes(layer: HiddenLayer, inputs: Tensor) -> tuple[Tensor, Slopes]:
    """Return a hidden layer's output (n, D) at ``inputs`` (n, D_in), and its derivative. Autograd must be off."""
    values, gate, state = _hidden_forward(layer, inputs, Room(), 0)
    values = values[:, :-1]
    if layer.norm is None:
        return values, Slopes(gate)
    left, directions = layer.norm.slope(state)
    if directions is None or not layer.norm_after:
        return values, Slopes(gate * left, directions)
    return values, Slopes(left.expand_as(gate), directions, gate)


def activation_slopes(mlp: MLP, inputs: Tensor, room: Room | None = None, coords: Tensor | None = None) -> list[Tensor]:
    """Return the slopes ``act'(u)`` (n, D) of every hidden layer at ``inputs`` (n, D_in), norms and filters left out.

    By a forward pass, in the dtype of the weights. Autograd must be off. The result lies in ``room``; None: in memory
    of its own. ``coords`` (n, d) are what filters take; None: the inputs.
    """
    room = Room() if room is None else room
    features, slopes = _with_ones(inputs, room, "inputs"), []
    for index, layer in enumerate(mlp.hidden):
        features, slope, _ = _hidden_forward(layer, features[:, :-1], room, index)
        _modulate_(layer, features[:, :-1], inputs if coords is None else coords)
        slopes.append(slope)
    return slopes


# ---- the fused pass ----------------------------------------------------------------------------------------------

SCRATCH_BYTES = 1 << 28
"""Scratch of all programs of a fused pass at most."""


def layer_shapes(mlp: MLP) -> tuple[LayerShape, ...]:
    """Return the shapes of an MLP's factors, all its linear layers' parameters differentiated."""
    shapes = [LayerShape(layer.inputs, layer.outputs, layer.bias is not None) for layer in mlp.layers]
    return (*shapes[:-1], replace(shapes[-1], sensitivities=0))


def reason_against(mlp: MLP, output: Output) -> str | None:
    """Return why the fused pass does not take this network and output, or None."""
    kinds = {activation.kind for activation in mlp.activations}
    if len(kinds) > 1:
        return f"its layers have different activations ({', '.join(sorted(kind.name for kind in kinds))})"
    if mlp.activations[0].kind.device is None:
        return f"the activation {mlp.activations[0].name!r} has no device function"
    if mlp.norms:
        return "its hidden layers have norms"
    if mlp.modulations:
        return MODULATED
    if len({layer.bias is not None for layer in mlp.layers}) > 1:
        return "some of its layers have a bias and others have none"
    if min(mlp.widths) <= NARROW:
        return f"it has a hidden layer of {min(mlp.widths)} units, and the fused pass takes {NARROW + 1} or more"
    if output == "full" and mlp.outputs > NARROW:
        return f"it has {mlp.outputs} outputs, and the fused pass with output='full' takes {NARROW} at most"
    return None


def mlp_operands(mlps: Sequence[MLP], inputs: Tensor, plan: Plan) -> Operands:
    """Return the operands at ``inputs`` of one or more MLPs of one shape that the fused pass takes.

    ``inputs`` are (n, D_in) for all of them, or (1 or models, n, D_in).
    """
    first, layout = mlps[0], plan.layout
    assert reason_against(first, layout.output) is None and all(layer_shapes(mlp) == layout.shapes for mlp in mlps)
    parameters = torch.stack([flat_parameters(mlp) for mlp in mlps])
    inputs = (inputs if inputs.ndim == 3 else inputs.unsqueeze(0)).to(torch.float64)
    tensors = mlp_slabs(
        inputs.contiguous(),
        parameters,
        [shape.features for shape in layout.shapes] + [layout.outputs],
        first.head.bias is not None,
        first.activations[0].name,
        [number for activation in first.activations for number in activation.numbers],
        str(layout.output),
        layout.format,
        list(plan.exponents),
    )
    return Operands(plan, inputs.shape[1] * layout.fold, *tensors)


def by_layer(numbers: Sequence[float], layers: int) -> list[tuple[float, ...]]:
    """Return the numbers of each layer's activation, equally many per layer, from all of them in one list."""
    count = len(numbers) // layers
    return [tuple(numbers[index * count : (index + 1) * count]) for index in range(layers)]


def flat_parameters(mlp: MLP) -> Tensor:
    """Return the weights and biases of an MLP in one fp64 vector: each layer's weight, then its bias."""
    pairs = [(layer.weight, layer.bias) for layer in mlp.layers]
    return torch.cat([t.flatten().to(torch.float64) for pair in pairs for t in pair if t is not None])


def feature_ranges(mlp: MLP, inputs: Tensor) -> Ranges:
    """Return the range of every layer's features, computed in fp32.

    A few digits are enough for a scale; bounded activations beside a bias need not be computed.
    """
    bounds = [h.activation.bound if h.linear.bias is not None else None for h in mlp.hidden]
    if None not in bounds:
        return [row_range(inputs.abs().amax(1)), *[(bound, bound) for bound in bounds if bound is not None]]
    largest: list[list[Tensor]] = [[] for _ in range(len(mlp.hidden) + 1)]
    with exact_products(inputs.device):
        for points in chunks(len(inputs), CHUNK):
            z = inputs[points].to(torch.float32)
            largest[0].append(z.abs().amax(1))
            for index, layer in enumerate(mlp.hidden):
                own = layer.linear
                bias = None if own.bias is None else own.bias.to(torch.float32)
                z = layer.activation.value(linear(z, own.weight.to(torch.float32), bias))
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
        layers.append(LinearLayer(weight, vector[start : start + out] if shape.bias else None))
        start += out * shape.bias
    hidden = [
        HiddenLayer(layer, BoundActivation(ACTIVATIONS[activation], own))
        for layer, own in zip(layers[:-1], by_layer(numbers, len(layers) - 1), strict=True)
    ]
    return MLP(layers[0].inputs, None, tuple(hidden), layers[-1])


def _launch(
    inputs: Tensor,
    parameters: Tensor,
    plan: Plan,
    activation: str,
    numbers: Sequence[float],
) -> Operands:
    from inrfast.kernels import factors as kernel  # imports triton
    from inrfast.kernels.activations import NUMBERS

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
        unused = [0.0] * (NUMBERS.value - len(own[index]))
        constants.append([2.0 ** exponents[index + 1], 2.0 ** -exponents[index], *own[index], *unused])
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
