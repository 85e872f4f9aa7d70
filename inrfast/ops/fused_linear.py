"""A linear layer and its activation in one operation, ``y = act(x W^T + b)``, for any training code.

The pre-activation is never written to memory, and the backward pass keeps what is cheapest: one bit per ReLU unit,
the slope for sine and others, nothing beyond y for tanh and softplus. With backend "triton" the forward pass is one
kernel, the backward pass one and two products of torch's (:mod:`inrfast.ops.triton_linear`). On a CPU large results are
made a chunk of rows at a time (:mod:`inrfast.ops.chunked_linear`), smaller ones by torch's own operations, which are
the fastest there.

On a GPU "auto" takes torch's own operations wherever the kernels were not measured to be faster. On an H100, 65,536
points and 256 to 256 units, the forward kernel takes 1/1.2 of eager PyTorch's time on the GPU in fp16 and 1/1.7 in
fp32, but the host takes some 100 us more to launch it: called by itself it took 2.0 (fp16 ReLU), 1.8 (fp16 sine) and
1.05 times (fp32 sine) as long as eager PyTorch. So "auto" takes the kernels

- for results from :data:`PAYS` bytes on, by up to :data:`PAYS_INPUTS` inputs, where their gain exceeds the host's time;
- for 16-bit tensors and an activation with numbers, such as sine's frequency: torch rounds the pre-activation to 16
  bits and multiplies it by 30, and is off by 1,300 times the bound below. Small layers pay the host's time for that;
- for fp32 of precision "high" while torch's settings let it take TF32.

``torch.compile`` fuses torch's operations by itself: compiled code has the kernels only for the second reason.

Many networks of one shape are one operation: ``torch.vmap`` over weights becomes a model axis.

Error, against the exact result for the numbers given: with u the unit roundoff of the tensors' dtype (of fp32 products,
for 16-bit tensors on a GPU: fp32), ``|dy| <= 4 u |y| + c u sqrt(D) |act'| |x o w|``, where D is the number of inputs,
``|x o w|`` the Euclidean norm of the terms of the product and c = 4, on a GPU 8: its tensor cores truncate (16-bit
tensors round the pre-activation as well where the kernels are not taken: ``u |act'| |pre-activation|`` more).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast import backends
from inrfast.activations import ACTIVATIONS, BoundActivation, bind
from inrfast.errors import check_choice
from inrfast.modes import products_are_full
from inrfast.ops import chunked_linear, triton_linear
from inrfast.ops.batching import as_models, points_of_models

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

PRECISIONS = ("high", "medium")

LARGE = 1 << 25
"""Bytes of a result beyond which a CPU takes chunks of rows: the C library then takes the memory of every temporary
fresh from the system, and touching it costs more than the arithmetic. Below, torch's own operations are the fastest."""

PAYS, PAYS_INPUTS = 1 << 28, 256
"""Bytes of a result on a GPU from which on "auto" takes the kernels, and the most inputs for which it does."""

TINY = 1 << 16
"""Bytes of a result up to which torch's autograd takes longer over an operation in place than over a new tensor."""


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | Mapping[str, Any] | BoundActivation = "relu",
    omega: float | None = None,
    precision: str = "high",
    backend: str = "auto",
) -> Tensor:
    """Return ``act(x W^T + b)``, differentiable (twice, too) in x, W and b; ``torch.func`` and ``torch.compile`` work.

    Parameters
    ----------
    x
        Shape (..., D_in), any strides; fp32, fp64, fp16 or bf16. Under ``torch.autocast`` fp32 tensors are cast as
        ``torch.nn.functional.linear`` casts them.
    weight, bias
        Shapes (D_out, D_in) and (D_out,) or None; dtype and device of x.
    activation
        A name out of :data:`inrfast.activations.ACTIVATIONS`, or ``{"name": ..., **numbers}``.
    omega
        The number ``omega`` of activations that have one, such as sine; None: its default. Sine is accurate to 2 units
        in the last place for ``|omega u| <= 1e3``; on a GPU it is NaN beyond 2^22 (2^40 in fp64).
    precision
        Of fp32 products on a GPU: ``"high"`` is fp32-accurate, whatever torch's global TF32 flags say (they must not
        change between a pass and its backward pass), ``"medium"`` may take TF32.
    backend
        ``"auto"`` (see above), ``"torch"`` or ``"triton"``; a backend asked for by name runs or raises.

    Returns
    -------
    Tensor
        Shape (..., D_out). NaN and Inf pass through as in torch's operations.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not belong together; unknown names.
    NotAvailableError
        A named backend that cannot run here.

    Examples
    --------
    >>> y = fused_linear(torch.rand(5, 2), torch.rand(8, 2), torch.rand(8), "sine", omega=30.0)
    >>> y.shape
    torch.Size([5, 8])
    """
    if not _belong(x, weight, bias):
        _check(x, weight, bias)
    act = activation if isinstance(activation, BoundActivation) else bind(activation, omega)
    if precision not in PRECISIONS:
        check_choice("precision", precision, PRECISIONS)
    kind = x.device.type
    if _casts(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, weight))
        bias = bias if bias is None or bias.dtype == torch.float64 else bias.to(dtype)
        with torch.autocast(kind, enabled=False):
            return _run(x, weight, bias, act, precision, _chosen(x, weight, act, precision, backend))
    return _run(x, weight, bias, act, precision, _chosen(x, weight, act, precision, backend))


def _chosen(x: Tensor, weight: Tensor, act: BoundActivation, precision: str, backend: str) -> str:
    """Return the backend that is taken, or ``"plain"`` for torch's own operations."""
    kind = x.device.type
    if backend == "auto" and kind == "cpu":
        return "torch"
    if backend != "auto" or kind != "cuda":
        return _resolved(act, backend, x.device)
    strict = x.dtype == torch.float32 and precision == "high" and not _tf32_is_off()
    if strict or _pays(x, weight, act):
        found = _resolved(act, backend, x.device)
        return found if found == "triton" or strict else "plain"
    return "plain"


def _tf32_is_off() -> bool:
    """Return whether torch's settings keep fp32 products on a GPU in fp32."""
    if torch.compiler.is_compiling():  # Dynamo reads this setting alone, and compiles anew where it has changed
        return not torch.backends.cuda.matmul.allow_tf32
    return products_are_full()


def _pays(x: Tensor, weight: Tensor, act: BoundActivation) -> bool:
    """Return whether the kernels are faster than torch's operations on a GPU, or alone exact; see the module."""
    if act.kind.device is None:
        return False
    if x.dtype.itemsize == 2 and act.numbers:
        return True
    if x.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    outputs, inputs = weight.shape
    return inputs <= PAYS_INPUTS and x.numel() * outputs * x.element_size() >= PAYS * max(inputs, 1)


def _resolved(act: BoundActivation, backend: str, device: torch.device) -> str:
    """Return the backend that takes this activation."""
    against = None if act.kind.device is not None else f"the activation {act.name!r} has no device function"
    return backends.resolve(backend, device, against)


def _casts(kind: str) -> bool:
    """Return whether autocast is on for a kind of device; torch knows no autocast for tensors without memory."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def _belong(x: Any, weight: Any, bias: Any) -> bool:
    """Return whether tensors make a linear layer, and have one dtype: what nearly every call has, told in one look."""
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        return False
    dtype, device, shape = x.dtype, x.device, weight.shape
    if dtype not in DTYPES or weight.dtype is not dtype or weight.device != device:
        return False
    if len(shape) != 2 or x.ndim < 1 or x.shape[-1] != shape[1]:
        return False
    return bias is None or (bias.dtype is dtype and bias.device == device and bias.shape == shape[:1])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise for tensors that do not make a linear layer."""
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        if t is None and name == "bias":
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in DTYPES:
            raise TypeError(f"{name} must be fp16, bf16, fp32 or fp64, got {t.dtype}")
        if t is not x and t.device != x.device:
            raise ValueError(f"{name} is on {t.device} but x is on {x.device}")
        if t.dtype != x.dtype and not _casts(x.device.type):
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}")
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x and weight must have shapes (..., D_in) and (D_out, D_in), got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({len(weight)},), got {tuple(bias.shape)}")


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: BoundActivation, precision: str, backend: str
) -> Tensor:  # fmt: skip
    if backend == "plain":
        return _by_torch(F.linear(x, weight, bias), act)
    if torch.compiler.is_exporting() and backend == "torch":  # for any number of points; it loads without this library
        return act.value(F.linear(x, weight, bias))
    if backend == "torch" and x.device.type == "cpu":
        u_bytes = x.numel() * weight.shape[0] * x.element_size()  # times the number of inputs
        if act.kind.keeps == "nothing" or u_bytes <= LARGE * x.shape[-1]:
            u = F.linear(x, weight, bias)
            return act.value(u) if u_bytes <= TINY * x.shape[-1] else _by_torch(u, act)
    if torch.compiler.is_compiling():
        # Dynamo takes operators whole, and would refuse the Function for its forward mode.
        return torch.ops.inrfast.fused_linear(x, weight, bias, act.name, act.numbers, precision, backend)
    if not _is_plain(x, weight, bias):
        return _by_operators(x, weight, bias, act, precision, backend)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Eager.apply(x, weight, bias, act, precision, backend)
    y, _ = _forward(*_as_model(x, weight, bias), act.name, act.numbers, precision, backend, False)
    return y.view(*x.shape[:-1], weight.shape[0])


def _is_plain(*tensors: Tensor | None) -> bool:
    """Return whether nothing looks on: no transform, tracer, mode or subclass that must see the operators.

    torch tells that by names that are not public; where one is gone, nobody knows, and the operators are taken.
    """
    try:
        return (
            all(t is None or type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)
            and torch._C._len_torch_dispatch_stack() == 0
            and torch._C._functorch.peek_interpreter_stack() is None
            and torch.autograd.forward_ad._current_level < 0
            and torch._C._get_tracing_state() is None
        )
    except AttributeError:
        return False


def _as_model(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the tensors of a layer as those of one model."""
    return x.reshape(1, -1, x.shape[-1]), weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0)


def _by_torch(u: Tensor, act: BoundActivation) -> Tensor:
    """Return the activation of a fresh pre-activation by torch's operations, in its memory where autograd allows."""
    if act.name == "relu":
        return F.relu(u, inplace=True)
    if act.name == "tanh":
        return u.tanh_()
    if act.name == "sine":
        return torch.sin(u.mul_(act.numbers[0]))
    return act.value(u)


def _by_operators(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: BoundActivation, precision: str, backend: str
) -> Tensor:
    """Return the layer's result by the operators below, as one model's."""
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    y, _ = _FusedLinear.apply(*_as_model(x, weight, bias), act, precision, backend, keep)
    return y.view(*x.shape[:-1], len(weight))


def _operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "relu",
    numbers: Sequence[float] = (),
    precision: str = "high",
    backend: str = "auto",
) -> Tensor:
    act = BoundActivation(ACTIVATIONS[activation], tuple(numbers))
    chosen = _chosen(x, weight, act, precision, backend)
    if chosen == "plain":
        return _by_torch(F.linear(x, weight, bias), act)
    return _by_operators(x, weight, bias, act, precision, chosen)


_library = torch.library.Library("inrfast", "FRAGMENT")
_library.define(
    "fused_linear(Tensor x, Tensor weight, Tensor? bias=None, str activation='relu', float[] numbers=[], "
    "str precision='high', str backend='auto') -> Tensor"
)
_library.impl("fused_linear", _operator, "CompositeImplicitAutograd")
# Transforms of torch.func must see the Function below, not the operators inside it.
_library.impl("fused_linear", _operator, "FuncTorchDynamicLayerFrontMode")


# ---- derivatives -------------------------------------------------------------------------------------------------


class _FusedLinear(torch.autograd.Function):
    """The layer of several models; the second result is what the backward pass needs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        act: BoundActivation,
        precision: str,
        backend: str,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        return fused_linear_forward(x, weight, bias, act.name, act.numbers, precision, backend, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, *ctx.settings, _ = inputs
        y, saved = output
        act, _, backend = ctx.settings
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        tensors = x, weight, bias, y if kept(act.name, backend) == "result" else saved
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)  # the same ones: under vmap torch remembers one set

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> Any:
        x, weight, bias, saved = ctx.saved_tensors
        if gradient is None:
            return (None,) * 7
        needs = [needed and t is not None for needed, t in zip(ctx.needs_input_grad, (x, weight, bias), strict=False)]
        found = _Gradients.apply(gradient, x, weight, bias, saved, *ctx.settings, *needs)
        shared = needs[0] and len(x) < len(weight)
        dx = found[0].sum(0, keepdim=True) if shared else found[0]
        return (*(t if needed else None for t, needed in zip((dx, *found[1:]), needs, strict=True)), *[None] * 4)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, *_: None) -> Any:
        x, weight, bias, _ = ctx.saved_tensors
        u = _linear(x, weight, bias)
        du = torch.zeros_like(u)
        if dx is not None:
            du = du + dx @ weight.mT
        if dw is not None:
            du = du + x @ dw.mT
        if db is not None:
            du = du + db.unsqueeze(1)
        return ctx.settings[0].slope(u) * du, None


class _Gradients(torch.autograd.Function):
    """``dL/dx``, ``dL/dW`` and ``dL/db`` of the layer; their own derivatives are those of the reference formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        saved: Tensor,
        act: BoundActivation,
        precision: str,
        backend: str,
        *needs: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return fused_linear_backward(gradient, x, weight, saved, act.name, act.numbers, precision, backend, needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        gradient, x, weight, bias, _, ctx.act, _, _, *ctx.needs = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, x, weight, bias)
        ctx.save_for_forward(gradient, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        given = [t for t in ctx.saved_tensors if t is not None]
        wanted = [needed and v is not None for needed, v in zip(ctx.needs, cotangents, strict=True)]
        if not any(wanted):
            return (None,) * 11

        def reference(*tensors: Tensor) -> list[Tensor]:
            made = fused_linear_backward_reference(*tensors, act=ctx.act)
            return [t for t, needed in zip(made, wanted, strict=True) if needed]

        _, pull_back, *_ = torch.func.vjp(reference, *given)
        found = pull_back([v for v, needed in zip(cotangents, wanted, strict=True) if needed])
        return (*found, *[None] * (11 - len(found)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        given = [t for t in ctx.saved_tensors if t is not None]
        moved = [torch.zeros_like(t) if dt is None else dt for t, dt in zip(given, tangents, strict=False)]
        reference = functools.partial(fused_linear_backward_reference, act=ctx.act)
        _, found, *_ = torch.func.jvp(reference, tuple(given), tuple(moved))
        return tuple(t if needed else t[:, :0] for t, needed in zip(found, ctx.needs, strict=True))


class _Eager(torch.autograd.Function):
    """The layer of one model where nothing but autograd looks on: the operators' own functions, called directly.

    Passing an operator and a Function that ``torch.func`` can see takes the host several times as long as a kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        act: BoundActivation,
        precision: str,
        backend: str,
    ) -> Tensor:
        y, saved = _forward(*_as_model(x, weight, bias), act.name, act.numbers, precision, backend, True)
        y = y.view(*x.shape[:-1], weight.shape[0])
        ctx.settings = act, precision, backend
        ctx.save_for_backward(x, weight, bias, y if kept(act.name, backend) == "result" else saved)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, bias, saved = ctx.saved_tensors
        needs = [needed and t is not None for needed, t in zip(ctx.needs_input_grad, (x, weight, bias), strict=False)]
        flat, (rows, weights, biases) = gradient.reshape(1, -1, weight.shape[0]), _as_model(x, weight, bias)
        saved = saved.reshape(1, flat.shape[1], saved.shape[-1])
        act, precision, backend = ctx.settings
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            dx, dw, db = _Gradients.apply(flat, rows, weights, biases, saved, *ctx.settings, *needs)
        else:
            dx, dw, db = _backward(flat, rows, weights, saved, act.name, act.numbers, precision, backend, needs)
        dx, dw, db = dx.view(x.shape) if needs[0] else None, dw[0] if needs[1] else None, db[0] if needs[2] else None
        return dx, dw, db, None, None, None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + b`` of several models, with torch's own derivatives."""
    u = x @ weight.mT
    return u if bias is None else u + bias.unsqueeze(1)


def fused_linear_backward_reference(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, act: BoundActivation
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``e W``, ``e^T x`` and ``sum e`` with ``e = dL/dy * act'(x W^T + b)``, model by model."""
    errors = gradient * act.slope(_linear(x, weight, bias))
    return errors @ weight, errors.mT @ x, errors.sum(1)


# ---- operators ---------------------------------------------------------------------------------------------------


def kept(activation: str, backend: str) -> str:
    """Return what the backward pass needs of an activation: ``"nothing"``, ``"result"``, ``"mask"`` or ``"slope"``."""
    keeps = ACTIVATIONS[activation].keeps
    return "result" if keeps == "mask" and backend == "torch" else keeps


def _saved(y: Tensor, activation: str, backend: str, keep: bool) -> Tensor:
    """Return memory for what the backward pass needs beside y: (models, n, columns), without columns for nothing."""
    what = kept(activation, backend) if keep else "nothing"
    if what == "mask":
        return y.new_empty(*y.shape[:2], -(-y.shape[2] // 8), dtype=torch.uint8)
    return torch.empty_like(y) if what == "slope" else y.new_empty(*y.shape[:2], 0)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    numbers: Sequence[float],
    precision: str,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Return ``act(x W^T + b)`` (models, n, D_out) and, if ``keep``, what the backward pass needs beside it.

    ``x`` is (models or 1, n, D_in), ``weight`` (models, D_out, D_in), ``bias`` (models, D_out).
    """
    y = x.new_empty(len(weight), x.shape[1], weight.shape[1])
    saved = _saved(y, activation, backend, keep)
    if backend == "triton":
        what = kept(activation, backend)
        triton_linear.forward_(x, weight, bias, activation, numbers, precision, y, saved, what)
        return y, saved
    slope, act = saved if saved.numel() else None, BoundActivation(ACTIVATIONS[activation], tuple(numbers))
    for index in range(len(weight)):
        b = None if bias is None else bias[index]
        layer = x[index if len(x) > 1 else 0], weight[index], b
        chunked_linear.forward_(*layer, act, precision, y[index], None if slope is None else slope[index])
    return y, saved


fused_linear_forward = torch.library.custom_op("inrfast::fused_linear_forward", _forward, mutates_args=())


@fused_linear_forward.register_fake
def _(x, weight, bias, activation, numbers, precision, backend, keep):  # type: ignore[no-untyped-def]
    y = x.new_empty(len(weight), x.shape[1], weight.shape[1])
    return y, _saved(y, activation, backend, keep)


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    activation: str,
    numbers: Sequence[float],
    precision: str,
    backend: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``dL/dx`` (models, n, D_in), ``dL/dW`` and ``dL/db``, each without entries where ``needs`` says so.

    ``gradient`` is ``dL/dy`` (models, n, D_out); ``saved`` what the forward pass kept, or y where that is enough.
    """
    dx, dw, db = _gradients(x, weight, needs)
    if backend == "triton":
        wanted = (t if needed else None for t, needed in zip((dx, dw, db), needs, strict=True))
        triton_linear.backward_(gradient, x, weight, saved, activation, precision, kept(activation, backend), *wanted)
        return dx, dw, db
    for index in range(len(weight)):
        chunked_linear.backward_(
            gradient[index],
            x[index if len(x) > 1 else 0],
            weight[index],
            saved[index],
            ACTIVATIONS[activation],
            precision,
            dx[index] if needs[0] else None,
            dw[index] if needs[1] else None,
            db[index] if needs[2] else None,
        )
    return dx, dw, db


fused_linear_backward = torch.library.custom_op("inrfast::fused_linear_backward", _backward, mutates_args=())


@fused_linear_backward.register_fake
def _(gradient, x, weight, saved, activation, numbers, precision, backend, needs):  # type: ignore[no-untyped-def]
    return _gradients(x, weight, needs)


def _gradients(x: Tensor, weight: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory for the gradients; one that is not needed has no entries."""
    models, outputs, inputs = weight.shape
    dx = x.new_empty(models, x.shape[1] * needs[0], inputs)
    return dx, weight.new_empty(models, outputs * needs[1], inputs), weight.new_empty(models, outputs * needs[2])


def _as_rows(size: int, dim: int | None, t: Tensor) -> Tensor:
    """Return one model's tensor (1, n, columns) with its batch as more rows."""
    t = t.unsqueeze(1).expand(-1, size, -1, -1) if dim is None else t.movedim(dim, 1)
    return t.flatten(1, 2)


def _from_rows(size: int, t: Tensor) -> Tensor:
    return t.unflatten(1, (size, t.shape[1] // size))


@fused_linear_forward.register_vmap
def _(info, in_dims, x, weight, bias, *settings):  # type: ignore[no-untyped-def]
    if in_dims[1] is None and in_dims[2] is None and len(weight) == 1:
        found = fused_linear_forward(_as_rows(info.batch_size, in_dims[0], x), weight, bias, *settings)
        return tuple(_from_rows(info.batch_size, t) for t in found), (1, 1)
    size = info.batch_size
    w, b = as_models(size, in_dims[1:3], (weight, bias))
    models = len(w) // size
    found = fused_linear_forward(points_of_models(size, in_dims[0], x, models), w, b, *settings)
    return tuple(t.unflatten(0, (size, models)) for t in found), (0, 0)


@fused_linear_backward.register_vmap
def _(info, in_dims, gradient, x, weight, saved, *settings):  # type: ignore[no-untyped-def]
    needs = settings[-1]
    if in_dims[2] is None and len(weight) == 1 and not (needs[1] or needs[2]):
        rows = [_as_rows(info.batch_size, in_dims[k], t) for k, t in ((0, gradient), (1, x), (3, saved))]
        dx, dw, db = fused_linear_backward(rows[0], rows[1], weight, rows[2], *settings)
        return (_from_rows(info.batch_size, dx), dw, db), (1, None, None)
    size = info.batch_size
    g, w, s = as_models(size, (in_dims[0], in_dims[2], in_dims[3]), (gradient, weight, saved))
    models = len(w) // size
    found = fused_linear_backward(g, points_of_models(size, in_dims[1], x, models), w, s, *settings)
    return tuple(t.unflatten(0, (size, models)) for t in found), (0, 0, 0)
