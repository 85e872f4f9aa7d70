"""The update of the training step: partial sums become gradients, and the optimiser takes its step."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _constant(x, VALUE: tl.constexpr):
    """Return a constant in the precision of ``x``: Triton takes a bare one as fp32."""
    return tl.full(x.shape, VALUE, x.dtype)


@triton.jit(do_not_specialize=["step"])
def mlp_update(
    parameters,
    operands,
    gradients,
    means,
    squares,
    trained,
    partials,
    table,
    rates,
    factors,
    step,
    parameter_model,
    partial_model,
    REDUCE: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    COPY: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Sum the partial gradients of some parameters (REDUCE), and take the step of an OPTIMIZER on them.

    OPTIMIZER is "adam", "adamw", "sgd" or "none"; Adam's constants are BETA1, BETA2 and EPSILON.

    ``parameters``, ``gradients``, ``means``, ``squares``: (models, Q); ``operands``: their copy for products (COPY);
    ``trained``: (Q,) bytes, 0 for frozen ones. ``table``: one row per program: place of the parameter, first element,
    number of elements, columns; where the first part of its gradient lies, how far apart its rows, columns and parts
    are, and how many parts there are. ``rates``: (steps, models, 4), the learning rate, the rate over Adam's first bias
    correction, the root of its second, the weight decay; ``factors``: (models,), times which the sums are gradients.
    Without REDUCE, gradients are read; with REDUCE and OPTIMIZER "none", they are written.
    """
    model = tl.program_id(1).to(tl.int64)
    models = tl.num_programs(1)
    partials += model * partial_model
    table += 9 * tl.program_id(0)
    element = tl.load(table + 1) + tl.arange(0, BLOCK)
    there = element < tl.load(table + 2)
    places = tl.load(table) + element
    moved = there & (tl.load(trained + places, mask=there, other=0) != 0)
    places += model * parameter_model
    if REDUCE:
        columns = tl.load(table + 3)
        source = (
            tl.load(table + 4) + (element // columns) * tl.load(table + 5) + (element % columns) * tl.load(table + 6)
        )
        pitch, count = tl.load(table + 7), tl.load(table + 8)
        gradient = tl.zeros((BLOCK,), ACCUMULATOR)
        for begin in range(0, count, PARTS):
            part = begin + tl.arange(0, PARTS).to(tl.int64)
            some = tl.load(
                partials + part[:, None] * pitch + source[None, :],
                mask=(part < count)[:, None] & there[None, :],
                other=0.0,
            )
            gradient += tl.sum(some, 0)
        gradient *= tl.load(factors + model)
        if OPTIMIZER == "none":
            tl.store(gradients + places, gradient, mask=there)
    else:
        gradient = tl.load(gradients + places, mask=there, other=0.0)
    if OPTIMIZER != "none":
        rates += (step * models + model) * 4
        rate = tl.load(rates)
        weight_decay = tl.load(rates + 3)
        parameter = tl.load(parameters + places, mask=there, other=0.0)
        if OPTIMIZER == "sgd":
            parameter -= rate * (gradient + weight_decay * parameter)
        else:
            if OPTIMIZER == "adam":
                gradient += weight_decay * parameter
            else:
                parameter -= rate * weight_decay * parameter
            mean = tl.load(means + places, mask=there, other=0.0)
            square = tl.load(squares + places, mask=there, other=0.0)
            mean += _constant(mean, 1 - BETA1) * (gradient - mean)
            square = _constant(square, BETA2) * square + _constant(square, 1 - BETA2) * (gradient * gradient)
            tl.store(means + places, mean, mask=moved)
            tl.store(squares + places, square, mask=moved)
            size = tl.sqrt(square) / tl.load(rates + 2) + _constant(square, EPSILON)
            parameter -= tl.load(rates + 1) * (mean / size)
        tl.store(parameters + places, parameter, mask=moved)
        if COPY:
            tl.store(operands + places, parameter.to(operands.dtype.element_ty), mask=moved)
