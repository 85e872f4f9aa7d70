"""The description of a network is the network: its function, its gradient and its kernel; or a reason says why not."""

from typing import Any

import pytest
import torch
from exact_gradients import exact, flat, of, signal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, networks, random_coords
from torch import nn

import inrfast as inr
from inrfast.encodings import Encoding
from inrfast.mlp import MLP, describe
from inrfast.ops import factors
from inrfast.ops.operands import Layout, make_plan, pack
from inrfast.tangent.capture import Capture
from inrfast.training.data import check_data
from inrfast.training.engines import ENGINES, Task
from inrfast.training.engines.fused import FusedGradient
from inrfast.training.engines.task import against_formula
from inrfast.training.stack import Stack


class Learned(Encoding):
    """An encoding with a trainable layer."""

    def __init__(self, n: int = 5) -> None:
        super().__init__()
        self.n = self.out_features = n

    def build(self, in_features: int, generator: Any, device: torch.device, dtype: torch.dtype) -> "Learned":
        built = Learned(self.n)
        built.in_features, built.mix = in_features, nn.Linear(in_features, self.n, device=device, dtype=dtype)
        return built

    def forward(self, coords: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.mix(coords))


class Other(inr.INR):
    pass


def tie(net: inr.INR) -> None:
    net.layers[1].bias = net.layers[2].bias


def drop_a_bias(net: inr.INR) -> None:
    net.layers[1].bias = None


def freeze(net: inr.INR) -> None:
    net.layers[0].requires_grad_(False)
    net.layers[2].weight.requires_grad_(False)


def widen(net: inr.INR) -> None:
    net.layers[1] = nn.Linear(net.width, net.width + 3, dtype=net.layers[1].weight.dtype)
    net.layers[2] = nn.Linear(net.width + 3, net.width, dtype=net.layers[2].weight.dtype)
    net.norms[1] = nn.Identity()


def transpose(net: inr.INR) -> None:
    weight = net.layers[1].weight
    weight.data = weight.data.t().contiguous().t()


def watch_backward(net: inr.INR) -> None:
    net.layers[0].weight.register_hook(lambda gradient: None)


def watch_forward(net: inr.INR) -> None:
    net.layers[0].register_forward_hook(lambda module, inputs, output: None)


def own_forward(net: inr.INR) -> None:
    net.layers[0].forward = net.layers[0].forward


def own_activate(net: inr.INR) -> None:
    net.activate = net.activate


def subclass_a_layer(net: inr.INR) -> None:
    net.layers[1].__class__ = type("Slow", (nn.Linear,), {})


def replace_a_norm(net: inr.INR) -> None:
    net.norms[0] = nn.RMSNorm(net.width)


def make_a_buffer(net: inr.INR) -> None:
    weight = net.layers[1].weight.detach()
    del net.layers[1].weight
    net.layers[1].register_buffer("weight", weight)


CHANGES = (tie, drop_a_bias, freeze, widen, transpose, watch_backward, watch_forward)


@st.composite
def changed_networks(draw: st.DrawFn, width: int = 9) -> inr.INR:
    """Networks with parts that were changed after they were built, with any encoding and norm."""
    fourier = inr.RandomFourier(4, 1.0, trainable=draw(st.booleans()))
    net = inr.INR(
        2,
        draw(st.integers(1, 3)),
        width=draw(st.sampled_from([width, width + 4])),
        hidden_layers=3,
        activation=draw(st.sampled_from(["tanh", "sine", "relu", "softplus", ["tanh", "sine", "gelu"]])),
        omega=2.0,
        encoding=draw(st.sampled_from([None, None, fourier, Learned(), inr.PositionalEncoding(2)])),
        norm=draw(st.sampled_from([None, None, None, "sphere", "layer"])),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 100)),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
    )
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=2, unique=True)):
        change(net)
    return net


def evaluate(mlp: MLP, coords: torch.Tensor) -> torch.Tensor:
    """The formula that a description stands for."""
    z = coords if mlp.encoding is None else mlp.encoding(coords)
    for layer in mlp.hidden:
        z = nn.functional.linear(z, layer.linear.weight, layer.linear.bias)
        if layer.norm is not None and not layer.norm_after:
            z = layer.norm.forward(z)[0]
        z = layer.activation.value(z)
        if layer.norm is not None and layer.norm_after:
            z = layer.norm.forward(z)[0]
    return nn.functional.linear(z, mlp.head.weight, mlp.head.bias)


@settings(max_examples=20, deadline=None)
@given(st.one_of(networks(max_width=9, max_depth=3), changed_networks()))
def test_a_description_is_the_function_and_its_parameters_are_live(net):
    net = net.double()
    mlp = describe(net)
    if isinstance(mlp, str):
        assert "hooks" in mlp
        return
    coords = random_coords(7, net.in_features, 0).double()
    torch.testing.assert_close(evaluate(mlp, coords), net(coords))
    assert (mlp.inputs, mlp.outputs, len(mlp.layers)) == (net.in_features, net.out_features, net.hidden_layers + 1)
    assert mlp.columns == mlp.layers[0].inputs
    own = dict(net.named_parameters())
    for name, parameter in mlp.parameters.items():
        assert own[name] is parameter
    for layer in mlp.layers:
        assert net.get_submodule(layer.name).weight is layer.weight
    with torch.no_grad():
        for parameter in net.layers.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(evaluate(mlp, coords), net(coords))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changed_networks(), st.booleans())
def test_an_engine_without_a_reason_gives_the_gradient_of_autograd(net, weighted):
    coords, target = signal(net, 23)
    for engine in ENGINES[1:3]:
        if engine.reason_against(Task([net.train()], check_data(net, coords, target), budget=2**30)) is not None:
            continue
        stack = Stack([net])
        gradient = engine(stack, Task([net], check_data(net, coords, target), budget=2**30))
        loss, expected = exact(net, coords, target)
        tolerance = 1e-5 if coords.dtype == torch.float32 else 1e-12
        assert float(gradient(None)) == pytest.approx(loss, rel=tolerance)
        assert float((flat(gradient) - expected).norm()) <= tolerance * float(expected.norm()) + 1e-30
        assert float(gradient.mean_square()) == pytest.approx(loss, rel=tolerance)
    assert of(net, coords, target).name in ("layerwise", "chunked", "whole")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changed_networks())
@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
def test_a_kernel_in_closed_form_or_not_is_that_of_autograd(net):
    coords = random_coords(6, 2, 0).to(net.layers[0].weight.dtype)
    capture = Capture(net.eval(), coords)
    shared = net.layers[1].bias is not None and net.layers[1].bias is net.layers[2].bias
    assert capture.closed_form == (isinstance(describe(net), MLP) and not shared)
    exact = exact_jacobian(net, coords)
    kernel = inr.ntk(net, coords, precision="highest").to_dense()
    torch.testing.assert_close(kernel, exact_kernel(exact, exact, "trace"), rtol=1e-9, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(changed_networks(), st.sampled_from(["trace", "full", 0]))
def test_the_fused_pass_takes_what_it_has_nothing_against(net, output):
    mlp = describe(net.double())
    if isinstance(mlp, str) or factors.reason_against(mlp, output) is not None:
        return
    mlp, inputs = mlp.detached(), random_coords(5, mlp.columns, 0).double()
    layout = Layout(factors.layer_shapes(mlp), output, mlp.outputs, "fp64")
    plan = make_plan("highest", layout, factors.feature_ranges(mlp, inputs))
    made = factors.mlp_operands([mlp], inputs, plan)
    found = factors.mlp_factors(mlp, inputs)
    expected = pack(plan, [(z[:, :-1], s) for z, s in zip(found.features, [*found.sensitivities, None], strict=True)])
    torch.testing.assert_close(made.slabs, expected.slabs, rtol=1e-12, atol=1e-12)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=changed_networks(width=16))
def test_the_triton_step_takes_what_it_has_nothing_against(device, net):
    net = net.to(device).train()
    coords, target = (tensor.to(device) for tensor in signal(net, 20))
    task = Task([net], check_data(net, coords, target), budget=2**30, backend="triton")
    if FusedGradient.reason_against(task) is not None:
        return
    loss, expected = exact(net, coords, target)
    gradient = FusedGradient(Stack([net], flat=True), task)
    tolerance = 1e-5 if coords.dtype == torch.float32 else 1e-12
    assert float(gradient(None)) == pytest.approx(loss, rel=tolerance)
    assert float((flat(gradient).cpu() - expected.cpu()).norm()) <= tolerance * float(expected.norm()) + 1e-30


# ---- reasons -----------------------------------------------------------------------------------------------------


def changed(change: Any = lambda net: None, **options: Any) -> inr.INR:
    net = inr.INR(2, 2, **{"width": 9, "hidden_layers": 3, "activation": "tanh"} | options)
    change(net)
    return net


def lengthen(net: inr.INR) -> None:
    net.layers.append(nn.Linear(2, 2))


def break_the_chain(net: inr.INR) -> None:
    net.layers[1] = nn.Linear(7, 9)


def other_outputs(net: inr.INR) -> None:
    net.layers[3] = nn.Linear(9, 3)


def forget_statistics(net: inr.INR) -> None:
    net.norms[1] = nn.BatchNorm1d(9, track_running_stats=False)


def without_an_affine_part(net: inr.INR) -> None:
    net.norms[1] = nn.LayerNorm(9, elementwise_affine=False)


UNDESCRIBED = [
    (nn.Sequential(nn.Linear(2, 1)), "it is a Sequential, not an inrfast.INR"),
    (Other(2, 1), "it is a Other, not an inrfast.INR"),
    (changed(watch_forward), "layers.0 has hooks"),
    (changed(own_forward), "layers.0 has a method 'forward' of its own"),
    (changed(own_activate), "it has a method 'activate' of its own"),
    (changed(lengthen), "it has 5 linear layers and 3 norms for 3 hidden layers"),
    (changed(subclass_a_layer), "layers.1 is a Slow, no plain torch.nn.Linear"),
    (changed(make_a_buffer), "layers.1.weight is no parameter"),
    (changed(replace_a_norm), "norms.0 is a RMSNorm, no norm of inrfast.norms"),
    (changed(forget_statistics), "norms.1 keeps no running statistics, so it couples points in every mode"),
    (changed(without_an_affine_part), "norms.1 is not of single units with a weight and a bias"),
    (changed(break_the_chain), "layers.1 takes 7 features of the 9 of layers.0"),
    (changed(other_outputs), "its last layer has 3 units for 2 outputs"),
]


@pytest.mark.parametrize(("net", "said"), UNDESCRIBED)
def test_what_is_no_coordinate_mlp_says_why(net, said):
    assert describe(net) == said
    assert against_formula(describe(net)) == said


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (changed(norm="sphere"), "its hidden layers have norms"),
        (changed(watch_backward), "hooks see its backward passes"),
        (changed(encoding=Learned()), "its encoding is a Learned, not one of this library's"),
        (changed(encoding=inr.RandomFourier(4, 1.0, trainable=True)), "its encoding is trained"),
        (changed(lambda net: net.layers[3].double()), "its parameters have several dtypes or devices"),
        (changed(widen), None),
        (changed(), None),
    ],
)
def test_what_has_no_written_out_backpropagation_says_why(net, said):
    assert against_formula(describe(net)) == said


@pytest.mark.parametrize(
    ("net", "output", "said"),
    [
        (changed(activation=["tanh", "relu", "tanh"]), "trace", "its layers have different activations (relu, tanh)"),
        (changed(norm="layer"), "trace", "its hidden layers have norms"),
        (changed(drop_a_bias), "trace", "some of its layers have a bias and others have none"),
        (changed(width=8), "trace", "it has a hidden layer of 8 units, and the fused pass takes 9 or more"),
        (changed(lambda net: None, width=9), "full", None),
        (inr.INR(2, 9, width=9), "full", "it has 9 outputs, and the fused pass with output='full' takes 8 at most"),
    ],
)
def test_what_the_fused_pass_does_not_take_says_why(net, output, said):
    assert factors.reason_against(describe(net), output) == said


@pytest.mark.parametrize(
    ("net", "options", "said"),
    [
        (changed(), {"select": lambda output: output}, "select= takes its output from what it returns"),
        (changed(tie), {}, "its layers share 'layers.1.bias'"),
        (changed(lambda net: net.add_module("more", nn.Linear(1, 1))), {}, "'more' is none of its layers"),
        (changed(watch_forward), {}, "layers.0 has hooks"),
        (changed(watch_backward), {}, None),
        (changed(encoding=Learned()), {}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
def test_what_has_no_closed_form_says_why(net, options, said):
    assert Capture(net.eval(), random_coords(6, 2, 0), **options).against_closed_form == said
