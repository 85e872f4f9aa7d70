"""INR is an ordinary module: contract of its names, its function, its norms, and what users do with modules."""

import copy
import functools
import io
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import networks, random_coords
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.encodings import HashGrid
from inrfast.norms import NORMS


@given(networks(max_width=16), st.integers(0, 10**6))
def test_copies_pickles_and_functional_calls_are_the_same_function(net, seed):
    coords = random_coords(7, net.in_features, seed)
    expected = net(coords)
    assert expected.shape == (7, net.out_features)
    assert torch.equal(copy.deepcopy(net)(coords), expected)
    assert torch.equal(pickle.loads(pickle.dumps(net))(coords), expected)
    assert torch.equal(functional_call(net, dict(net.named_parameters()), (coords,)), expected)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(coords), expected)
    grid = coords[:6].reshape(2, 3, -1)
    torch.testing.assert_close(net(grid), net(coords[:6]).reshape(2, 3, -1))


def test_layers_are_counted_and_named_as_documented():
    net = inr.INR(2, 1, width=256, hidden_layers=3)
    assert [name for name, _ in net.named_parameters()] == [
        f"layers.{k}.{leaf}" for k in range(4) for leaf in ("weight", "bias")
    ]
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(256, 2), (256, 256), (256, 256), (1, 256)]
    assert repr(inr.INR(2, 1, bias=False).layers[0]).endswith("bias=False)")


def test_it_is_the_documented_function():
    net = inr.INR(
        2, 2, width=6, hidden_layers=3, activation=["sine", "gaussian", "finer"], omega=[30.0, 2.0, 3.0], init="siren"
    ).double()
    x = random_coords(9, 2, 0).double()
    z = torch.sin(30 * net.layers[0](x))
    z = torch.exp(-((2 * net.layers[1](z)) ** 2))
    u = net.layers[2](z)
    z = torch.sin(3 * (u.abs() + 1) * u)
    torch.testing.assert_close(net(x), net.layers[3](z))


def test_seeds_leave_the_global_generator_alone_and_agree():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = inr.INR(2, 1, seed=1), inr.INR(2, 1, seed=1), inr.INR(2, 1, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.layers[1].weight, c.layers[1].weight)
    double = inr.INR(2, 1, seed=1, dtype=torch.float64)
    assert torch.equal(double.layers[1].weight.float(), a.layers[1].weight)


def test_two_starts_of_one_seed_share_their_other_layers():
    default, cured = inr.INR(2, 1, seed=3), inr.INR(2, 1, seed=3, init="rank_expanding")
    assert not torch.equal(default.layers[0].weight, cured.layers[0].weight)
    for k in (1, 2, 3):
        assert torch.equal(default.layers[k].weight, cured.layers[k].weight)


# ---- what PyTorch does with modules --------------------------------------------------------------------------------

ENCODINGS = (None, inr.RandomFourier(4, 1.0), inr.PositionalEncoding(3), inr.Polynomial(2), HashGrid())


def everything(dtype=torch.float64):
    """Networks that have, together, every activation, encoding, norm and position of it; and fused layers."""
    kinds = itertools.cycle(sorted(ACTIVATIONS))
    norms = {"post": itertools.cycle([*NORMS, None]), "pre": itertools.cycle([*NORMS, None])}
    found, seen = {}, set()
    for encoding, position in zip([*ENCODINGS, None], itertools.cycle(norms), strict=False):
        activation, norm = [next(kinds), next(kinds)], [next(norms[position]), next(norms[position])]
        net = inr.INR(2, 1, width=6, hidden_layers=2, activation=activation, omega=2.0, norm=norm,
                      norm_position=position, encoding=encoding, seed=1, dtype=dtype)  # fmt: skip
        found[f"{activation} {norm} {position} {encoding}"] = net
        seen |= {*activation, *((name, position) for name in norm)}
    assert seen >= {*ACTIVATIONS, *itertools.product(NORMS, norms)}
    for activation in ("relu", "sine"):
        found[f"fused {activation}"] = fused_and_plain(activation, dtype)[0]
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_linear_layers(dtype):
    """The result has its dtype, gradients that of the parameters, and both are near those without."""
    x = random_coords(30, 2, 0)
    for name, net in everything(torch.float32).items():
        exact = net.eval()(x)  # a batch norm in train mode would magnify what rounding does to near-constants
        with torch.autocast("cpu", dtype=dtype):
            y = net(x)
        assert y.dtype == nn.Linear(2, 1).to(dtype)(x.to(dtype)).dtype, name
        away = (y.float() - exact).norm(dim=1)
        if "topk" in name:  # at a few points 16 bits decide which units are kept
            away = away.sort().values[: len(away) * 9 // 10]
        assert away.norm() <= 0.1 * exact.norm() + 0.05, name
        y.float().square().mean().backward()
        for parameter in net.parameters():
            assert parameter.grad.dtype == torch.float32
            assert torch.isfinite(parameter.grad).all(), name
    assert inr.INR(2, 1, width=4, dtype=dtype)(x.to(dtype)).dtype == dtype


def step(net, x, target):
    return (net(x) - target).square().mean()


def test_a_whole_step_compiles_without_a_break_to_the_same_numbers():
    """Forward pass, loss and backward pass, in fp64, where the order of sums is all that may differ."""
    x, target = random_coords(12, 2, 0).double(), torch.ones(12, 1, dtype=torch.float64)
    for name, net in everything().items():
        twin = copy.deepcopy(net)
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        losses = compiled(net, x, target), step(twin, x, target)
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0, msg=name)
        for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_one_graph_takes_any_number_of_points_and_programs_are_exported(tmp_path):
    """Exported programs are plain operations of torch: whoever loads one need not have this library."""
    x = random_coords(12, 2, 0).double()
    net = inr.INR(2, 1, width=6, activation="sine", encoding=inr.RandomFourier(4, 1.0), norm="sphere").double()
    for own in (net, fused_and_plain("sine")[0]):
        torch._dynamo.reset()
        graphs = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(own, fullgraph=True, backend=graphs, dynamic=True)
        for n in (12, 5, 7):
            torch.testing.assert_close(compiled(x[:n].clone()), own(x[:n]), rtol=1e-12, atol=1e-14)
        assert graphs.frame_count == 1
        program = torch.export.export(own, (x,), dynamic_shapes=({0: torch.export.Dim("points", min=2)},))
        torch.export.save(program, tmp_path / "program.pt2")
        loaded = torch.export.load(tmp_path / "program.pt2").module()
        for n, function in itertools.product((12, 5), (program.module(), loaded)):
            torch.testing.assert_close(function(x[:n]), own(x[:n]), rtol=1e-12, atol=1e-14)
        assert not any("inrfast" in str(node.target) for node in program.graph.nodes)


def test_torch_func_goes_through_networks():
    """Every transform of the fused layers gives what it gives of torch's own operations; and an INR takes them all."""
    x = random_coords(4, 2, 0).double()

    def transforms(net):
        own = dict(net.named_parameters())
        ahead = {name: torch.cos(parameter.detach()) for name, parameter in own.items()}
        several = {name: torch.stack([parameter, 1.1 * parameter]) for name, parameter in own.items()}

        def f(parameters, points=x):
            return functional_call(net, parameters, (points,))

        return {
            "jacrev": jacrev(f)(own),
            "jacfwd": jacfwd(f)(own),
            "jvp": jvp(f, (own,), (ahead,)),
            "vjp": vjp(f, own)[1](torch.ones_like(f(own))),
            "hessian": hessian(lambda points: f(own, points).square().sum())(x),
            "per point": vmap(grad(lambda p, point: f(p, point[None]).sum()), (None, 0))(own, x),
            "several": vmap(f, (0, None))(several, x),
            "forward over reverse": jvp(grad(lambda p: f(p).square().sum()), (own,), (ahead,)),
        }

    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
    for activation in ("relu", "finer", "gelu"):
        fused, plain = map(transforms, fused_and_plain(activation))
        for name, found in fused.items():
            close(found, plain[name], msg=f"{activation} {name}")
    found = transforms(inr.INR(2, 1, width=6, hidden_layers=2, activation="sine", omega=2.0, norm="sphere").double())
    close(found["jacrev"], found["jacfwd"])
    close({name: own.sum(0) for name, own in found["jacrev"].items()},
          {name: own.unsqueeze(0) for name, own in found["vjp"][0].items()})  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"hidden_layers": 0}, ValueError, "hidden_layers must be at least 1"),
        ({"width": 2.5}, TypeError, "width must be an integer"),
        ({"activation": "rellu"}, ValueError, "Did you mean 'relu'"),
        ({"activation": ["relu"]}, ValueError, "activation must be one value or 3"),
        ({"activation": 3}, TypeError, "activation must be a name"),
        ({"omega": -1.0}, ValueError, "omega must be above"),
        ({"omega": float("nan")}, ValueError, "omega must be finite"),
        ({"norm": "batchnorm"}, ValueError, "Did you mean 'batch'"),
        ({"norm_position": "before"}, ValueError, "norm_position must be one of"),
        ({"init": "sirenn"}, ValueError, "Did you mean 'siren'"),
        ({"init": {"frist": "siren"}}, ValueError, "'first' and 'hidden'"),
        ({"init": {"name": "siren", "omeg": 3}}, ValueError, "does not take these options"),
        ({"init": {"first": {"omega": 3}}}, ValueError, "needs a 'name'"),
        ({"encoding": "fourier"}, TypeError, "encoding must be"),
        ({"seed": -1}, ValueError, "seed"),
        ({"dtype": torch.int32}, TypeError, "dtype"),
        ({"device": "cda"}, ValueError, "device must be .* got 'cda'"),
        ({"init": "rank_expanding", "bias": False}, ValueError, "bias"),
        ({"init": "rank_expanding", "encoding": inr.PositionalEncoding(2)}, ValueError, "behind an encoding"),
        ({"init": {"hidden": "rank_expanding"}}, ValueError, "hidden layer"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        inr.INR(2, 1, **arguments)
    with pytest.raises(TypeError, match=r"coords must be a torch.Tensor, got list"):
        inr.INR(2, 1, width=4)([[0.0, 0.0]])


# ---- the fused layer -----------------------------------------------------------------------------------------------


def fused_and_plain(activation, dtype=torch.float64):
    """One network twice: of fused layers, and as anyone would write it, with the same weights."""
    rng = torch.Generator().manual_seed(0)
    own = inr.activations.bind(activation, 2.0)
    fused = nn.Sequential(
        inr.nn.FusedLinear(2, 7, activation=activation, omega=2.0),
        inr.nn.FusedLinear(7, 6, activation=activation, omega=2.0),
        nn.Linear(6, 2),
    ).to(dtype)
    for parameter in fused.parameters():
        nn.init.normal_(parameter, generator=rng)

    class Plain(nn.Sequential):
        def forward(self, x):
            for layer in self[:-1]:
                x = own.value(layer(x))
            return self[-1](x)

    plain = Plain(nn.Linear(2, 7), nn.Linear(7, 6), nn.Linear(6, 2)).to(dtype)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


@pytest.mark.parametrize("activation", ["relu", "sine", "gelu"])
def test_fused_layers_are_linear_layers_with_an_activation(activation):
    fused, plain = fused_and_plain(activation)
    coords = random_coords(9, 2, 0).double()
    torch.testing.assert_close(fused(coords), plain(coords))
    torch.testing.assert_close(copy.deepcopy(fused)(coords), plain(coords))
    torch.testing.assert_close(pickle.loads(pickle.dumps(fused))(coords), plain(coords))
    assert fused(coords.view(3, 3, 2)).shape == (3, 3, 2)
    for kernels in zip(*(inr.ntk(net, coords, precision="highest").to_dense() for net in (fused, plain)), strict=True):
        torch.testing.assert_close(*kernels)
    assert list(inr.ntk(fused, coords).layers) == ["0", "1", "2"]


def test_a_fused_layer_takes_the_initialisers_of_linear_layers():
    layer = inr.nn.FusedLinear(2, 64, activation="sine", omega=30.0)
    plain = nn.Linear(2, 64)
    for each in (layer, plain):
        inr.init.rank_expanding_(each)
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)
    assert "activation='sine', omega=30" in repr(layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"activation": "rellu"}, "relu"), ({"omega": -1.0}, "omega"), ({"precision": "low"}, "precision"),
     ({"backend": "cuda"}, "backend"), ({"in_features": 0}, "in_features")],
)  # fmt: skip
def test_bad_options_of_a_fused_layer_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        inr.nn.FusedLinear(**{"in_features": 2, "out_features": 3, **options})


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"init": "siren"}, ["'siren'", "'relu'", "activation='sine'"]),
        ({"activation": "tanh", "init": {"name": "siren", "omega": 9.0}}, ["'siren'", "'tanh'"]),
        ({"activation": {"first": "sine", "hidden": "gelu"}, "init": "siren"}, ["'siren'", "'gelu'"]),
        ({"activation": "sine", "init": "rank_expanding"}, ["'rank_expanding'", "'sine'", "activation='relu'"]),
        ({"activation": "finer", "init": {"first": "rank_expanding", "hidden": "siren"}}, ["'finer'"]),
    ],
)
def test_a_start_meant_for_another_activation_is_warned_of_once(network, words):
    with pytest.warns(RuntimeWarning) as told:
        inr.INR(2, 1, width=4, hidden_layers=4, **network)
    assert len(told) == 1 and told[0].filename == __file__
    assert all(word in str(told[0].message) for word in words)


@pytest.mark.parametrize(
    "network",
    [
        {"init": "siren", "hidden_layers": 1},  # a first layer's bounds do not hang on omega
        {"activation": {"first": "sine", "hidden": "relu"}, "init": {"first": "siren", "hidden": "default"}},
        {"activation": ["sine", "identity", "identity"], "init": "siren", "modulation": [None, "fourier", "fourier"]},
        {"activation": {"first": "relu", "hidden": "sine"}, "init": {"first": "rank_expanding", "hidden": "siren"}},
        *({"activation": name, "init": "siren"} for name in ("sine", "finer", "gaussian", "wire")),
        *({"activation": name, "init": "rank_expanding"} for name in ("relu", "gelu", "softplus", "tanh")),
    ],
)
def test_other_starts_are_not_warned_of(network, recwarn):
    inr.INR(2, 1, **{"width": 4, "hidden_layers": 3, **network})
    assert not recwarn
