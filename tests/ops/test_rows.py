"""Jacobian rows and products as operators: derivatives of every order and mode, vmap, compilation, refusals."""

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from inrfast import backends
from inrfast.ops import rows

SHAPES = {"both": (True, True), "no features": (False, True), "no sensitivities": (True, False)}


@pytest.fixture(params=["torch", "triton"])
def place(request, device, monkeypatch):
    """Where the operators compute, by plain torch or by the kernels."""
    if request.param == "torch":
        monkeypatch.setattr(rows, "_by_kernel", lambda *_: False)
    elif device.type == "cpu":
        assert backends.interpreted()
    return device


def random(*shape, seed=0, dtype=torch.float64, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype).to(device)


def arguments(kind, n=3, a=2, b=4, outputs=2, k=2, bias=False, device="cpu"):
    """Features, sensitivities, parameters and cotangents."""
    with_features, with_sensitivities = SHAPES[kind]
    b = b if with_sensitivities else outputs
    width = a + bias if with_features else 1
    return (
        random(n, a, device=device) if with_features else None,
        random(n, outputs, b, device=device) if with_sensitivities else None,
        random(k, b, width, device=device),
        random(n, outputs, k, device=device),
    )


def operations(kind, bias=False, **sizes):
    """Each operator as a function of tensors alone, with those tensors, and the formula of the same."""
    z, s, p, v = arguments(kind, bias=bias, **sizes)
    outputs = v.shape[1]

    def block(z, s):
        some = z if z is not None else s
        left = some.new_ones(len(some), 1) if z is None else z
        if bias and z is not None:
            left = torch.cat([z, some.new_ones(len(some), 1)], 1)
        right = torch.eye(outputs, dtype=some.dtype, device=some.device).expand(len(some), -1, -1) if s is None else s
        return right.unsqueeze(3) * left[:, None, None, :]

    def of(function, other):
        """A function of what is there of z, s and of another tensor."""
        tensors = [t for t in (z, s, other) if t is not None]

        def call(*given):
            rest = list(given)
            return function(None if z is None else rest.pop(0), None if s is None else rest.pop(0), *rest)

        return call, tensors

    def row_formula(z, s):
        return block(z, s)[..., : None if z is None else z.shape[1]]

    return {
        "rows": (*of(lambda z, s: rows.jacobian_rows(z, s, outputs), None), of(row_formula, None)[0]),
        "product": (
            *of(lambda z, s, p: rows.jacobian_product(z, s, p, bias), p),
            of(lambda z, s, p: torch.einsum("nmba,kba->nmk", block(z, s), p), p)[0],
        ),
        "transposed": (
            *of(lambda z, s, v: rows.jacobian_transposed_product(z, s, v, bias), v),
            of(lambda z, s, v: torch.einsum("nmba,nmk->kba", block(z, s), v), v)[0],
        ),
    }


CASES = [(kind, bias, name) for kind in SHAPES for bias in (False, True) for name in ("rows", "product", "transposed")]


@pytest.mark.parametrize(("kind", "bias", "name"), CASES)
def test_operators_are_their_formula(place, kind, bias, name):
    for n in (0, 1, 5):
        function, tensors, formula = operations(kind, bias, n=n, device=place)[name]
        torch.testing.assert_close(function(*tensors), formula(*tensors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "bias", "name"), CASES)
def test_derivatives_by_finite_differences(monkeypatch, kind, bias, name):
    monkeypatch.setattr(rows, "_by_kernel", lambda *_: False)
    function, tensors, _ = operations(kind, bias)[name]
    given = [t.requires_grad_() for t in tensors]
    assert gradcheck(function, given, check_forward_ad=True)
    assert gradgradcheck(function, given, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["rows", "product", "transposed"])
def test_torch_func(place, name):
    """Every transform gives what it gives of the formula."""
    function, tensors, formula = operations("both", True, n=2, a=1, b=2, device=place)[name]
    many = [torch.stack([t, t + 1, t * 2]) for t in tensors]

    def total(operation, *given):
        return operation(*given).square().sum()

    every = tuple(range(len(tensors)))
    transforms = [
        lambda f: grad(functools.partial(total, f), every)(*tensors),
        lambda f: jacrev(f, every)(*tensors),
        lambda f: jacfwd(f, every)(*tensors),
        lambda f: hessian(functools.partial(total, f))(*tensors),
        lambda f: vmap(f)(*many),
        lambda f: vmap(f, (None, 0, *[None] * (len(many) - 2)), out_dims=1)(tensors[0], *many[1:2], *tensors[2:]),
        lambda f: vmap(grad(functools.partial(total, f), every))(*many),
        lambda f: torch.func.jvp(f, tuple(tensors), tuple(t + 1 for t in tensors)),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(function), transform(formula), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["rows", "product", "transposed"])
def test_compiled_in_one_graph(place, name):
    function, tensors, formula = operations("both", True, device=place)[name]
    tensors = [t.requires_grad_() for t in tensors]
    compiled = torch.compile(lambda *given: function(*given).square(), fullgraph=True, backend="aot_eager")
    found, exact = compiled(*tensors), formula(*tensors).square()
    torch.testing.assert_close(found, exact)
    for ours, theirs in zip(*(torch.autograd.grad(y.sum(), tensors) for y in (found, exact)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_derivative_is_lost_in_silence():
    z, s, p, _ = arguments("both")
    out = torch.empty(3, 2, 4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="use jacobian_rows for derivatives"):
        rows.jacobian_rows_(out, z.clone().requires_grad_(), s)
    for transform in (
        lambda f: grad(lambda t: f(t).sum())(z[None]),
        lambda f: torch.func.jvp(f, (z[None],), (z[None],)),
        lambda f: vmap(f)(z[None, None]),
    ):
        with pytest.raises(RuntimeError, match="goes through"):
            transform(lambda t: rows.product_of_models(t, s[None], p[None], False))
    with pytest.raises(RuntimeError, match="goes through"):
        torch.func.jvp(lambda t: rows.jacobian_rows_(out, t, s), (z,), (z,))


BAD_CALLS = {
    "nothing": (lambda z, s, p, v: rows.jacobian_rows(None, None, 2), "must not both be None"),
    "points": (lambda z, s, p, v: rows.jacobian_rows(z[:2], s, 2), "sensitivities must have shape"),
    "outputs": (lambda z, s, p, v: rows.jacobian_rows(z, s, 3), "sensitivities must have shape"),
    "parameters": (lambda z, s, p, v: rows.jacobian_product(z, s, p[:, :, :1]), "features must have shape"),
    "axes": (lambda z, s, p, v: rows.jacobian_product(z, s, p[0]), "parameters must have shape"),
    "no features": (lambda z, s, p, v: rows.jacobian_product(None, s, p), "parameters must have shape"),
    "cotangents": (lambda z, s, p, v: rows.jacobian_transposed_product(z, s, v[:1]), "cotangents must have shape"),
    "dtype": (lambda z, s, p, v: rows.jacobian_rows(z.float(), s, 2), "float64"),
    "out": (lambda z, s, p, v: rows.jacobian_rows_(z.new_empty(3, 2, 4, 3), z, s), "features must have shape"),
    "out, identity": (lambda z, s, p, v: rows.jacobian_rows_(z.new_empty(3, 2, 4, 2), z, None), "without sensit"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused_by_name(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        call(*arguments("both"))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("a", [2, 11])
def test_rows_of_any_strides(place, kind, a):
    z, s, _, _ = arguments(kind, n=5, a=a, b=7, device=place)
    shape = rows.jacobian_rows(z, s, 2).shape
    turned = torch.empty(shape[::-1], dtype=torch.float64, device=place).permute(3, 2, 1, 0)
    assert torch.equal(rows.jacobian_rows_(turned, z, s), rows.jacobian_rows(z, s, 2))
    assert rows.jacobian_rows_(turned, z, s) is turned
