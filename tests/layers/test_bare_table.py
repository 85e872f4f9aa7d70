"""Bare tables read by index: sparse rows, against automatic differentiation."""

import pytest
import torch
import torch.nn.functional as F
from random_modules import jacobian_by_points
from random_networks import exact_kernel, random_coords
from torch import nn

import inrfast as inr


def cells(x):
    """Return the cell (n,) of every point and its neighbours (n, 2), some of them negative, and weights (n, 2, 1)."""
    place = 2 * (x[:, 0].clamp(-1, 1) + 1)
    low = place.detach().floor().long()
    weight = (place - low).unsqueeze(1)
    return low, torch.stack([low, low - 4], dim=1), torch.stack([1 - weight, weight], dim=1)


def levels(p, x):
    _, corners, weights = cells(x)
    return torch.cat([(weights * p[level][corners]).sum(1) for level in range(2)], dim=1)


def rows_of(read):
    return lambda p, x: read(p, cells(x)[0]) * x[:, :1]


READS = {
    "levels": ((2, 5, 3), levels),
    "one of levels": ((2, 5, 3), rows_of(lambda p, i: p[1, i])),
    "rows": ((5, 3), rows_of(lambda p, i: p[i])),
    "rows and all columns": ((5, 3), rows_of(lambda p, i: p[i, :])),
    "rows twice": ((5, 3), rows_of(lambda p, i: p[i] + torch.sin(p[(i + 1) % 5]) * p[i - 5])),
    "numbers": ((5,), rows_of(lambda p, i: p[i].unsqueeze(1))),
    "a plane": ((5, 4, 2), lambda p, x: p[cells(x)[0], cells(x.flip(1))[0].clamp(max=3)]),
    "columns": ((3, 5), rows_of(lambda p, i: p.t()[i])),
    "part": ((9, 3), rows_of(lambda p, i: p[2:][i] + p[:5][i])),
    "embedding": ((5, 3), rows_of(lambda p, i: F.embedding(i, p))),
    "embedding with padding": ((5, 3), rows_of(lambda p, i: F.embedding(i, p, padding_idx=2))),
    "padding from the end": ((5, 3), rows_of(lambda p, i: F.embedding(i, weight=p, padding_idx=-2))),
    "index_select": ((5, 3), rows_of(lambda p, i: p.index_select(0, i) + torch.index_select(p, dim=0, index=i))),
    "gather": ((5, 3), rows_of(lambda p, i: torch.gather(p, 0, i[:, None].expand(-1, 3)))),
    "take": ((5, 3), rows_of(lambda p, i: torch.take(p, torch.stack([i, 3 * i, i + 1], 1)))),
    "batch of one": ((5, 3), rows_of(lambda p, i: p[i[None]][0])),
}


class Reader(nn.Module):
    def __init__(self, shape, read):
        super().__init__()
        self.table, self.read = nn.Parameter(torch.randn(shape)), read
        width = self.read(self.table, torch.zeros(2, 2)).flatten(1).shape[1]
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(torch.sin(self.read(self.table, x).flatten(1)))


@pytest.mark.parametrize("name", READS)
def test_reads_of_bare_tables_have_sparse_rows(name):
    torch.manual_seed(0)
    net, coords = Reader(*READS[name]), random_coords(8, 2, 0)
    truth = jacobian_by_points(net, coords)
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), truth.flatten(0, 1), rtol=1e-10, atol=1e-12)
    assert [layer.kind for layer in J.specs] == ["bare_table", "linear"]
    K = inr.ntk(net, coords, output="full", precision="highest")
    torch.testing.assert_close(K.to_dense(), exact_kernel(truth, truth, "full"), rtol=1e-10, atol=1e-11)


OTHERWISE = {
    "softplus": ((5, 3), rows_of(lambda p, i: F.softplus(p)[i]), "bare_rows"),
    "and a decay": ((5, 3), rows_of(lambda p, i: p[i] + p.square().sum()), "bare_rows"),
    "points last": ((3, 5), rows_of(lambda p, i: p[:, i].t()), "autodiff"),
    "by itself": ((5, 3), rows_of(lambda p, i: p[i] + p[p.detach().argmax(0)].sum()), "bare_rows"),
}


@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
@pytest.mark.parametrize("name", OTHERWISE)
def test_tables_that_are_used_otherwise_go_another_way(name):
    torch.manual_seed(0)
    shape, read, kind = OTHERWISE[name]
    net, coords = Reader(shape, read), random_coords(8, 2, 0)
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), jacobian_by_points(net, coords).flatten(0, 1), rtol=1e-10, atol=1e-12)
    assert J.specs[0].kind == kind


def test_long_tables_take_no_memory_of_their_length():
    """Two levels of 2^19 rows: what a point holds is what it reads."""
    torch.manual_seed(0)
    net = Reader((2, 2**19, 2), levels)
    K = inr.ntk(net, inr.grid((20, 20)), memory_budget=2**24)
    assert K.left.store.fits and K.left.store.bytes_per_point < 500
    small = Reader((2, 5, 2), levels)
    with torch.no_grad():
        small.table.copy_(net.table[:, [0, 1, 2, 3, -1]])
        small.head.load_state_dict(net.head.state_dict())
    assert 0 < K.trace() < float("inf")
