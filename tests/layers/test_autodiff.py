"""Kernels and Jacobians of networks of any layers, against automatic differentiation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_modules import jacobian_by_points, modules
from random_networks import exact_kernel, random_coords
from torch import nn

import inrfast as inr
from inrfast.errors import MemoryBudgetError

pytestmark = pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
ALLOWED = {"highest": 1e-10, "high": 1e-6, "medium": 2e-4}


@settings(max_examples=8)
@given(
    modules(),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from(sorted(ALLOWED)),
    st.sampled_from(["trace", "full", 0]),
    st.sampled_from([None, 3000]),
    st.data(),
)
def test_every_network_has_its_kernel(net, n, seed, precision, output, budget, data):
    """Rows, products, entries and eigenvalues, of all parameters or some, kept or streamed."""
    coords = random_coords(n, net.inlet.in_features, seed)
    names = [name for name, _ in net.named_parameters()]
    chosen = data.draw(st.one_of(st.none(), st.lists(st.sampled_from(names), min_size=1, unique=True)))
    truth = jacobian_by_points(net, coords, None if chosen is None else [name for name in names if name in chosen])
    tol, flat = ALLOWED[precision], truth.flatten(0, 1)
    size = flat.norm(dim=1)
    rng = torch.Generator().manual_seed(seed)

    J = inr.jacobian(net, coords, params=chosen, precision=precision, memory_budget=budget and 10 * budget)
    p, v = (torch.randn(count, 2, generator=rng, dtype=torch.float64) for count in flat.shape[::-1])
    assert J.shape == tuple(flat.shape)
    for point in {0, n - 1}:
        m = truth.shape[1]
        assert ((J.rows(point) - truth[point]).abs() <= tol * size[point * m : point * m + m, None] + 1e-300).all()
    assert ((J @ p - flat @ p).abs() <= 4 * tol * torch.outer(size, p.norm(dim=0)) + 1e-300).all()
    assert ((J.T @ v - flat.t() @ v).abs() <= 4 * tol * (size @ v.abs()) + 1e-300).all()

    K = inr.ntk(net, coords, params=chosen, output=output, precision=precision, memory_budget=budget and 10 * budget)
    exact = exact_kernel(truth, truth, output)
    root = exact.diagonal().clamp_min(0).sqrt()
    allowed = tol * torch.outer(root, root) + 1e-300
    columns = K.columns(torch.arange(K.shape[1]))
    assert ((columns - exact).abs() <= allowed).all()
    assert ((sum(layer.columns(slice(None)) for layer in K.layers.values()) - exact).abs() <= 2 * allowed).all()
    assert ((K.diagonal() - exact.diagonal()).abs() <= allowed.diagonal()).all()
    w = torch.randn(K.shape[1], 2, generator=rng, dtype=torch.float64)
    assert ((K @ w - exact @ w).abs() <= 4 * (allowed @ w.abs()) + 1e-300).all()
    if budget is None:
        eigenvalues = torch.linalg.eigvalsh(exact).flip(0)
        found = K.spectrum(progress=False).eigenvalues
        assert float((found - eigenvalues).abs().max()) <= 1e-9 * float(eigenvalues[0])


class Cells(inr.encodings.Encoding):
    """A table read by the cell of a point, as a hash grid is, and a layer of its own behind it."""

    def __init__(self):
        super().__init__()
        self.out_features = 3

    def build(self, in_features, generator, device, dtype):
        built = Cells()
        built.in_features = in_features
        built.table = nn.Parameter(torch.randn(8, 2, generator=generator, dtype=dtype))
        built.mix = nn.Linear(2, 3, dtype=dtype)
        return built

    def forward(self, coords):
        place = 3.5 * (coords[..., 0].clamp(-1, 1) + 1)
        cell = place.detach().floor().clamp(0, 6).long()
        weight = (place - cell).unsqueeze(-1)
        return self.mix(self.table[cell] * (1 - weight) + self.table[cell + 1] * weight)


ENCODINGS = {
    "fourier": lambda: inr.RandomFourier(4, 1.0, trainable=True),
    "composed": lambda: inr.encodings.Concatenate(inr.encodings.Identity(), inr.RandomFourier(3, 1.0, trainable=True)),
    "own": Cells,
}


@pytest.mark.parametrize("norm", [None, "batch", "sphere"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_trained_encodings_of_coordinate_networks(name, norm):
    """In closed form: the encoding alone is differentiated, with what the network makes of it."""
    net = inr.INR(2, 2, width=9, hidden_layers=2, encoding=ENCODINGS[name](), norm=norm, activation=["sine", "relu"])
    coords = random_coords(300, 2, 0)
    if norm == "batch":
        inr.calibrate_batchnorm_(net, coords)
    truth = jacobian_by_points(net.eval(), coords[:20])
    J = inr.jacobian(net, coords, precision="highest", memory_budget=200_000)
    assert J.capture.closed_form and not J.store.fits
    torch.testing.assert_close(J.rows(slice(0, 20)), truth.flatten(0, 1), rtol=1e-10, atol=1e-12)
    for output in ("trace", "full", 1):
        for precision, tol in ALLOWED.items():
            K = inr.ntk(net, coords[:20], output=output, precision=precision)
            exact = exact_kernel(truth, truth, output)
            root = exact.diagonal().sqrt()
            assert ((K.to_dense() - exact).abs() <= tol * torch.outer(root, root)).all()


@given(modules(max_width=4), st.integers(0, 10**6))
@settings(max_examples=3)
def test_a_diagnosis_of_any_layers(net, seed):
    """Traces, eigenvalues and counted ranks of every block, and the sensitivities of those that have rows alone."""
    coords = random_coords(40, net.inlet.in_features, seed)
    truth = jacobian_by_points(net, coords)
    J = inr.jacobian(net, coords, precision="highest")
    report = inr.diagnose(net, coords, progress=False)
    blocks = {layer.name: torch.cat([truth[..., c] for c in layer.parameters.values()], 2) for layer in J.specs}
    largest = float(torch.linalg.eigvalsh(exact_kernel(truth, truth, "trace"))[-1])
    for shown in report.sensitivities:
        own = blocks[shown.name]
        assert shown.trace == pytest.approx(float(own.square().sum()), rel=1e-10, abs=1e-300)
        if shown.kind not in ("linear", "conv", "bare_linear"):  # then its rows are all there is
            values = torch.linalg.svdvals(own.flatten(0, 1))
            for rank in shown.spectrum.ranks:
                apart = (values / values[0]).sub(rank.rtol).abs() > 1e-9
                if bool(apart.all()) and float(values[0]) > 0:
                    assert rank.lower <= int((values > rank.rtol * values[0]).sum()) <= rank.upper
    for block in report.kernel.blocks:
        exact = torch.linalg.eigvalsh(exact_kernel(blocks[block.name], blocks[block.name], "trace"))
        for rank in block.ranks:
            tau = rank.rtol * largest
            assert int((exact > tau * 1.000001).sum()) <= rank.upper
            assert int((exact > tau * 0.999999).sum()) >= rank.lower


def test_a_budget_that_holds_no_rows_says_how_many_bytes():
    table = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 4000, 3), nn.Flatten())
    net, coords = nn.Sequential(table, nn.Linear(8000, 1)), random_coords(50, 2, 0)
    told = r"'0\.2\.weight', '0\.2\.bias' at 32 points needs 19\.\d+ MiB .* params="
    with pytest.raises(MemoryBudgetError, match=told):
        inr.ntk(net, coords, memory_budget=2**23)
    inr.ntk(net, coords, memory_budget=2**23, params=["0.0"])
