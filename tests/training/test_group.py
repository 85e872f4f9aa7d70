"""Networks that step together are as if each were alone: also where some stop, a step fails, or one diverges."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.training.data import check_data
from inrfast.training.fit import fit
from inrfast.training.group import Group
from inrfast.training.member import Member
from inrfast.training.options import Options

COORDS = torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET = torch.stack([(3 * COORDS).sum(1).sin(), COORDS[:, 0]], 1)
STEPS = 12


class Stop:
    """Stops the networks at steps of their own."""

    def __init__(self, steps: dict[int, int]) -> None:
        self.steps = steps

    def on_step(self, state: Any) -> None:
        if state.step == self.steps.get(state.index):
            state.stop()


class Fault(Exception):
    pass


def group(nets: list[nn.Module], rates: list[float] | None = None, places: Any = None, **given: Any) -> Group:
    """A group of networks with the defaults of ``fit``; ``places`` are their numbers in a fit."""
    defaults = {name: p.default for name, p in inspect.signature(fit).parameters.items()}
    options = Options.checked({**defaults, "steps": STEPS, "eval_every": 3, **given}, torch.float64, COORDS.device)
    rates, places = rates or [1e-2] * len(nets), places or range(len(nets))
    members = [
        Member(net.train(), check_data(net, COORDS, TARGET), None, lr, lambda step, lr=lr: lr, None, 0, index=i)
        for net, lr, i in zip(nets, rates, places, strict=True)
    ]
    return Group(members, options)


def taken(one: Group, until: int = STEPS) -> list[Member]:
    """Take steps, and let the networks go at the end; all members, those that have stopped too."""
    members = list(one.members)
    while one.members and one.done < until:
        one.advance(min(one.reach(), until))
    one.end("steps")
    return members


def made(count: int, **options: Any) -> list[nn.Module]:
    shape = {"width": 9, "hidden_layers": 2, "dtype": torch.float64} | options
    return [inr.INR(2, 2, seed=seed, **shape) for seed in range(count)]


def numbers(net: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in net.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(one, other, strict=True))


SHAPES: list[dict[str, Any]] = [
    {},
    {
        "activation": "sine",
        "omega": 2.0,
        "encoding": inr.RandomFourier(4, 1.0),
    },  # whose buffers a single network's state has too
    {"activation": "tanh", "encoding": inr.PositionalEncoding(2)},
]


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_networks_that_stop_leave_the_others_as_if_alone(data: st.DataObject) -> None:
    shape, count = data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(2, 4))
    stops = {i: data.draw(st.integers(1, STEPS)) for i in range(count) if data.draw(st.booleans())}
    rates = [data.draw(st.sampled_from([3e-3, 1e-3])) for _ in range(count)]
    common = {
        "callbacks": [Stop(stops)],
        "optimizer": data.draw(st.sampled_from(["adam", "adamw", "sgd"])),
        "weight_decay": data.draw(st.sampled_from([0.0, 0.1])),
        "clip_norm": data.draw(st.sampled_from([None, 0.1])),
        "batch_size": data.draw(st.sampled_from([None, 20])),
    }
    nets, twins = made(count, **shape), made(count, **shape)
    members = taken(group(nets, rates, **common))
    for i, (member, net, twin) in enumerate(zip(members, nets, twins, strict=True)):
        (alone,) = taken(group([twin], [rates[i]], [i], **common))
        assert (member.stopped, member.done) == (alone.stopped, alone.done)
        assert member.losses == pytest.approx(alone.losses, rel=1e-7)
        assert same(numbers(net), numbers(twin), 1e-7)
        assert member.best_step == alone.best_step
        assert same(list(member.best_state.values()), list(alone.best_state.values()), 1e-7)


@contextmanager
def failing(one: Group, where: str, at: int) -> Iterator[None]:
    """Let a group fail in step ``at``: before its gradient, after it, or halfway through its update."""
    owner, name = {"update": (one.optimizer, "step")}.get(where, (one, "_gradient"))
    real = getattr(owner, name)

    def fails(*arguments: Any) -> Any:
        if one.done == at and where == "before":
            raise Fault
        found = real(*arguments)
        if one.done == at:
            raise Fault
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fails)
        yield


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_step_that_fails_is_undone_to_the_bit(data: st.DataObject) -> None:
    """Weights, buffers and losses are those after the last complete update, whatever the step had done."""
    norm = data.draw(st.sampled_from([None, "batch"]))
    shape = {"norm": norm} if norm else data.draw(st.sampled_from(SHAPES))
    count = data.draw(st.integers(1, 3))
    where, at = data.draw(st.sampled_from(["before", "after", "update"])), data.draw(st.integers(0, STEPS - 1))
    nets, twins = made(count, **shape), made(count, **shape)
    one = group(nets)
    with failing(one, where, at), pytest.raises(Fault):
        taken(one)
    one.undo()
    one.release()
    other = group(twins)
    while other.done < at:
        other.step()
    assert one.done == at
    assert [member.losses for member in one.members] == [member.losses[:at] for member in other.members]
    other.release()
    assert all(same(numbers(net), numbers(twin)) for net, twin in zip(nets, twins, strict=True))


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_one_that_diverges_is_set_back_to_its_last_good_weights_and_the_others_go_on(data: st.DataObject) -> None:
    shape, count = data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(1, 3))
    place, at = data.draw(st.integers(0, count - 1)), data.draw(st.integers(1, STEPS - 1))
    nets, twins = made(count, **shape), made(count, **shape)
    one = group(nets)
    real, names = one._gradient, one.stack.trainable

    def spoiled(batch: Tensor | None) -> Tensor:
        losses = real(batch)
        if one.done == at and len(one.members) == count:
            one.stack.grads[names[data.draw(st.integers(0, len(names) - 1))]][place].view(-1)[0] = torch.nan
        return losses

    one._gradient = spoiled  # type: ignore[method-assign]
    members = taken(one)
    reference = group(twins)
    while reference.done < at - 1:  # the last weights whose gradient was finite, before the update that led here
        reference.step()
    reference.release()
    assert members[place].stopped == "diverged"
    assert f"after {at} updates" in str(members[place].error)
    assert same(numbers(nets[place]), numbers(twins[place]))
    for i, member in enumerate(members):
        if i != place:
            (alone,) = taken(group(made(count, **shape)[i : i + 1], places=[i]))
            assert member.done == STEPS
            assert member.losses == pytest.approx(alone.losses, rel=1e-7)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_best_weights_are_those_of_the_best_step(data: st.DataObject) -> None:
    """Also of networks that others have left: a rate far too large makes an early step the best one."""
    shape, count = data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(1, 3))
    stops = {i: data.draw(st.integers(1, STEPS)) for i in range(count - 1)}
    nets, twins = made(count, **shape), made(count, **shape)
    common: dict[str, Any] = {"callbacks": [Stop(stops)], "eval_every": 1}
    members = taken(group(nets, [0.3] * count, **common))
    for i, (member, twin) in enumerate(zip(members, twins, strict=True)):
        taken(group([twin], [0.3], [i], **common), member.best_step)
        assert same(list(member.best_state.values()), numbers(twin), 1e-7)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_group_goes_on_from_its_state_bit_by_bit(data: st.DataObject) -> None:
    shape, count = data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(1, 3))
    stops = {i: data.draw(st.integers(1, STEPS - 2)) for i in range(count - 1)}
    common: dict[str, Any] = {
        "callbacks": [Stop(stops)],
        "optimizer": data.draw(st.sampled_from(["adam", "adamw", "sgd"])),
        "batch_size": data.draw(st.sampled_from([None, 20])),
    }
    nets = made(count, **shape)
    one = group(nets, **common)
    while one.done < STEPS - 1:
        one.step()
    state, kept = copy.deepcopy((one.state(), [member.state() for member in one.members]))
    going = [member.index for member in one.members]
    others = [copy.deepcopy(nets[i]) for i in going]
    again = group(others, places=going, **common)
    for member, own in zip(again.members, kept, strict=True):
        member.load(own, going=True)
    again.load(state, "state")
    taken(one)
    taken(again)
    assert all(same(numbers(nets[i]), numbers(other)) for i, other in zip(going, others, strict=True))
