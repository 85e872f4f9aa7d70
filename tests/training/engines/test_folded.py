"""The folded gradient is that of fp64 autograd through ``nn.BatchNorm1d``, and so are the running statistics."""

import copy

import pytest
import torch
from exact_gradients import formula, losses, off_kinks
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import mild
from torch import nn

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.training.data import check_data, stacked
from inrfast.training.engines import Task, folded
from inrfast.training.engines.folded import FoldedGradient
from inrfast.training.objective import check_objective
from inrfast.training.stack import Stack


@st.composite
def stacks(draw, dtype, smooth):
    """Networks of one shape with batch norms behind some layers, whose own numbers are no longer those of the start."""
    hidden = draw(st.integers(1, 4))
    norms = draw(st.lists(st.sampled_from(["batch", None]), min_size=hidden, max_size=hidden))
    norms[draw(st.integers(0, hidden - 1))] = "batch"
    names = [mild(kind.name) for kind in ACTIVATIONS.values() if not (smooth and kind.keeps == "mask")]
    options = {
        "width": draw(st.integers(1, 30)),
        "hidden_layers": hidden,
        "activation": draw(st.lists(st.sampled_from(names), min_size=hidden, max_size=hidden)),
        "omega": draw(st.floats(0.5, 2.0)),
        "encoding": draw(st.sampled_from([None, None, inr.RandomFourier(5, 1.0), inr.PositionalEncoding(2)])),
        "bias": draw(st.booleans()),
        "norm": norms,
        "norm_position": draw(st.sampled_from(["pre", "post"])),
        "dtype": dtype,
    }
    inputs, outputs, seed = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 1000))
    nets = [inr.INR(inputs, outputs, seed=seed + i, **options) for i in range(draw(st.integers(1, 3)))]
    rng = torch.Generator().manual_seed(seed)
    for net in nets:
        for norm in batch_norms(net):
            norm.weight.data.copy_(torch.randn(norm.weight.shape, generator=rng))
            norm.bias.data.copy_(torch.randn(norm.bias.shape, generator=rng))
            norm.running_var.fill_(0.3)
            norm.momentum = 0.2
        net.train()
    return nets


def batch_norms(net):
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm1d)]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_and_running_statistics_are_those_of_fp64_autograd(dtype, data):
    """Of each network of a stack, in the error that rounding a norm's input once makes anyway."""
    nets = data.draw(stacks(dtype, smooth=dtype == torch.float32))
    for name in [name for name, _ in nets[0].named_parameters()][1:]:
        wanted = data.draw(st.booleans())
        for net in nets:
            net.get_parameter(name).requires_grad_(wanted)
    n, (inputs, outputs) = data.draw(st.integers(8, 60)), (nets[0].in_features, nets[0].out_features)
    rng = torch.Generator().manual_seed(n)
    loss, weight = data.draw(losses()), None
    if data.draw(st.booleans()):
        weight = torch.rand(n, 1, generator=rng, dtype=dtype) + 0.01
    coords = 2 * torch.rand(n, inputs, generator=rng, dtype=dtype) - 1
    targets = [off_kinks(net, coords, torch.rand(n, outputs, generator=rng, dtype=dtype)) for net in nets]
    of = stacked([check_data(net, coords, target, weight) for net, target in zip(nets, targets, strict=True)])
    batch = (
        None if data.draw(st.booleans()) else torch.stack([torch.randperm(n, generator=rng)[: n // 2] for _ in nets])
    )
    twins = [copy.deepcopy(net).double() for net in nets]
    for twin in twins:
        for parameter in twin.parameters():
            parameter.requires_grad_(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded, "DEVICE_POINTS", data.draw(st.sampled_from([1, 2 * n, 1000])))
        task = Task(
            nets, of, check_objective(loss, weight is not None), None if batch is None else n // 2, budget=2**30
        )
        gradient = FoldedGradient(Stack(nets), task)
        found = gradient(batch)
        measured = gradient.mean_square()
    unit = torch.finfo(dtype).eps
    for place, (net, twin, target) in enumerate(zip(nets, twins, targets, strict=True)):
        rows = slice(None) if batch is None else batch[place]
        growth = Growth(twin)
        value = formula(loss, None if weight is None else weight[rows])(
            twin(coords[rows].double()), target[rows].double()
        )
        value.backward()
        bound = 256 * unit * growth.factor()
        assert float(found[place]) == pytest.approx(float(value.detach()), rel=bound)
        exact = {name: parameter.grad for name, parameter in twin.named_parameters()}
        size = torch.cat([grad.flatten() for grad in exact.values()]).norm()  # of frozen ones too: others may be 0
        errors = [(grad[place].double() - exact[name]).flatten() for name, grad in gradient.stack.grads.items()]
        assert float(torch.cat(errors).norm()) <= bound * float(size)
        for own, theirs in zip(batch_norms(net), batch_norms(twin), strict=True):
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                assert torch.allclose(
                    getattr(own, name).double(), getattr(theirs, name).double(), rtol=1e3 * unit, atol=1e3 * unit
                )
        squares = (twin.eval()(coords.double()) - target.double()).square().mean()
        assert float(measured[place]) == pytest.approx(float(squares.detach()), rel=max(bound, 1e4 * unit))


class Growth:
    """By how much norms enlarge a relative error of their inputs: the sizes of these over their deviations."""

    def __init__(self, net):
        self.found = []
        for norm in batch_norms(net):
            norm.register_forward_pre_hook(
                lambda module, inputs: self.found.append(self.of(module, inputs[0].detach()))
            )

    @staticmethod
    def of(norm, u):
        return 1 + float((u.square().mean(0) / (u.var(0, correction=0) + norm.eps)).sqrt().max())

    def factor(self):
        total = 1.0
        for own in self.found:
            total *= own
        return total
