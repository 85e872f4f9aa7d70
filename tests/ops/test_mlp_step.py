"""The native step against fp64 automatic differentiation, for every set of instructions that this processor has."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from random_networks import mild
from torch import Tensor

import inrfast as inr
from inrfast.activations import ACTIVATIONS as TABLE
from inrfast.activations import Activation, bind
from inrfast.errors import NotAvailableError
from inrfast.losses import LOSSES, loss_of
from inrfast.mlp import MLP, describe
from inrfast.modulations import MODULATIONS
from inrfast.norms import NORMS
from inrfast.ops import mlp_step
from inrfast.ops.mlp_step import Filter, Layer, Points

ACTIVATIONS = sorted(name for name, kind in TABLE.items() if kind.native is not None)

ALL = [name for name in ("avx512", "avx2") if name == mlp_step._available() or mlp_step._available() == "avx512"]

needs_native = pytest.mark.skipif(not ALL, reason="this processor has no native step")


@pytest.fixture(params=ALL)
def instructions(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def random(*shape: int, seed: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def filter_of_layer(nets: list[inr.INR], index: int, frozen: bool) -> Filter | None:
    """The filters of one layer side by side, with zeros for the gradients of every parameter, or of none."""
    if not nets[0].modulation_configs or nets[0].modulation_configs[index] is None:
        return None
    own = [net.modulations[index] for net in nets]
    parameters = [torch.stack([one.get_parameter(name).detach() for one in own]) for name in own[0].state(1, 1)]
    grads = [None if frozen and place % 2 == 0 else torch.zeros_like(one) for place, one in enumerate(parameters)]
    return Filter(own[0].native, parameters, grads)


def layers_of(nets: list[inr.INR], frozen: set[int] = frozenset()) -> list[Layer]:  # type: ignore[assignment]
    """Parameters side by side, with zeros for the gradients of those that are not frozen."""
    found, mlp = [], describe(nets[0], modulated=True)
    assert isinstance(mlp, MLP)
    hiddens = mlp.hidden
    for index, activation in enumerate([*nets[0].bound_activations, None]):
        weight = torch.stack([net.layers[index].weight.detach() for net in nets])
        bias = None
        if nets[0].layers[index].bias is not None:
            bias = torch.stack([net.layers[index].bias.detach() for net in nets])
        grads = [None, None] if index in frozen else [torch.zeros_like(weight), None]
        if bias is not None and index not in frozen:
            grads[1] = torch.zeros_like(bias)
        hidden = hiddens[index] if index < len(hiddens) else None
        norm = {} if hidden is None else {"norm": hidden.norm, "norm_after": hidden.norm_after}
        if hidden is not None:
            norm["filter"] = filter_of_layer(nets, index, index in frozen)
        found.append(Layer(activation, weight, bias, *grads, **norm))
    return found


def run(
    instructions: str,
    layers: list[Layer],
    points: Points,
    scales: Tensor | None,
    count: int,
    chunk: int = 84,
    loss: Any = "mse",
) -> Tensor:
    memory = torch.full((mlp_step.workspace(layers, chunk),), float("nan"))  # nothing may depend on what was there
    return mlp_step.steps(layers, points, scales, count, chunk, memory, instructions, loss_of(loss))


def losses() -> st.SearchStrategy[Any]:
    """Every loss with a native function; Huber's with kinks inside and outside the errors."""
    deltas = st.floats(0.05, 3.0).map(lambda delta: {"name": "huber", "delta": delta})
    return st.sampled_from([name for name in LOSSES if LOSSES[name].native]) | deltas


@torch.no_grad()
def distance_from_gates(net: inr.INR, x: Tensor) -> float:
    """How far arguments of ReLU stay from 0, and entries that TopK keeps from those that it drops, the closest of all:
    there gates of fp32 and fp64 differ, and that is no error of a gradient."""
    least = math.inf
    points = x
    for index, (layer, activation) in enumerate(zip(net.layers, net.bound_activations, strict=False)):
        x = layer(x)
        for part in ("norm", "activation") if net.norm_position == "pre" else ("activation", "norm"):
            if part == "norm":
                k = getattr(net.norms[index], "k", x.shape[1])
                if k < x.shape[1]:
                    sizes = x.abs().topk(k + 1).values
                    equal = sizes[:, k] == 0  # behind ReLU: nothing hangs on them
                    least = min([least, *(sizes[:, k - 1] - sizes[:, k])[~equal].tolist()])
                x = net.norms[index](x)
            else:
                least = min(least, float(x.abs().min())) if activation.name == "relu" else least
                x = activation.value(x)
        x = net.modulated(index, x, points)
    return least


def some_norm(data: st.DataObject, width: int) -> Any:
    """A norm with a native step, or None."""
    name = data.draw(st.sampled_from([None, None, *(name for name, kind in NORMS.items() if kind.native)]))
    if name is None or not NORMS[name].numbers(width):
        return name
    return {"name": name, "k": data.draw(st.sampled_from([1, max(1, width // 4), max(1, width // 2), width]))}


def some_filter(data: st.DataObject) -> Any:
    """A filter with a native step, or None."""
    scale = {"fourier": 3.0, "gabor": 1.0}
    name = data.draw(st.sampled_from([None, *(name for name, kind in MODULATIONS.items() if kind.native)]))
    return None if name is None else {"name": name, "scale": scale[name]}


@needs_native
@given(data=st.data())
@pytest.mark.parametrize("kind", ALL)
def test_gradients_are_those_of_fp64_autodiff(kind: str, data: st.DataObject) -> None:
    """Several networks, sizes around those of tiles, norms, filters, points shared or own, batches, frozen parts."""
    depth, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    d, outputs = data.draw(st.sampled_from([1, 2, 3, 20, 70])), data.draw(st.sampled_from([1, 3, 9, 33]))
    width = data.draw(st.sampled_from([1, 7, 16, 31, 48, 64, 65, 81, 130]))
    names = data.draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=depth, max_size=depth))
    activation = [mild(name) for name in names]
    options = {"width": width, "hidden_layers": depth, "activation": activation, "bias": data.draw(st.booleans())}
    options["norm"] = [some_norm(data, width) for _ in range(depth)]
    options["norm_position"] = data.draw(st.sampled_from(["pre", "post"]))
    if data.draw(st.booleans()):
        options["modulation"] = [some_filter(data) for _ in range(depth)]
    nets = [inr.INR(d, outputs, omega=1.3, seed=seed, **options) for seed in range(count)]
    n = data.draw(st.sampled_from([1, 5, 84, 85, 200]))
    coords, target = (
        random(count if data.draw(st.booleans()) else 1, n, columns, seed=seed)
        for seed, columns in ((1, d), (2, outputs))
    )
    weight = None
    if data.draw(st.booleans()):
        weight = random(1, n, data.draw(st.sampled_from([1, outputs])), seed=3).abs()
    rows: Tensor | range = range(n // 3, n)
    if data.draw(st.booleans()):
        size = count if data.draw(st.booleans()) else 1
        rows = torch.randint(n, (size, 1 + n // 2), generator=torch.Generator().manual_seed(4))
    frozen = {index for index in range(depth) if data.draw(st.booleans())}
    scales = 0.1 + torch.rand(count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    layers = layers_of(nets, frozen)
    chunk = data.draw(st.sampled_from([84, 168]))
    loss = data.draw(losses())
    target = target.abs() if loss_of(loss).name == "bce" else target
    found = run(kind, layers, Points(coords, target, weight, rows), scales, count, chunk, loss)

    for number, net in enumerate(nets):
        twin = copy.deepcopy(net).double()
        chosen = torch.arange(n)[rows.start :] if isinstance(rows, range) else rows[min(number, len(rows) - 1)]
        x, y = (own[min(number, len(own) - 1)][chosen].double() for own in (coords, target))
        prediction = twin(x)
        # Where a slope jumps, as that of ReLU and of |f - y| at 0, fp32 and fp64 may be on different sides.
        assume(distance_from_gates(twin, x) > 1e-6)
        assume(loss != "l1" or float((prediction - y).detach().abs().min()) > 1e-6)
        values = loss_of(loss).value(prediction, y)
        square = (values if weight is None else values * weight[0][chosen].double()).sum()
        assert float(found[number]) == pytest.approx(float(square.detach()), rel=1e-5)
        (scales[number] * square).backward()
        for index, (layer, own) in enumerate(zip(layers, twin.layers, strict=True)):
            for grad, parameter in ((layer.weight_grad, own.weight), (layer.bias_grad, own.bias)):
                assert (grad is None) == (parameter is None or index in frozen)
                if grad is not None:
                    error = (grad[number] - parameter.grad).norm()
                    assert float(error) <= 2e-5 * float(parameter.grad.norm()) + 1e-6 * float(scales[number])
            if layer.filter is None:
                continue
            names = twin.modulations[index].state(1, 1)
            for name, grad in zip(names, layer.filter.grads, strict=True):
                if grad is not None:
                    expected = twin.modulations[index].get_parameter(name).grad
                    error = (grad[number] - expected).norm()
                    assert float(error) <= 2e-5 * float(expected.norm()) + 1e-6 * float(scales[number])


@needs_native
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("norm", ["sphere", "topk", "topk_sphere"])
def test_norms_at_zero_and_far_from_one(instructions: str, norm: str, position: str) -> None:
    """Rows of zeros, of tiny numbers and of huge ones, ties, and a single unit, whose sphere has no derivative."""
    for width, k, scale in itertools.product([1, 20], [1, 4], [0.0, 1e-25, 1.0, 1e25]):
        given = {"name": norm, "k": min(k, width)} if NORMS[norm].numbers(width) else norm
        options = {"activation": "relu", "norm": given, "norm_position": position, "bias": False}
        net = inr.INR(2, 1, width=width, hidden_layers=1, **options)
        with torch.no_grad():
            net.layers[0].weight.copy_(scale * net.layers[0].weight.sign())  # magnitudes come in few sizes
            net.layers[1].weight /= max(scale, 1.0)
        x, y = random(1, 60, 2, seed=0), random(1, 60, 1, seed=1)
        layers = layers_of([net])
        run(instructions, layers, Points(x, y, None, range(60)), torch.ones(1), 1)
        (net(x[0]) - y[0]).square().sum().backward()
        for layer, own in zip(layers, net.layers, strict=True):
            size = float(own.weight.grad.abs().max())
            assert math.isfinite(size)
            if width == 1 and norm != "topk" and own is net.layers[0]:
                assert size == 0
                assert not bool(layer.weight_grad.any())
            torch.testing.assert_close(layer.weight_grad[0], own.weight.grad, rtol=1e-4, atol=1e-5 * size + 1e-37)


@needs_native
@pytest.mark.parametrize("name", ["sine", "gaussian", "finer"])
def test_activations_are_exact_to_four_units_of_the_last_place(instructions: str, name: str) -> None:
    """Also for large angles and far down the bell. Networks of one unit and one point show value and derivative."""
    x = torch.logspace(-6, {"sine": 7, "gaussian": 1, "finer": 3}[name], 3000) * (-1) ** torch.arange(3000)
    if name == "gaussian":
        value = torch.exp(-(x * x).double())
        slope = -2 * x.double() * value
        scale = slope.abs()
    else:
        angle = (x if name == "sine" else (x.abs() + 1) * x).double()
        scale = 1 + 2 * x.double().abs() if name == "finer" else torch.ones(3000, dtype=torch.float64)
        value, slope = torch.sin(angle), scale * torch.cos(angle)

    one, zero, grad = torch.ones(3000, 1, 1), torch.zeros(3000, 1), torch.zeros(3000, 1)
    layers = [Layer(bind(name, 1.0), one, zero, None, grad), Layer(None, one, zero)]
    points = Points(x.reshape(-1, 1, 1), torch.full((1, 1, 1), -2.0), None, range(1))
    squares = run(
        instructions, layers, points, torch.full((3000,), 0.5), 3000
    )  # of value + 2; their gradient is that times slope
    assert ((squares.sqrt() - 2 - value).abs() <= 4 * 2.0**-23).all()
    assert ((grad[:, 0] - (value + 2) * slope).abs() <= 4 * 2.0**-23 * (value + 2) * scale + 1e-37).all()


@needs_native
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("norm", [None, "topk", "topk_sphere"])
def test_what_is_no_number_stays_so(instructions: str, name: str, loss: str, norm: str | None) -> None:
    for bad in (float("nan"), float("inf") if name in ("sine", "finer") else float("nan")):
        net = inr.INR(2, 1, width=20, hidden_layers=2, activation=name, norm=norm)
        with torch.no_grad():
            net.layers[0].bias[3] = bad
        layers = layers_of([net])
        found = run(
            instructions,
            layers,
            Points(random(1, 9, 2, seed=0), random(1, 9, 1, seed=1), None, range(9)),
            torch.ones(1),
            1,
            loss=loss,
        )
        assert math.isnan(float(found))
        assert layers[1].weight_grad is not None
        assert bool(layers[1].weight_grad.isnan().any())


@needs_native
def test_losses_alone_leave_gradients_as_they_are(instructions: str) -> None:
    net = inr.INR(2, 3, width=40, hidden_layers=2)
    layers = layers_of([net])
    points = Points(random(1, 500, 2, seed=0), random(1, 500, 3, seed=1), None, range(500))
    found = run(instructions, layers, points, None, 1)
    assert all(layer.weight_grad is not None and not layer.weight_grad.any() for layer in layers)
    exact = (net(points.coords[0]) - points.target[0]).detach().double().square().sum()
    assert float(found) == pytest.approx(float(exact), rel=1e-5)


def test_it_applies_to_plain_fp32_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INRFAST_NATIVE", raising=False)
    monkeypatch.delenv("INRFAST_GEMM", raising=False)
    x, relu, measured = torch.rand(2, 5, 3), bind("relu"), mlp_step._available.__wrapped__
    monkeypatch.setattr(mlp_step, "_available", lambda: "avx2")
    assert mlp_step.reason_against([relu, bind("sine")], [x, None]) is None
    assert "'tanh'" in str(mlp_step.reason_against([relu, bind("tanh")], [x]))
    assert "not float64 on cpu" in str(mlp_step.reason_against([relu], [x.double()]))
    assert "contiguous" in str(mlp_step.reason_against([relu], [x.mT]))
    layer = NORMS["layer"].of(torch.nn.LayerNorm(3))
    assert "norms without a native step" in str(mlp_step.reason_against([relu], [x], [layer]))
    assert "filters without a native step" in str(mlp_step.reason_against([relu], [x], filters=[torch.nn.Identity()]))
    assert "64 hidden layers" in str(mlp_step.reason_against([relu] * 64, [x]))
    monkeypatch.setenv("INRFAST_GEMM", "torch")
    assert "no native step" in str(mlp_step.reason_against([relu], [x]))
    monkeypatch.delenv("INRFAST_GEMM")

    def missing() -> None:
        raise NotAvailableError("it was not built")

    monkeypatch.setattr(mlp_step, "load_extension", missing)
    monkeypatch.setattr(mlp_step, "_available", measured)
    assert "no native step" in str(mlp_step.reason_against([relu], [x]))


@needs_native
def test_an_activation_that_the_extension_does_not_have_is_refused() -> None:
    one = torch.ones(1, 1, 1)
    for kind, told in (
        (Activation("x", torch.sin, torch.cos), "no activation called unheard_of"),
        (Activation("x", torch.sin, torch.cos, dict.fromkeys("abc", 1.0)), "at most 2 numbers"),
    ):
        object.__setattr__(kind, "native", "sine" if kind.numbers else "unheard_of")  # Activation itself refuses them
        with pytest.raises(ValueError, match=told):
            mlp_step.workspace([Layer(kind.bind(), one, None)], 84)


@needs_native
@pytest.mark.parametrize("gamma", [-1e3, -4.0, 0.0, 50.0, 1e6])
def test_bells_of_any_width(instructions: str, gamma: float) -> None:
    """gamma may become negative in training: the bell then grows, to infinity far from its centre; torch's does too."""
    net = inr.INR(2, 1, width=20, hidden_layers=1, modulation={"name": "gabor", "scale": 1.0})
    with torch.no_grad():
        net.modulations[0].gamma.fill_(gamma)
    x, y = random(1, 60, 2, seed=0), random(1, 60, 1, seed=1)
    layers = layers_of([net])
    found = run(instructions, layers, Points(x, y, None, range(60)), torch.ones(1), 1)
    square = (net(x[0]) - y[0]).square().sum()
    square.backward()
    torch.testing.assert_close(found[0].float(), square.detach(), rtol=1e-4, atol=0.0, equal_nan=True)
    own = net.modulations[0]
    for name, grad in zip(own.state(2, 20), layers[0].filter.grads, strict=True) if square.isfinite() else ():
        expected = own.get_parameter(name).grad
        torch.testing.assert_close(grad[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-37)


@needs_native
def test_a_filter_that_the_extension_does_not_have_is_refused() -> None:
    one = torch.ones(1, 1, 1)
    for name, parameters, told in (("unheard_of", [], "no filter called"), ("gabor", [one] * 5, "at most 4 param")):
        with pytest.raises(ValueError, match=told):
            mlp_step.workspace([Layer(bind("relu"), one, None, filter=Filter(name, parameters, []))], 84)


@needs_native
@pytest.mark.parametrize("way", ["rows", "index", "frozen"])
def test_gradients_of_the_points_are_those_of_fp64_autodiff(instructions: str, way: str) -> None:
    """Of every row once, in its own place; rows that take no part keep what was there."""
    net = inr.INR(5, 3, width=37, hidden_layers=2, activation="sine", init="siren", omega=4.0)
    x, y, weight = random(200, 5, seed=0), random(200, 3, seed=1), random(200, 1, seed=2).abs()
    rows: Tensor | range = range(3, 190)
    if way == "index":
        rows = torch.randperm(200, generator=torch.Generator().manual_seed(3))[:90]
    layers = layers_of([net], {0, 1, 2} if way == "frozen" else set())
    grad = torch.full((1, 200, 5), 7.0)
    own = rows.unsqueeze(0) if isinstance(rows, Tensor) else rows
    run(instructions, layers, Points(x[None], y[None], weight[None], own, grad), torch.tensor([0.5]), 1)
    wide = copy.deepcopy(net).double()
    points = x.double().requires_grad_()
    some = rows if isinstance(rows, Tensor) else slice(rows.start, rows.stop)
    loss = 0.5 * (weight.double() * (wide(points) - y.double()).square())[some].sum()
    (wanted,) = torch.autograd.grad(loss, points)
    left = torch.ones(200, dtype=torch.bool)
    left[some] = False
    torch.testing.assert_close(grad[0, ~left].double(), wanted[~left], atol=1e-5 * float(wanted.abs().max()), rtol=0)
    assert bool((grad[0, left] == 7.0).all())


@pytest.mark.parametrize("filter", [None, {"name": "gabor", "scale": 4.0}])
def test_sums_over_many_points_lose_nothing(filter: Any) -> None:
    """All errors of one sign: added one by one in fp32, 300,000 of them would be off by a thousandth."""
    count = 300_000
    net = inr.INR(1, 1, width=8, hidden_layers=1, seed=3, modulation=filter)
    coords = torch.linspace(-1, 1, count).unsqueeze(1)
    target = torch.full((count, 1), 10.0)
    wanted = copy.deepcopy(net).double()
    (wanted(coords.double()) - target).abs().mean().backward()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    inr.fit(net, coords, target, steps=1, lr=1.0, schedule="constant", loss="l1", optimizer="sgd", progress=False)
    for name, parameter in wanted.named_parameters():
        assert parameter.grad is not None
        found = before[name] - net.get_parameter(name)
        rounded = 2 * torch.finfo(torch.float32).eps * before[name].norm()  # of the weight that is stepped
        assert (found - parameter.grad).norm() <= 2e-5 * parameter.grad.norm() + rounded, name
