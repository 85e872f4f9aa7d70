"""The estimate of the variance: unbiased, its intervals as wide as they say, by enumeration and on networks."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_coords
from scipy import stats

import inrfast as inr
from inrfast.analysis import variance as variance_module
from inrfast.analysis import variance_estimate as module
from inrfast.analysis.variance_estimate import Design
from inrfast.ops.factors import Room
from inrfast.ops.layer_products import LayerProducts


def partitions(points, size, blocks):
    """All ordered choices of disjoint blocks, each cut into two halves (A, B)."""
    if blocks == 0:
        yield ()
        return
    for block in itertools.combinations(points, size):
        rest = [point for point in points if point not in block]
        for half in itertools.combinations(block, size // 2):
            other = tuple(point for point in block if point not in half)
            for following in partitions(rest, size, blocks - 1):
                yield ((half, other), *following)


def block_numbers(h, half, other):
    """The mean of pairs within a block, and that within its halves less twice that between them."""

    def mean(rows, columns):
        pairs = [(i, j) for i in rows for j in columns if i != j]
        return sum(h[i, j] for i, j in pairs) / len(pairs)

    both = (*half, *other)
    return mean(both, both), mean(half, half) + mean(other, other) - 2 * mean(half, other)


@pytest.mark.parametrize(("total", "size", "blocks"), [(8, 4, 2), (9, 4, 2), (7, 4, 1)])
def test_the_components_and_the_variance_hold_exactly_over_all_partitions(total, size, blocks):
    """A finite population of pairs, every draw enumerated: the formulas are equalities, not approximations."""
    rng = torch.Generator().manual_seed(total)
    h = torch.randn(total, total, generator=rng, dtype=torch.float64)
    h = (h + h.t()).fill_diagonal_(0)
    off = ~torch.eye(total, dtype=torch.bool)
    theta = h[off].mean()
    single = (h.sum(1) / (total - 1) - theta) * (total - 1) / (total - 2)
    rest = (h - theta - single - single.unsqueeze(1))[off]
    first, second = single.square().mean(), rest.square().mean()

    table = {}
    values, splits = [], []
    for drawn in partitions(range(total), size, blocks):
        found = [table.setdefault(one, block_numbers(h, *one)) for one in drawn]
        values.append([value for value, _ in found])
        splits.append([split for _, split in found])
    values, splits = torch.tensor(values, dtype=torch.float64), torch.tensor(splits, dtype=torch.float64)
    design = Design(total, size)
    means = values.mean(1)
    assert float(means.mean()) == pytest.approx(float(theta), abs=1e-12)
    assert float(means.var(correction=0)) == pytest.approx(float(design.variance(first, second, blocks)), rel=1e-10)
    a = size // 2
    measured = splits.square().mean() / ((4 / (a * (a - 1)) + 4 / a**2) * (total - 1) / (total - 3))
    assert float(measured) == pytest.approx(float(second), rel=1e-10)
    if blocks > 1:
        spread = values.var(1).mean() - second * (design._own - design._least)
        assert float(spread * size * (total - 1) / (4 * total)) == pytest.approx(float(first), rel=1e-10)


POINTS = random_coords(512, 2, 0)
NETS = {
    "relu": {},
    "sine": {"activation": "sine", "init": "siren", "omega": 20.0},
    "encoded": {"encoding": inr.PositionalEncoding(5)},
}


def population(name):
    """A kernel at 512 points: of a network, or one whose entries are heavy-tailed."""
    if name == "heavy":
        rng = torch.Generator().manual_seed(0)
        factor = torch.randn(512, 20, generator=rng, dtype=torch.float64).mul(0.7).exp()
        return factor @ factor.t()
    net = inr.INR(2, 1, width=16, hidden_layers=2, **NETS[name])
    return inr.ntk(net, POINTS, precision="highest").to_dense()


def terms(K):
    """The terms of pairs whose mean is the variance of the eigenvalues."""
    n, e = len(K), K.diagonal()
    return (n - 1) * (K.square() + (e - e.unsqueeze(1)).square() / (2 * n))


def from_dense(K):
    """What stands for a network's blocks: the same sums of entries of a dense kernel."""
    h, nothing = terms(K).fill_diagonal_(0), torch.zeros(1, dtype=torch.float64)
    sums = LayerProducts(nothing.view(1, 1), nothing, nothing, nothing)

    def computed(kernel, gates, design, order, numbers, bar):
        found, b, a = [], design.size, design.size // 2
        for number in numbers:
            rows = order[number * b : (number + 1) * b]
            block = h[rows][:, rows]
            within = (block[:a, :a].sum() + block[a:, a:].sum()) / (a * (a - 1))
            split = within - 2 * block[:a, a:].mean()
            pairs = block.sum() / (b * (b - 1))
            mean = K.diagonal()[rows].mean().view(1)
            found.append(module._Block(pairs.view(1, 1), split.view(1, 1), mean, sums, nothing))
        return found

    return computed


def held(K, rtol, seeds, monkeypatch):
    """Estimates of many seeds: relative errors, how often three intervals hold, points that were used."""
    monkeypatch.setattr(module, "_computed", from_dense(K))
    monkeypatch.setattr(module, "_effective_points", lambda kernel: math.inf)
    mu, n = float(K.diagonal().mean()), len(K)
    v = float(terms(K)[~torch.eye(n, dtype=torch.bool)].mean())
    assert v == pytest.approx(float(torch.linalg.eigvalsh(K).var(correction=0)), rel=1e-10)
    errors, inside, used = [], torch.zeros(3), []
    for seed in range(seeds):
        found = module.estimated(SimpleNamespace(coords=POINTS), None, rtol, seed, False)
        variance, mean = float(found.pairs.sum()), float(found.means.sum())
        assert found.error <= rtol * variance or found.used == n
        off = abs(variance - v), abs(mean - mu), abs(variance / mean**2 - v / mu**2) * mean**2
        widths = found.error, found.mean_error + 1e-12 * mu, found.ratio_error
        inside += torch.tensor([own <= width for own, width in zip(off, widths, strict=True)])
        errors.append(variance / v - 1)
        used.append(found.used)
    return torch.tensor(errors, dtype=torch.float64), inside, used


@pytest.mark.parametrize("name", [*NETS, "heavy"])
@pytest.mark.parametrize(("size", "rtol"), [(8, 1e3), (8, 1e-9), (4, 1e3)])
def test_estimates_have_no_bias_and_their_intervals_hold(name, size, rtol, monkeypatch):
    """Of 512 points a quarter looked at, half, or all, by 400 seeds."""
    monkeypatch.setattr(module, "BLOCK", size)
    errors, inside, used = held(population(name), rtol, 400, monkeypatch)
    assert set(used) == {512 if rtol < 1 else 32 * size}
    assert abs(float(errors.mean())) <= 5 * float(errors.std()) / math.sqrt(400)
    assert (inside >= stats.binom.ppf(1e-5, 400, 0.95)).all()


@pytest.mark.parametrize("name", NETS)
def test_stopping_early_does_not_narrow_the_interval(name, monkeypatch):
    """Blocks are added until the interval is narrow enough; intervals then still hold as often as they say."""
    monkeypatch.setattr(module, "BLOCK", 4)
    K = population(name)
    rtol = {"relu": 0.06, "sine": 0.14, "encoded": 0.05}[name]
    _, inside, used = held(K, rtol, 600, monkeypatch)
    assert len(set(used)) > 5  # stops at different numbers of blocks
    assert inside[0] >= stats.binom.ppf(1e-5, 600, 0.95)


@pytest.mark.parametrize("output", ["trace", "full", 1])
def test_a_block_of_a_network_is_that_of_its_dense_kernel(output):
    """Cut in halves, several outputs: against the definition of the terms of pairs with blocks of outputs."""
    net, coords = inr.INR(2, 2, width=16, hidden_layers=2), POINTS[:90]
    kernel = inr.ntk(net, coords, output=output, precision="highest", backend="torch")
    chosen, n = torch.randperm(90)[:20], 90
    K, fold = kernel.to_dense(), kernel.sides.fold
    blocks = K.unflatten(0, (n, fold)).unflatten(2, (n, fold)).transpose(1, 2)  # (n, n, M, M)
    own = blocks[range(n), range(n)]
    mean = own.diagonal(dim1=1, dim2=2).mean(1)
    alone = (own - torch.diag_embed(mean.unsqueeze(1).expand(-1, fold))).square().sum((1, 2)) / fold
    h = (n - 1) * (blocks.square().sum((2, 3)) / fold + (mean - mean.unsqueeze(1)).square() / (2 * n))
    h += (alone + alone.unsqueeze(1)) / 2
    assert float(h[~torch.eye(n, dtype=torch.bool)].mean()) == pytest.approx(
        float(torch.linalg.eigvalsh(K).var(correction=0)), rel=1e-11
    )
    factors = kernel.left.store.compute(coords[chosen])
    found = module._block(kernel, module.Gates(kernel), coords[chosen], factors, Room())
    value, split = block_numbers(h[chosen][:, chosen], tuple(range(10)), tuple(range(10, 20)))
    assert float(found.pairs.sum()) == pytest.approx(float(value), rel=1e-11)
    assert float(found.split.sum()) == pytest.approx(float(split), rel=1e-9)
    assert float(found.means.sum()) == pytest.approx(float(mean[chosen].mean()), rel=1e-11)


@settings(max_examples=10)
@given(st.integers(128, 400), st.sampled_from([1e-6, 0.02, 0.3]), st.integers(0, 3))
def test_every_part_of_an_estimate_is_near_the_exact_one(points, rtol, seed):
    net, coords = inr.INR(2, 2, width=12, hidden_layers=2), random_coords(points, 2, 1)
    exact = inr.variance(net, coords)
    found = inr.variance(net, coords, method="estimate", rtol=rtol, seed=seed)
    assert found.method == "estimate" and found.used <= points == found.points
    assert found.error <= rtol * found.variance or "was not reached" in found.note
    assert ((found.pairs - exact.pairs).abs() <= 4 * found.pairs_error).all()
    assert abs(found.mean - exact.mean) <= 4 * found.mean_error
    assert abs(found.normalised - exact.normalised) <= 4 * found.normalised_error
    assert float(found.pairs.sum()) == pytest.approx(found.variance, rel=1e-12)
    for name, layer in found.layers.items():
        truth = exact.layers[name]
        assert layer.features == pytest.approx(truth.features, rel=0.3)
        assert layer.joint == pytest.approx(truth.joint, rel=0.4)
    for name in ("input", "hidden", "gate", "sensitivities", "joint"):
        assert getattr(found.similarities, name) == pytest.approx(getattr(exact.similarities, name), rel=0.4)


def test_points_given_many_times_are_points_as_others():
    net = inr.INR(2, 1, width=16, hidden_layers=2)
    coords = random_coords(40, 2, 0).repeat(6, 1)
    exact = inr.variance(net, coords)
    found = [inr.variance(net, coords, method="estimate", seed=seed) for seed in range(20)]
    inside = sum(abs(own.variance - exact.variance) <= own.error for own in found)
    assert inside >= stats.binom.ppf(1e-4, 20, 0.95)
    one = inr.variance(net, coords[:1].expand(200, -1), method="estimate")
    assert one.normalised == pytest.approx(199.0, rel=1e-5)


def test_the_same_seed_gives_the_same_numbers_on_any_number_of_threads():
    net, coords = inr.INR(2, 1, width=16), random_coords(3000, 2, 0)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(inr.variance(net, coords, method="estimate", rtol=0.001))
    # The same blocks; libraries may add up in another order on more threads.
    assert found[0].used == found[1].used
    assert found[0].variance == pytest.approx(found[1].variance, rel=1e-9)
    torch.testing.assert_close(found[0].pairs, found[1].pairs, rtol=1e-8, atol=1e-9 * found[0].variance)
    other = inr.variance(net, coords, method="estimate", rtol=0.001, seed=1)
    assert other.variance != found[0].variance
    assert abs(other.variance - found[0].variance) <= 2 * (other.error + found[0].error)


def far(count, points):
    """Points in [-1, 1]^2, ``count`` of them far away."""
    coords = torch.rand(points, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    coords[100 : 100 + count] *= 300
    return coords


@pytest.mark.parametrize(("count", "points"), [(1, 600), (1, 40_000), (25, 40_000)])
def test_an_estimate_without_an_interval_is_refused_and_auto_is_exact(count, points, monkeypatch):
    """Where a few far points hold most of the kernel's squares, blocks say nothing of their own error, or miss them."""
    net, coords = inr.INR(2, 1, width=16, hidden_layers=1), far(count, points)
    with pytest.raises(ValueError, match="use method='exact'"):
        inr.variance(net, coords, method="estimate", rtol=0.05)
    if points < 1000:
        monkeypatch.setattr(variance_module, "EXACT_FLOPS", 1.0)
        monkeypatch.setattr(variance_module, "SMALL", 1)
        found = inr.variance(net, coords)
        assert found.method == "exact" and "few points" in found.note


def test_an_estimate_that_exceeds_the_budget_is_refused():
    with pytest.raises(inr.errors.MemoryBudgetError, match="an estimate of the variance"):
        inr.variance(inr.INR(2, 1, width=16), inr.grid((32, 32)), method="estimate", memory_budget=1000)
