"""Random networks beyond coordinate MLPs: layers of every kind, used in every way; and their exact Jacobians."""

import copy

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev


class Gain(nn.Module):
    """Bare parameters."""

    def __init__(self, width):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(()))

    def forward(self, x):
        return self.gain * x + self.shift


class Scaled(nn.Linear):
    """A linear layer with a parameter of its own, whose forward pass is that of nn.Linear."""

    def __init__(self, width):
        super().__init__(width, width)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_forward_hook(lambda module, given, output: module.scale * output)


class PerPoint(nn.Module):
    """A convolution over the features of every point."""

    def __init__(self, width, bias):
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3, padding=1, bias=bias)

    def forward(self, x):
        return self.conv(x.unsqueeze(1)).sum(1)


class Grid(nn.Module):
    """A table that is read by the cell of a point and weighted by its place in the cell."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(7, width)

    def forward(self, x):
        place = 3 * (torch.tanh(x[:, 0]) + 1)
        cell = place.detach().floor().clamp(0, 5).long()
        weight = (place - cell).unsqueeze(1)
        return x + self.table(cell) * (1 - weight) + self.table(cell + 1) * weight


class Pairs(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pair = nn.Bilinear(width, width, width)

    def forward(self, x):
        return self.pair(x, torch.sin(x))


class Branching(nn.Module):
    """Looks at numbers on its way, which vmap cannot run."""

    def __init__(self, width):
        super().__init__()
        self.bend = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return self.bend * x if float(x.detach().square().sum()) >= 0 else x


class Positions(nn.Module):
    """A linear layer along the positions of a point."""

    def __init__(self, width):
        super().__init__()
        self.lin = nn.Linear(1, 3)

    def forward(self, x):
        return torch.tanh(self.lin(x.unsqueeze(-1))).sum(-1)


class Squeezed(nn.Module):
    """Drops the axis of a single point, and works in place."""

    def __init__(self, width):
        super().__init__()
        self.curve = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return (x.squeeze() * self.curve).tanh_() + 0 * x


class Bare(nn.Module):
    """A weight and a bias in one call, as in lucidrains/siren-pytorch, and the weight's transpose in another."""

    def __init__(self, width, both=False):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, width)), nn.Parameter(torch.randn(width))
        self.both = both

    def forward(self, x):
        h = F.linear(x, self.weight, self.bias)
        return torch.sin(h) @ self.weight if self.both else h


class Products(nn.Module):
    """Matrices whose columns belong to the outputs, with a bias apart, in the call, and in place."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(width, 3)), nn.Parameter(torch.randn(3, width))
        self.shift, self.offset = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(width))

    def forward(self, x):
        h = x.matmul(self.first)
        h += self.shift
        return torch.addmm(self.offset, torch.cos(h), self.second)


class Frequencies(nn.Module):
    """Learned frequencies and scales of every unit or of all of them, in functions that broadcast."""

    def __init__(self, width):
        super().__init__()
        self.omega, self.scale = nn.Parameter(1 + torch.rand(width)), nn.Parameter(torch.tensor(0.5))
        self.power, self.mix = nn.Parameter(torch.randn(1, width)), nn.Parameter(torch.rand(width))

    def forward(self, x):
        h = torch.exp(-((self.scale * x) ** 2)) / (2 - torch.sin(self.omega * x))
        h = torch.lerp(h, x, self.mix).mul_(self.mix[:1])
        return torch.maximum(h, self.power.exp() * x)


class Levels(nn.Module):
    """Levels of one table, an embedding by function, and the same entries by another index."""

    def __init__(self, width):
        super().__init__()
        self.tables = nn.Parameter(torch.randn(2, 5, width))

    def forward(self, x):
        cell = (2 * (torch.tanh(x[:, 0].detach()) + 1)).long()
        near = self.tables[0][torch.stack([cell, cell - 1], 1)].sum(1)
        far = F.embedding(cell, self.tables[1]) + self.tables[1, cell]
        return x * near + torch.sin(x) * far


class Coded(nn.Module):
    """A latent code that every point gets, and layers made of it that modulate."""

    def __init__(self, width):
        super().__init__()
        self.code, self.lin = nn.Parameter(torch.randn(3)), nn.Linear(width + 3, width)
        self.modulator = nn.Linear(3, width)

    def forward(self, x):
        h = self.lin(torch.cat([x, self.code.expand(len(x), -1)], dim=1))
        return torch.sin(h) * self.modulator(self.code) + F.linear(h, torch.outer(self.modulator.bias, self.lin.bias))


class HiddenProduct(torch.autograd.Function):
    """A linear map whose use of the weight hooks do not see."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x


BLOCKS = {
    "bare": Bare,
    "bare twice": lambda w: Bare(w, both=True),
    "products": Products,
    "frequencies": Frequencies,
    "levels": Levels,
    "coded": Coded,
    "linear": lambda w: nn.Linear(w, w),
    "no bias": lambda w: nn.Linear(w, w, bias=False),
    "scaled": Scaled,
    "layer norm": nn.LayerNorm,
    "gain": Gain,
    "conv": lambda w: PerPoint(w, True),
    "conv without bias": lambda w: PerPoint(w, False),
    "grid": Grid,
    "pairs": Pairs,
    "branching": Branching,
    "positions": Positions,
    "squeezed": Squeezed,
}


class Stack(nn.Module):
    """Blocks with skip connections; an earlier block may be used again, or lend its parameters."""

    def __init__(self, d, m, width, kinds, again, tied):
        super().__init__()
        self.inlet, self.head = nn.Linear(d, width), nn.Linear(width, m)
        self.blocks = nn.ModuleList(BLOCKS[kind](width) for kind in kinds)
        if tied:
            self.blocks.append(nn.Linear(width, width))
            self.blocks.append(nn.Linear(width, width))
            self.blocks[-1].weight = self.blocks[-2].weight
        self.again = again

    def forward(self, x):
        h = torch.sin(self.inlet(x))
        for block in self.blocks:
            h = 0.5 * h + torch.tanh(block(h))
        if self.again:
            h = h + 0.3 * F.softplus(self.blocks[0](h))
        return self.head(h)


@st.composite
def modules(draw, max_width=6):
    """Networks of one to four blocks of any kind."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    kinds = draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3))
    return Stack(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(2, max_width)),
        kinds,
        draw(st.booleans()),
        draw(st.booleans()),
    )


def jacobian_by_points(net, coords, names=None):
    """Return d f_m(x_n) / d theta in fp64, (N, M, P), by torch.func.jacrev at every point alone."""
    net = copy.deepcopy(net).double().requires_grad_(False)
    parameters = {k: p.detach() for k, p in net.named_parameters() if names is None or k in names}
    rows = []
    for x in coords.double():
        found = jacrev(lambda chosen, x=x: functional_call(net, chosen, (x.expand(2, -1),))[0])(parameters)
        rows.append(torch.cat([found[name].reshape(len(found[name]), -1) for name in parameters], dim=1))
    return torch.stack(rows)
