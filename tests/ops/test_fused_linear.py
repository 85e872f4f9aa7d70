"""The fused layer against fp64, torch's derivatives and torch's rules for operators, on both backends."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_networks import mild
from torch._subclasses import FakeTensorMode

from inrfast.activations import ACTIVATIONS, bind
from inrfast.errors import NotAvailableError
from inrfast.modes import products
from inrfast.ops import chunked_linear
from inrfast.ops import fused_linear as op
from inrfast.ops.fused_linear import fused_linear

UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}

C = 4
"""The constant of the stated bound."""

SLOPE = {"sine": lambda u, w: w, "gaussian": lambda u, w: 0.86 * w, "finer": lambda u, w: w * (2 * u.abs() + 1.1)}
SLOPE["wire"] = lambda u, w: w + 1  # sigma is 1
CURVATURE = {
    "sine": lambda u, w: w**2,
    "gaussian": lambda u, w: 2 * w**2,
    "finer": lambda u, w: (w * (2 * u.abs() + 1.1)) ** 2 + 2 * w,
    "wire": lambda u, w: (w + 1.5) ** 2,
    "relu": lambda u, w: 0.0,
    "identity": lambda u, w: 0.0,
}


@pytest.fixture(params=["torch", "triton"])
def backend(request, monkeypatch):
    monkeypatch.setattr(op, "LARGE", -1)  # small layers take the operators too
    return request.param


def layer(n, inputs, outputs, bias, dtype, device, seed=0, leading=()):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, n, inputs, generator=rng).to(device, dtype)
    weight = (torch.randn(outputs, inputs, generator=rng) / math.sqrt(inputs)).to(device, dtype)
    return x, weight, torch.randn(outputs, generator=rng).to(device, dtype) if bias else None


def view_as(how, t):
    """Return the same numbers as a view of wider memory."""
    if how == "transposed" and t.ndim == 2:
        return t.t().contiguous().t()
    if how == "sliced" and t.ndim == 2:
        return torch.cat([t, t], 1)[:, t.shape[1] :]
    if how == "every second":
        return torch.stack([t, t], -1).flatten(-2)[..., ::2]
    return torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape) if how == "at an offset" else t


def wide(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


@settings(max_examples=60, phases=[Phase.explicit, Phase.generate])
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    dtype=st.sampled_from(sorted(UNIT, key=str)),
    n=st.sampled_from([0, 1, 5, 67]),
    inputs=st.sampled_from([1, 3, 8, 9, 40]),
    outputs=st.sampled_from([1, 2, 16, 37]),
    bias=st.booleans(),
    omega=st.sampled_from([1.0, 7.3]),
    layout=st.sampled_from(["plain", "leading", "transposed", "sliced", "expanded"]),
    weights=st.sampled_from(["plain", "transposed", "sliced", "every second", "at an offset"]),
    one_gradient=st.booleans(),
    chosen=st.sampled_from(["torch", "triton", "plain"]),
    seed=st.integers(0, 99),
)
def test_result_and_gradients_are_within_the_bound(
    device, activation, dtype, n, inputs, outputs, bias, omega, layout, weights, one_gradient, chosen, seed
):
    if dtype == torch.bfloat16 and chosen == "triton" and device.type == "cpu":
        return  # Triton's interpreter multiplies the bits of bf16 numbers
    leading = (2,) if layout == "leading" else ()
    x, weight, b = layer(n, inputs, outputs, bias, dtype, device, seed, leading)
    if layout == "transposed":
        x = x.t().contiguous().t()
    elif layout == "sliced":
        x = torch.cat([x, x, x], 1)[:, inputs : 2 * inputs]
    elif layout == "expanded":
        x = x[:1].expand(n, inputs)
    weight, b = view_as(weights, weight), None if b is None else view_as(weights, b)
    given_tensors = [None if t is None else t.requires_grad_() for t in (x, weight, b)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "LARGE", -1)
        patch.setattr(op, "_chosen", lambda *_: chosen)
        y = fused_linear(x, weight, b, mild(activation), omega)
    exact = wide(x, weight, b)
    u = F.linear(*exact)
    truth = bind(mild(activation), omega).value(u)
    assert y.shape == (*x.shape[:-1], outputs) and y.dtype == dtype

    unit = UNIT[dtype]
    inner = UNIT[torch.float32] if dtype.itemsize == 2 and chosen == "triton" else unit
    with torch.no_grad():
        terms = torch.sqrt((exact[0] ** 2) @ (exact[1] ** 2).t() + (0.0 if b is None else exact[2] ** 2))
        size = math.sqrt(inputs + bias) * terms
        slope = SLOPE.get(activation, lambda u, w: 1.13)(u, omega)
        assert ((y.double() - truth).abs() <= 4 * unit * truth.abs() + C * inner * (slope * size + 1e-300)).all()

    # A ReLU's gate may differ where the exact pre-activation is nothing but rounding.
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    g = torch.where(u.detach().abs() < 64 * unit * size, 0, g).to(dtype)
    if one_gradient and n:  # of one number for all, as a sum's is
        g = g.new_full((), 0.5).expand(y.shape)
        if bool((u.detach().abs() < 64 * unit * size).any()):
            return
    wanted = [t for t in given_tensors if t is not None]
    found = torch.autograd.grad(y, wanted, g)
    expected = torch.autograd.grad(truth, [t for t in exact if t is not None], g.double())
    with torch.no_grad():
        curvature = CURVATURE.get(activation, lambda u, w: 1.0)(u, omega)
        # Rounding of g, of the slope kept, and of their product; then of the sums.
        loss = g.double().abs() * (4 * unit * slope + C * inner * curvature * size)
        e = g.double().abs() * slope
        flat = [t.reshape(-1, t.shape[-1]) for t in (loss, e, exact[0])]
        bounds = [
            (loss + C * unit * e) @ exact[1].abs() + C * unit * math.sqrt(outputs) * e @ exact[1].abs(),
            (flat[0] + C * unit * math.sqrt(max(n, 1)) * flat[1]).t() @ flat[2].abs(),
            (flat[0] + C * unit * math.sqrt(max(n, 1)) * flat[1]).sum(0),
        ]
    for got, right, bound in zip(found, expected, bounds, strict=False):
        assert got.dtype == dtype
        assert ((got.double() - right).abs() <= bound + 2 * unit * right.abs() + 1e-300).all()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_nan_and_infinity_pass_as_in_torch(device, backend, activation):
    x, weight, b = layer(40, 3, 11, True, torch.float32, device)
    for wide_inputs in (False, True):
        if wide_inputs:
            x, weight, b = layer(40, 19, 11, True, torch.float32, device)
        x[3, 1], x[7, 0], x[9, 2] = math.nan, math.inf, -math.inf
        g = torch.randn(40, 11, device=device)
        g[20, 3] = math.nan
        given_tensors = [t.clone().requires_grad_() for t in (x, weight, b)]
        ours = fused_linear(*given_tensors, activation, 2.0, backend=backend)
        theirs = bind(activation, 2.0).value(F.linear(*given_tensors))
        pairs = [(ours, theirs)]
        pairs += zip(*(torch.autograd.grad(t, given_tensors, g) for t in (ours, theirs)), strict=True)
        for found, expected in pairs:
            if activation != "gelu":  # torch's own GELU makes of Inf an Inf or a NaN, by the shape of the tensor
                assert torch.equal(found.isnan(), expected.isnan())
            finite = expected.isfinite()
            assert torch.equal(found.isfinite(), finite)
            torch.testing.assert_close(found[finite], expected[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_derivatives_of_every_order_and_mode(device, backend, activation):
    tensors = [t.requires_grad_() for t in layer(2, 2, 3, True, torch.float64, device, seed=3)]

    def run(x, weight, bias=None):
        return fused_linear(x, weight, bias, activation, 1.3, backend=backend)

    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True)
    if backend == "torch" or activation in ("relu", "sine"):  # the second derivatives are one formula for both
        assert torch.autograd.gradgradcheck(run, tensors)
    if backend == "torch":
        assert torch.autograd.gradgradcheck(run, tensors[:2])
    for k in range(3):  # one of them alone
        alone = [t if k == j else t.detach() for j, t in enumerate(tensors)]
        found = torch.autograd.grad(run(*alone).square().sum(), tensors[k])
        plain = bind(activation, 1.3).value(F.linear(*alone))
        torch.testing.assert_close(found, torch.autograd.grad(plain.square().sum(), tensors[k]))


@pytest.mark.parametrize("call", ["function", "operator"])
def test_transforms_of_torch_func(device, backend, call):
    x, _, _ = layer(6, 3, 5, True, torch.float64, device)
    weights = torch.randn(4, 5, 3, device=device, dtype=torch.float64)
    biases = torch.randn(4, 5, device=device, dtype=torch.float64)
    function = fused_linear if call == "function" else torch.ops.inrfast.fused_linear

    def ours(x, w, b):
        return function(x, w, b, "sine", 1.3 if call == "function" else [1.3], "high", backend)

    def theirs(x, w, b):
        return torch.sin(1.3 * F.linear(x, w, b))

    def loss_of(run):
        return lambda x, w, b: run(x, w, b).square().sum()

    def agree(transform, *tensors):
        torch.testing.assert_close(transform(ours)(*tensors), transform(theirs)(*tensors))

    one = x, weights[0], biases[0]
    agree(lambda run: torch.func.grad(loss_of(run), (0, 1, 2)), *one)
    agree(lambda run: torch.func.jacrev(run, 1), *one)
    agree(lambda run: torch.func.jacfwd(run, 1), *one)
    agree(lambda run: torch.func.hessian(loss_of(run), 1), *one)
    agree(lambda run: torch.vmap(run, (None, 0, 0)), x, weights, biases)
    agree(lambda run: torch.vmap(run, (0, None, None)), x.expand(2, -1, -1) + 1.0, *one[1:])
    agree(lambda run: torch.vmap(torch.func.jacrev(run), (0, None, None)), *one)
    agree(lambda run: torch.vmap(torch.func.grad(loss_of(run), (0, 1, 2)), (None, 0, 0)), x, weights, biases)
    agree(lambda run: torch.vmap(torch.vmap(run, (None, 0, 0)), (0, None, None)), torch.stack([x, -x]), weights, biases)


def test_a_batch_of_points_shares_its_weight(device, backend, monkeypatch):
    """A weight for each point would take a layer's memory a point."""
    x, weight, b = layer(30, 3, 5, True, torch.float64, device)
    models = []

    def note(x, weight, *rest, real=op.fused_linear_forward):
        models.append(len(weight))
        return real(x, weight, *rest)

    monkeypatch.setattr(op, "fused_linear_forward", note)
    found = torch.vmap(lambda point: fused_linear(point, weight, b, "sine", 1.3, backend=backend))(x)
    torch.testing.assert_close(found, torch.sin(1.3 * F.linear(x, weight, b)))
    assert set(models) == {1}


def test_many_models_are_one_by_one(device, backend):
    x, _, _ = layer(50, 3, 20, True, torch.float32, device)
    weights, biases = torch.randn(3, 20, 3, device=device), torch.randn(3, 20, device=device)
    together = torch.vmap(lambda w, b: fused_linear(x, w, b, "sine", backend=backend))(weights, biases)
    for k in range(3):
        assert torch.equal(together[k], fused_linear(x, weights[k], biases[k], "sine", backend=backend))


def test_a_training_step_compiles_whole(device, backend):
    def network(seed):
        rng = torch.Generator().manual_seed(seed)
        sizes = [(12, 2), (12, 12), (1, 12)]
        return [torch.randn(*size, generator=rng).to(device).requires_grad_() for size in sizes]

    x, target = torch.rand(40, 2, device=device), torch.rand(40, 1, device=device)
    ours, theirs = network(0), network(0)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss_of(weights, x, target):
        z = fused_linear(x, weights[0], None, "sine", 3.0, backend=backend)
        z = fused_linear(z, weights[1], None, "relu", backend=backend)
        return F.mse_loss(fused_linear(z, weights[2], None, "identity", backend=backend), target)

    def plain(weights, x, target):
        return F.mse_loss(
            F.linear(F.relu(F.linear(torch.sin(3.0 * F.linear(x, weights[0])), weights[1])), weights[2]), target
        )

    for _ in range(3):
        losses = []
        for weights, function in ((ours, loss_of), (theirs, plain)):
            loss = function(weights, x, target)
            with torch.no_grad():
                for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    weight -= 0.01 * gradient
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_runs_are_equal_bit_by_bit(device, backend, monkeypatch):
    monkeypatch.setattr(chunked_linear, "cached_rows", lambda widest, like, cached: 64)
    x, weight, b = (t.requires_grad_() for t in layer(700, 12, 20, True, torch.float32, device))
    runs = []
    for _ in range(3):
        y = fused_linear(x, weight, b, "sine", backend=backend)
        runs.append([y, *torch.autograd.grad(y, (x, weight, b), torch.ones_like(y))])
    assert all(torch.equal(a, c) for run in runs[1:] for a, c in zip(runs[0], run, strict=True))
    theirs = torch.sin(30 * F.linear(x, weight, b))
    torch.testing.assert_close(
        runs[0][1:], list(torch.autograd.grad(theirs, (x, weight, b), torch.ones_like(y))), rtol=1e-3, atol=1e-2
    )


@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
@given(
    activation=st.sampled_from(sorted(set(ACTIVATIONS) - {"identity"})),  # on a CPU that is torch's own linear
    leading=st.sampled_from([(), (1,), (0, 3), (2, 17), (300,)]),
    outputs=st.sampled_from([1, 9, 40]),
    bias=st.booleans(),
    wanted=st.sets(st.sampled_from(["x", "weight", "bias"]), min_size=1),
    twice=st.booleans(),
    chosen=st.sampled_from(["torch", "triton"]),
)
def test_a_call_that_only_autograd_sees_goes_past_the_operators_and_has_their_bits(
    device, activation, leading, outputs, bias, wanted, twice, chosen
):
    rng = torch.Generator().manual_seed(outputs)
    tensors = {name: torch.randn(*size, generator=rng).to(device)
               for name, size in (("x", (*leading, 5)), ("weight", (outputs, 5)), ("bias", (outputs,)))}  # fmt: skip
    wanted = [tensors[name].requires_grad_() for name in sorted(wanted) if bias or name != "bias"]
    layer_ = tensors["x"], tensors["weight"], tensors["bias"] if bias else None
    numbers = bind(activation, 1.5).numbers
    runs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "LARGE", -1)
        for function, given in ((torch.ops.inrfast.fused_linear, numbers), (fused_linear, 1.5)):
            arguments = *layer_, activation, given, "high", chosen
            y = function(*arguments)
            found = torch.autograd.grad(y, wanted, torch.ones_like(y), create_graph=twice) if wanted else ()
            if twice and wanted and any(t.requires_grad for t in found):
                total = sum(t.square().sum() for t in found)
                found += torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                runs.append([y, function(*arguments), *found])
            for name in ("fused_linear_forward", "fused_linear_backward"):
                if not twice:  # the second time they are not there
                    patch.setattr(op, name, None)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_without_torchs_names_for_who_looks_on_the_operators_are_taken(monkeypatch):
    x, weight, b = layer(20, 3, 8, True, torch.float32, torch.device("cpu"))
    assert op._is_plain(x, weight, b)
    for name in ("_len_torch_dispatch_stack", "_get_tracing_state"):
        with monkeypatch.context() as patch:
            patch.delattr(torch._C, name)
            assert not op._is_plain(x, weight, b)
    monkeypatch.setattr(op, "_is_plain", lambda *_: False)
    monkeypatch.setattr(op, "_Eager", None)
    monkeypatch.setattr(op, "LARGE", -1)
    assert fused_linear(x.requires_grad_(), weight, b, "sine", backend="torch").requires_grad


def test_what_the_backward_keeps_is_cheap(device, backend):
    """Beyond x, the weight, the bias and y: a bit a number for ReLU, nothing for tanh, one number for sine."""
    x, weight, b = (t.requires_grad_() for t in layer(64, 3, 21, True, torch.float32, device))
    for activation, bits in {
        "relu": 8 * math.ceil(21 / 8) / 21,
        "tanh": 0,
        "softplus": 0,
        "identity": 0,
        "sine": 32,
    }.items():
        sizes = {}

        def note(t, sizes=sizes):
            sizes[t.data_ptr()] = t.numel() * t.itemsize
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y = fused_linear(x, weight, b, activation, backend=backend)
        known = {t.data_ptr() for t in (x, weight, b, y)}
        extra = sum(size for place, size in sizes.items() if place not in known)
        assert extra <= bits / 8 * y.numel()
    with torch.no_grad():
        assert fused_linear(x, weight, b, "sine", backend=backend).grad_fn is None


def test_autocast_is_that_of_linear(device):
    x, weight, b = (t.requires_grad_() for t in layer(20, 3, 8, True, torch.float32, device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = fused_linear(x, weight, b, "relu")
        theirs = F.relu(F.linear(x, weight, b))
    assert y.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(y, theirs, rtol=0.02, atol=0.02)
    assert all(t.dtype == torch.float32 for t in torch.autograd.grad(y.float().sum(), (x, weight, b)))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_tensors_without_memory_have_shapes(backend):
    """On the meta device, as ``torch.nn.Linear`` has it, gradients too."""
    x, weight, bias = (torch.empty(*shape, device="meta", requires_grad=True) for shape in ((5, 3), (6, 3), (6,)))
    y = fused_linear(x, weight, bias, "sine", 30.0, backend=backend)
    assert (y.shape, y.device.type) == ((5, 6), "meta")
    found = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert [g.shape for g in found] == [x.shape, weight.shape, bias.shape]


@given(
    dtype=st.sampled_from(sorted(UNIT, key=str)),
    n=st.sampled_from([0, 1, 4096, 65_536, 1 << 20, 1 << 24]),
    inputs=st.sampled_from([1, 2, 256, 257, 4096]),
    outputs=st.sampled_from([1, 3, 256, 1024]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    precision=st.sampled_from(["high", "medium"]),
    compiling=st.booleans(),
)
def test_on_a_gpu_the_kernels_are_taken_only_where_they_pay(
    dtype, n, inputs, outputs, activation, precision, compiling
):
    """Where torch rounds first and multiplies after, or where a result is so large that a launch costs nothing."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(op.backends, "reason_against_triton", lambda device: None)
        patch.setattr(torch.compiler, "is_compiling", lambda: compiling)
        x, weight = (torch.empty(*shape, dtype=dtype, device="cuda") for shape in ((n, inputs), (outputs, inputs)))
        act = bind(activation)
        chosen = op._chosen(x, weight, act, precision, "auto")
        rounds_first = dtype.itemsize == 2 and activation in ("sine", "gaussian", "finer", "wire")
        large = n * outputs * dtype.itemsize >= 1 << 28 and inputs <= 256 and dtype != torch.float64
        assert chosen == ("triton" if rounds_first or (large and not compiling) else "plain")
        assert op._chosen(x, weight, act, precision, "triton") == "triton"
        patch.setattr(op, "_tf32_is_off", lambda: False)  # torch may take TF32, and "high" may not
        strict = dtype == torch.float32 and precision == "high"
        assert op._chosen(x, weight, act, precision, "auto") == ("triton" if strict else chosen)


def test_torchs_own_operations_see_every_transform(device, monkeypatch):
    """What "auto" takes on a GPU for most layers, called as a function, as an operator and compiled."""
    monkeypatch.setattr(op, "_chosen", lambda *_: "plain")
    x, weight, b = layer(6, 3, 5, True, torch.float64, device)
    weights = torch.stack([weight, -weight])

    def theirs(x, w):
        return torch.sin(1.3 * F.linear(x, w, b))

    for ours in (
        lambda x, w: fused_linear(x, w, b, "sine", 1.3),
        lambda x, w: torch.ops.inrfast.fused_linear(x, w, b, "sine", [1.3]),
        torch.compile(lambda x, w: fused_linear(x, w, b, "sine", 1.3), fullgraph=True, backend="aot_eager"),
    ):
        assert torch.equal(ours(x, weight), theirs(x, weight))
        given_weight = weight.clone().requires_grad_()
        found, truth = (torch.autograd.grad(f(x, given_weight).sum(), given_weight) for f in (ours, theirs))
        assert torch.equal(*found, *truth)
    for ours in (lambda x, w: fused_linear(x, w, b, "sine", 1.3),
                 lambda x, w: torch.ops.inrfast.fused_linear(x, w, b, "sine", [1.3])):  # fmt: skip
        agree = torch.testing.assert_close
        agree(torch.func.jacrev(ours, 1)(x, weight), torch.func.jacrev(theirs, 1)(x, weight))
        agree(torch.func.jacfwd(ours, 1)(x, weight), torch.func.jacfwd(theirs, 1)(x, weight))
        agree(torch.vmap(ours, (None, 0))(x, weights), torch.vmap(theirs, (None, 0))(x, weights))


def test_compiled_code_knows_torchs_setting_of_tf32():
    for compiled in (op._tf32_is_off, torch.compile(op._tf32_is_off, fullgraph=True, backend="aot_eager")):
        for setting in ("highest", "high", "highest", "medium"):
            with products(setting):
                assert compiled() == (setting == "highest")


def test_small_layers_take_torch_itself_and_agree(device):
    x, weight, b = layer(20, 3, 8, True, torch.float64, device)
    for activation in ACTIVATIONS:
        torch.testing.assert_close(
            fused_linear(x, weight, b, activation, 2.0), bind(activation, 2.0).value(F.linear(x, weight, b))
        )


def test_bad_input_is_refused_by_name(device):
    x, weight, b = layer(20, 3, 8, True, torch.float32, device)
    for arguments, error, message in (
        ((x, weight[:, :2]), ValueError, r"x and weight must have shapes .* got \(20, 3\) and \(8, 2\)"),
        ((x, weight, b[:5]), ValueError, r"bias must have shape \(8,\), got \(5,\)"),
        ((x, weight.double()), TypeError, "weight must have the dtype of x, torch.float32, got torch.float64"),
        ((x.long(), weight), TypeError, "x must be fp16, bf16, fp32 or fp64, got torch.int64"),
        ((x, weight.to("meta")), ValueError, "weight is on meta but x is on"),
        (([1.0], weight), TypeError, "x must be a tensor, got list"),
        ((x, weight, b, "rellu"), ValueError, "relu"),
        ((x, weight, b, "sine", 0.0), ValueError, "omega"),
        ((x, weight, b, "sine", math.nan), ValueError, "omega"),
        ((x, weight, b, "sine", 1.0, "highest"), ValueError, "precision"),
        ((x, weight, b, "sine", 1.0, "high", "cuda"), ValueError, "backend"),
    ):
        with pytest.raises(error, match=message):
            fused_linear(*arguments)


def test_a_named_backend_does_not_fall_back(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x, weight, b = layer(20, 3, 8, True, torch.float32, torch.device("cpu"))
    with pytest.raises(NotAvailableError, match=r"CUDA|is installed"):
        fused_linear(x, weight, b, backend="triton")
