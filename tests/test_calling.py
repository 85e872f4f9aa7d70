"""Networks that take coordinates with a batch axis, or return more than a tensor, are fitted as they are."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from random_networks import random_coords
from torch import nn

import inrfast as inr
from inrfast.errors import DivergedError
from inrfast.signals.render import render
from inrfast.training.batches import Batches
from inrfast.training.callbacks import TrackNTK
from inrfast.training.engines.chunked import ChunkedGradient

Pair = namedtuple("Pair", "extra output")

RETURNS = {
    "tensor": (lambda x, y: y, None),
    "without the batch axis": (lambda x, y: y[0], None),
    "dictionary": (lambda x, y: {"coords": x, "output": y}, "output"),
    "tuple": (lambda x, y: (x, y), -1),
    "named tuple": (Pair, "output"),
    "object": (lambda x, y: SimpleNamespace(output=y), "output"),
    "by a function": (lambda x, y: [x, {"output": y}], lambda found: found[1]["output"]),
}
"""What a network may return of coordinates and outputs, and the ``select`` that takes the output from it."""

COORDS = random_coords(23, 2, 1).double()
TARGET = torch.sin(2 * COORDS[:, :1] + torch.arange(3))


class Convolved(nn.Module):
    """A field by convolutions over the points of (1, n, d), which no other coordinates go into."""

    def __init__(self, given=RETURNS["tensor"][0]):
        super().__init__()
        self.given, self.seen = given, set()
        torch.manual_seed(3)
        self.a, self.b = nn.Conv1d(2, 8, 1).double(), nn.Conv1d(8, 3, 1).double()

    def forward(self, x):
        batch, points, _ = x.shape
        self.seen.add((batch, points))
        return self.given(x, self.b(torch.tanh(self.a(x.transpose(1, 2)))).transpose(1, 2))


def plain_loop(select, given, batch_size, weight=None, penalty=0.0):
    """Return the parameters after three steps of a loop in PyTorch."""
    net, batches = Convolved(given), Batches(len(COORDS), batch_size, [0], COORDS.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    weight = torch.ones(len(COORDS), 1) if weight is None else weight
    for step in range(3):
        rows = batches.rows(step)
        some = slice(None) if rows is None else rows[0]
        optimizer.zero_grad()
        found = net(COORDS[some].unsqueeze(0))
        found = found if select is None else select(found) if callable(select) else taken(found, select)
        squares = weight[some] * (found.reshape(-1, 3) - TARGET[some]) ** 2
        (squares.sum() / (3 * weight[some].sum()) + penalty * found.square().mean()).backward()
        optimizer.step()
    return list(net.parameters())


def taken(found, select):
    try:
        return found[select]
    except TypeError:
        return getattr(found, select)


def assert_close(net, parameters):
    for own, plain in zip(net.parameters(), parameters, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 6])
@pytest.mark.parametrize("kind", RETURNS)
def test_a_fit_of_coordinates_with_a_batch_axis_is_the_plain_loop(kind, batch_size, monkeypatch):
    given, select = RETURNS[kind]
    monkeypatch.setattr(ChunkedGradient, "_cached_rows", lambda self: 5)
    options = {"steps": 3, "lr": 1e-2, "schedule": "constant", "batch_size": batch_size, "select": select}
    expected = plain_loop(select, given, batch_size)
    weight = 1 + COORDS[:, :1].abs()
    for target in (TARGET, TARGET.unsqueeze(0)):
        net = Convolved(given)
        result = inr.fit(net, COORDS.unsqueeze(0), target, **options)
        assert_close(net, expected)
        assert result.config["gradient"] == "chunked"
        assert {points for _, points in net.seen} <= set(range(9))  # chunks, and no more than five and two points
    nets = [Convolved(given) for _ in range(2)]
    inr.fit_many(nets, [COORDS.unsqueeze(0)] * 2, TARGET, **options)
    for own in nets:
        assert_close(own, expected)
    weighted, penalised = Convolved(given), Convolved(given)
    inr.fit(weighted, COORDS.unsqueeze(0), TARGET, weight=weight.T, **options)
    assert_close(weighted, plain_loop(select, given, batch_size, weight))
    penalty = {"regularizers": [(lambda prediction: prediction.square().mean(), 0.1)]}
    inr.fit(penalised, COORDS.unsqueeze(0), TARGET, loss=lambda f, y: (f - y).square().mean(), **penalty, **options)
    assert_close(penalised, plain_loop(select, given, batch_size, penalty=0.1))


def field(kind="dictionary"):
    """Return such a field, and the outputs that it is called for, as a network of points (n, d)."""
    net = Convolved(RETURNS[kind][0])

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Convolved()

        def forward(self, x):
            return self.net(x.unsqueeze(0)).squeeze(0)

    return net, Plain()


def test_evaluations_callbacks_and_renderings_are_those_of_a_wrapper():
    found = []
    for net, lift, select in zip(field(), (lambda x: x.unsqueeze(0), lambda x: x), ("output", None), strict=True):
        tracked, seen = TrackNTK(points=9), []

        class Watch:
            def on_eval(self, state, seen=seen):
                seen.append((state.coords.shape, state.select))

        result = inr.fit(
            net, lift(COORDS), TARGET, steps=4, eval_every=2, select=select, callbacks=[tracked, Watch()],
            eval_coords=lift(COORDS[:7]), eval_target=TARGET[:7], optimizer="sgd",
        )  # fmt: skip
        traces = [entry.trace for entry in tracked.history]
        image = render(net, (3, 4), select=select).double()
        one = render(net, (1, 1), select=select).double()
        assert seen == [(lift(COORDS).shape, select)] * 3
        found.append([result.psnrs, result.losses, traces, image, one])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_axes_of_a_grid_are_points_unless_the_network_takes_them_otherwise():
    grid = inr.grid((4, 5), dtype=torch.float64)
    image = torch.sin(3 * grid.sum(1)).reshape(4, 5, 1)
    nets = [nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, points in zip(nets, (grid, grid.reshape(4, 5, 2)), strict=True):
        inr.fit(net, points, image, steps=3, weight=image[..., 0] > 0)
    assert_close(nets[0], nets[1].parameters())

    class OverRows(nn.Linear):
        def forward(self, x):
            return super().forward(x) - x.mean(-2, keepdim=True).sum(-1, keepdim=True)

    with pytest.raises(ValueError, match="treats point by point"):
        inr.fit(OverRows(2, 1).double(), grid.reshape(4, 5, 2), image, steps=1)


def test_a_line_of_points_is_in_one_order_whatever_axes_of_size_1_it_has():
    line = torch.stack([torch.linspace(-1, 1, 6), torch.zeros(6)], 1).unsqueeze(0)
    result = inr.fit(inr.INR(2, 1, width=4), line, line[..., :1], steps=1, weight=torch.ones(1, 6))
    assert result.config["points"] == 6


def test_a_checkpoint_is_gone_on_from_with_the_same_select_alone(tmp_path):
    def second(found):
        return found[1]

    def other(found):
        return found[-1] + 0

    def go_on(name, axes=1, **options):
        net, path = Convolved(RETURNS["tuple"][0]), tmp_path / name
        points = COORDS.reshape(*(1,) * axes, 23, 2)
        return inr.fit(net, points, TARGET, checkpoint=path, schedule="constant", **options), net

    for number, select in enumerate((-1, second)):
        name = str(number)
        _, whole = go_on("whole" + name, steps=4, select=select)
        go_on(name, steps=2, select=select)
        result, net = go_on(name, steps=4, select=select, resume=True)
        assert all(torch.equal(*pair) for pair in zip(net.parameters(), whole.parameters(), strict=True))
        assert result.config["select"] == (select if number == 0 else "second")
        with pytest.raises(ValueError, match=r"of another fit.*select"):
            go_on(name, steps=6, select=1 if number == 0 else other, resume=True)


def test_what_is_no_output_is_refused_by_name():
    given, points = RETURNS["dictionary"][0], COORDS.unsqueeze(0)
    head = nn.Linear(3, 3).double()
    cases = [
        (COORDS, {"select": "output"}, ValueError, r"does not take coords of shape \(23, 2\).*\(1, N, d\)"),
        (points, {}, TypeError, r"net returns dict \['coords', 'output'\]; pass select="),
        (points, {"select": "rgb"}, ValueError, "select='rgb' is not in what net returns"),
        (points, {"select": lambda found: found["output"].mean()}, ValueError, "one row per point"),
        (points, {"select": lambda found: head(found["output"])}, ValueError, "select holds head.*asks to be trained"),
        (points, {"select": lambda found: found["output"] > 0}, TypeError, "floating-point"),
    ]
    for coords, options, kind, message in cases:
        for fit in (inr.fit, lambda net, *rest, **options: inr.fit_many([net], *rest, **options)):
            with pytest.raises(kind, match=message):
                fit(Convolved(given), [coords] if fit is not inr.fit else coords, TARGET, steps=1, **options)
    with pytest.raises(TypeError, match="pass select="):
        render(Convolved(given), (3, 3))
    with pytest.raises(DivergedError, match="first in the loss 'mse'"):
        inr.fit(Convolved(given), 1e300 * points, TARGET, steps=9, lr=1e300, select="output")


def test_the_formula_of_an_inr_gives_way_to_a_select_of_its_outputs():
    net, twin = (inr.INR(2, 3, width=8, hidden_layers=1, dtype=torch.float64) for _ in range(2))
    inr.fit(net, COORDS, TARGET[:, :1], steps=3, lr=1e-2, select=lambda f: f[:, 1:2] - f[:, :1])
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.1 ** (step / 3)
        optimizer.zero_grad()
        found = twin(COORDS)
        (found[:, 1:2] - found[:, :1] - TARGET[:, :1]).square().mean().backward()
        optimizer.step()
    assert_close(net, twin.parameters())


def test_meta_learning_takes_outputs_without_a_last_axis():
    found = []
    for end in (nn.Flatten(0), nn.Identity()):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1), end).double()
        signals = torch.stack([TARGET[:, :1], -TARGET[:, :1]])
        found.append(inr.meta_learn(net, COORDS, signals, steps=2, batch=2, progress=False).losses)
    torch.testing.assert_close(*found)
