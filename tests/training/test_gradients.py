"""The three gradients are the fp64 autodiff gradient of the same loss, and each network gets one that is exact."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.errors import MemoryBudgetError
from inrfast.training import gradients
from inrfast.training.gradients import ChunkedGradient, WholeGradient, gradient_of
from inrfast.training.layerwise import LayerwiseGradient

BUDGET = 2**30
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def signal(net: inr.INR, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    dtype = net.layers[0].weight.dtype
    coords = 2 * torch.rand(n, net.in_features, generator=rng, dtype=dtype) - 1
    return coords, torch.rand(n, net.out_features, generator=rng, dtype=dtype)


def flat_gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])


def exact(net: nn.Module, coords: Tensor, target: Tensor, loss: Any = F.mse_loss) -> tuple[float, Tensor]:
    """Loss and gradient by fp64 autodiff of the whole batch."""
    twin = copy.deepcopy(net).double()
    twin.zero_grad(set_to_none=True)
    value = loss(twin(coords.double()), target.double())
    value.backward()
    return float(value.detach()), flat_gradient(twin)


def assert_exact(net: nn.Module, gradient: gradients.Gradient, coords: Tensor, target: Tensor, batch: Any) -> None:
    rows = slice(None) if batch is None else batch
    loss, expected = exact(net, coords[rows], target[rows])
    tolerance = TOLERANCE[coords.dtype]
    assert gradient(batch) == pytest.approx(loss, rel=tolerance)
    assert float((flat_gradient(net) - expected).norm()) <= tolerance * float(expected.norm()) + 1e-30


@st.composite
def networks(draw: st.DrawFn, dtype: torch.dtype, smooth: bool) -> inr.INR:
    hidden = draw(st.integers(1, 4))
    # ReLU gates of fp32 and fp64 differ near 0, which is not an error of the gradient: fp32 takes the smooth ones.
    names = sorted(set(ACTIVATIONS) - {"relu"}) if smooth else sorted(ACTIVATIONS)
    encoding = draw(
        st.sampled_from([None, None, inr.RandomFourier(5, 1.0), inr.PositionalEncoding(2), inr.Polynomial(2)])
    )
    return inr.INR(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        width=draw(st.integers(1, 40)),
        hidden_layers=hidden,
        activation=draw(st.lists(st.sampled_from(names), min_size=hidden, max_size=hidden)),
        omega=draw(st.floats(0.5, 2.0)),
        encoding=encoding,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
        dtype=dtype,
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layerwise_gradient_is_that_of_fp64_autodiff(dtype: torch.dtype, data: st.DataObject) -> None:
    net = data.draw(networks(dtype, smooth=dtype == torch.float32))
    coords, target = signal(net, data.draw(st.integers(1, 60)))
    for parameter in net.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    net.layers[data.draw(st.integers(0, net.hidden_layers))].weight.requires_grad_(True)
    gradient = gradient_of(net, coords, target, "mse", BUDGET)
    assert isinstance(gradient, LayerwiseGradient)
    gradient.rows = data.draw(st.integers(1, gradient.rows))  # several chunks, the last one short
    assert_exact(net, gradient, coords, target, None)
    batch = torch.randperm(len(coords), generator=torch.Generator().manual_seed(3))[: 1 + len(coords) // 2]
    assert_exact(net, gradient, coords, target, batch)
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


def test_many_chunks_in_fp32_stay_accurate() -> None:
    net = inr.INR(2, 3, width=64, hidden_layers=2, activation="sine", omega=5.0)
    coords, target = inr.grid((128, 128)), torch.rand(128 * 128, 3, generator=torch.Generator().manual_seed(0))
    gradient = gradient_of(net, coords, target, "mse", BUDGET)
    gradient.rows = 16
    assert_exact(net, gradient, coords, target, None)


def test_an_encoding_too_large_to_keep_is_taken_again_at_every_step() -> None:
    net = inr.INR(2, 1, width=8, hidden_layers=1, activation="tanh", encoding=inr.RandomFourier(50, 1.0))
    coords, target = signal(net, 200)
    small = gradient_of(net, coords, target, "mse", 2**14)
    assert isinstance(small, LayerwiseGradient)
    assert small.inputs is coords
    assert small.rows < 200
    assert_exact(net, small, coords, target, None)
    with pytest.raises(MemoryBudgetError, match="one row"):
        gradient_of(net, coords, target, "mse", 10)


def test_shared_layers_add_up() -> None:
    net = inr.INR(2, 1, width=8, hidden_layers=3, activation="tanh")
    net.layers[1] = net.layers[2]
    coords, target = signal(net, 30)
    gradient = gradient_of(net, coords, target, "mse", BUDGET)
    assert_exact(net, gradient, coords, target, None)


class Centred(nn.Module):
    """A network that couples its points: it subtracts their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, coords: Tensor) -> Tensor:
        return self.layer(coords - coords.mean(0))


class FullGridOnly(nn.Sequential):
    """A network that refuses any other number of points."""

    def forward(self, coords: Tensor) -> Tensor:
        return super().forward(coords.reshape(10, 5, 2)).reshape(50, -1)


def hooked() -> nn.Module:
    net = inr.INR(2, 1, width=4, hidden_layers=1)
    net.layers[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def small(**options: Any) -> inr.INR:
    return inr.INR(2, 1, width=8, hidden_layers=2, **options)


class Doubled(inr.INR):
    def forward(self, coords: Tensor) -> Tensor:
        return 2 * super().forward(coords)


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (small(), LayerwiseGradient),
        (small(norm="sphere"), ChunkedGradient),
        (Doubled(2, 1, width=8, hidden_layers=2), ChunkedGradient),
        (nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1)), ChunkedGradient),
        (small(norm="batch"), WholeGradient),
        (nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1)), WholeGradient),
        (Centred(), WholeGradient),
        (FullGridOnly(nn.Linear(2, 1)), WholeGradient),
        (hooked(), WholeGradient),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value.__name__,
)
def test_each_network_gets_a_gradient_that_is_exact_for_it(net: nn.Module, kind: type) -> None:
    rng = torch.Generator().manual_seed(0)
    coords, target = torch.rand(50, 2, generator=rng), torch.rand(50, 1, generator=rng)
    before, state = torch.get_rng_state(), copy.deepcopy(net.state_dict())
    gradient = gradient_of(net, coords, target, "mse", BUDGET)
    assert type(gradient) is kind
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    if kind is ChunkedGradient:
        gradient.rows = 7
    if any(isinstance(module, nn.Dropout) for module in net.modules()):
        return  # two passes draw two masks
    assert_exact(net, gradient, coords, target, None)


def test_a_hook_on_a_parameter_runs_once_on_the_whole_gradient() -> None:
    net = small()
    coords, target = signal(net, 50)
    _, expected = exact(net, coords, target)
    net.layers[0].weight.register_hook(lambda gradient: gradient / gradient.norm())
    gradient = gradient_of(net, coords, target, "mse", BUDGET)
    gradient(None)
    first = net.layers[0].weight.grad.double().flatten()
    assert torch.allclose(first, expected[: first.numel()] / expected[: first.numel()].norm(), atol=1e-5)


def test_a_loss_of_ones_own_sees_every_prediction() -> None:
    net = small(activation="tanh")
    coords, target = signal(net, 40)
    seen = []

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        seen.append((tuple(pred.shape), tuple(target.shape)))
        return (pred - target).abs().max() + pred.std()

    gradient = gradient_of(net, coords, target, loss, BUDGET)
    value, expected = exact(net, coords, target, loss)
    assert gradient(None) == pytest.approx(value, rel=1e-5)
    assert float((flat_gradient(net) - expected).norm()) <= 1e-5 * float(expected.norm())
    assert seen == [((40, 1), (40, 1))] * 2


@pytest.mark.parametrize("bad", [lambda p, t: p - t, lambda p, t: 0.5, lambda p, t: t.mean()])
def test_a_loss_must_be_a_scalar_of_the_predictions(bad: Any) -> None:
    net = small()
    coords, target = signal(net, 10)
    with pytest.raises(TypeError, match="loss must return a tensor of one element"):
        gradient_of(net, coords, target, bad, BUDGET)(None)
