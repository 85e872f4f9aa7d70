"""Tables that points read at a few places: sparse rows, against automatic differentiation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_modules import jacobian_by_points
from random_networks import exact_kernel, random_coords
from torch import nn

import inrfast as inr
from inrfast.encodings import HashGrid
from inrfast.errors import UnsupportedModuleError
from inrfast.layers.table import Table
from inrfast.testing import check_layer

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
ALLOWED = {"highest": 1e-10, "high": 1e-6, "medium": 2e-4}


class Levels(inr.encodings.Encoding):
    """A small hash grid in one or two dimensions: levels of one table, whose cells share entries by chance."""

    def __init__(self, levels=2, entries=7, features=2):
        super().__init__()
        self.levels, self.entries, self.features = levels, entries, features
        self.out_features = levels * features

    def build(self, in_features, generator, device, dtype):
        built = Levels(self.levels, self.entries, self.features)
        built.in_features = in_features
        shape = self.levels * self.entries, self.features
        built.table = nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype, device=device))
        return built

    def reads(self, coords):
        index, weights = [], []
        corners = torch.cartesian_prod(*[torch.tensor([0, 1])] * coords.shape[1]).view(-1, coords.shape[1])
        for level in range(self.levels):
            place = (coords.clamp(-1, 1) + 1) * (1.5 + level)
            cell = place.detach().floor().long()
            vertex = cell.unsqueeze(1) + corners.to(coords.device)
            key = (vertex * torch.tensor([1, 3, 5], device=coords.device)[: coords.shape[1]]).sum(2)
            index.append(key % self.entries + level * self.entries)
            weights.append((1 - (place.unsqueeze(1) - vertex).abs()).prod(2))
        return torch.stack(index, 1), torch.stack(weights, 1)

    def forward(self, coords):
        index, weights = self.reads(coords)
        return (weights.unsqueeze(-1) * self.table[index]).sum(2).flatten(1)


class Words(nn.Module):
    """An embedding of the cell of a point."""

    def __init__(self, **options):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3, **options), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.words((2.4 * (x[:, 0].detach() + 1)).long())) * x[:, :1])


class Reads(nn.Module):
    """Embeddings that a point reads at several places, once or several times, or in bags, on any leading axes."""

    def __init__(self, make, again, places, leading):
        super().__init__()
        self.words, self.again, self.places, self.leading = make(), again, places, leading
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        n, found = len(x), 0.0
        for call in range(self.again):
            place = 3.99 * torch.sigmoid(3 * x.detach() + call)
            index = place.long().repeat(1, 2)[:, : self.places]
            if isinstance(self.words, nn.EmbeddingBag):
                found = found + self.words(index)
            else:
                index = index.reshape(*self.leading, n, self.places).squeeze(-1)
                read = self.words(index).reshape(n, -1, 3)
                found = found + (read * torch.linspace(1, 2, read.shape[1]).to(x).view(-1, 1) * x[:, :1, None]).sum(1)
        return self.head(torch.sin(found) + 0.1 * x[:, :1])


def check(net, coords, precision, output, budget=None):
    """Compare rows, products, entries and forms with the dense Jacobian."""
    truth, rng = jacobian_by_points(net, coords), torch.Generator().manual_seed(0)
    flat, tol = truth.flatten(0, 1), ALLOWED[precision]
    size = flat.norm(dim=1)
    p, v = (torch.randn(count, 3, generator=rng, dtype=torch.float64) for count in flat.shape[::-1])
    J = inr.jacobian(net, coords, precision=precision, memory_budget=budget and 4 * budget)
    assert any(layer.sparse for layer in J.specs)
    assert ((J.rows() - flat).abs() <= tol * size[:, None] + 1e-300).all()
    assert ((J @ p - flat @ p).abs() <= 4 * tol * torch.outer(size, p.norm(dim=0)) + 1e-300).all()
    assert ((J.T @ v - flat.t() @ v).abs() <= 4 * tol * (size @ v.abs()) + 1e-300).all()
    K = inr.ntk(net, coords, output=output, precision=precision, memory_budget=budget)
    exact = exact_kernel(truth, truth, output)
    root = exact.diagonal().sqrt()
    allowed = tol * torch.outer(root, root) + 1e-300
    assert ((K.to_dense() - exact).abs() <= allowed).all()
    assert ((K.diagonal() - exact.diagonal()).abs() <= allowed.diagonal()).all()
    index = torch.arange(0, K.shape[0], 2)
    assert ((K.columns(index) - exact[:, index]).abs() <= allowed[:, index]).all()
    w = torch.randn(len(exact), 40, generator=rng, dtype=torch.float64)
    for some in (w[:, :1], w):  # by factors, and by tiles
        assert ((K @ some - exact @ some).abs() <= 4 * allowed @ some.abs()).all()
        form = some.t() @ exact @ some
        assert ((K.quadratic_form(some) - form).abs() <= 4 * some.abs().t() @ allowed @ some.abs()).all()
    assert ((sum(layer.to_dense() for layer in K.layers.values()) - exact).abs() <= 2 * allowed).all()


@settings(max_examples=5)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(2, 9),
    st.integers(1, 3),
    st.sampled_from([None, "sphere"]),
    st.sampled_from([None, 20_000]),
    st.sampled_from(sorted(ALLOWED)),
    st.sampled_from(["trace", "full", 1]),
    st.integers(0, 10**6),
)
def test_hash_grids(d, levels, entries, features, norm, budget, precision, output, seed):
    encoding = Levels(levels, entries, features)
    if seed % 2:
        encoding = HashGrid(levels, features, table_size=2 ** (entries // 2), coarsest=2, finest=5)
    net = inr.INR(d, 2, width=6, hidden_layers=2, encoding=encoding, norm=norm, activation="tanh", seed=seed)
    check(net, random_coords(12, d, seed), precision, output, budget)


def test_embeddings_and_grids_inside_of_any_module():
    words, coords = Words(), random_coords(15, 2, 0)
    check(words, coords, "highest", "trace")
    dense = inr.jacobian(words, coords).rows()
    words.words.sparse = True  # its gradients are sparse tensors
    torch.testing.assert_close(inr.jacobian(words, coords).rows(), dense, rtol=0, atol=0)
    grid = Levels().build(2, torch.Generator().manual_seed(0), "cpu", torch.float32)
    check(nn.Sequential(grid, nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), random_coords(15, 2, 0), "high", "full")
    check_layer(grid, random_coords(9, 2, 1))


@settings(max_examples=6)
@given(
    st.sampled_from(["plain", "sum", "mean"]),
    st.sampled_from([None, 0, 2]),
    st.integers(1, 2),
    st.integers(1, 4),
    st.sampled_from([(), (1,), (1, 1)]),
    st.sampled_from(sorted(ALLOWED)),
    st.sampled_from(["trace", "full", 1]),
)
def test_embeddings_read_at_several_places(kind, padding, again, places, leading, precision, output):
    def make():
        if kind == "plain":
            return nn.Embedding(4, 3, padding_idx=padding)
        return nn.EmbeddingBag(4, 3, mode=kind, padding_idx=padding)

    net = Reads(make, again, places, leading)
    with torch.no_grad():
        net.words.weight.normal_()
    check(net, random_coords(9, 2, places), precision, output)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2)])
@pytest.mark.parametrize("padding", [None, 1])
def test_an_embedding_keeps_the_contract_of_layers(shape, padding):
    index = torch.arange(torch.Size(shape).numel()).mul_(7).remainder_(5).view(shape)
    check_layer(nn.Embedding(5, 2, padding_idx=padding), index, Table)
    if len(shape) == 2:
        for mode in ("sum", "mean"):
            check_layer(nn.EmbeddingBag(5, 2, mode=mode, padding_idx=padding), index, Table)


def test_what_is_no_derivative_is_refused_and_maxima_are_left_to_automatic_differentiation():
    with pytest.raises(UnsupportedModuleError, match="'words' divides its gradient by how often"):
        inr.ntk(Words(scale_grad_by_freq=True), random_coords(9, 2, 0))
    largest = nn.EmbeddingBag(5, 2, mode="max")
    assert not Table.takes(largest, ["weight"])
    check_layer(largest, torch.tensor([[0, 1], [2, 2], [3, 0], [1, 4]]))


def test_rounding_is_known_where_points_lie_between_the_cells_of_a_table():
    """Places in a table are whole numbers: disturbed by the probe of rounding, they would be others."""
    for encoding in (HashGrid(3, 2, table_size=16, coarsest=2, finest=8), Levels(2, 64, 2)):
        net, coords = inr.INR(2, 2, width=8, hidden_layers=2, encoding=encoding), inr.grid((10, 7))
        K = inr.ntk(net, coords, precision="highest")
        assert 0 < K.jacobian_error <= 1e-10 * K.trace() ** 0.5
        exact = torch.linalg.eigvalsh(exact_kernel(*[jacobian_by_points(net, coords)] * 2, "trace"))
        rank = K.spectrum(method="cholesky", progress=False).rank(1e-5)
        assert rank.lower <= int((exact > 1e-5 * exact[-1]).sum()) <= rank.upper


def test_large_tables_take_no_memory_of_their_length():
    """A table of 2^20 rows: its kernel, spectrum and diagnosis, streamed; and the same bits for copies of a kernel."""
    encoding = Levels(2, 2**19, 2)
    net = inr.INR(2, 1, width=16, hidden_layers=2, encoding=encoding)
    coords = inr.grid((20, 20))
    small = inr.INR(2, 1, width=16, hidden_layers=2, encoding=Levels(2, 64, 2))
    with torch.no_grad():  # the same function: a place in cell (i, j) has a key below 64
        for level in range(2):
            for key in range(64):
                net.encoding.table[level * 2**19 + key] = small.encoding.table[level * 64 + key]
        for one, other in zip(net.layers.parameters(), small.layers.parameters(), strict=True):
            one.copy_(other)
    large, other = (inr.ntk(one, coords, precision="highest") for one in (net, small))
    torch.testing.assert_close(large.to_dense(), other.to_dense(), rtol=1e-12, atol=1e-13)
    found = large.spectrum(method="cholesky", progress=False)
    truth = torch.linalg.eigvalsh(other.to_dense())
    rank = found.rank(1e-6)
    assert rank.lower <= int((truth > 1e-6 * truth[-1]).sum()) <= rank.upper
    report = inr.diagnose(net, coords, progress=False)
    assert [layer.name for layer in report.sensitivities] == ["layers.0", "layers.1", "layers.2"]
    assert report.kernel.blocks[0].name == "encoding"
