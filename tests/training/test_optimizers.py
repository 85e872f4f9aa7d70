"""Schedules have their formulas; the optimiser is torch's Adam."""

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inrfast import INR
from inrfast.training.fit import fit, fit_many
from inrfast.training.optimizers import OPTIMIZERS, Optimizer, adam
from inrfast.training.optimizers.torchs import TorchOptimizer
from inrfast.training.schedules import SCHEDULES, learning_rates
from inrfast.training.stack import Stack


@given(steps=st.integers(1, 500), lr=st.floats(1e-6, 1.0), data=st.data())
def test_schedules_start_at_the_rate_and_never_grow(steps: int, lr: float, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1))
    exact = {
        "constant": 1.0,
        "cosine": math.cos(math.pi * step / (2 * steps)) ** 2,
        "exponential": 10 ** (-step / steps),
    }
    assert set(exact) == set(SCHEDULES)
    for name, factor in exact.items():
        rates = learning_rates(lr, name, steps)
        assert rates(0) == pytest.approx(lr)
        assert rates(step) == pytest.approx(lr * factor)
        assert rates(step + 1) <= rates(step)


def test_a_callable_schedule_gives_the_factor() -> None:
    assert learning_rates(0.5, lambda step: 1 / (1 + step), 10)(3) == 0.125


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_a_bad_factor_names_its_step(factor: float) -> None:
    with pytest.raises(ValueError, match=r"schedule\(4\)"):
        learning_rates(1.0, lambda step: factor, 10)(4)


def test_an_unknown_schedule_gets_the_nearest_match() -> None:
    with pytest.raises(ValueError, match="'cosine'"):
        learning_rates(1.0, "cosin", 10)
    with pytest.raises(TypeError, match="schedule"):
        learning_rates(1.0, 3, 10)


def stack_of(count: int) -> Stack:
    rng = torch.Generator().manual_seed(0)
    nets = [nn.Linear(3, 4, dtype=torch.float64) for _ in range(count)]
    for net in nets:
        for parameter in net.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return Stack(nets)


@pytest.mark.parametrize("torchs", ["there", "gone", "changed"])
def test_adam_is_that_of_the_formula(torchs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kingma and Ba, Algorithm 1, in fp64; also where torch's private function is gone or takes other arguments."""
    if torchs == "gone":
        monkeypatch.delattr(sys.modules["torch.optim.adam"], "adam")
    elif torchs == "changed":
        monkeypatch.setattr(sys.modules["torch.optim.adam"], "adam", lambda parameters: None)
    update = adam.functional_adam.__wrapped__()
    monkeypatch.setattr(adam, "functional_adam", lambda: update)
    assert (update is adam.plain_adam) == (torchs != "there")
    rng = torch.Generator().manual_seed(0)
    stack = stack_of(1)
    weight = stack.nets[0].weight
    expected, m, v = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = OPTIMIZERS["adam"](stack)
    for t in range(1, 6):
        gradient = torch.randn(4, 3, generator=rng, dtype=torch.float64)
        stack.grads["weight"][0] = gradient
        optimizer.step([1e-2], lambda: 0.0)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected = expected - 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("rates", [[1e-2, 1e-2, 1e-2], [1e-2, 3e-3, 0.0]], ids=["one rate", "own rates"])
@pytest.mark.parametrize(
    ("name", "torchs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_stacked_updates_are_torch_s_of_each_network(
    name: str,
    torchs: type[torch.optim.Optimizer],
    rates: list[float],
    decay: float,
    plain: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also after a network has left the stack, after the state has moved on, and by the plain update."""
    if plain:
        monkeypatch.setattr(adam, "functional_adam", lambda: adam.plain_adam)
    stack = stack_of(3)
    twins = [copy.deepcopy(net) for net in stack.nets]
    others = [torchs(t.parameters(), lr=rate, weight_decay=decay) for t, rate in zip(twins, rates, strict=True)]
    optimizer = OPTIMIZERS[name](stack, decay)
    rng = torch.Generator().manual_seed(1)
    places = [0, 1, 2]
    for step in range(9):
        if step == 3:
            places = [0, 2]
            stack = stack.keep(places)
            optimizer.keep(stack, places)
        if step == 6:
            state = copy.deepcopy(optimizer.state())
            optimizer = OPTIMIZERS[name](stack, decay)
            optimizer.load(state)
        for grad, parameter in zip(stack.grads.values(), ("weight", "bias"), strict=True):
            grad.copy_(torch.randn(grad.shape, generator=rng, dtype=torch.float64))
            for i, place in enumerate(places):
                getattr(twins[place], parameter).grad = grad[i].clone()
        optimizer.step([rates[place] for place in places], lambda: 0.0)
        for place in places:
            others[place].step()
    for place in places:
        for mine, theirs in zip(stack.nets[places.index(place)].parameters(), twins[place].parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_clipping_is_torch_s_by_each_network() -> None:
    stack = stack_of(3)
    norms = [0.5, 2.0, 7.0]
    for i, norm in enumerate(norms):
        stack.grads["weight"][i] = norm / math.sqrt(24)
        stack.grads["bias"][i] = norm / math.sqrt(8)
    expected = {name: grad.clone() for name, grad in stack.grads.items()}
    assert stack.clip_gradients_(2.5).tolist() == pytest.approx(norms)
    for name, grad in stack.grads.items():
        for i, norm in enumerate(norms):
            torch.testing.assert_close(grad[i], expected[name][i] * min(1.0, 2.5 / norm))


def test_an_optimiser_must_hold_the_network_s_parameters() -> None:
    net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"holds 2 parameter\(s\) that are not and not weight, bias"):
        TorchOptimizer(Stack([net]), torch.optim.SGD(other.parameters(), lr=0.1), 0.1)
    with pytest.raises(ValueError, match=r"not bias; make it from net\.parameters"):
        TorchOptimizer(Stack([net]), torch.optim.SGD([net.weight], lr=0.1), 0.1)
    net.bias.requires_grad_(False)
    TorchOptimizer(Stack([net]), torch.optim.SGD([net.weight], lr=0.1), 0.1)


class RMSprop(Optimizer):
    """Graves (2013), with torch's defaults: an optimiser of the user's own."""

    keeps = ("squares",)

    @torch.no_grad()
    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        for name, grad in self.stack.grads.items():
            grad = self.decayed(name, grad)
            square = self.kept["squares"][name].mul_(0.99).addcmul_(grad, grad, value=0.01)
            self.move(name, grad / square.sqrt().add_(1e-8), rates)


@pytest.fixture
def registered() -> Iterator[str]:
    OPTIMIZERS.add("rmsprop", RMSprop)
    yield "rmsprop"
    OPTIMIZERS._items.pop("rmsprop")


class Interrupt:
    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, state: Any) -> None:
        if state.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("many", [False, True])
def test_an_optimiser_of_ones_own_is_known_by_its_name_everywhere(registered: str, many: bool, tmp_path: Path) -> None:
    """In fit and fit_many, with decay, clipping and own rates, as torch's; from a checkpoint it goes on to the bit."""
    coords = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = coords.prod(1, keepdim=True).sin()
    rates = [1e-3, 3e-3] if many else [1e-3]

    def nets() -> list[INR]:
        return [INR(2, 1, width=8, hidden_layers=1, seed=seed, dtype=torch.float64) for seed in range(len(rates))]

    def fitted(own: list[INR], optimizer: Any, **options: Any) -> None:
        options = {"steps": 12, "weight_decay": 0.1, "clip_norm": 0.05, **options}
        if many:
            fit_many(own, coords, target, lr=rates, optimizer=optimizer, **options)
        else:
            fit(own[0], coords, target, lr=rates[0], optimizer=optimizer, **options)

    ours, theirs, again = nets(), nets(), nets()
    fitted(ours, registered)
    for net, rate in zip(theirs, rates, strict=True):
        optimizer = torch.optim.RMSprop(net.parameters(), lr=rate, weight_decay=0.1)
        fit(net, coords, target, steps=12, lr=rate, optimizer=optimizer, clip_norm=0.05)
    fitted(again, registered, checkpoint=tmp_path / "run", callbacks=[Interrupt(5)])
    resumed = nets()
    fitted(resumed, registered, checkpoint=tmp_path / "run", resume=True, callbacks=[Interrupt(99)])
    for net, other, gone_on in zip(ours, theirs, resumed, strict=True):
        for mine, its, later in zip(net.parameters(), other.parameters(), gone_on.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)
            assert torch.equal(mine, later)


def test_an_unknown_optimiser_gets_the_nearest_match(registered: str) -> None:
    with pytest.raises(ValueError, match="'rmsprop'"):
        fit(INR(1, 1), torch.rand(4, 1), torch.rand(4, 1), optimizer="rmsprob")


class Counting(Optimizer):
    """Steps that depend on two counts of its own and on the fit's."""

    turns = 0

    def __init__(self, stack: Stack, weight_decay: float = 0.0) -> None:
        super().__init__(stack, weight_decay)
        self.share = 1

    @torch.no_grad()
    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        self.turns += 1
        self.share *= 0.9
        for name, grad in self.stack.grads.items():
            self.move(name, grad * self.share / self.turns + 0.01 * self.done, rates)


def test_an_optimiser_s_own_numbers_go_on(tmp_path: Path) -> None:
    coords = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))

    def fitted(**options: Any) -> INR:
        net = INR(2, 1, width=8, hidden_layers=1)
        fit(net, coords, coords[:, :1], steps=12, lr=0.1, **{"optimizer": "counting", **options})
        return net

    OPTIMIZERS.add("counting", Counting)
    try:
        kept = {"checkpoint": tmp_path / "run", "progress": False}
        whole = fitted(progress=False)
        fitted(**kept, callbacks=[Interrupt(5)])
        resumed = fitted(**kept, resume=True, callbacks=[Interrupt(99)])
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)
        optimizer = Counting(stack_of(1))
        for state in ({}, {"numbers": {"turns": 3}}, {"numbers": {"step": torch.tensor(3), "share": torch.tensor(1)}}):
            with pytest.raises(ValueError, match=r"here\.numbers"):
                optimizer.check(state, "here")
    finally:
        del OPTIMIZERS._items["counting"]


def test_an_optimizer_of_sparse_gradients_is_refused() -> None:
    net, x = INR(2, 1, width=4), torch.rand(5, 2)
    with pytest.raises(ValueError, match="optimizer is a SparseAdam"):
        fit(net, x, x[:, :1], steps=1, optimizer=torch.optim.SparseAdam(list(net.parameters())))
