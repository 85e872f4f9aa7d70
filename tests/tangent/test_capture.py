"""Capture of arbitrary modules against automatic differentiation, and every refusal."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from random_networks import exact_jacobian, random_coords
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import inrfast as inr
from inrfast import backends
from inrfast.activations import ACTIVATIONS, Activation
from inrfast.errors import UnsupportedModuleError
from inrfast.layers import LAYERS, Factors
from inrfast.layers.linear import Linear
from inrfast.norms import NORMS, Norm, NormSlope
from inrfast.norms.layer import LayerNorm


class Residual(nn.Module):
    """Skip connections, LayerNorm, RMSNorm, an in-place activation and a dictionary as its return value."""

    def __init__(self):
        super().__init__()
        self.inlet = nn.Linear(2, 12)
        self.norm = nn.LayerNorm(12)
        self.middle = nn.Linear(12, 12, bias=False)
        self.scale = nn.RMSNorm(12, eps=torch.finfo(torch.float32).eps)  # as in fp32 without a number
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        h = self.inlet(x)
        h = h + F.silu(self.middle(F.relu_(self.norm(h))))
        return {"rgb": self.head(torch.sin(self.scale(h))), "density": h[:, :1]}


class Selected(nn.Module):
    def __init__(self, net, key):
        super().__init__()
        self.net, self.key = net, key

    def forward(self, x):
        return self.net(x)[self.key]


@pytest.mark.parametrize("key", ["rgb", "density"])
def test_any_module_of_supported_layers(key):
    net = Residual()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    coords = random_coords(17, 2, 0)
    truth = exact_jacobian(Selected(net, key), coords).flatten(0, 1)
    for select in (key, lambda returned: returned[key]):
        J = inr.jacobian(net, coords, select=select, precision="highest")
        torch.testing.assert_close(J.rows(), truth, rtol=1e-10, atol=1e-12)
        v = torch.randn(truth.shape[0], dtype=torch.float64)
        torch.testing.assert_close(J.T @ v, truth.t() @ v, rtol=1e-10, atol=1e-12)
        K = inr.ntk(net, coords, select=select, output="full", precision="highest")
        torch.testing.assert_close(K.to_dense(), truth @ truth.t(), rtol=1e-10, atol=1e-12)


def test_frozen_batchnorm_and_sequential_outputs_of_one_dimension():
    net = nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 1), nn.Flatten(0))
    net(torch.randn(64, 3))  # running statistics
    net.eval()
    coords = random_coords(8, 3, 0)
    truth = exact_jacobian(nn.Sequential(*list(net)[:-1]), coords).flatten(0, 1)
    torch.testing.assert_close(inr.jacobian(net, coords, precision="highest").rows(), truth)


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    net[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    inr.ntk(net, random_coords(5, 2, 0)).to_dense()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not net[0].weight.requires_grad
    assert net[2].weight.grad is None
    assert net[0].weight.dtype == torch.float32
    assert not net[2]._forward_hooks


@pytest.mark.parametrize("kind", ["hooked", "plain"])
def test_works_inside_no_grad_and_inference_mode(kind):
    """With points enough for several threads, which have modes of their own."""
    hooked = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    net = hooked if kind == "hooked" else inr.INR(2, 1, width=8)
    coords = random_coords(1100, 2, 0)
    expected = inr.ntk(net, coords).to_dense()
    product = inr.ntk(net, coords) @ expected[:, :3]
    with torch.no_grad():
        assert torch.equal(inr.ntk(net, coords).to_dense(), expected)
    with torch.inference_mode():
        K = inr.ntk(net, coords.clone())
        assert torch.equal(K.to_dense(), expected)
        assert torch.equal(K @ expected[:, :3], product)


def shared_weight():
    net = inr.INR(2, 1, width=4, hidden_layers=3)
    net.layers[1].weight = net.layers[2].weight
    return net


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gain = nn.Linear(2, 1), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.gain * self.a(x)


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 3)

    def forward(self, x):
        return self.a(x - x.mean(0))


class Backdoor(nn.Module):
    """Uses a weight outside its layer's forward pass too: only the numerical probe can see it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) + self.a.weight.sum()


class Reordered(nn.Module):
    """Sorts its points, as mixtures of experts do, and undoes that behind the layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        order = x[:, 1].argsort()
        return self.b(torch.tanh(self.a(x[order]))[order.argsort()])


class Tied(nn.Module):
    """A head written by hand with the weight of the first layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(2, 3), nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, x):
        return self.norm(self.b(torch.tanh(self.a(x)))) @ self.a.weight * self.norm.weight[:2]


class Sloped(nn.Module):
    """Returns its own derivatives by the coordinates."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        with torch.enable_grad():
            x = x.requires_grad_()
            value = self.b(torch.tanh(self.a(x)))
            return torch.cat([value, *torch.autograd.grad(value.sum(), x, create_graph=True)], 1)


class Halved(nn.Module):
    """Computes in 16 bits inside."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)).half().to(x.dtype))


class Uncalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x):
        return self.a(x)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 1)

    def forward(self, x):
        return self.a(x + torch.randn_like(x))


class Ranked(nn.Module):
    """Applies a layer to several positions a point."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(1, 1)

    def forward(self, x):
        return self.a(x.unsqueeze(-1)).squeeze(-1)


class Paired(nn.Module):
    """A form of two inputs, which no kind of layer knows."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Bilinear(2, 2, 3)

    def forward(self, x):
        return self.pair(x, torch.sin(x))


def frozen():
    net = inr.INR(2, 1, width=4, hidden_layers=1)
    return net.requires_grad_(False)


KNOWN = {
    "shared": shared_weight,
    "used twice": Twice,
    "bare parameter": Bare,
    "positions": Ranked,
    "outside its layer": Backdoor,
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_no_layer_of_one_call_is_known_by_its_calls(name):
    net, coords = KNOWN[name](), random_coords(7, 2, 0)
    truth = exact_jacobian(net, coords).flatten(0, 1)
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), truth, rtol=1e-10, atol=1e-12)
    assert "autodiff" not in {layer.kind for layer in J.specs}


GENERAL = {
    "uncalled": (Uncalled, r"do not depend on its parameters 'b\.weight', 'b\.bias'"),
    "bilinear": (Paired, r"'pair\.weight', 'pair\.bias' have.*enters bilinear"),
    "tied by hand": (Tied, r"'norm\.weight', 'norm\.bias' have.*acts outside the module.*enters layer_norm"),
    "reordered": (Reordered, r"'a\.weight', 'a\.bias' have.*another order"),
}


@pytest.mark.parametrize("name", GENERAL)
def test_what_no_kind_of_layer_knows_is_differentiated_point_by_point_and_says_so(name):
    make, message = GENERAL[name]
    backends.warn_once.cache_clear()
    net, coords = make(), random_coords(7, 2, 0)
    truth = exact_jacobian(net, coords).flatten(0, 1)
    with pytest.warns(RuntimeWarning, match=message) as told:
        J = inr.jacobian(net, coords, precision="highest")
    assert all("inrfast" not in str(one.filename) and "torch" not in str(one.message) for one in told)
    torch.testing.assert_close(J.rows(), truth, rtol=1e-10, atol=1e-12)


def test_a_network_that_returns_its_own_slopes_is_differentiated_point_by_point():
    backends.warn_once.cache_clear()
    net, coords = Sloped(), random_coords(5, 2, 0)
    with pytest.warns(RuntimeWarning, match=r"'a\.weight', 'b\.weight' have"):
        J = inr.jacobian(net, coords, precision="highest")
    net.double()
    parameters, rows = list(net.parameters()), []
    for value in net(coords.double()).flatten():
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    torch.testing.assert_close(J.rows(), torch.stack(rows), rtol=1e-10, atol=1e-12)


REFUSALS = {
    "coupled": (Coupled, "couples samples"),
    "16 bits": (Halved, "16 bits"),
    "random": (Noisy, "random"),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 1))), "parametrised"),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(2, 2))), "parametrised"),
    "dropout": (lambda: nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)), "train mode"),
    "batchnorm in train mode": (
        lambda: inr.calibrate_batchnorm_(inr.INR(2, 1, width=4, norm="batch"), inr.grid((4, 4))).train(),
        "train mode",
    ),
    "batchnorm uncalibrated": (lambda: inr.INR(2, 1, width=4, norm="batch").eval(), "calibrate_batchnorm_"),
    "batchnorm without statistics": (
        lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(),
        "no running statistics",
    ),
    "no parameters": (nn.ReLU, "no parameters"),
    "all frozen": (frozen, "frozen"),
    "complex": (lambda: nn.Linear(2, 1, dtype=torch.complex64), "complex"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_culprit(name):
    make, message = REFUSALS[name]
    with pytest.raises(UnsupportedModuleError, match=message):
        inr.ntk(make(), random_coords(6, 2, 0))


class Whole(nn.Sequential):
    """Layers, and what becomes of their outputs."""

    def __init__(self, end):
        super().__init__(nn.Linear(2, 3))
        self.end = end

    def forward(self, x):
        return self.end(super().forward(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_outputs_without_derivatives_are_refused(dtype):
    with pytest.raises(TypeError, match=f"floating-point numbers, got {dtype}"):
        inr.ntk(Whole(lambda h: (4 * h).to(dtype)), random_coords(6, 2, 0))


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(context, h):
        return 2 * h

    @staticmethod
    def backward(context, gradient):
        raise NotImplementedError("no slope")


@pytest.mark.parametrize(
    "end", [Raises.apply, lambda h: torch.igamma(h.abs() + 1, h.abs() + 2), lambda h: h.exp_().mul_(h)]
)
def test_what_torch_cannot_differentiate_is_told(end):
    with pytest.raises(UnsupportedModuleError, match="net cannot be differentiated by torch: "):
        inr.ntk(Whole(end), random_coords(6, 2, 0))


class Empty(nn.Module):
    """A parameter or a layer without numbers beside an ordinary one."""

    def __init__(self, beside, use):
        super().__init__()
        self.inlet, self.beside, self.use = nn.Linear(2, 3), beside, use

    def forward(self, x):
        return torch.tanh(self.inlet(x)) + (self.use(self.beside, x) if self.use else 0)


NOTHING = {
    "unused": (lambda: nn.ParameterList([torch.zeros(0)]), None),
    "summed": (lambda: nn.ParameterList([torch.zeros(0)]), lambda p, x: p[0].sum()),
    "matrix": (lambda: nn.ParameterList([torch.zeros(0, 3)]), lambda p, x: x[:, :0] @ p[0]),
    "linear in": (lambda: nn.Linear(0, 3), lambda layer, x: layer(x[:, :0])),
    "linear out": (lambda: nn.Linear(2, 0), lambda layer, x: layer(x).sum(1, keepdim=True)),
    "norm": (lambda: nn.LayerNorm(0), lambda layer, x: layer(x[:, :0]).sum(1, keepdim=True)),
    "table": (lambda: nn.Embedding(4, 0), lambda layer, x: layer((x[:, 0] > 0).long()).sum(1, keepdim=True)),
    "between": (lambda: nn.Sequential(nn.Linear(2, 0), nn.Tanh(), nn.Linear(0, 3)), lambda layer, x: layer(x)),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("name", NOTHING)
def test_parameters_without_entries_contribute_nothing(name):
    make, use = NOTHING[name]
    net, coords = Empty(make(), use), random_coords(7, 2, 0)
    truth = exact_jacobian(net, coords).flatten(0, 1)
    torch.testing.assert_close(inr.jacobian(net, coords, precision="highest").rows(), truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(inr.ntk(net, coords, output="full", precision="highest").to_dense(), truth @ truth.t())
    named = next((p for p, values in net.named_parameters() if values.numel() == 0), None)
    with pytest.raises(ValueError, match=f"{named!r} has size 0"):
        inr.ntk(net, coords, params=[named])


def test_other_returns_need_select():
    coords = random_coords(6, 2, 0)
    with pytest.raises(TypeError, match="select="):
        inr.ntk(Residual(), coords)
    with pytest.raises(ValueError, match="'rgbb' is not in what net returns"):
        inr.ntk(Residual(), coords, select="rgbb")


class Routed(nn.Module):
    """A residual network whose blocks each run in one of several ways, and which keeps its activations."""

    WAYS = ("plain", "keyword", "checkpointed", "no_grad", "detached", "squeezed")

    def __init__(self, ways, outputs, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.ways = ways
        self.inlet, self.head = nn.Linear(2, 7), nn.Linear(7, outputs)
        self.blocks = nn.ModuleList(nn.Linear(7, 7) for _ in ways)

    def forward(self, x):
        h = self.inlet(input=x)
        for way, block in zip(self.ways, self.blocks, strict=True):
            h = self.run(way, block, h) + 0.5 * h
            self.kept = h
        return self.head(h)

    @staticmethod
    def run(way, block, h):
        if way == "checkpointed":
            return checkpoint(lambda z: torch.tanh(block(z)), h, use_reentrant=False)
        if way == "no_grad":
            with torch.no_grad():
                return torch.tanh(block(h))
        if way == "keyword":
            return torch.tanh(block(input=h))
        if way == "detached":
            return torch.tanh(block(h)).detach()
        return torch.tanh(block(h.squeeze() if way == "squeezed" else h))


@given(
    st.lists(st.sampled_from(Routed.WAYS), min_size=1, max_size=4),
    st.integers(1, 2),
    st.sampled_from([1, 2, 5, 513]),
    st.integers(0, 10**6),
)
def test_layers_are_captured_however_the_forward_pass_calls_them(ways, outputs, n, seed):
    net, coords = Routed(ways, outputs, seed), random_coords(n, 2, seed)
    twin = Routed(
        ["detached" if way == "no_grad" else "plain" if way != "detached" else way for way in ways], outputs, 0
    )
    twin.load_state_dict(net.state_dict())
    parameters = list(twin.double().parameters())
    rows = []
    for point in (coords[:1], coords[-1:]):
        for value in twin(point.double())[0]:
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
    net(coords)  # keeps an activation
    J = inr.jacobian(net, coords, precision="highest")
    got = torch.cat([J.rows(0), J.rows(n - 1)])
    torch.testing.assert_close(got, torch.stack(rows), rtol=1e-10, atol=1e-12)


class Reentrant(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.a, self.b, self.first = nn.Linear(2, 4), nn.Linear(4, 1), first

    def forward(self, x):
        if self.first:  # the layer inside, or only its activation
            return self.b(checkpoint(lambda z: torch.tanh(self.a(z)), x, use_reentrant=True))
        return self.b(checkpoint(torch.tanh, self.a(x), use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("first", [True, False])
def test_reentrant_checkpointing_is_refused_by_name(first):
    with pytest.raises(UnsupportedModuleError, match="use_reentrant=False"):
        inr.ntk(Reentrant(first), random_coords(5, 2, 0))


class Learned(inr.encodings.Encoding):
    """An encoding with a layer of its own."""

    def __init__(self, change):
        super().__init__()
        self.out_features, self.change = 6, change

    def build(self, in_features, generator, device, dtype):
        built = Learned(self.change)
        built.in_features, built.lin = in_features, nn.Linear(in_features, 6, device=device, dtype=dtype)
        return built

    def forward(self, coords):
        self.kept = self.change(coords)
        return torch.sin(self.lin(self.kept))


@pytest.mark.parametrize("trained", [True, False])
def test_an_own_encoding_takes_part_as_any_module(trained):
    net = inr.INR(2, 2, width=8, hidden_layers=2, encoding=Learned(lambda x: x))
    net.encoding.requires_grad_(trained)
    coords = random_coords(1100, 2, 0)  # several threads, where it is known
    truth = exact_jacobian(net, coords[:20]).flatten(0, 1)
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(slice(0, 20)), truth, rtol=1e-10, atol=1e-12)
    net = inr.INR(2, 2, width=8, encoding=Learned(lambda x: x - x.mean(0)))
    net.encoding.requires_grad_(trained)
    with pytest.raises(UnsupportedModuleError, match="couples samples"):
        inr.ntk(net, coords)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_batch_norms_without_parameters_in_an_inr(position):
    net = inr.INR(2, 2, width=8, hidden_layers=2, norm="batch", norm_position=position, activation="tanh")
    net.norms[1] = nn.BatchNorm1d(8, affine=False)
    coords = random_coords(30, 2, 0)
    inr.calibrate_batchnorm_(net, coords).eval()
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), exact_jacobian(net, coords).flatten(0, 1), rtol=1e-10, atol=1e-12)


def test_a_users_hook_on_a_layer_takes_part():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    net[0].register_forward_hook(lambda module, given, output: 3 * output)
    net[2].register_forward_pre_hook(lambda module, given: (2 * given[0],))
    coords = random_coords(9, 2, 0)
    truth = exact_jacobian(net, coords).flatten(0, 1)
    torch.testing.assert_close(inr.jacobian(net, coords, precision="highest").rows(), truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["finer", "sine"])
def test_chaotic_networks_are_refused_as_such_and_others_are_right(activation):
    """On pixels and with many layers fp64 does not know the Jacobian; the message says so."""
    for depth, high in ((2, 1.0), (2, 255.0), (8, 4096.0)):
        net = inr.INR(2, 1, width=64, hidden_layers=depth, activation=activation)
        coords = random_coords(8, 2, 0) * high
        for wrapped in (net, nn.Sequential(net)):
            if depth > 2:
                with pytest.raises(UnsupportedModuleError, match="ill-conditioned"):
                    inr.ntk(wrapped, coords)
                continue
            truth = exact_jacobian(net, coords).flatten(0, 1)
            got = inr.jacobian(wrapped, coords, precision="highest").rows()
            assert float((got - truth).norm()) <= 1e-6 * float(truth.norm())


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, x):
        self.features = torch.relu(self.a(x))
        return self.b(self.features)


def test_threads_build_and_use_kernels_of_one_network():
    """Forward mode of torch, hooks on a module and tensors kept in it are not made for threads."""
    coords = random_coords(600, 2, 0)
    sequential = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    nets = [sequential, Keeps(), inr.INR(2, 1, width=16)]
    v = torch.ones(600, 2)
    expected = [inr.ntk(net, coords) @ v for net in nets]
    shared = [inr.ntk(net, coords, memory_budget=2**19) for net in nets]  # factors recomputed by every product
    alone = [K @ v for K in shared]

    def use(index):
        which = index % len(nets)
        if index % 2:
            return torch.equal(inr.ntk(nets[which], coords) @ v, expected[which])
        return torch.equal(shared[which] @ v, alone[which])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(60)))


def density(returned):
    return returned["density"]


@pytest.mark.parametrize("select", ["rgb", density])
def test_kernels_and_jacobians_are_pickled_and_copied(select):
    net, coords = Residual(), random_coords(9, 2, 0)
    for made in (inr.ntk(net, coords, select=select), inr.jacobian(net, coords, select=select)):
        dense = (lambda x: x.to_dense()) if hasattr(made, "to_dense") else (lambda x: x.rows())
        expected = dense(made)
        with torch.no_grad():
            net.inlet.weight.add_(1)
        for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
            assert torch.equal(dense(other), expected)


def test_another_process_takes_a_pickled_kernel(tmp_path):
    K = inr.ntk(inr.INR(2, 1, width=8, norm="sphere"), random_coords(9, 2, 0))
    (tmp_path / "kernel").write_bytes(pickle.dumps(K))
    code = "import pickle, sys; print(repr(pickle.load(open(sys.argv[1], 'rb')).trace()))"
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "kernel"], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) == K.trace()


def test_what_cannot_be_pickled_says_how_else():
    net, coords = Residual(), random_coords(9, 2, 0)
    K = inr.ntk(net, coords, select=lambda returned: returned["rgb"])
    assert torch.equal(copy.deepcopy(K).to_dense(), K.to_dense())
    with pytest.raises(TypeError, match=r"select= function.*spawn"):
        pickle.dumps(K)

    class Local(nn.Linear):
        pass

    K = inr.ntk(nn.Sequential(Local(2, 1)), coords)
    with pytest.raises(TypeError, match=r"network cannot be pickled.*spawn"):
        pickle.dumps(K)


def test_one_point_is_enough():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    coords = random_coords(1, 2, 0)
    truth = exact_jacobian(net, coords).flatten(0, 1)
    torch.testing.assert_close(inr.ntk(net, coords, precision="highest").to_dense(), truth @ truth.t())


def test_representations_are_the_activated_outputs():
    net = inr.INR(2, 1, width=5, hidden_layers=2, norm="sphere", norm_position="post").double()
    coords = random_coords(7, 2, 0).double()
    found = inr.ntk(net, coords).capture.representations(coords)
    assert list(found) == ["input", "layers.0", "layers.1"]
    z = coords
    for index, name in enumerate(found):
        torch.testing.assert_close(found[name], z)
        if index < 2:
            z = net.activate(index, net.layers[index](z))


class OwnModule(nn.LayerNorm):
    """A module of the user's own, which no handler of the library knows."""


class OwnNorm(LayerNorm):
    module = OwnModule

    @classmethod
    def make(cls, width, device, dtype):
        return OwnModule(width, device=device, dtype=dtype)


class HalfModule(nn.Module):
    def forward(self, features):
        return features / 2


class WrongHalf(Norm):
    module = HalfModule

    @classmethod
    def make(cls, width, device, dtype):
        return HalfModule()

    @classmethod
    def of(cls, module):
        return cls()

    def forward(self, u):
        return u / 2, u[:1]

    def backward(self, gradient, state):
        return gradient / 3, None

    def slope(self, state):
        return NormSlope(state.new_full((1,), 1 / 3))


class WrongLinear(Linear):
    kind = "wrong"
    order = -1

    def factors(self, features, sensitivities):
        return Factors(features, None if sensitivities is None else 2 * sensitivities)


@pytest.mark.parametrize(
    ("activation", "norm", "handler", "said"),
    [
        ("off", None, None, r"last in layer 'layers\.1'\): the slope of the activation 'off' .*check_activation"),
        ("tanh", WrongHalf, None, r"layer 'layers\.0'\): the derivative of the norm WrongHalf .*check_norm"),
        ("tanh", None, WrongLinear, r"layer 'layers\.\d'\): the factors of WrongLinear .*check_layer"),
    ],
)
def test_a_wrong_derivative_of_ones_own_is_named_with_its_layer_and_its_check(
    activation, norm, handler, said, monkeypatch
):
    wrong = Activation("off", value=torch.sin, slope=torch.sin)
    monkeypatch.setattr(ACTIVATIONS, "_items", {**ACTIVATIONS, "off": wrong})
    monkeypatch.setattr(NORMS, "_items", {**NORMS, "own": norm})
    if handler is not None:
        monkeypatch.setattr(LAYERS, "_items", {**LAYERS, "wrong": handler})
    net = inr.INR(
        2,
        1,
        width=8,
        activation=["tanh", activation, "tanh"],
        norm=None if norm is None else ["own", None, None],
    )
    with pytest.raises(UnsupportedModuleError, match=said):
        inr.ntk(net, inr.grid((6, 6)))


def test_a_norm_of_ones_own_with_weights_is_exact(monkeypatch):
    monkeypatch.setattr(NORMS, "_items", {**NORMS, "own": OwnNorm})
    backends.warn_once.cache_clear()
    net, coords = inr.INR(2, 2, width=6, hidden_layers=2, norm="own").double(), random_coords(12, 2, 0).double()
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), exact_jacobian(net, coords).flatten(0, 1), rtol=1e-10, atol=1e-12)
