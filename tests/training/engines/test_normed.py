"""Batch norms of the batch: gradients and running statistics are those of torch in fp64, for every network."""

import copy
from typing import Any

import pytest
import torch
from exact_gradients import TOLERANCE, formula, losses, off_kinks, signal
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import mild
from torch import Tensor, nn

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.ops import gemm
from inrfast.training.data import check_data
from inrfast.training.engines import Task, engine_of, gradient_of, layerwise, normed
from inrfast.training.engines.normed import NormedGradient
from inrfast.training.objective import check_objective
from inrfast.training.stack import Stack

STEPS = 2
"""Passes at the same weights: the running statistics move with each."""


@st.composite
def stacks(draw: st.DrawFn, dtype: torch.dtype) -> list[inr.INR]:
    """Networks of one shape, with batch norms in some of their layers, and numbers of their own in these."""
    hidden = draw(st.integers(1, 4))
    # ReLU gates of fp32 and fp64 differ near 0, which is not an error of the gradient: fp32 takes the smooth ones.
    names = [mild(kind.name) for kind in ACTIVATIONS.values() if dtype == torch.float64 or kind.keeps != "mask"]
    norms = draw(st.lists(st.sampled_from([None, "batch"]), min_size=hidden, max_size=hidden).filter(any))
    options: dict[str, Any] = {
        "width": draw(st.integers(1, 20)),
        "hidden_layers": hidden,
        "activation": draw(st.lists(st.sampled_from(names), min_size=hidden, max_size=hidden)),
        "omega": draw(st.floats(0.5, 2.0)),
        "encoding": draw(st.sampled_from([None, inr.RandomFourier(5, 1.0)])),
        "bias": draw(st.booleans()),
        "norm": norms,
        "norm_position": draw(st.sampled_from(["pre", "post"])),
    }
    outputs = draw(st.integers(1, 3))
    nets = [inr.INR(2, outputs, seed=seed, dtype=dtype, **options) for seed in range(draw(st.integers(1, 5)))]
    momentum, rng = draw(st.sampled_from([0.1, 0.7, None])), torch.Generator().manual_seed(1)
    for net in nets:
        for norm in net.norms:
            if isinstance(norm, nn.BatchNorm1d):
                # Not so small that a narrow layer's spread, near rounding, decides about the gradient.
                norm.momentum, norm.eps = momentum, 1e-2
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    assert tensor is not None
                    tensor.data += 0.3 * torch.rand(tensor.shape, generator=rng, dtype=dtype)
    return nets


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_and_running_statistics_are_those_of_torch_in_fp64(dtype: torch.dtype, data: st.DataObject) -> None:
    nets = [net.train() for net in data.draw(stacks(dtype))]
    coords, target = signal(nets[0], data.draw(st.integers(3, 60)))
    frozen = data.draw(st.lists(st.booleans(), min_size=40, max_size=40))
    for net in nets:
        for (_, parameter), off in zip(net.named_parameters(), frozen, strict=False):
            parameter.requires_grad_(not off)
        net.layers[-1].weight.requires_grad_(True)
    loss, threads, rows = data.draw(losses()), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 30))
    for net in nets:
        target = off_kinks(net, coords, target)
    weight = torch.rand(len(coords), 1, generator=torch.Generator().manual_seed(4), dtype=dtype) + 0.01
    weight = weight if data.draw(st.booleans()) else None
    order = torch.randperm(len(coords), generator=torch.Generator().manual_seed(3))
    batch = order[: 2 + len(coords) // 2] if data.draw(st.booleans()) else None
    twins = copy.deepcopy(nets)
    with pytest.MonkeyPatch.context() as patch:  # several chunks and threads on few points
        patch.setattr(layerwise, "LEAST_ROWS", 5)
        patch.setattr(normed, "LEAST_ROWS", 5)
        patch.setattr(normed, "cached_rows", lambda *sizes: rows)
        patch.setattr(gemm, "threads", lambda dtype, device: threads)
        objective, checked = check_objective(loss, weight is not None), check_data(nets[0], coords, target, weight)
        stack = Stack(nets)
        task = Task(nets, checked, objective, cores=threads, batch=None if batch is None else len(batch))
        assert engine_of(task)[0] is NormedGradient
        gradient = gradient_of(stack, task)
        for _ in range(STEPS):
            found = gradient(None if batch is None else batch.unsqueeze(0))
        squares = gradient.mean_square()
    chosen = slice(None) if batch is None else batch
    mean = formula(loss, None if weight is None else weight[chosen])
    for place, (net, twin) in enumerate(zip(nets, twins, strict=True)):
        value, grads, statistics = in_fp64(twin, coords[chosen], target[chosen], mean)
        assert float(found[place]) == pytest.approx(value, rel=TOLERANCE[dtype])
        ours = torch.cat([grad[place].double().flatten() for grad in stack.grads.values()])
        assert float((ours - grads).norm()) <= 10 * TOLERANCE[dtype] * float(grads.norm()) + 1e-30
        for name, expected in statistics.items():
            own = net.get_buffer(name).double()
            assert torch.allclose(own, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]), name
        measured = (copy.deepcopy(net).double().eval()(coords.double()) - target.double()).detach().square().mean()
        assert float(squares[place]) == pytest.approx(float(measured), rel=1e-4)
    stack.release()


def in_fp64(net: nn.Module, coords: Tensor, target: Tensor, loss: Any) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Loss, gradient and buffers of a network in train mode after as many passes, by autodiff."""
    twin = copy.deepcopy(net).double()
    for _ in range(STEPS):
        twin.zero_grad(set_to_none=True)
        value = loss(twin(coords.double()), target.double())
        value.backward()
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    grads = [torch.zeros_like(own) if own.grad is None else own.grad for own in trained]
    statistics = {name: buffer.double() for name, buffer in twin.named_buffers() if name.startswith("norms.")}
    return float(value.detach()), torch.cat([grad.flatten() for grad in grads]), statistics


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_fit_of_a_stack_equals_fits_one_by_one(data: st.DataObject) -> None:
    nets = data.draw(stacks(torch.float64))
    coords, target = signal(nets[0], 40)
    options = {"steps": 6, "lr": 1e-3, "schedule": "constant", "batch_size": data.draw(st.sampled_from([None, 15]))}
    alone = copy.deepcopy(nets)
    results = inr.fit_many(nets, coords, target, seed=[0] * len(nets), **options)
    for net, other, result in zip(nets, alone, results, strict=True):
        one = inr.fit(other, coords, target, seed=0, **options)
        assert result.losses == pytest.approx(one.losses, rel=1e-7)
        assert result.psnrs == pytest.approx(one.psnrs, abs=1e-5)
        for name, buffer in net.named_buffers():
            assert torch.allclose(buffer, other.get_buffer(name), rtol=1e-6, atol=1e-9), name


def test_statistics_keep_their_digits_where_the_mean_is_large() -> None:
    """In fp32, 10^4 standard deviations away from 0: as close as the rounding of the inputs themselves allows."""
    x = torch.randn(1, 5000, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    net = inr.INR(1, 1, width=3, hidden_layers=1, norm="batch").train()
    coords = torch.rand(5000, 1)
    gradient = gradient_of(Stack([net]), Task([net], check_data(net, coords, coords)))
    assert isinstance(gradient, NormedGradient)
    moments = [gradient.passes[0]._moments(some) for some in x.split(gradient.rows, 1)]
    mean = sum(some.number * some.mean for some in moments) / 5000
    squares = sum(some.squares + some.number * (some.mean - mean).square() for some in moments)
    assert torch.allclose(mean, x.double().mean(1), rtol=1e-9)
    assert torch.allclose(squares / 5000, x.double().var(1, correction=0), rtol=1e-5)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"points": 1}])
def test_a_batch_of_one_point_is_refused(options: dict[str, int]) -> None:
    coords = torch.rand(options.pop("points", 5), 2)
    with pytest.raises(ValueError, match="at least 2 points in a batch, got 1"):
        inr.fit(inr.INR(2, 1, width=4, norm="batch"), coords, coords[:, :1], steps=1, **options)
