"""The three gradients are the fp64 autodiff gradient of the same loss, and each network gets one that is exact."""

import copy
from typing import Any

import pytest
import torch
from exact_gradients import assert_exact, exact, flat, formula, losses, of, off_kinks, signal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import inrfast as inr
from inrfast.activations import bind
from inrfast.ops import mlp_step
from inrfast.training.data import Data
from inrfast.training.engines import Task
from inrfast.training.engines.autograd import pieces, sizes_of
from inrfast.training.engines.chunked import SHARE, ChunkedGradient
from inrfast.training.engines.native import NativeGradient
from inrfast.training.engines.normed import NormedGradient
from inrfast.training.engines.tensor import TensorGradient
from inrfast.training.engines.whole import WholeGradient
from inrfast.training.stack import Stack


class Centred(nn.Module):
    """A network that couples its points: it subtracts their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, coords: Tensor) -> Tensor:
        return self.layer(coords - coords.mean(0))


class CentredFromForty(nn.Module):
    """A network that couples its points in long batches, as soon as a parameter of zero is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(2, 1), nn.Parameter(torch.zeros(()))

    def forward(self, coords: Tensor) -> Tensor:
        return self.layer(coords - self.gate * coords.mean(0) if len(coords) > 40 else coords + 0 * self.gate)


class Counting(nn.Linear):
    """A network that counts its passes, for another behaviour after a thousand of them."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, coords: Tensor) -> Tensor:
        self.passes += self.training
        return super().forward(coords) * (1 if int(self.passes) < 1000 else 2)


class FullGridOnly(nn.Sequential):
    """A network that refuses any other number of points."""

    def forward(self, coords: Tensor) -> Tensor:
        return super().forward(coords.reshape(10, 5, 2)).reshape(50, -1)


def hooked() -> nn.Module:
    net = inr.INR(2, 1, width=4, hidden_layers=1)
    net.layers[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


FASTEST = NativeGradient if mlp_step.reason_against([bind("relu")], [torch.zeros(4, 2)]) is None else TensorGradient
"""What a plain network gets: a processor without a native step takes torch's products."""


def small(**options: Any) -> inr.INR:
    return inr.INR(2, 1, width=8, hidden_layers=2, **options)


class Doubled(inr.INR):
    def forward(self, coords: Tensor) -> Tensor:
        return 2 * super().forward(coords)


def networks() -> list[tuple[nn.Module, type]]:
    """Networks, and the engine that each gets, of one seed.

    A draw may be one whose batch norm has a unit that hardly varies over the points, which magnifies rounding beyond
    the tolerance: 39 of 1,500.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            (small(), FASTEST),
            (small(norm="layer"), ChunkedGradient),
            (Doubled(2, 1, width=8, hidden_layers=2), ChunkedGradient),
            (nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1)), ChunkedGradient),
            (small(norm="batch"), NormedGradient),
            (nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)), WholeGradient),
            (nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1)), WholeGradient),
            (Centred(), WholeGradient),
            (CentredFromForty(), WholeGradient),
            (Counting(), WholeGradient),
            (FullGridOnly(nn.Linear(2, 1)), WholeGradient),
            (hooked(), WholeGradient),
        ]


@pytest.mark.parametrize(
    ("net", "kind"),
    networks(),
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value.__name__,
)
def test_each_network_gets_a_gradient_that_is_exact_for_it(net: nn.Module, kind: type) -> None:
    rng = torch.Generator().manual_seed(0)
    coords, target = torch.rand(50, 2, generator=rng), torch.rand(50, 1, generator=rng)
    before, state = torch.get_rng_state(), copy.deepcopy(net.state_dict())
    gradient = of(net, coords, target)
    assert type(gradient) is kind
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    if kind is ChunkedGradient:
        gradient.rows = 7
    if any(isinstance(module, nn.Dropout) for module in net.modules()):
        return  # two passes draw two masks
    assert_exact(net, gradient, coords, target, None)


@settings(max_examples=25)
@given(kind=st.sampled_from(["chunked", "whole"]), loss=losses(), columns=st.integers(0, 2), drawn=st.booleans())
def test_every_named_loss_is_that_of_fp64_autodiff(kind: str, loss: Any, columns: int, drawn: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    coords, target = torch.rand(50, 2, generator=rng), torch.rand(50, 2, generator=rng)
    weight = torch.rand(50, columns, generator=rng) + 0.01 if columns else None
    norm: nn.Module = nn.LayerNorm(8) if kind == "chunked" else nn.BatchNorm1d(8)
    net = nn.Sequential(nn.Linear(2, 8), norm, nn.Tanh(), nn.Linear(8, 2))
    target = off_kinks(net, coords, target)
    gradient = of(net, coords, target, loss, weight)
    assert gradient.name == kind
    if kind == "chunked":
        gradient.rows = 7
    batch = torch.randperm(50, generator=rng)[:20] if drawn else None
    rows = slice(None) if batch is None else batch
    assert_exact(net, gradient, coords, target, batch, formula(loss, None if weight is None else weight[rows]))


def test_a_hook_on_a_parameter_runs_once_on_the_whole_gradient() -> None:
    net = small()
    coords, target = signal(net, 50)
    _, expected = exact(net, coords, target)
    net.layers[0].weight.register_hook(lambda gradient: gradient / gradient.norm())
    gradient = of(net, coords, target)
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

    gradient = of(net, coords, target, loss)
    value, expected = exact(net, coords, target, loss)
    assert float(gradient(None)) == pytest.approx(value, rel=1e-5)
    assert float((flat(gradient) - expected).norm()) <= 1e-5 * float(expected.norm())
    assert seen == [((40, 1), (40, 1))] * 2


@pytest.mark.parametrize("bad", [lambda p, t: p - t, lambda p, t: 0.5, lambda p, t: t.mean()])
def test_a_loss_must_be_a_scalar_of_the_predictions(bad: Any) -> None:
    net = small()
    coords, target = signal(net, 10)
    with pytest.raises(TypeError, match="loss must return a tensor of one element"):
        of(net, coords, target, bad)(None)


@given(n=st.integers(1, 200), size=st.integers(1, 50))
def test_pieces_cover_all_points_once_and_leave_none_alone(n: int, size: int) -> None:
    found = list(pieces(n, size))
    assert [i for piece in found for i in range(n)[piece]] == list(range(n))
    sizes = [piece.stop - piece.start for piece in found]
    assert max(sizes) <= size + 1
    assert min(sizes) > 1 or size == 1 or n == 1


class Table(nn.Module):
    """Rows of a table, and what squeezes the axis of a point that comes alone."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(rows, 4), nn.Linear(6, 3)

    def forward(self, coords: Tensor) -> Tensor:
        cell = ((coords[:, 0] + 1) / 2 * (self.table.num_embeddings - 1)).long()
        features = torch.cat([self.table(cell), coords], 1).unsqueeze(1).squeeze()
        return self.layer(torch.cat([features, features[:, :0]], 1)).tanh()


def test_chunks_are_as_wide_as_the_network_keeps_and_tables_are_added_once() -> None:
    rng = torch.Generator().manual_seed(0)
    coords, target = 2 * torch.rand(20001, 2, generator=rng) - 1, torch.rand(20001, 3, generator=rng)
    wide = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 3))
    sizes = sizes_of(wide, coords)
    assert sizes.widest == 256
    assert 64 + 256 <= sizes.kept <= 64 + 256 + 2 + 6
    assert sizes.tables < 1000
    data = Data(coords[None], target[None], None)
    found = [ChunkedGradient(Stack([wide]), Task([wide], data, cores=cores)).rows for cores in (1, 2)]
    assert found == [512, 2 * SHARE * 512]  # half a MiB of 256 columns, and on several cores a few of these for each
    few, many = Table(10), Table(10**5)
    assert sizes_of(few, coords).tables == 40 + 3  # and a bias
    assert ChunkedGradient(Stack([few]), Task([few], data, cores=1)).rows == 8192
    gradient = of(many, coords, target)
    assert gradient.rows == 20001
    few_rows = of(Table(10), coords[:513], target[:513])
    few_rows.rows = 256  # 256 and 257
    assert_exact(few_rows.net, few_rows, coords[:513], target[:513], None)


class Scaled(nn.Module):
    """A number, a part without gradients, a part computed twice, and an activation that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(1.5))
        self.first, self.middle, self.head = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, coords: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.first(coords).sin()
        self.last = checkpoint(lambda z: self.middle(z).tanh(), fixed.requires_grad_(), use_reentrant=False)
        return self.number * self.head(self.last)


def test_legal_modules_are_differentiated_as_they_are() -> None:
    net, rng = Scaled(), torch.Generator().manual_seed(0)
    coords, target = torch.rand(50, 2, generator=rng), torch.rand(50, 1, generator=rng)
    twin = copy.deepcopy(net)
    result = inr.fit(net, coords, target, steps=5, lr=1e-2, schedule="constant", clip_norm=1e9)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (twin(coords) - target).square().mean().backward()
        optimizer.step()
    assert result.config["gradient"] == "chunked"
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("points", [50, 40_000])
def test_a_loss_is_called_once_a_step_where_no_budget_is_asked_for(points):
    calls = []

    def counting(prediction, target):
        calls.append(len(prediction))
        return (prediction - target).abs().mean()

    coords = inr.grid(points)
    inr.fit(inr.INR(1, 1, width=8), coords, torch.zeros(points, 1), steps=3, loss=counting, progress=False)
    assert calls == [points] * 3
