"""Directions of outer steps are what their definitions say, however they are taken: at once, in chunks, in blocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import inrfast as inr
from inrfast.errors import MemoryBudgetError
from inrfast.training.data import Data
from inrfast.training.engines.peaks import Live
from inrfast.training.meta.first_order import FirstOrder
from inrfast.training.meta.inner import Inner, Learner
from inrfast.training.meta.second_order import AutogradSecondOrder
from inrfast.training.meta.signals import check_signals
from inrfast.training.meta.written_out import WrittenOutSecondOrder

PLENTY = 2**31


class Own(nn.Module):
    """A network that nobody knows: products of features, one parameter used twice, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.a = nn.Parameter(torch.randn(2, 7, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(7, 1, generator=generator, dtype=torch.float64))
        self.still = nn.Parameter(torch.randn(7, generator=generator, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x @ self.a + self.still) * torch.tanh(x @ self.a) @ self.b


class Coupled(Own):
    """One whose predictions depend on the other points."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found - found.mean(0)


def network(**options: Any) -> inr.INR:
    given = {"width": 6, "hidden_layers": 2, "activation": "sine", "init": "siren", "omega": 3.0, **options}
    return inr.INR(2, given.pop("outputs", 2), dtype=torch.float64, **given)


def problem(net: nn.Module, points: int = 23, count: int = 3, own: bool = False, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, points, 2) if own else (points, 2)
    coords = torch.rand(*shape, generator=generator, dtype=torch.float64)
    outputs = net(coords.reshape(-1, 2)[:2]).shape[1]
    return check_signals(net, coords, torch.rand(count, points, outputs, generator=generator, dtype=torch.float64))[0]


def trained(net: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def adapted(net: nn.Module, data: Data, place: int, inner: Inner, exact: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss after the inner steps, and the weights there: the loop that everybody writes."""
    x, y, _ = data.rows(slice(None), place)
    at = trained(net)
    for _ in range(inner.steps):
        loss = (functional_call(net, at, (x,)) - y).square().mean()
        grads = torch.autograd.grad(loss, list(at.values()), create_graph=exact, materialize_grads=True)
        at = {name: p - inner.lr * grad for (name, p), grad in zip(at.items(), grads, strict=True)}
    return (functional_call(net, at, (x,)) - y).square().mean(), at


def exact_direction(net: nn.Module, data: Data, inner: Inner) -> dict[str, Tensor]:
    total = sum(adapted(net, data, place, inner, True)[0] for place in range(len(data.target))) / len(data.target)
    assert isinstance(total, Tensor)
    return dict(zip(trained(net), torch.autograd.grad(total, list(trained(net).values())), strict=True))


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-9) -> None:
    scale = max(float(own.abs().max()) for own in wanted.values())
    assert found.keys() == wanted.keys()
    for name, own in wanted.items():
        torch.testing.assert_close(found[name], own, rtol=0, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=10)
@given(data=st.data())
def test_the_second_order_gradient_is_that_of_autograd_through_the_steps(data: st.DataObject) -> None:
    """Whatever the network, the signals, the steps, and however the work is divided."""
    net = network(
        activation=data.draw(st.sampled_from(["sine", "tanh", "relu", "gaussian", "softplus", "wire", "identity"])),
        hidden_layers=data.draw(st.integers(1, 3)),
        outputs=data.draw(st.integers(1, 2)),
        init="default",
        encoding=data.draw(st.sampled_from([None, inr.RandomFourier(4, 1.0)])),
        bias=data.draw(st.booleans()),
    )
    inner = Inner(data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1e-2, 0.3])))
    signals = problem(net, own=data.draw(st.booleans()), seed=data.draw(st.integers(0, 9)))
    wanted = exact_direction(net, signals, inner)
    written = WrittenOutSecondOrder(net, inner, signals, 3, PLENTY)
    written.rows, written.block = data.draw(st.sampled_from([(23, 3), (23, 2), (8, 1)]))
    written.kept = data.draw(st.booleans())
    by_autograd = AutogradSecondOrder(net, inner, signals, PLENTY)
    by_autograd.rows = data.draw(st.sampled_from([None, 9]))
    losses = [float(adapted(net, signals, place, inner, False)[0].detach()) for place in range(3)]
    for learner in (written, by_autograd):
        found = learner(signals)
        assert_same(found.grads, wanted)
        assert found.after.tolist() == pytest.approx(losses)


@pytest.mark.parametrize("kind", [WrittenOutSecondOrder, AutogradSecondOrder])
def test_the_second_order_gradient_is_the_difference_quotient_of_the_loss_after_the_steps(kind: Any) -> None:
    net, inner, step = network(), Inner(2, 0.2), 1e-5
    data = problem(net)
    learner = kind(net, inner, data, 3, PLENTY) if kind is WrittenOutSecondOrder else kind(net, inner, data, PLENTY)
    found = learner(data).grads
    generator = torch.Generator().manual_seed(1)
    way = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in trained(net).items()}

    def loss(sign: float) -> float:
        with torch.no_grad():
            for name, p in trained(net).items():
                p.add_(way[name], alpha=sign * step)
        value = float(sum(float(adapted(net, data, place, inner, False)[0].detach()) for place in range(3)) / 3)
        with torch.no_grad():
            for name, p in trained(net).items():
                p.sub_(way[name], alpha=sign * step)
        return value

    slope = sum(float((found[name] * way[name]).sum()) for name in way)
    assert slope == pytest.approx((loss(1) - loss(-1)) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("net", [network(), network(norm="sphere"), Own(), Coupled()], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("own", [False, True])
def test_first_order_directions_are_the_gradient_there_and_the_way_there(net: nn.Module, own: bool) -> None:
    inner = Inner(3, 0.05)
    data = problem(net, own=own)
    there: list[dict[str, Tensor]] = []
    ways: list[dict[str, Tensor]] = []
    for place in range(3):
        _, at = adapted(net, data, place, inner, False)
        leaves = {name: p.detach().requires_grad_() for name, p in at.items()}
        x, y, _ = data.rows(slice(None), place)
        loss = (functional_call(net, leaves, (x,)) - y).square().mean()
        there.append(dict(zip(at, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
        ways.append({name: (p - at[name]).detach() / inner.lr for name, p in trained(net).items()})
    for reptile, each in ((False, there), (True, ways)):
        found = FirstOrder(net, inner, reptile, data, 3, PLENTY)(data).grads
        assert_same(found, {name: torch.stack([one[name] for one in each]).mean(0) for name in each[0]})


@pytest.mark.parametrize("net", [network(norm="sphere"), Own(), Coupled()], ids=lambda n: type(n).__name__)
def test_networks_of_any_kind_have_a_second_order_gradient(net: nn.Module) -> None:
    data, inner = problem(net), Inner(2, 0.1)
    assert_same(AutogradSecondOrder(net, inner, data, PLENTY)(data).grads, exact_direction(net, data, inner))


LEARNERS: dict[str, Callable[[nn.Module, Data], Learner]] = {
    "written out": lambda net, data: WrittenOutSecondOrder(net, Inner(2, 0.1), data, 4, PLENTY),
    "autograd": lambda net, data: AutogradSecondOrder(net, Inner(2, 0.1), data, PLENTY),
    "first order": lambda net, data: FirstOrder(net, Inner(2, 0.1), False, data, 4, PLENTY),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_signals_together_are_the_mean_of_each_alone_in_any_order(name: str) -> None:
    net = network()
    data = problem(net, count=4)
    learner = LEARNERS[name](net, data)
    alone = [learner(data.keep([i])) for i in range(4)]
    together, turned = learner(data), learner(data.keep([2, 0, 3, 1]))
    assert_same(together.grads, {n: torch.stack([one.grads[n] for one in alone]).mean(0) for n in together.grads})
    assert_same(turned.grads, together.grads)
    assert turned.after.tolist() == pytest.approx(together.after[[2, 0, 3, 1]].tolist())


def test_what_does_not_fit_the_memory_is_taken_in_chunks_or_refused_before_the_first_step() -> None:
    data = problem(Own(), points=12_000)
    chunked = AutogradSecondOrder(Own(), Inner(2, 0.1), data, 2**23)
    assert chunked.rows is not None
    assert chunked.rows < 12_000
    small = data.keep([0])
    assert_same(chunked(small).grads, AutogradSecondOrder(Own(), Inner(2, 0.1), data, PLENTY)(small).grads)
    with pytest.raises(MemoryBudgetError, match="12000 points, which net couples"):
        AutogradSecondOrder(Coupled(), Inner(2, 0.1), data, 2**23)
    with pytest.raises(MemoryBudgetError, match="outer step"):
        WrittenOutSecondOrder(network(), Inner(2, 0.1), data, 3, 1000)


@pytest.mark.parametrize("activation", ["sine", "finer", "wire", "relu"])
def test_a_step_takes_no_more_than_the_least_budget_that_is_named_nor_than_what_it_was_given(activation: str) -> None:
    net = inr.INR(2, 1, width=48, hidden_layers=3, activation=activation)
    data, _ = check_signals(net, inr.grid((40, 40)), torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(MemoryBudgetError) as refused:
        WrittenOutSecondOrder(net, Inner(2, 0.1), data, 3, 1)
    least = refused.value.needed
    assert least is not None
    for budget, kept in ((least, False), (8 * least, True)):
        learner = WrittenOutSecondOrder(net, Inner(2, 0.1), data, 3, budget)
        assert learner.kept == kept
        with torch.no_grad(), Live(budget) as live:
            learner(data)
        assert max(live.after) <= budget


def test_a_network_without_second_derivatives_is_refused_with_a_way_out() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    class Net(Own):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(super().forward(x))  # type: ignore[no-any-return, no-untyped-call]

    net = Net()
    with pytest.raises(ValueError, match=r"no second derivative by torch .*fomaml"):
        AutogradSecondOrder(net, Inner(1, 0.1), problem(net), PLENTY)
