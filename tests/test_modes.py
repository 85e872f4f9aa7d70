"""The caller's modes of torch (autocast, gradients, inference, default dtype, determinism) change no result."""

import contextlib
import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import inrfast as inr
from inrfast import modes
from inrfast.encodings import HashGrid
from inrfast.metrics import psnr, ssim
from inrfast.modes import own_modes, products, training_modes
from inrfast.ops import gemm
from inrfast.signals.render import render


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def narrow_products():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


MODES = {
    "fp64 by default": lambda: default_dtype(torch.float64),
    "bf16 by default": lambda: default_dtype(torch.bfloat16),
    "fp16 by default": lambda: default_dtype(torch.float16),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "deterministic": deterministic,
    "narrow products": narrow_products,
}


class Made:
    """What is there before the mode begins."""

    def __init__(self):
        torch.manual_seed(0)
        self.coords = inr.grid((24, 25))
        self.nets = {
            "hooked": nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 12), nn.RMSNorm(12), nn.Linear(12, 2)),
            "closed": inr.INR(2, 2, width=12, hidden_layers=2),
        }
        self.norm = inr.INR(2, 2, width=12, norm="batch")
        self.V = torch.rand(600, 3)
        self.v = torch.rand(1200)


def everything(made):
    """Results of the public functions by name: tensors, numbers, text."""
    found = {}
    x, V = made.coords, made.V
    for name, net in made.nets.items():
        for precision in ("high", "highest"):
            K = inr.ntk(net, x, precision=precision, memory_budget=2**28)
            streamed = inr.ntk(net, x, precision=precision, memory_budget=2**20)
            J = inr.jacobian(net, x, precision=precision)
            results = {
                "dense": K.to_dense(),
                "written": K.to_dense(out=torch.empty(600, 600, dtype=K.dtype)),
                "product": K @ V,
                "many": K @ V.repeat(1, 100),
                "damped": K.product(V, 0.1),
                "streamed": streamed @ V,
                "diagonal": streamed.diagonal(),
                "columns": K.columns([0, 5]),
                "submatrix": K.submatrix([0, 5]),
                "form": K.quadratic_form(V),
                "frobenius": K.frobenius(),
                "solution": K.solve(V, ridge=1.0, progress=False),
                "by a factor": K.factor(-1.0, precision, progress=False).solve(V),
                "full": inr.ntk(net, x[:20], x[20:50], output="full", precision=precision).to_dense(),
                "layer": next(iter(K.layers.values())).to_dense(),
                "rows": J.rows(slice(0, 5)),
                "J p": J @ torch.ones(J.shape[1], dtype=torch.float32),
                "J^T v": J.T @ made.v,
            }
            for method in ("cholesky", "lanczos", "quadrature"):
                results[method] = K.spectrum(method=method, k=4, progress=False).eigenvalues
            found.update({(name, precision, key): value for key, value in results.items()})
        found[name, "render"] = render(net, (90, 80), progress=False)
        found[name, "diagnosis"] = str(inr.diagnose(net, x[:100], progress=False))
    calibrated = inr.calibrate_batchnorm_(copy.deepcopy(made.norm), x)
    found["batch norm"] = calibrated.norms[2].running_var
    found["rank"] = str(inr.numerical_rank(V, 1e-3))
    found["psnr"] = psnr(V, 0.9 * V)
    found["ssim"] = ssim(V.view(30, 60), 0.9 * V.view(30, 60))
    found["rank expanding"] = inr.rank_expanding(16, 2)[0]
    for encoding in (inr.RandomFourier(8), inr.PositionalEncoding(3), inr.Polynomial(3)):
        net = inr.INR(2, 1, width=8, encoding=encoding)
        found[encoding] = inr.ntk(net, x[:20]).to_dense()
    return list(found.items())


@pytest.fixture(scope="module")
def expected():
    made = Made()
    return made, everything(made)


@pytest.mark.parametrize("name", MODES)
def test_results_do_not_depend_on_the_callers_modes(expected, name):
    made, results = expected
    with MODES[name]():
        found = everything(made)
    for (key, value), (_, other) in zip(results, found, strict=True):
        assert type(value) is type(other), key
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype, key
            assert torch.equal(value, other), key
        else:
            assert value == other, key


def test_nor_on_the_default_device():
    net, x = inr.INR(2, 1, width=8), inr.grid((6, 5))
    v = torch.ones(30)

    def results():
        K = inr.ntk(nn.Sequential(net), x)
        values = K.spectrum(method="cholesky", progress=False).eigenvalues
        return [K.to_dense(), K @ v, values, inr.jacobian(net, x).rows(), render(net, (6, 5), progress=False)]

    expected = results()
    with torch.device("meta"):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_networks_and_starts_on_a_device_of_their_own_do_not_depend_on_the_default_one():
    """Generators are the CPU's: what they draw is drawn there, also where torch would make tensors elsewhere."""
    x = inr.grid((4, 4))

    def results():
        found = []
        for encoding in (None, inr.RandomFourier(4), inr.PositionalEncoding(2), inr.Polynomial(2), HashGrid()):
            for init in ("default", "siren", "kaiming", "xavier", *["rank_expanding"] * (encoding is None)):
                net = inr.INR(2, 1, width=8, hidden_layers=2, encoding=encoding, init=init, device="cpu")
                found += [*net.state_dict().values(), net(x)]
        module = nn.Sequential(nn.Linear(2, 8, device="cpu"), nn.ReLU(), nn.Linear(8, 1, device="cpu"))
        for rule in ("default", "kaiming", "xavier", "rank_expanding"):
            inr.init.apply_(module, rule, coords=x)
            found += [parameter.detach().clone() for parameter in module.parameters()]
        return [*found, inr.init.siren_(module[0], generator=torch.Generator().manual_seed(0)).weight]

    expected = results()
    with torch.device("meta"):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_kernel_made_in_inference_mode_is_used_after_it():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    x, v = inr.grid((20, 20)), torch.ones(400)
    with torch.inference_mode():
        K = inr.ntk(net, x.clone(), memory_budget=2**18)
        first = K @ v
        out = torch.empty(400, 400)
        assert K.to_dense(out=out) is out
    assert torch.equal(K @ v, first)
    assert torch.equal(K.to_dense(out=torch.empty(400, 400)), out)


# ---- torch's settings of fp32 products ---------------------------------------------------------------------------

SECOND = hasattr(torch.backends.cuda.matmul, "fp32_precision")
"""Whether this torch has two settings, the second with places that leave it to others."""

PLACES = [("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("mkldnn", "all"), ("mkldnn", "matmul")]


def set_second(place, precision):
    with contextlib.suppress(RuntimeError):  # a GPU has no bf16 products of fp32 numbers
        torch._C._set_fp32_precision_setter(*place, precision)


@contextlib.contextmanager
def untouched_settings():
    """A torch in which nobody set anything, before and after."""

    def reset():
        torch.set_float32_matmul_precision("highest")
        for place in PLACES if SECOND else ():
            set_second(place, "none")

    reset()
    try:
        yield
    finally:
        reset()


def readings():
    """All that torch says of its precision, an error included."""
    backends = torch.backends
    getters = [torch.get_float32_matmul_precision, lambda: backends.cuda.matmul.allow_tf32]
    getters += [lambda: backends.cudnn.allow_tf32, lambda: backends.mkldnn.allow_tf32] if SECOND else []
    for place in [*PLACES, ("cuda", "conv"), ("cuda", "rnn"), ("mkldnn", "conv")] if SECOND else []:
        getters.append(functools.partial(torch._C._get_fp32_precision_getter, *place))
    found = []
    for read in getters:
        try:
            found.append(read())
        except RuntimeError:
            found.append(RuntimeError)
    return found


FIRST_SETTINGS = st.one_of(
    st.sampled_from(["highest", "high", "medium"]).map(lambda p: (torch.set_float32_matmul_precision, p)),
    st.booleans().map(lambda on: (setattr, torch.backends.cuda.matmul, "allow_tf32", on)),
)
SECOND_SETTINGS = st.tuples(
    st.just(set_second), st.sampled_from(PLACES), st.sampled_from(["none", "ieee", "tf32", "bf16"])
)
SETTINGS = st.lists(st.one_of(FIRST_SETTINGS, SECOND_SETTINGS) if SECOND else FIRST_SETTINGS, max_size=5)


DOORS = {
    "highest": [own_modes, training_modes, products, lambda: gemm.exact_products(torch.device("cuda"))],
    "high": [lambda: products("high")],
    "medium": [lambda: products("medium")],
}


@given(
    before=SETTINGS,
    after=SETTINGS,
    inside=st.lists(st.sampled_from([(p, door) for p, doors in DOORS.items() for door in doors]), max_size=3),
    raises=st.booleans(),
)
@settings(max_examples=300)
def test_products_have_their_precision_inside_and_every_setting_is_as_it_was_afterwards(before, after, inside, raises):
    """Whatever was set by which setting: torch reads the same as before, and what is set later has the same effects."""

    def do(steps):
        for function, *arguments in steps:
            function(*arguments)
        return readings()

    with untouched_settings():
        expected = [do(before), do(after)]
    with untouched_settings():
        do(before)
        with contextlib.suppress(KeyError), contextlib.ExitStack() as stack:
            for precision, door in inside:
                stack.enter_context(door())
                assert torch.get_float32_matmul_precision() == precision
                assert torch.backends.cuda.matmul.allow_tf32 == (precision != "highest")
                if SECOND:
                    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == (precision != "highest")
                    assert precision != "highest" or torch.backends.mkldnn.matmul.fp32_precision in ("ieee", "none")
            if raises:
                raise KeyError
        assert [readings(), do(after)] == expected


def test_without_the_names_of_the_second_setting_the_first_is_kept(monkeypatch):
    monkeypatch.setattr(modes, "_read", None)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
