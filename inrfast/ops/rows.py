"""One layer's Jacobian block, written with its factors: rows, ``J p``, ``J^T v`` and blocks of them.

A block's row of point n and output m is ``S[n, m] (x) Z[n]`` (row-wise Khatri-Rao product, Slyusar's face-splitting
product), reshaped to the (b, a) matrix of the layer's parameters. ``features`` is Z (n, a), None for a column of
ones; ``sensitivities`` is S (n, M, b), None for the identity (b = M). With ``bias`` the block has one column more
than the features, for a column of ones after them.

:func:`jacobian_rows`, :func:`jacobian_product` and :func:`jacobian_transposed_product` are multilinear and
differentiable as often as asked, in both modes, under ``torch.func`` and ``torch.compile``. Each is a Triton kernel
on a GPU (and where Triton interprets), else the function of plain torch above it. Kernels are operators of their
own, named with an underscore, which no derivative goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from inrfast import backends
from inrfast.memory import chunks
from inrfast.ops import sparse_rows
from inrfast.ops.batching import as_models
from inrfast.ops.gemm import addmm_, exact_products, product
from inrfast.ops.sparse_rows import is_sparse

CACHE_ELEMENTS = 1 << 18
"""Scratch of a scaled factor in elements: 1 MiB of fp32, half the second-level cache of a current core."""


# ---- plain torch -------------------------------------------------------------------------------------------------


def rows_(out: Tensor, features: Tensor | None, sensitivities: Tensor | None) -> None:
    """Write the Jacobian block into ``out`` (n, M, b, a), any strides."""
    if is_sparse(features):
        assert features is not None and sensitivities is not None
        sparse_rows.write_(out.squeeze(3), features, sensitivities)
    elif sensitivities is None:
        out.zero_()
        diagonal = out.diagonal(dim1=1, dim2=2)  # (n, a, b)
        if features is None:
            diagonal.fill_(1)
        else:
            diagonal.copy_(features.unsqueeze(2))
    elif features is None:
        out.copy_(sensitivities.unsqueeze(3))
    else:
        torch.mul(sensitivities.unsqueeze(3), features[:, None, None, :], out=out)


def rows(features: Tensor | None, sensitivities: Tensor | None, outputs: int) -> Tensor:
    """Return the Jacobian block itself, shape (n, M, b, a)."""
    given = features if features is not None else sensitivities
    assert given is not None
    b = outputs if sensitivities is None else sensitivities.shape[2]
    out = given.new_empty(len(given), outputs, b, 1 if features is None else features.shape[1])
    rows_(out, features, sensitivities)
    return out


def jvp(features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor, bias: bool = False) -> Tensor:
    """Return ``J p`` (n, M, k) of one block for k parameter blocks (k, b, a)."""
    k, b, _ = parameters.shape
    with exact_products(parameters.device):
        if is_sparse(features):
            assert features is not None and sensitivities is not None
            return sparse_rows.product(features, sensitivities, parameters.squeeze(2))
        if features is None:
            assert sensitivities is not None
            return sensitivities @ parameters.reshape(k, b).t()
        if bias:
            mixed = [torch.addmm(p[:, -1], features, p[:, :-1].t()) for p in parameters]
        else:
            mixed = [features @ p.t() for p in parameters]
        if sensitivities is not None:
            mixed = [(z.unsqueeze(1) * sensitivities).sum(-1) for z in mixed]
        shape = (len(features), b if sensitivities is None else sensitivities.shape[1], 0)
        return torch.stack(mixed, dim=-1) if mixed else features.new_empty(shape)


def vjp(
    features: Tensor | None, sensitivities: Tensor | None, cotangents: Tensor, bias: bool = False, rows: int = 0
) -> Tensor:
    """Return ``J^T v`` (k, b, a) of one block for k cotangents (n, M, k): outputs are summed before the product.

    ``rows`` is the height b of the block, which sparse rows do not tell.
    """
    if is_sparse(features):
        assert features is not None and sensitivities is not None
        sums = cotangents.new_zeros(cotangents.shape[2], rows)
        sparse_rows.add_transposed_product_(sums, features, sensitivities, cotangents)
        return sums.unsqueeze(2)
    v = cotangents.permute(2, 0, 1)  # (k, n, M)
    with exact_products(cotangents.device):
        weighted = v if sensitivities is None else torch.einsum("knm,nmb->knb", v, sensitivities)
        if features is None:
            return weighted.sum(1).unsqueeze(-1)
        out = features.new_empty(len(weighted), weighted.shape[2], features.shape[1] + bias)
        weight = out[..., :-1] if bias else out
        for w, into in zip(weighted, weight, strict=True):
            torch.mm(w.t(), features, out=into)
        if bias:
            torch.sum(weighted, 1, out=out[..., -1])
        return out


def scratch_for(n: int, widths: Iterable[tuple[int, int]], like: Tensor) -> Tensor:
    """Return the scratch of the two functions below for chunks of n points and factors of the given widths (a, b)."""
    smaller = max((min(a, b) for a, b in widths), default=1)
    return like.new_empty(max(CACHE_ELEMENTS, n * smaller))


def block_vjp_(out: Tensor, features: Tensor | None, sensitivities: Tensor | None, v: Tensor, scratch: Tensor) -> None:
    """Add ``J_m^T V`` to ``out`` (k, b, a) for one output: ``sensitivities`` (n, b) or None (b = 1), ``v`` (n, k).

    The smaller factor is scaled by the columns of v, a few columns at a time so that the scratch stays in cache;
    the rest is matrix products.
    """
    k, b, a = out.shape
    n = len(v)
    if is_sparse(features):
        assert features is not None and sensitivities is not None
        sparse_rows.add_transposed_product_(out.squeeze(2), features, sensitivities.unsqueeze(1), v.unsqueeze(1))
        return
    if features is None or sensitivities is None:
        (factor,) = [f for f in (features, sensitivities) if f is not None]
        addmm_(out.view(k, -1), v.t(), factor)
        return
    small, large = (features, sensitivities) if a < b else (sensitivities, features)
    width = small.shape[1]
    # Scaled features give (k, a, b): gathered there and turned over at the end.
    gathered = out.new_zeros(k, a, b) if a < b else out
    for columns in chunks(k, max(1, len(scratch) // (n * width))):
        count = columns.stop - columns.start
        scaled = scratch[: n * count * width].view(n, count, width)
        torch.mul(v[:, columns].unsqueeze(2), small.unsqueeze(1), out=scaled)
        addmm_(gathered[columns].view(count * width, -1), scaled.view(n, -1).t(), large)
    if gathered is not out:
        out.add_(gathered.transpose(1, 2))


def block_jvp_(
    out: Tensor, features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor, scratch: Tensor
) -> None:
    """Add ``J_m P`` to ``out`` (n, k) for one output and k parameter blocks (k, b, a); the mirror of the above."""
    k, b, a = parameters.shape
    n = len(out)
    if is_sparse(features):
        assert features is not None and sensitivities is not None
        out.add_(sparse_rows.product(features, sensitivities.unsqueeze(1), parameters.squeeze(2)).squeeze(1))
        return
    if features is None or sensitivities is None:
        (factor,) = [f for f in (features, sensitivities) if f is not None]
        addmm_(out, factor, parameters.reshape(k, -1).t())
        return
    if a < b:
        small, large, weights = features, sensitivities, parameters.transpose(1, 2).reshape(k * a, b)
    else:
        small, large, weights = sensitivities, features, parameters.reshape(k * b, a)
    width = small.shape[1]
    for columns in chunks(k, max(1, len(scratch) // (n * width))):
        count = columns.stop - columns.start
        mixed = scratch[: n * count * width].view(n, count * width)
        mixed = product(large, weights[columns.start * width : columns.stop * width].t(), mixed)
        out[:, columns].add_(mixed.view(n, count, width).mul_(small.unsqueeze(1)).sum(-1))


# ---- the operators that compute ----------------------------------------------------------------------------------


def _by_kernel(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    on = tensor.device.type == "cuda" or (tensor.device.type == "cpu" and backends.interpreted())
    return on and tensor.dtype in dtypes and backends.reason_against_triton(tensor.device) is None


ROW_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PRODUCT_DTYPES = (torch.float32, torch.float64)


def _dense(tensor: Tensor | None) -> Tensor | None:
    """Return a factor whose last stride is 1, as the kernels read it."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


@torch.library.custom_op("inrfast::jacobian_rows_", mutates_args=("out",))
def _jacobian_rows_(out: Tensor, features: Tensor | None, sensitivities: Tensor | None) -> None:
    *_, b, a = out.shape
    if _by_kernel(out, ROW_DTYPES) and (a == 1 or out.stride(3) == 1) and (b == 1 or out.stride(2) == a):
        from inrfast.kernels import rows as kernel  # imports triton

        with backends.launching_on(out.device):
            kernel.launch_rows(out, _dense(features), _dense(sensitivities))
    else:
        rows_(out, features, sensitivities)


@torch.library.custom_op("inrfast::_jacobian_rows", mutates_args=())
def _jacobian_rows(features: Tensor | None, sensitivities: Tensor | None, outputs: int) -> Tensor:
    out = _empty_rows(features, sensitivities, outputs)
    _jacobian_rows_(out, features, sensitivities)
    return out


@_jacobian_rows.register_fake
def _empty_rows(features: Tensor | None, sensitivities: Tensor | None, outputs: int) -> Tensor:
    given = features if features is not None else sensitivities
    assert given is not None
    b = outputs if sensitivities is None else sensitivities.shape[2]
    return given.new_empty(given.shape[0], outputs, b, 1 if features is None else features.shape[1])


@torch.library.custom_op("inrfast::_jacobian_product", mutates_args=())
def product_of_models(features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor, bias: bool) -> Tensor:
    """Return ``J p`` of several models, the first axis of every tensor; no derivative goes through."""
    if _by_kernel(parameters, PRODUCT_DTYPES):
        from inrfast.kernels import rows as kernel  # imports triton

        out = _empty_product(features, sensitivities, parameters, bias).zero_()
        with backends.launching_on(out.device):
            rest = _dense(features), _dense(sensitivities), _dense(parameters)
            kernel.launch_product(out, *rest, bias or features is None)
        return out
    return _each_model(jvp, features, sensitivities, parameters, bias)


@product_of_models.register_fake
def _empty_product(features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor, bias: bool) -> Tensor:
    given = features if features is not None else sensitivities
    assert given is not None
    models, k, b, _ = parameters.shape
    return parameters.new_empty(models, given.shape[1], b if sensitivities is None else sensitivities.shape[2], k)


@torch.library.custom_op("inrfast::_jacobian_transposed_product", mutates_args=())
def transposed_product_of_models(
    features: Tensor | None, sensitivities: Tensor | None, cotangents: Tensor, bias: bool
) -> Tensor:
    """Return ``J^T v`` of several models, the first axis of every tensor; no derivative goes through."""
    if _by_kernel(cotangents, PRODUCT_DTYPES):
        from inrfast.kernels import rows as kernel  # imports triton

        with backends.launching_on(cotangents.device):
            partial = kernel.launch_transposed_product(
                _dense(features), _dense(sensitivities), cotangents, bias or features is None
            )
        return partial.sum(2, dtype=torch.float64).to(cotangents.dtype)
    return _each_model(vjp, features, sensitivities, cotangents, bias)


@transposed_product_of_models.register_fake
def _empty_transposed_product(
    features: Tensor | None, sensitivities: Tensor | None, cotangents: Tensor, bias: bool
) -> Tensor:
    models, _, outputs, k = cotangents.shape
    b = outputs if sensitivities is None else sensitivities.shape[3]
    return cotangents.new_empty(models, k, b, 1 if features is None else features.shape[2] + bias)


def _each_model(
    function: Callable[..., Tensor], features: Tensor | None, sensitivities: Tensor | None, others: Tensor, bias: bool
) -> Tensor:
    def of(factor: Tensor | None, model: int) -> Tensor | None:
        return None if factor is None else factor[model]

    return torch.stack([function(of(features, i), of(sensitivities, i), x, bias) for i, x in enumerate(others)])


# ---- derivatives -------------------------------------------------------------------------------------------------

Gradients = tuple[Tensor | None, ...]


class _Rows(torch.autograd.Function):
    """``out[n, m, b, a] = S[n, m, b] Z[n, a]``, linear in S and in Z."""

    @staticmethod
    def forward(features: Tensor | None, sensitivities: Tensor | None, outputs: int) -> Tensor:
        return _jacobian_rows(features, sensitivities, outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.outputs = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (g,) = gradients
        z, s = ctx.saved_tensors
        of_z = of_s = None
        if ctx.needs_input_grad[0]:
            of_z = g.diagonal(dim1=1, dim2=2).sum(-1) if s is None else torch.einsum("nmba,nmb->na", g, s)
        if ctx.needs_input_grad[1]:
            of_s = g.squeeze(3) if z is None else torch.einsum("nmba,na->nmb", g, z)
        return of_z, of_s, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        z, s = ctx.saved_tensors
        dz, ds, _ = tangents
        terms = [_Rows.apply(dz, s, ctx.outputs)] if dz is not None else []
        terms += [_Rows.apply(z, ds, ctx.outputs)] if ds is not None else []
        return _total(terms)

    @staticmethod
    def vmap(info: Any, in_dims: Any, features: Any, sensitivities: Any, outputs: int) -> tuple[Tensor, int]:
        folded = as_models(info.batch_size, in_dims[:2], (features, sensitivities))
        return _Rows.apply(*folded, outputs).unflatten(0, (info.batch_size, -1)), 0


def _by_features(s: Tensor | None, p: Tensor, v: Tensor, bias: bool) -> Tensor:
    """Return the derivative of ``sum v (J p)`` by the features (models, n, a)."""
    weighted = v.transpose(2, 3) if s is None else torch.einsum("gnmk,gnmb->gnkb", v, s)
    return torch.einsum("gnkb,gkba->gna", weighted, p[..., :-1] if bias else p)


def _by_sensitivities(z: Tensor | None, p: Tensor, v: Tensor, bias: bool) -> Tensor:
    """Return the derivative of ``sum v (J p)`` by the sensitivities (models, n, M, b)."""
    if z is None:
        return torch.einsum("gnmk,gkb->gnmb", v, p[..., 0])
    mixed = torch.einsum("gna,gkba->gnkb", z, p[..., :-1] if bias else p)
    if bias:
        mixed = mixed + p[..., -1].unsqueeze(1)
    return torch.einsum("gnmk,gnkb->gnmb", v, mixed)


def _total(terms: list[Tensor]) -> Tensor:
    """Return the sum of a derivative's terms, one a factor that moves."""
    return sum(terms[1:], terms[0])


class _Product(torch.autograd.Function):
    """``out[n, m, k] = sum_(b, a) S[n, m, b] [Z[n], 1][a] P[k, b, a]`` of several models, linear in S and in P."""

    @staticmethod
    def forward(features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor, bias: bool) -> Tensor:
        return product_of_models(features, sensitivities, parameters, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])
        ctx.bias = inputs[3]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (v,) = gradients
        z, s, p = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _by_features(s, p, v, ctx.bias) if needs[0] else None,
            _by_sensitivities(z, p, v, ctx.bias) if needs[1] else None,
            _TransposedProduct.apply(z, s, v, ctx.bias) if needs[2] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        z, s, p = ctx.saved_tensors
        dz, ds, dp, _ = tangents
        terms = []
        if dz is not None:  # the column of ones does not move
            terms.append(_Product.apply(dz, s, p[..., :-1] if ctx.bias else p, False))
        if ds is not None:
            terms.append(_Product.apply(z, ds, p, ctx.bias))
        if dp is not None:
            terms.append(_Product.apply(z, s, dp, ctx.bias))
        return _total(terms)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
        folded = as_models(info.batch_size, in_dims[:3], arguments[:3])
        return _Product.apply(*folded, arguments[3]).unflatten(0, (info.batch_size, -1)), 0


class _TransposedProduct(torch.autograd.Function):
    """``out[k, b, a] = sum_(n, m) v[n, m, k] S[n, m, b] [Z[n], 1][a]`` of several models, linear in S and in v."""

    @staticmethod
    def forward(features: Tensor | None, sensitivities: Tensor | None, cotangents: Tensor, bias: bool) -> Tensor:
        return transposed_product_of_models(features, sensitivities, cotangents, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Product.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (p,) = gradients
        z, s, v = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _by_features(s, p, v, ctx.bias) if needs[0] else None,
            _by_sensitivities(z, p, v, ctx.bias) if needs[1] else None,
            _Product.apply(z, s, p, ctx.bias) if needs[2] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        z, s, v = ctx.saved_tensors
        dz, ds, dv, _ = tangents
        terms = []
        if dz is not None:  # the column of ones does not move
            moved = _TransposedProduct.apply(dz, s, v, False)
            terms.append(torch.nn.functional.pad(moved, (0, 1)) if ctx.bias else moved)
        if ds is not None:
            terms.append(_TransposedProduct.apply(z, ds, v, ctx.bias))
        if dv is not None:
            terms.append(_TransposedProduct.apply(z, s, dv, ctx.bias))
        return _total(terms)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
        folded = as_models(info.batch_size, in_dims[:3], arguments[:3])
        return _TransposedProduct.apply(*folded, arguments[3]).unflatten(0, (info.batch_size, -1)), 0


# ---- public functions --------------------------------------------------------------------------------------------


def jacobian_rows(features: Tensor | None, sensitivities: Tensor | None, outputs: int) -> Tensor:
    """Return the Jacobian block, shape (n, M, b, a): ``out[n, m, b, a] = S[n, m, b] Z[n, a]``.

    Parameters
    ----------
    features
        Z (n, a), or None for a column of ones (a = 1).
    sensitivities
        S (n, M, b), or None for the identity (b = M).
    outputs
        M.

    Raises
    ------
    ValueError
        Both factors are None, or shapes, dtypes or devices do not fit together.
    """
    return torch.ops.inrfast.jacobian_rows(features, sensitivities, outputs)


def jacobian_rows_(out: Tensor, features: Tensor | None, sensitivities: Tensor | None) -> Tensor:
    """Write what :func:`jacobian_rows` returns into ``out`` (n, M, b, a), for instance a part of larger rows.

    Any strides; those of a part of a matrix's columns, (b, a) contiguous in each row, take the kernel. ``out`` gives
    the sizes, so both factors may be None. No derivative goes through it.

    Raises
    ------
    ValueError
        The factors do not fit ``out``, or one of them needs a gradient.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, features, sensitivities)):
        raise ValueError("jacobian_rows_ writes in place, outside of autograd; use jacobian_rows for derivatives")
    _fit("out", out, (None, None, None, None), out)
    n, outputs, b, a = out.shape
    if (features is None and a != 1) or (sensitivities is None and b != outputs):
        raise ValueError(
            f"out must be (n, M, b, 1) without features, (n, M, M, a) without sensitivities, got {out.shape}"
        )
    _fit("features", features, (n, a), out)
    _fit("sensitivities", sensitivities, (n, outputs, b), out)
    _jacobian_rows_(out, features, sensitivities)
    return out


def jacobian_product(
    features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor, bias: bool = False
) -> Tensor:
    """Return ``J p`` (n, M, k): ``sum_b S[n, m, b] (Z[n] . P[k, b])``, writing no row.

    Parameters
    ----------
    features, sensitivities
        As in :func:`jacobian_rows`.
    parameters
        P (k, b, a), with ``bias`` (k, b, a + 1).
    bias
        Whether a column of ones stands after the features; without features the ones are all there is.

    Raises
    ------
    ValueError
        As in :func:`jacobian_rows`.
    """
    return torch.ops.inrfast.jacobian_product(features, sensitivities, parameters, bias)


def jacobian_transposed_product(
    features: Tensor | None, sensitivities: Tensor | None, cotangents: Tensor, bias: bool = False
) -> Tensor:
    """Return ``J^T v`` (k, b, a): ``sum_n (sum_m v[n, m, k] S[n, m, b]) Z[n, a]``, writing no row.

    On a GPU points are summed in a number of ranges fixed by the shapes, and the ranges in order: deterministic.

    Parameters
    ----------
    features, sensitivities
        As in :func:`jacobian_rows`.
    cotangents
        v (n, M, k).
    bias
        Whether a column of ones stands after the features; the result is then (k, b, a + 1).

    Raises
    ------
    ValueError
        As in :func:`jacobian_rows`.
    """
    return torch.ops.inrfast.jacobian_transposed_product(features, sensitivities, cotangents, bias)


def _given(features: Tensor | None, sensitivities: Tensor | None) -> Tensor:
    given = features if features is not None else sensitivities
    if given is None:
        raise ValueError("features and sensitivities must not both be None: how many points are there?")
    return given


def _fit(name: str, tensor: Tensor | None, shape: tuple[int | None, ...], like: Tensor) -> None:
    """Raise unless a tensor has this shape (None: any size), and the dtype and device of another."""
    if tensor is None:
        return
    sizes = tensor.shape
    if len(sizes) != len(shape) or any(want not in (None, size) for size, want in zip(sizes, shape, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(sizes)}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, others are {like.dtype} on {like.device}")


def _differentiable_rows(features: Tensor | None, sensitivities: Tensor | None, outputs: int) -> Tensor:
    given = _given(features, sensitivities)
    _fit("features", features, (given.shape[0], None), given)
    _fit("sensitivities", sensitivities, (given.shape[0], outputs, None), given)
    return _Rows.apply(features, sensitivities, outputs)


def _one(factor: Tensor | None) -> Tensor | None:
    """Return a factor as that of one model of several."""
    return None if factor is None else factor.unsqueeze(0)


def _differentiable_product(
    features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor, bias: bool = False
) -> Tensor:
    given = _given(features, sensitivities)
    _fit("parameters", parameters, (None, None, None if features is not None else 1), given)
    _, b, width = parameters.shape
    _fit("features", features, (given.shape[0], width - bias), given)
    _fit("sensitivities", sensitivities, (given.shape[0], None, b), given)
    return _Product.apply(_one(features), _one(sensitivities), parameters.unsqueeze(0), _bias(features, bias)).squeeze(
        0
    )


def _differentiable_transposed_product(
    features: Tensor | None, sensitivities: Tensor | None, cotangents: Tensor, bias: bool = False
) -> Tensor:
    given = _given(features, sensitivities)
    n = given.shape[0]
    _fit("cotangents", cotangents, (n, None, None), given)
    _fit("features", features, (n, None), given)
    _fit("sensitivities", sensitivities, (n, cotangents.shape[1], None), given)
    arguments = _one(features), _one(sensitivities), cotangents.unsqueeze(0), _bias(features, bias)
    return _TransposedProduct.apply(*arguments).squeeze(0)


def _bias(features: Tensor | None, bias: bool) -> bool:
    """Return whether ones stand after the features: alone, they are the features."""
    return bias and features is not None


def _refuse(*arguments: object) -> None:
    raise RuntimeError("torch.func goes through jacobian_rows, jacobian_product and jacobian_transposed_product only")


# An operator made with register_autograd fails under torch.func.grad and has zero tangents under torch.func.jvp; so do
# operators that are plain torch inside. What works in every case: an autograd.Function, entered before torch.func
# takes its layers apart, while the operators that compute refuse to be entered there.
_LIBRARY = torch.library.Library("inrfast", "FRAGMENT")
_FACTORS = "Tensor? features, Tensor? sensitivities"
for _name, _rest, _function in (
    ("jacobian_rows", "int outputs", _differentiable_rows),
    ("jacobian_product", "Tensor parameters, bool bias=False", _differentiable_product),
    ("jacobian_transposed_product", "Tensor cotangents, bool bias=False", _differentiable_transposed_product),
):
    _LIBRARY.define(f"{_name}({_FACTORS}, {_rest}) -> Tensor")
    _LIBRARY.impl(_name, _function, "CompositeImplicitAutograd")
    _LIBRARY.impl(_name, _function, "FuncTorchDynamicLayerFrontMode")
for _name in ("jacobian_rows_", "_jacobian_rows", "_jacobian_product", "_jacobian_transposed_product"):
    _LIBRARY.impl(_name, _refuse, "FuncTorchDynamicLayerFrontMode")
