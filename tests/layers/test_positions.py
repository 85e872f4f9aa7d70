"""Layers at several positions of a point, called several times, or behind other leading axes: by handlers, exactly."""

import pytest
import torch
from captured_layers import agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inrfast.layers.affine import Affine
from inrfast.layers.channels import Channels
from inrfast.layers.positions import Positions
from inrfast.nn import FusedLinear
from inrfast.testing import check_layer

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same")
CHANNELS, LENGTH = 4, 3


def frozen(norm, *sizes):
    norm(2 * torch.randn(9, CHANNELS, *sizes) + 1)
    return norm.eval()


# On (n, CHANNELS, LENGTH), and what captures them.
STEPS = {
    "linear": (lambda: nn.Linear(LENGTH, LENGTH), "positions"),
    "no bias": (lambda: nn.Linear(LENGTH, LENGTH, bias=False), "positions"),
    "fused": (lambda: FusedLinear(LENGTH, LENGTH, activation="sine"), "positions"),
    "conv": (lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1), "conv_positions"),
    "groups": (lambda: nn.Conv1d(CHANNELS, CHANNELS, 2, padding="same", groups=2, bias=False), "conv_positions"),
    "layer norm": (lambda: nn.LayerNorm(LENGTH), "affine"),
    "whole norm": (lambda: nn.LayerNorm((CHANNELS, LENGTH)), "affine"),
    "rms norm": (lambda: nn.RMSNorm(LENGTH, eps=1e-6), "affine"),
    "batch norm": (lambda: frozen(nn.BatchNorm1d(CHANNELS), LENGTH), "channels"),
    "group norm": (lambda: nn.GroupNorm(2, CHANNELS), "channels"),
    "instance norm": (lambda: nn.InstanceNorm1d(CHANNELS, affine=True), "channels"),
    "prelu": (nn.PReLU, "channels"),
    "prelus": (lambda: nn.PReLU(CHANNELS), "channels"),
}
HANDLERS = {"positions": Positions, "affine": Affine, "channels": Channels}


class Chain(nn.Module):
    """Steps in a given order, each as often as it stands there."""

    def __init__(self, m, names, order):
        super().__init__()
        self.inlet = nn.Linear(2, CHANNELS * LENGTH)
        self.steps = nn.ModuleList(STEPS[name][0]() for name in names)
        self.head = nn.Linear(CHANNELS * LENGTH, m)
        self.order = order

    def forward(self, x):
        h = torch.sin(self.inlet(x)).unflatten(1, (CHANNELS, LENGTH))
        for place in self.order:
            h = 0.5 * h + torch.tanh(self.steps[place](h))
        return self.head(h.flatten(1))


@settings(max_examples=10)
@given(st.integers(1, 2), st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4), st.data())
def test_steps_at_positions_called_once_or_several_times(m, names, data):
    """No parameter is left to automatic differentiation; some are frozen."""
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    order = data.draw(st.permutations([*range(len(names)), *data.draw(st.lists(st.sampled_from(range(len(names)))))]))
    net = Chain(m, names, order)
    kinds = {f"steps.{place}": STEPS[name][1] for place, name in enumerate(names)}
    for step in net.steps:
        own = dict(step.named_parameters())
        if len(own) > 1 and data.draw(st.booleans()):
            own[data.draw(st.sampled_from(sorted(own)))].requires_grad_(False)
    agrees(net, {"inlet": "linear", "head": "linear", **kinds}, n=6)


@pytest.mark.parametrize("name", [name for name, (_, kind) in STEPS.items() if kind in HANDLERS])
def test_each_keeps_the_contract_of_layers(name):
    make, kind = STEPS[name]
    check_layer(make(), torch.randn(5, CHANNELS, LENGTH, generator=torch.Generator().manual_seed(0)), HANDLERS[kind])


@pytest.mark.parametrize(
    ("norm", "sizes"),
    [
        (lambda: frozen(nn.BatchNorm2d(CHANNELS), 2, 3), (2, 3)),
        (lambda: frozen(nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True), 2, 3), (2, 3)),
        (lambda: nn.InstanceNorm3d(CHANNELS, affine=True), (2, 1, 3)),
        (lambda: nn.GroupNorm(1, CHANNELS), ()),
        (lambda: nn.PReLU(CHANNELS), ()),
    ],
)
def test_norms_and_slopes_of_channels_with_any_axes(norm, sizes):
    check_layer(norm(), torch.randn(5, CHANNELS, *sizes, generator=torch.Generator().manual_seed(0)), Channels)


class Leading(nn.Module):
    """A network whose layers see the points along other axes."""

    def __init__(self, arrange, again):
        super().__init__()
        self.arrange, self.again = arrange, again
        self.first, self.norm, self.second = nn.Linear(2, 5), nn.LayerNorm(5), nn.Linear(5, 5)
        self.slope, self.words, self.head = nn.PReLU(), nn.Embedding(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        n = len(x)
        x = x.reshape(*self.arrange(n), 2)
        h = self.slope(self.norm(self.first(x)))
        h = h + self.words(((x[..., 0].detach() + 1) * 1.9).long())
        for _ in range(self.again):
            h = torch.tanh(self.second(h))
        return self.head(h).reshape(n, 2)


ARRANGED = {
    "(1, n)": lambda n: (1, n),
    "(n, 1)": lambda n: (n, 1),
    "(1, 1, n)": lambda n: (1, 1, n),
    "(n / 2, 2)": lambda n: (n // 2, 2) if n % 2 == 0 else (1, n),
}


@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.parametrize("name", ARRANGED)
def test_points_behind_other_leading_axes(name, again):
    """Two factors as for (n, features), of the same widths; rows for a layer that is called twice."""
    found = agrees(
        Leading(ARRANGED[name], again),
        {"first": "linear", "norm": "affine", "second": "linear" if again == 1 else "positions", "head": "linear"},
        {"first": (3, 5), "head": (6, 0), "second": (6, 5) if again == 1 else (0, 30)} | {"head": (6, 2)},
    )
    assert found["words"] == "table" and found["slope"] == "channels"


class Turned(nn.Module):
    """Its layers get the points in another order: no handler sees it, and the probes do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x.flip(0)[None])))[0].flip(0)


@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
def test_points_in_another_order_go_to_automatic_differentiation():
    agrees(Turned(), {"first": "autodiff", "second.weight": "autodiff"})
