"""The diagnosis against exact Jacobians, hooks and NumPy, on random networks and on networks broken on purpose."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, networks, random_coords
from torch import nn

import inrfast as inr
from inrfast.analysis import diagnosis
from inrfast.analysis.diagnosis import diagnose
from inrfast.errors import MemoryBudgetError, ResolutionError, UnsupportedModuleError
from inrfast.linalg import eigenvalues
from inrfast.norms import NORMS

RTOLS = (1e-1, 1e-3, 1e-6)


def run(net, coords, **options):
    return diagnose(net, coords, **{"rtols": RTOLS, "jacobian_pixels": 4, "progress": False} | options)


def holds_ranks_of(matrix, spectrum, rtols=RTOLS):
    """Whether a report's spectrum is that of ``matrix``, by NumPy."""
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    counts = [int((values > rtol * values[0]).sum()) for rtol in rtols]
    largest = spectrum.singular_values[0] if spectrum.singular_values else 0.0
    return (
        (spectrum.rows, spectrum.columns) == tuple(matrix.shape)
        and all(count in rank for count, rank in zip(counts, spectrum.ranks, strict=True))
        and largest == pytest.approx(values[0], rel=1e-9)
    )


def inputs_of_linear_layers(net, coords):
    """What enters each linear layer, in fp64, by hooks."""
    net, found = copy.deepcopy(net).double(), []
    for layer in net.layers:
        layer.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
    net(coords.double())
    return found


@settings(max_examples=8)
@given(net=networks(max_width=12, max_depth=3), seed=st.integers(0, 10**6))
def test_spectra_and_traces_are_those_of_the_exact_matrices(net, seed):
    coords = random_coords(19, net.in_features, seed)
    report = run(net, coords)
    jacobian = exact_jacobian(net, coords)
    parameters = dict(net.named_parameters())
    columns = dict(zip(parameters, jacobian.split([p.numel() for p in parameters.values()], dim=2), strict=True))

    representations = inputs_of_linear_layers(net, coords)
    assert [z.name for z in report.representations] == ["input", *(f"layers.{k}" for k in range(net.hidden_layers))]
    for z, found in zip(representations, report.representations, strict=True):
        assert holds_ranks_of(z, found.spectrum)
        assert holds_ranks_of(torch.cat([z, z.new_ones(len(z), 1)], 1), found.with_ones)
        assert found.dead_units == int((z == 0).all(0).sum())
        assert found.dead_pixels == int((z == 0).all(1).sum())

    total = exact_kernel(jacobian, jacobian, "trace").trace()
    for layer in report.sensitivities:
        own = torch.cat([part for name, part in columns.items() if name.startswith(layer.name + ".")], 2)
        assert layer.trace == pytest.approx(float(own.square().sum()), rel=1e-8)
        assert layer.trace_share == pytest.approx(float(own.square().sum() / total), rel=1e-8)
        if layer.kind == "linear" and net.layers[0].bias is not None:  # the bias' derivative is S itself
            s = columns[f"{layer.name}.bias"]
            assert holds_ranks_of(s.flatten(0, 1), layer.spectrum)
            assert layer.dead_pixels == int((s == 0).all(2).any(1).sum())
    assert sum(layer.trace_share for layer in report.sensitivities) == pytest.approx(1)


@settings(max_examples=8)
@given(net=networks(max_width=12, max_depth=3), seed=st.integers(0, 10**6))
def test_kernel_and_blocks_are_counted_above_one_absolute_threshold(net, seed):
    coords = random_coords(17, net.in_features, seed)
    report = run(net, coords)
    jacobian = exact_jacobian(net, coords)
    values = torch.linalg.eigvalsh(exact_kernel(jacobian, jacobian, "trace"))
    names = [name for name, _ in net.named_parameters()]
    sizes = [p.numel() for p in net.parameters()]
    columns = dict(zip(names, jacobian.split(sizes, dim=2), strict=True))
    for place, rtol in enumerate(RTOLS):
        tau = rtol * values[-1]
        assert int((values > tau).sum()) in report.kernel.whole.ranks[place]
        for block in report.kernel.blocks:
            own = torch.cat([part for name, part in columns.items() if name.startswith(block.name + ".")], 2)
            truth = torch.linalg.eigvalsh(exact_kernel(own, own, "trace"))
            assert int((truth > tau).sum()) in block.ranks[place]
            assert block.trace == pytest.approx(float(truth.sum()), rel=1e-8)
    assert report.kernel.whole.trace == pytest.approx(sum(block.trace for block in report.kernel.blocks), rel=1e-8)


@settings(max_examples=12)
@given(net=networks(max_width=16, max_depth=4), n=st.integers(2, 24), seed=st.integers(0, 10**6))
def test_the_block_bounds_hold(net, n, seed):
    report = run(net, random_coords(n, net.in_features, seed), rtols=(0.5, 1e-1, 1e-2, 1e-4, 1e-8))
    for bound in report.kernel.bounds:
        assert bound.hold
        assert bound.largest_block.lower <= bound.whole.upper
        assert bound.whole_at_multiple.lower <= bound.sum_of_blocks.upper


@pytest.mark.parametrize("norm", [None, *sorted(NORMS)])
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "sine"])
def test_feature_jacobians_are_those_of_reverse_mode(norm, position, activation):
    net = inr.INR(2, 1, width=7, hidden_layers=3, activation=activation, norm=norm, norm_position=position, omega=3.0)
    coords = random_coords(9, 2, 0)
    if norm == "batch":
        inr.calibrate_batchnorm_(net, random_coords(30, 2, 1))
    net.eval()
    report = run(net, coords, jacobian_pixels=9)
    exact = copy.deepcopy(net).double()
    for index, z in enumerate(inputs_of_linear_layers(net, coords)[:-1]):

        def layer(row, index=index):
            return exact.activate(index, exact.layers[index](row.unsqueeze(0)))[0]

        values = torch.stack([torch.linalg.svdvals(torch.func.jacrev(layer)(row)) for row in z]).detach()
        found = report.feature_jacobians[index]
        assert (found.name, found.pixels) == (f"layers.{index}", 9)
        for rtol, ranks in zip(RTOLS, found.ranks, strict=True):
            counts = (values > rtol * values[:, :1]).sum(1).double()
            expected = (counts.min(), counts.median(), counts.max())
            assert (ranks.minimum, ranks.median, ranks.maximum) == tuple(map(float, expected))


def test_weight_products_leave_the_head_out():
    net = inr.INR(3, 2, width=6, hidden_layers=4)
    report = run(net, random_coords(10, 3, 0))
    w = [layer.weight.detach().double() for layer in net.layers]
    assert [weight.factors for weight in report.weights] == [(f"layers.{k}",) for k in range(5)]
    assert all(holds_ranks_of(matrix, weight.spectrum) for matrix, weight in zip(w, report.weights, strict=True))
    assert [product.factors for product in report.weight_products] == [
        ("layers.3", "layers.2", "layers.1", "layers.0"),
        ("layers.3", "layers.2", "layers.1"),
        ("layers.3", "layers.2"),
    ]
    for product, k in zip(report.weight_products, range(3), strict=True):
        assert holds_ranks_of(torch.linalg.multi_dot(w[k:4][::-1]), product.spectrum)


def test_dead_units_and_pixels_made_by_hand_are_found():
    net = inr.INR(1, 1, width=4, hidden_layers=2)
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [0.0]]))
        net.layers[0].bias.copy_(torch.tensor([0.0, 0.0, 0.0, -1.0]))  # three units see x > 0, the fourth nothing
        net.layers[1].weight.copy_(torch.ones(4, 4))
        net.layers[1].bias.copy_(torch.tensor([-1.0, -1.0, -1.0, -100.0]))  # alive for 6 x > 1, the fourth never
        net.layers[2].weight.fill_(1.0)
    report = run(net, torch.arange(-100, 101).unsqueeze(1) / 100)
    z = {found.name: found for found in report.representations}
    s = {found.name: found for found in report.sensitivities}
    assert (z["input"].dead_units, z["input"].dead_pixels) == (0, 1)  # the point 0 itself
    assert (z["layers.0"].dead_units, z["layers.0"].dead_pixels) == (1, 101)
    assert (z["layers.1"].dead_units, z["layers.1"].dead_pixels) == (1, 101 + 16)
    assert (s["layers.0"].dead_pixels, s["layers.1"].dead_pixels, s["layers.2"].dead_pixels) == (117, 117, 0)
    assert (z["layers.0"].spectrum.ranks[0].upper, s["layers.1"].spectrum.ranks[0].upper) == (1, 1)


def test_a_dead_network_is_reported_not_refused():
    net = inr.INR(2, 1, width=3, hidden_layers=2, bias=False)
    with torch.no_grad():
        net.layers[0].weight.zero_()
    report = run(net, inr.grid((4, 4)))
    assert report.kernel.whole.ranks[-1].upper == 0
    assert all(layer.trace_share == 0 for layer in report.sensitivities)
    assert report.representations[1].dead_units == 3
    assert "zero at every point" in str(report)


def test_tolerances_below_the_gram_matrix_go_through_tsqr():
    net = inr.INR(2, 2, width=8, hidden_layers=2, activation="tanh")
    coords, rtols = inr.grid((9, 9)), (1e-3, 1e-9)
    report = run(net, coords, rtols=rtols)
    for z, found in zip(inputs_of_linear_layers(net, coords), report.representations, strict=True):
        assert found.spectrum.method == "tsqr"
        assert holds_ranks_of(z, found.spectrum, rtols)


def test_gram_matrices_that_do_not_resolve_are_replaced_by_tsqr():
    net = inr.INR(2, 1, width=200, hidden_layers=1)
    report = run(net, inr.grid((10, 10)), rtols=(1e-3, 1e-7))
    methods = {z.name: z.spectrum.method for z in report.representations}
    assert methods["layers.0"] == "tsqr"  # 200 columns: the error of their Gram matrix exceeds (1e-7)^2
    assert all(z.spectrum.floor <= 1e-7 for z in report.representations)


def test_a_thinned_grid_is_never_called_the_full_one():
    coords = inr.grid((20, 30))
    report = run(inr.INR(2, 1, width=6), coords, ntk_points=60)
    kernel = report.kernel
    assert (kernel.points, kernel.grid_points, kernel.full_grid, kernel.shape) == (40, 600, False, (5, 8))
    assert kernel.whole.size == 40
    assert "40 points (5x8), not the full grid of 600" in str(report)
    assert report.representations[0].spectrum.rows == 600

    whole = run(inr.INR(2, 1, width=6), coords[:40]).kernel
    assert (whole.points, whole.full_grid, whole.shape) == (40, True, None)
    scattered = run(inr.INR(2, 1, width=6), random_coords(50, 2, 0), ntk_points=20).kernel
    assert (scattered.points, scattered.full_grid, scattered.shape) == (17, False, None)
    given_points = run(inr.INR(2, 1, width=6), coords, ntk_coords=inr.grid((5, 4))).kernel
    assert (given_points.points, given_points.full_grid, given_points.shape) == (20, False, (5, 4))


def test_large_grids_are_diagnosed_whole_with_intervals(monkeypatch):
    """As on a grid beyond the dense method: every interval holds the truth, streamed under a budget too."""
    for module in (diagnosis, eigenvalues):
        monkeypatch.setattr(module, "SMALL", 200)
    net, coords = inr.INR(2, 1, width=24, hidden_layers=2, init="rank_expanding"), inr.grid((30, 30))
    K = inr.ntk(net, coords, precision="highest")
    values = torch.linalg.eigvalsh(K.to_dense()).flip(0)
    exact = {name: torch.linalg.eigvalsh(layer.to_dense()).flip(0) for name, layer in K.layers.items()}
    for budget in (None, 6 << 20):
        report = run(net, coords, memory_budget=budget)
        kernel = report.kernel
        assert kernel.full_grid
        assert kernel.whole.method == "cholesky"
        assert {block.name: block.method for block in kernel.blocks}["layers.1"] == "cholesky"
        for place, rtol in enumerate(RTOLS):
            tau = rtol * float(values[0])
            assert int((values > tau).sum()) in kernel.whole.ranks[place]
            for block in kernel.blocks:
                assert int((exact[block.name] > tau).sum()) in block.ranks[place]
            assert kernel.bounds[place].hold
        narrow = kernel.whole.ranks[-1]
        assert narrow.upper - narrow.lower <= 0.03 * narrow.lower
        assert "full grid" in str(report)


def test_a_factor_cut_short_is_reported_as_an_interval(monkeypatch, tmp_path):
    for module in (diagnosis, eigenvalues):
        monkeypatch.setattr(module, "SMALL", 100)
    net = inr.INR(2, 1, width=32, hidden_layers=2, activation="sine", init="siren", omega=30.0)
    coords = inr.grid((30, 30))
    values = torch.linalg.eigvalsh(inr.ntk(net, coords, precision="highest").to_dense())
    report = run(net, coords, memory_budget=15 << 17)
    last = report.kernel.whole.ranks[-1]
    truth = int((values > RTOLS[-1] * values[-1]).sum())
    assert last.lower < truth <= last.upper
    assert last.upper > 1.03 * last.lower
    assert str(last) in str(report)
    assert report.kernel.bounds[-1].hold
    report.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_ranks_that_pivots_would_not_prove_are_counted_by_factorisations(monkeypatch, tmp_path):
    """Of a kernel of nearly full rank, and its blocks: the true ranks, and for each what stands behind it."""
    for module, name in ((diagnosis, "SMALL"), (eigenvalues, "SMALL"), (eigenvalues, "DENSE_LIMIT")):
        monkeypatch.setattr(module, name, 50)
    monkeypatch.setattr(eigenvalues, "factorisation_flops", lambda *sizes: 1.0)  # as at orders where pivots cost more
    net, coords = inr.INR(2, 1, width=40, hidden_layers=2, activation="gaussian", omega=10.0), inr.grid((24, 24))
    K = inr.ntk(net, coords, precision="highest")
    values = torch.linalg.eigvalsh(K.to_dense()).flip(0)
    exact = {name: torch.linalg.eigvalsh(layer.to_dense()).flip(0) for name, layer in K.layers.items()}
    report = run(net, coords)
    whole = report.kernel.whole
    assert whole.method == "inertia"
    for place, rtol in enumerate(RTOLS):
        tau = rtol * float(values[0])
        assert int((values > tau).sum()) in whole.ranks[place]
        for block in report.kernel.blocks:
            assert int((exact[block.name] > tau).sum()) in block.ranks[place]
        assert report.kernel.bounds[place].hold
    assert whole.ranks[-1].lower == whole.ranks[-1].upper > 300
    assert whole.proofs[-1].method.startswith("inertia, fp")
    assert all(len(k.proofs) == len(RTOLS) and k.proofs[-1].failure <= 1e-5 for k in (whole, *report.kernel.blocks))
    assert "certificates of a random start: NTK at" in str(report).replace("\n  ", " ")
    assert inr.DiagnosisReport.from_dict(json.loads(report.to_json())) == report
    report.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_small_budget_gives_the_same_report_in_smaller_chunks():
    net, coords = inr.INR(2, 3, width=8), inr.grid((12, 12))
    small = run(net, coords, ntk_points=9, memory_budget=20_000)
    large = run(net, coords, ntk_points=9)
    for a, b in zip(small.representations, large.representations, strict=True):
        assert a.spectrum.ranks == b.spectrum.ranks
        np.testing.assert_allclose(a.spectrum.singular_values, b.spectrum.singular_values, rtol=1e-6)


def test_other_modules_are_diagnosed_without_what_only_a_chain_has():
    net = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    report = run(net, inr.grid((5, 5)))
    assert [z.name for z in report.representations] == ["input", "0", "3"]
    assert [(s.name, s.kind) for s in report.sensitivities] == [
        ("0", "linear"),
        ("1", "affine"),
        ("3", "linear"),
        ("5", "linear"),
    ]
    assert (report.weight_products, report.feature_jacobians) == ((), ())
    assert all(bound.hold for bound in report.kernel.bounds)
    assert str(report).startswith("Sequential")


def test_chosen_parameters_only():
    net = inr.INR(2, 1, width=6, hidden_layers=2)
    report = run(net, inr.grid((5, 5)), params=["layers.1"])
    assert [s.name for s in report.sensitivities] == ["layers.1"]
    assert report.parameters == 42
    assert len(report.feature_jacobians) == 2
    biases = run(net, inr.grid((5, 5)), params=["layers.0.bias", "layers.2.bias"])
    assert biases.representations == ()
    assert "layers.2" in str(biases)
    assert len(biases.plot().axes) == 3


def test_the_network_the_caller_and_the_global_generator_stay_as_they_were():
    net, coords = inr.INR(2, 1, width=5, norm="batch"), inr.grid((6, 6))
    inr.calibrate_batchnorm_(net, coords)
    net.eval()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(7)
    run(net, coords, jacobian_pixels=3)
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize(("points", "pixels"), [(0, 0), (0, 4), (9, 0)])
def test_what_is_not_asked_for_is_left_out_and_all_else_stays(points, pixels):
    """Of the numbers, and of text, JSON and figure: no empty table, nothing that is no number."""
    net, coords = inr.INR(2, 1, width=6, hidden_layers=2), inr.grid((5, 5))
    whole, part = run(net, coords, ntk_points=9), run(net, coords, ntk_points=points, jacobian_pixels=pixels)
    left_out = {"kernel": None} if points == 0 else {}
    left_out |= {"feature_jacobians": []} if pixels == 0 else {}
    assert part.to_dict() == whole.to_dict() | left_out
    assert inr.DiagnosisReport.from_dict(json.loads(part.to_json())) == part
    text = str(part)
    assert ("NTK and its blocks" in text) == ("lambda" in text) == (points > 0)
    assert ("Feature Jacobians" in text) == (pixels > 0)
    assert all(len(section.splitlines()) > 2 for section in text.split("\n\n")[1:-1])
    assert "nan" not in text.lower()
    assert len(part.plot().axes) == (3 if points else 2)


def test_tolerances_come_in_any_order():
    net, coords = inr.INR(2, 1, width=5), inr.grid((4, 4))
    assert run(net, coords, rtols=[1e-4, 1e-2, 1e-4]) == run(net, coords, rtols=(1e-2, 1e-4))


NET = inr.INR(2, 1, width=4, hidden_layers=1)
COORDS = inr.grid((4, 4))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"net": "INR"}, TypeError, "net"),
        ({"coords": torch.zeros(0, 2)}, ValueError, "coords"),
        ({"coords": torch.zeros(4, 3)}, ValueError, "coords"),
        ({"coords": torch.zeros(4)}, ValueError, "coords"),
        ({"coords": torch.tensor(1.0)}, ValueError, r"coords must have shape \(N, d\)"),
        ({"coords": None}, TypeError, "coords must be a torch.Tensor, .* got NoneType"),
        ({"coords": torch.full((4, 2), math.nan)}, ValueError, "coords"),
        ({"coords": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "coords"),
        ({"coords": [[0.0, 0.0]]}, TypeError, "coords"),
        ({"rtols": ()}, ValueError, "rtols"),
        ({"rtols": 1e-3}, TypeError, "rtols"),
        ({"rtols": (1e-3, 0.0)}, ValueError, "rtols"),
        ({"rtols": (1e-3, 1.0)}, ValueError, "rtols"),
        ({"rtols": (math.nan,)}, ValueError, "rtols"),
        ({"rtols": ("small",)}, TypeError, "rtols"),
        ({"ntk_points": -1}, ValueError, "ntk_points"),
        ({"ntk_points": 2.5}, TypeError, "ntk_points"),
        ({"ntk_coords": torch.zeros(4, 3)}, ValueError, "ntk_coords"),
        ({"ntk_coords": torch.zeros(0, 2)}, ValueError, "ntk_coords"),
        ({"jacobian_pixels": -1}, ValueError, "jacobian_pixels"),
        ({"params": ["layer.0"]}, ValueError, "Did you mean 'layers.0"),
        ({"memory_budget": 0}, ValueError, "memory_budget"),
        ({"memory_budget": 1000}, MemoryBudgetError, "take fewer points"),
        ({"seed": -1}, ValueError, "seed"),
        ({"rtols": (1e-3, 1e-18)}, ResolutionError, "floor"),
        ({"net": inr.INR(2, 1, width=4, norm="batch").eval()}, UnsupportedModuleError, "calibrate_batchnorm_"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        run(**{"net": NET, "coords": COORDS} | change)


def test_an_interrupt_passes_through():
    def interrupted(output):
        if len(output) > 4:  # not while the network is probed
            raise KeyboardInterrupt
        return output

    with pytest.raises(KeyboardInterrupt):
        run(NET, COORDS, select=interrupted)
