"""Forward passes that change parameters, draw numbers or count: refused by name, with advice that works."""

import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_networks import exact_jacobian, random_coords
from torch import nn

import inrfast as inr
from inrfast.errors import UnsupportedModuleError


class Net(nn.Module):
    """Two linear layers, and what happens with them in the forward pass."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way, self.passes = nn.Linear(2, 6), nn.Linear(6, 1), way, 0
        self.register_buffer("u", F.normalize(torch.randn(6), dim=0))

    def forward(self, x):
        return self.way(self, x)

    def rest(self, weight, x):
        return self.b(torch.tanh(F.linear(x, weight, self.a.bias)))


def plain(net, x):
    return net.b(torch.tanh(net.a(x)))


def decays(net, x):
    net.a.weight.data.mul_(0.9)
    return plain(net, x)


def adds(net, x):
    with torch.no_grad():
        net.a.weight.add_(0.01)
    return plain(net, x)


def counts_in_a_bias(net, x):
    values = plain(net, x)
    with torch.no_grad():
        net.b.bias.add_(0.01)
    return values


def clamps(net, x):
    net.a.weight.data.clamp_(-0.3, 0.3)
    return plain(net, x)


def clamped(net, x):
    return net.rest(net.a.weight.clamp(-0.3, 0.3), x)


def normalises(net, x):
    with torch.no_grad():
        net.a.weight.div_(net.a.weight.norm(dim=1, keepdim=True))
    return plain(net, x)


def normalised(net, x):
    return net.rest(net.a.weight / net.a.weight.norm(dim=1, keepdim=True), x)


def replaces(net, x):
    net.a.weight = nn.Parameter(net.a.weight.detach().clamp(-0.3, 0.3))
    return plain(net, x)


def spectral(always):
    """Spectral norm with a power iteration in every pass, or in train mode."""

    def way(net, x):
        weight = net.a.weight
        with torch.no_grad():
            v = F.normalize(weight.t() @ net.u, dim=0)
            if net.training or always:
                net.u.copy_(F.normalize(weight @ v, dim=0))
        return net.rest(weight / (net.u @ weight @ v), x)

    return way


def counts(net, x):
    net.passes += 1
    return plain(net, x) * net.passes


def counts_in_training(net, x):
    net.passes += net.training
    return plain(net, x) * (1 + net.passes)


def rarely(draw):
    """One pass in a hundred is another function, which no comparison of two passes would see."""

    def way(net, x):
        return plain(net, x) * (2 if net.training and draw() < 0.01 else 1)

    return way


def drops(net, x):
    return net.b(F.dropout(torch.tanh(net.a(x)), 0.5, net.training))


def drops_always(net, x):
    return net.b(F.dropout(torch.tanh(net.a(x)), 0.5))


def faint(net, x):
    return net.b(torch.tanh(net.a(x)) + 1e-9 * torch.randn(len(x), 6, dtype=x.dtype))


def from_buffer(net, x):
    return net.b(torch.tanh(net.a(x)) + net.u)


REFUSED = {
    "decay": (decays, "changes its parameter 'a.weight'", plain),
    "step": (adds, "changes its parameter 'a.weight'", plain),
    "afterwards": (counts_in_a_bias, "changes its parameter 'b.bias'", plain),
    "clamp": (clamps, "changes its parameter 'a.weight'", clamped),
    "unit rows": (normalises, "changes its parameter 'a.weight'", normalised),
    "replaced": (replaces, "changes its parameter 'a.weight'", clamped),
    "power iteration": (spectral(True), r"change its buffer 'u'.*self\.training", spectral(False)),
    "counter": (counts, r"counts its passes.*self\.training", counts_in_training),
    "rare in torch": (rarely(lambda: torch.rand(())), r"torch's generator.*net\.eval\(\)", None),
    "rare in NumPy": (rarely(np.random.rand), r"NumPy's global generator.*net\.eval\(\)", None),
    "rare in Python": (rarely(random.random), r"Python's random.*net\.eval\(\)", None),
    "dropout": (drops, r"torch's generator.*net\.eval\(\)", None),
    "dropout always": (drops_always, r"torch's generator.*self\.training", drops),
    "faint noise": (faint, "torch's generator.*into a buffer", from_buffer),
}
"""What is refused, by which words, and the way that the message advises; None: the same in eval mode."""


def assert_exact(net, way=None):
    """The Jacobian is exact; ``way`` is the same forward pass as ``torch.func`` can run it."""
    coords = random_coords(7, 2, 0)
    found = inr.jacobian(net, coords, precision="highest").rows()
    net.way = net.way if way is None else way
    torch.testing.assert_close(found, exact_jacobian(net, coords).flatten(0, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:parameters .* automatic differentiation:RuntimeWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_side_effects_are_refused_and_the_advice_makes_an_exact_jacobian(name):
    bad, message, good = REFUSED[name]
    net = Net(bad)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UnsupportedModuleError, match=message):
        inr.ntk(net, random_coords(7, 2, 0))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    net.way = bad if good is None else good
    assert_exact(net.eval())


def seeded(net, x):
    generator = torch.Generator().manual_seed(1)
    return net.b(torch.tanh(net.a(x)) + torch.rand(6, generator=generator).to(x))


def counts_beside(net, x):
    net.passes += 1
    net.u += 1
    return plain(net, x)


def test_what_is_the_same_in_every_pass_is_no_side_effect():
    net = Net(seeded)
    net.u = torch.rand(6, generator=torch.Generator().manual_seed(1))
    assert_exact(net, from_buffer)
    assert_exact(Net(counts_beside), plain)


def test_what_other_threads_draw_is_no_networks_doing():
    stop = threading.Event()

    def draw():
        while not stop.wait(1e-3):
            torch.rand(1), np.random.rand(), random.random()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        assert_exact(Net(plain))
    finally:
        stop.set()
        thread.join()
