"""Fused steps against fp64 automatic differentiation, on networks, batches and tiles of every kind."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import mild
from tensor_cores import product, truncating
from torch import nn

import inrfast as inr
from inrfast.activations import ACTIVATIONS as TABLE
from inrfast.errors import MemoryBudgetError
from inrfast.kernels import fused_mlp as kernels
from inrfast.losses import loss_of
from inrfast.mlp import describe
from inrfast.ops.fused_mlp import CHAIN, FEW, OPERANDS, Draws, FusedMLP, Points, Shape, reason_against
from inrfast.ops.fused_norms import NormPlace, Statistics
from inrfast.training.optimizers import OPTIMIZERS
from inrfast.training.stack import Stack

TORCH = {
    "mse": lambda f, y, numbers: F.mse_loss(f, y, reduction="none"),
    "l1": lambda f, y, numbers: F.l1_loss(f, y, reduction="none"),
    "huber": lambda f, y, numbers: F.huber_loss(f, y, reduction="none", delta=numbers[0]),
    "bce": lambda f, y, numbers: F.binary_cross_entropy_with_logits(f, y, reduction="none"),
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
UNIT = {"fp16": 2.0**-11, "tf32x3": 2.0**-22, "fp64": 2.0**-53}
ACTIVATIONS = tuple(sorted(name for name, kind in TABLE.items() if kind.device is not None and kind.keeps != "nothing"))

SMOOTH = tuple(name for name in ACTIVATIONS if name != "relu")


def dtype_of(kind):
    return torch.float64 if kind == "fp64" else torch.float32


class Case:
    """Networks with random data, their fused step, and what fp64 autodiff says of them."""

    def __init__(self, device, kind, models=1, n=100, drawn=0, weighted=0, seed=0, budget=2**40, steps=1, **options):
        options = {"width": 24, "hidden_layers": 2, "activation": "sine", "omega": 2.0} | options
        inputs, outputs = options.pop("inputs", 2), options.pop("outputs", 3)
        self.loss = loss_of(options.pop("loss", "mse"))
        dtype = dtype_of(kind)
        self.kind, self.hidden = kind, options["hidden_layers"]
        self.nets = [
            inr.INR(inputs, outputs, seed=seed + i, device=device, dtype=dtype, **options) for i in range(models)
        ]
        rng = torch.Generator().manual_seed(seed)
        self.coords = (2 * torch.rand(1, n, inputs, generator=rng) - 1).to(device, dtype)
        self.target = torch.rand(models, n, outputs, generator=rng).to(device, dtype)
        self.weight = None
        if weighted:
            self.weight = (torch.rand(models, n, weighted, generator=rng) + 0.1).to(device, dtype)
        if self.loss.name == "l1":  # its slope jumps where the error is 0
            for own, net in zip(self.target, self.nets, strict=True):
                errors = net(self.coords[0]).detach() - own
                own -= torch.where(errors.abs() < 0.02, 0.05, 0.0) * errors.sign()
        self.rows, self.draws = [slice(None)] * models, None
        if drawn:
            order = torch.stack([torch.randperm(n, generator=rng)[:drawn] for _ in range(models)]).to(device)
            self.rows, self.draws = list(order), Draws(order, drawn)
        self.stack = Stack(self.nets, flat=True)
        first = self.nets[0]
        encoded = self.coords
        if first.encoding is not None:
            encoded = torch.stack([net.encoding(self.coords[0]) for net in self.nets])
        if encoded.shape[2] > FEW:
            encoded = encoded.to(OPERANDS[kind])
        places = tuple(
            tuple(self.stack.places.get(f"layers.{k}.{part}", -1) for part in ("weight", "bias"))
            for k in range(len(first.layers))
        )
        numbers = tuple(own.numbers for own in first.bound_activations)
        activation = first.bound_activations[0].kind
        norms = tuple(
            NormPlace(
                k, self.stack.places[f"norms.{k}.weight"], self.stack.places[f"norms.{k}.bias"], norm.eps, norm.momentum
            )
            for k, norm in enumerate(first.norms)
            if isinstance(norm, nn.BatchNorm1d)
        )
        statistics = [
            Statistics(*(self.stack.statistics[f"norms.{norm.layer}.{name}"] for name in STATISTICS)) for norm in norms
        ]
        shape = Shape(encoded.shape[2], first.width, self.hidden, outputs, activation, numbers, places, norms)
        trained = torch.ones(self.stack.flat.shape[1], dtype=torch.uint8, device=device)
        points = Points(encoded, self.target, self.weight)
        self.count = drawn or n
        self.step = FusedMLP(
            shape, self.stack.flat, trained, points, self.count, kind, steps, budget, True, self.loss, statistics
        )
        step = self.step
        for buffer in (
            step.features, step.slopes, step.errors, step.head_errors, step.partials, step.totals,
            step.norms.moments, step.norms.maps, step.norms.corrections,
        ):  # fmt: skip
            buffer.fill_(float("nan"))  # nothing may be read before it is written

    def gradients(self, step=0):
        self.step.gradients(self.count, self.draws, step)
        grads = self.stack.flat_grads.fill_(float("nan"))
        grads[:, ~self.held()] = 0
        self.step.update(grads, grads, grads, None, True, step)
        return grads

    def make_positive(self):
        """Make every term of every sum positive: parameters, coordinates and errors; layers keep their size."""
        with torch.no_grad():
            self.coords.abs_()
            self.target.neg_()
            for index, net in enumerate(self.nets):
                for name, parameter in net.named_parameters():
                    value = parameter.abs()
                    value = value / value.sum(1).mean() if name.endswith("weight") else value.fill_(0.1)
                    for own in (parameter, self.stack.view_of(self.stack.flat, name)[index]):
                        own.copy_(value)
        self.step.refresh()

    def held(self):
        """Which of the Q numbers belong to parameters: what lies between them is never written."""
        held = torch.zeros(self.stack.flat.shape[1], dtype=torch.bool, device=self.stack.flat.device)
        for name in self.stack.parameters:
            self.stack.view_of(held.unsqueeze(0), name).fill_(True)
        return held

    def exact(self, index):
        """Loss and gradients of one network by fp64 autodiff."""
        net, rows = self.nets[index], self.rows[index]
        twin = copy.deepcopy(net).double()
        prediction, target = twin(self.coords[0, rows].double()), self.target[index, rows].double()
        weight = torch.ones_like(target)
        if self.weight is not None:
            weight = self.weight[index, rows].double().expand_as(target)
        value = (weight * TORCH[self.loss.name](prediction, target, self.loss.numbers)).sum() / weight.sum()
        value.backward()
        return float(value.detach()), dict(twin.named_parameters())

    def check(self, factor=8.0):
        """Compare loss and gradient: within ``factor u sqrt(layers)`` of the gradient's norm, for each network."""
        grads = self.gradients()
        bound = factor * UNIT[self.kind] * math.sqrt(self.hidden + 1) + 1e-15
        for index in range(len(self.nets)):
            loss, parameters = self.exact(index)
            assert float(self.step.losses[0, index]) == pytest.approx(loss, rel=bound)
            errors = [self.stack.view_of(grads, name)[index].double() - p.grad for name, p in parameters.items()]
            size = torch.cat([p.grad.flatten() for p in parameters.values()]).norm()
            assert torch.cat([error.flatten() for error in errors]).norm() <= bound * size


def losses():
    """The mean squared error twice as often as each other one, Huber's with kinks inside and outside the errors."""
    deltas = st.floats(0.05, 3.0).map(lambda delta: {"name": "huber", "delta": delta})
    return st.sampled_from(["mse", "mse", "l1", "bce"]) | deltas


@settings(max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["fp16", "tf32x3", "fp64"])
def test_the_gradient_is_that_of_fp64_autodiff(device, kind, data):
    """Widths beside tiles, one layer and more, chunks of the points, networks side by side."""
    smooth = kind != "fp64"  # gates of ReLU differ between dtypes near 0, which is no error of a gradient
    encoding = data.draw(st.sampled_from([None, None, inr.RandomFourier(7, 0.5), inr.PositionalEncoding(2)]))
    n = data.draw(st.integers(1, 200))
    Case(
        device,
        kind,
        models=data.draw(st.integers(1, 2)),
        n=n,
        drawn=data.draw(st.sampled_from([0, 0, (n + 1) // 2])),
        weighted=data.draw(st.sampled_from([0, 0, 1, 3])),
        seed=data.draw(st.integers(0, 1000)),
        inputs=data.draw(st.integers(1, 3)),
        width=data.draw(st.integers(1, 70)),
        hidden_layers=data.draw(st.integers(1, 3)),
        activation=mild(data.draw(st.sampled_from(SMOOTH if smooth else ACTIVATIONS))),
        omega=data.draw(st.floats(0.5, 2.0)),
        encoding=encoding,
        bias=data.draw(st.booleans()),
        loss=data.draw(losses()),
    ).check(factor=16.0 if kind == "fp16" else 8.0)


@pytest.mark.parametrize("kind", ["fp16", "tf32x3"])
@pytest.mark.parametrize("width", [33, 150])
def test_relu_in_narrow_and_wide_layers(device, kind, width):
    """Masks are single bits; a few gates near 0 may differ from fp64's."""
    case = Case(device, kind, n=150, width=width, hidden_layers=3, activation="relu", outputs=1)
    assert case.step.on_chip == (kind == "fp16" and width <= 128)
    case.check(factor=32.0 if kind == "fp16" else 64.0)


@pytest.mark.parametrize("activation", ["relu", "sine"])
@pytest.mark.parametrize("kind", ["fp16", "tf32x3"])
def test_gradients_keep_the_promise_on_cores_that_truncate(device, kind, activation):
    """All terms are positive, so that what every step of a sum loses adds up; sums of fp32 terms leave the cores."""
    case = Case(device, kind, n=96, width=64, hidden_layers=3, activation=activation, omega=1.0, outputs=1)
    case.make_positive()
    with truncating() if device.type == "cpu" else contextlib.nullcontext():
        case.check(factor=16.0 if kind == "fp16" else 8.0)


@pytest.mark.parametrize("late", [False, True])
def test_the_longest_sum_within_the_cores_loses_less_than_the_promise(late):
    """Positive terms of one size, or a large one before many that the cores cut off but for a bit."""
    rng = np.random.default_rng(0)
    left, right = ((rng.random(shape) + 0.5).astype(np.float16) for shape in ((2, CHAIN), (CHAIN, 2)))
    if late:
        left[:, 1:], right[1:] = 2.0**-12 * (1 - 2.0**-10), 2.0**-13
    exact = left.astype(np.float64) @ right.astype(np.float64)
    lost = float((1 - product(left, right, np.zeros((2, 2)), "fp16") / exact).max())
    assert lost <= (16 * UNIT["fp16"] if late else 2.0**-10)


@given(st.integers(1, 10**8), st.integers(1, 200), st.sampled_from(sorted(OPERANDS)), st.booleans())
def test_ranges_of_points_are_not_longer_than_the_longest_sum(rows, multiprocessors, kind, encoded):
    case = Case(torch.device("cpu"), kind, n=1, encoding=inr.RandomFourier(7, 0.5) if encoded else None)
    case.step.multiprocessors = multiprocessors
    ranges = case.step._splits(rows)
    assert 1 <= ranges <= max(1, rows // (4 * case.step.weight_tile.terms))
    assert -(-rows // ranges) <= CHAIN


@pytest.mark.parametrize("outputs", [1, 16])
def test_heads_of_one_and_of_many_outputs(device, outputs):
    Case(device, "tf32x3", outputs=outputs, n=70).check()


@pytest.mark.parametrize("encoding", [None, inr.RandomFourier(9, 0.5)])
def test_points_that_do_not_fit_pass_in_chunks(device, encoding):
    """The sums of three chunks, the last one short, are those of all points; without room for a tile it says so."""
    whole = Case(device, "fp64", n=190, drawn=150, encoding=encoding, weighted=1)
    tile = whole.step.tile_bytes(whole.step.shape, "fp64", True)
    fixed = whole.step.dense * whole.step.splits * 8
    small = Case(device, "fp64", n=190, drawn=150, encoding=encoding, weighted=1, budget=fixed + tile)
    assert small.step.tiles == 1
    small.check()
    assert torch.allclose(whole.gradients(), small.gradients(), rtol=1e-10, atol=1e-14)
    with pytest.raises(MemoryBudgetError, match="a fused step needs"):
        Case(device, "fp64", n=190, drawn=150, encoding=encoding, weighted=1, budget=fixed + tile - 1)


def test_small_errors_keep_clear_of_underflow(device):
    """Errors of 1e-6 in 16 bits: without a scale most of their gradient would be lost."""
    case = Case(device, "fp16", width=32, n=200, steps=2)
    with torch.no_grad():
        noise = torch.randn(case.target.shape, generator=torch.Generator().manual_seed(1)).to(case.target)
        case.target.copy_(case.nets[0](case.coords[0]) + 1e-3 * noise)
    case.gradients()  # the first scale is a guess from the targets, the next from this loss
    assert 2.0**9 <= float(case.step.scales[1, 0]) <= 2.0**11
    case.step.scales[0] = case.step.scales[1]
    # The predictions' own rounding is a part of errors this small: the exact gradient is that of the rounded features.
    case.check(factor=2000.0)
    once = case.gradients().clone()
    case.step.scales[0] *= 2.0
    twice = case.gradients()
    assert (once - twice).norm() <= 1e-3 * once.norm()


def test_errors_that_a_loss_makes_small_keep_clear_of_underflow(device):
    """Slopes of 1e-6 everywhere, from the first step on; the scale follows their mean square, not the loss."""
    case = Case(device, "fp16", n=60, steps=2, loss={"name": "huber", "delta": 1e-6}, outputs=1)
    with torch.no_grad():
        case.target.add_(1.0)  # no error near the kink at 1e-6
    case.check(factor=16.0)
    assert 2.0**19 <= float(case.step.scales[0, 0]) <= 2.0**20
    assert float(case.step.scales[1, 0]) == float(case.step.scales[0, 0])


@pytest.mark.parametrize(("kind", "loss"), [("fp16", "mse"), ("tf32x3", "bce"), ("fp64", "mse"), ("fp64", "huber")])
def test_evaluations_are_mean_squares_over_all_points(device, kind, loss):
    case = Case(device, kind, models=2, n=333, drawn=90, weighted=1, loss=loss)
    case.gradients()
    predictions = torch.stack([copy.deepcopy(net).double()(case.coords[0].double()) for net in case.nets])
    exact = (predictions - case.target.double()).square().mean((1, 2))
    assert torch.allclose(case.step.mean_square(), exact, rtol=16 * UNIT[kind], atol=0)


def test_many_outputs_of_the_table_cover_every_parameter_once(device):
    for encoding, bias in ((None, True), (None, False), (inr.RandomFourier(9, 0.5), True)):
        case = Case(device, "fp64", encoding=encoding, bias=bias, hidden_layers=3, width=19)
        covered = torch.zeros(case.stack.flat.shape[1], dtype=torch.int64)
        for place, first, size, *_ in case.step.table.tolist():
            covered[place + first : place + min(first + kernels.BLOCK, size)] += 1
        assert torch.equal(covered, case.held().long().cpu())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_updates_are_torch_s(device, optimizer):
    """Three steps of each optimiser with weight decay, against torch's own in fp64; frozen numbers stay."""
    case = Case(device, "fp64", models=2)
    step, flat = case.step, case.stack.flat
    frozen = torch.arange(flat.shape[1], device=device) % 3 == 0
    step.trained[frozen] = 0
    before, means, squares = flat.clone(), torch.zeros_like(flat), torch.zeros_like(flat)
    twin = flat.clone().requires_grad_()
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    theirs = kinds[optimizer]([twin], lr=0.01, weight_decay=0.1)
    for t in range(1, 4):
        grads = torch.randn(flat.shape, generator=torch.Generator().manual_seed(t)).to(flat)
        rates = torch.tensor([0.01, 0.01 / (1 - 0.9**t), math.sqrt(1 - 0.999**t), 0.1])
        step.rates.copy_(rates.to(flat).expand_as(step.rates))
        step.update(grads, means, squares, OPTIMIZERS[optimizer].kernel, False, 0)
        twin.grad = grads
        theirs.step()
    assert torch.equal(flat[:, frozen], before[:, frozen])
    moved = case.held() & ~frozen
    assert (flat - twin.detach())[:, moved].abs().max() <= 1e-7 * 0.03  # rates were rounded to fp32 on their way here


def test_steps_repeat_bit_by_bit_and_do_not_depend_on_what_lies_between(device):
    """An update from sums has the bits of one from the gradient that they make."""
    for kind in ("fp16", "tf32x3"):
        cases = [Case(device, kind, models=2, n=140, width=20, seed=5) for _ in range(3)]
        for number, case in enumerate(cases):
            moments = [torch.zeros_like(case.stack.flat) for _ in range(2)]
            case.step.rates.copy_(
                torch.tensor([1e-3, 1e-2, 0.0316, 0.0]).to(case.stack.flat).expand_as(case.step.rates)
            )
            for _ in range(2):
                if number == 2:
                    case.gradients()
                    case.step.update(case.stack.flat_grads, *moments, OPTIMIZERS["adam"].kernel, False, 0)
                else:
                    case.step.gradients(case.count, case.draws, 0)
                    case.step.update(case.stack.flat_grads, *moments, OPTIMIZERS["adam"].kernel, True, 0)
                if kind == "fp16":
                    copy = case.stack.flat.half()
                    for name in case.stack.parameters:
                        assert torch.equal(case.stack.view_of(copy, name), case.stack.view_of(case.step.operands, name))
        assert torch.equal(cases[0].stack.flat, cases[1].stack.flat)
        assert torch.equal(cases[0].stack.flat, cases[2].stack.flat)


def test_reasons_against():
    def reason(dtype=torch.float32, activation=("relu", "relu"), outputs=3, width=64, change=lambda net: None):
        net = inr.INR(2, outputs, width, len(activation), activation)
        change(net)
        return reason_against(describe(net), dtype)

    def tie(net):
        net.layers[1].bias = net.layers[0].bias

    def widen(net):
        net.layers[0], net.layers[1] = torch.nn.Linear(2, 65), torch.nn.Linear(65, 64)

    def drop_bias(net):
        net.layers[1].bias = None

    assert reason() is None
    for options, said in (
        ({"activation": ("relu", "sine")}, "different activations"),
        ({"activation": ("identity",)}, "identity"),
        ({"outputs": 17}, "17 outputs"),
        ({"width": 2**15, "activation": ("relu",)}, "32768 columns"),
        ({"dtype": torch.bfloat16}, "bfloat16"),
        ({"change": tie}, "share parameters"),
        ({"change": drop_bias}, "others have none"),
        ({"change": widen}, "different widths (64, 65)"),
    ):
        assert said in reason(**options)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["fp16", "fp64"])
def test_batch_norms_are_those_of_fp64_autograd(device, kind, data):
    norms = data.draw(st.lists(st.sampled_from(["batch", None]), min_size=1, max_size=3))
    norms[data.draw(st.integers(0, len(norms) - 1))] = "batch"
    n = data.draw(st.integers(20, 150))
    case = Case(
        device, kind, models=data.draw(st.integers(1, 2)), n=n, drawn=data.draw(st.sampled_from([0, n // 2])),
        width=data.draw(st.integers(2, 40)), hidden_layers=len(norms), norm=norms, norm_position="post",
        activation=data.draw(st.sampled_from(["sine", "gaussian"])), omega=1.0,
    )  # fmt: skip
    before = [copy.deepcopy(net).double() for net in case.nets]
    grads, moved = case.gradients(), case.nets
    case.nets = before
    for place, net in enumerate(moved):
        twin = copy.deepcopy(before[place])
        with torch.no_grad():
            twin(case.coords[0, case.rows[place]].double())
        _, exact = case.exact(place)
        errors = [case.stack.view_of(grads, name)[place].double() - p.grad for name, p in exact.items()]
        size = torch.cat([p.grad.flatten() for p in exact.values()]).norm()
        # A norm enlarges the rounding of its input by the size of that over its deviation.
        inputs = [module for module in twin.modules() if isinstance(module, nn.BatchNorm1d)]
        growth = 1.0
        for norm in inputs:
            mean = norm.running_mean / norm.momentum
            spread = ((norm.running_var - (1 - norm.momentum)) / norm.momentum + norm.eps).sqrt()
            growth *= 1 + float(((mean.abs() + spread) / spread).max())
        bound = 32 * UNIT[kind] * growth + 1e-13
        assert torch.cat([error.flatten() for error in errors]).norm() <= bound * size
        for ours, theirs in zip([m for m in net.modules() if isinstance(m, nn.BatchNorm1d)], inputs, strict=True):
            for name in STATISTICS:
                own, expected = getattr(ours, name).double(), getattr(theirs, name).double()
                assert torch.allclose(own, expected, rtol=bound, atol=bound)
