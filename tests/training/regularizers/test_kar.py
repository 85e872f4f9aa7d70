"""KAR: laws of the regulariser, and its fit: trained by itself, resumed bit by bit, within its memory."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import inrfast as inr
from inrfast.errors import MemoryBudgetError

WIDE = torch.float64
GRID = inr.grid((12, 12), dtype=WIDE)
KNOWN = torch.arange(len(GRID)) % 3 != 1
X, Y = GRID[KNOWN], torch.sin(3 * GRID[KNOWN].sum(1, keepdim=True))
SMALL = {"r": 8, "width": 16, "hidden_layers": 2}


def network(seed: int = 0, outputs: int = 1, **options) -> inr.INR:
    options = {"activation": "sine", "init": "siren", "omega": 6.0, "dtype": WIDE, **options}
    return inr.INR(2, outputs, width=16, hidden_layers=2, seed=seed, **options)


def kar(points=GRID, **options) -> inr.KAR:
    return inr.KAR(points, **{**SMALL, **options})


def dense(own: inr.KAR, net, rows, keys, norm="l2"):
    """Equations 10 and 12 as they stand, with the whole matrix; a mean in place of the sum."""
    logits = own.attention(rows) @ own.attention(keys).t()
    if not own.own:
        logits = logits.masked_fill((rows[:, None] == keys[None]).all(2), -math.inf)
    gap = net(rows) - torch.softmax(logits, 1) @ net(keys)
    lengths = gap.square().sum(1)
    found = {"l2": lengths.sqrt().mean(), "squared": lengths.mean(), "rms": lengths.mean().sqrt()}
    return {**found, "l1": gap.abs().sum(1).mean()}[norm]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("norm", ["l2", "squared", "rms", "l1"])
def test_all_points_give_the_formula_and_its_gradient(norm, own):
    net, regularizer = network(outputs=2), kar(rows="all", keys="all", norm=norm, own=own)
    parameters = [*net.parameters(), *regularizer.parameters()]
    value, wanted = regularizer(net, X), dense(regularizer, net, GRID, X, norm)
    torch.testing.assert_close(value, wanted, atol=1e-13, rtol=1e-12)
    mine, theirs = (torch.autograd.grad(own, parameters) for own in (value, wanted))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-10)


def test_order_of_points_does_not_matter_and_constants_cost_nothing():
    net, regularizer = network(), kar(rows="all", keys="all")
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(regularizer(net, X), regularizer(net, X[order]), atol=1e-13, rtol=1e-12)
    with torch.no_grad():
        net.layers[-1].weight.zero_()
    assert float(regularizer(net, X).detach()) < 1e-13


def test_attention_to_oneself_makes_any_function_free():
    """With points apart by more than g can blur, A = identity: the trivial solution that ``own=False`` excludes."""

    class Sharp(nn.Module):
        def forward(self, x):
            return 40 * torch.cat([x.cos(), x.sin()], 1)  # the product of two is largest where they are one

    net = network()
    rows = kar(X, rows="all", keys="all", attention=Sharp(), own=True)
    others = kar(X, rows="all", keys="all", attention=Sharp(), own=False)
    assert float(rows(net, X).detach()) < 0.05 * float(others(net, X).detach())


def test_random_rows_are_unbiased():
    net, all_rows, some = network(), kar(rows="all", keys="all"), kar(rows=20, keys="all")
    with torch.no_grad():
        found = torch.stack([some(net, X, step) for step in range(400)])
        error = float((found.mean() - all_rows(net, X)).abs())
    assert error < 4 * float(found.std()) / 20  # four standard errors


def test_points_of_the_step_and_its_keys():
    net = network()
    own = kar(None, in_features=2, dtype=WIDE, rows="all", keys="all")
    torch.testing.assert_close(own(net, X), dense(own, net, X, X), atol=1e-13, rtol=1e-12)
    part = kar(rows=7, keys=9)
    rows, keys = part.drawn(X, 4)
    torch.testing.assert_close(part(net, X, 4), dense(part, net, rows, keys), atol=1e-13, rtol=1e-12)
    assert (len(rows), len(keys)) == (7, 9)
    assert all(bool((point == X).all(1).any()) for point in keys)
    unknown = GRID[~KNOWN]
    assert any(bool((point == unknown).all(1).any()) for point in part.drawn(X, 1)[0])
    twice = torch.cat([X[:1], X[:1]])  # a row whose keys are all itself counts nothing
    alone = kar(X[:1], rows="all", keys="all")
    assert float(alone(net, twice).detach()) == 0


def test_every_so_many_steps_it_counts_as_often():
    net, often, rare = network(), kar(rows=20, keys=20), kar(rows=20, keys=20, every=3)
    found = [float(rare(net, X, step).detach()) for step in range(7)]
    wanted = [3 * float(often(net, X, step).detach()) if step % 3 == 0 else 0.0 for step in range(7)]
    assert found == pytest.approx(wanted, rel=1e-12)
    before = [own.clone() for own in rare.parameters()]
    result = inr.fit(net, X, Y, steps=4, regularizers=[rare], progress=False)
    assert math.isfinite(result.losses[-1])
    assert not all(torch.equal(own, old) for own, old in zip(rare.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="every must be at least 1"):
        kar(every=0)


@pytest.mark.parametrize("places", [("rows",), ("attention",), ("keys",), ("rows", "keys")])
def test_detached_places_get_no_gradient(places):
    net, regularizer = network(), kar(rows="all", keys="all", norm="squared", detach=places)
    at_rows, at_keys = (net(own).detach() if p in places else net(own) for p, own in (("rows", GRID), ("keys", X)))
    features = [regularizer.attention(own) for own in (GRID, X)]
    logits = features[0] @ features[1].t()
    logits = logits.masked_fill((GRID[:, None] == X[None]).all(2), -math.inf)
    weights = torch.softmax(logits.detach() if "attention" in places else logits, 1)
    wanted = (at_rows - weights @ at_keys).square().sum(1).mean()
    parameters = [*net.parameters(), *regularizer.parameters()]
    value = regularizer(net, X)
    mine, theirs = (torch.autograd.grad(own, parameters, allow_unused=True) for own in (value, wanted))
    for one, other in zip(mine, theirs, strict=True):
        one, other = (torch.zeros(1, dtype=WIDE) if own is None else own for own in (one, other))
        torch.testing.assert_close(*torch.broadcast_tensors(one, other), atol=1e-11, rtol=1e-10)


class StopAt:
    def __init__(self, step):
        self.stop = step

    def on_step(self, state):
        if state.step == self.stop:
            raise KeyboardInterrupt

    def state_dict(self):
        return {"stop": 0}

    def load_state_dict(self, state):
        pass


# ---- in a fit ----------------------------------------------------------------------------------------------------


def by_hand(net, regularizer, factor, steps, lr, clip=None):
    """The loop that everybody writes, over all points."""
    parameters = [p for p in [*net.parameters(), *regularizer.parameters()] if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=lr)
    for step in range(steps):
        adam.zero_grad()
        loss = (net(X) - Y).square().mean() + factor * regularizer(net, X, step)
        loss.backward()
        if clip is not None:
            norm = torch.stack([p.grad.square().sum() for p in parameters if p.grad is not None]).sum().sqrt()
            for p in parameters:
                p.grad = p.grad * min(1.0, clip / float(norm))
        adam.step()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_fit_trains_network_and_attention_together(clip):
    net, regularizer = network(), kar(rows=30, keys=20)
    other, theirs = copy.deepcopy(net), copy.deepcopy(regularizer)
    net.layers[0].bias.requires_grad_(False)
    other.layers[0].bias.requires_grad_(False)
    before = net.layers[0].bias.clone()
    inr.fit(net, X, Y, steps=5, lr=1e-3, schedule="constant", clip_norm=clip, regularizers=[(regularizer, 0.3)])
    by_hand(other, theirs, 0.3, 5, 1e-3, clip)
    for mine, own in zip(
        [*net.parameters(), *regularizer.parameters()], [*other.parameters(), *theirs.parameters()], strict=True
    ):
        torch.testing.assert_close(mine, own, atol=1e-9, rtol=1e-9)
    assert torch.equal(net.layers[0].bias, before)
    assert all(p.grad is None for p in regularizer.parameters())


@pytest.mark.parametrize("batch_size", [None, 40])
def test_a_resumed_fit_is_that_without_an_interrupt(tmp_path, batch_size):
    options = {"steps": 12, "lr": 1e-3, "batch_size": batch_size, "clip_norm": 1.0, "progress": False}
    net, regularizer = network(), kar(rows=30, keys=20)
    whole = inr.fit(net, X, Y, regularizers=[(regularizer, 0.3)], **options)
    file = tmp_path / "fit.safetensors"
    for at in (5, None):
        other, theirs = network(), kar(rows=30, keys=20)
        terms = [(theirs, 0.3)]
        files = {"checkpoint": file, "resume": at is None, "callbacks": [StopAt(at)]}
        resumed = inr.fit(other, X, Y, regularizers=terms, **files, **options)
    assert resumed.losses == whole.losses
    for mine, own in zip(
        [*net.parameters(), *regularizer.parameters()], [*other.parameters(), *theirs.parameters()], strict=True
    ):
        assert torch.equal(mine, own)
    for changed in (kar(rows=30, keys=20, norm="l1"), kar(GRID[1:], rows=30, keys=20), kar(rows=31, keys=20)):
        with pytest.raises(ValueError, match=r"checkpoint: .* is of another fit") as told:
            inr.fit(network(), X, Y, regularizers=[(changed, 0.3)], **files, **options)
    assert "rows (now 31, in the checkpoint 30)" in str(told.value)
    roomy = kar(rows=30, keys=20, memory_budget=2**30)  # changes no number
    again = inr.fit(network(), X, Y, regularizers=[(roomy, 0.3)], **files, **options)
    assert again.losses == whole.losses


def test_points_are_the_regularisers_own():
    net, points = network(), GRID.clone()
    own = kar(points, rows=20, keys=20)
    before = float(own(net, X, 0).detach())
    points.mul_(2)
    assert float(own(net, X, 0).detach()) == before


def test_memory_that_is_too_small_says_what_would_do():
    net, regularizer = network(), kar(rows="all", keys="all", memory_budget=2**16)
    with pytest.raises(MemoryBudgetError, match=r"144 rows and 96 keys.*needs .*rows=\d+, keys=\d+ would fit") as told:
        inr.fit(net, X, Y, steps=1, regularizers=[regularizer], progress=False)
    enough = kar(rows="all", keys="all", memory_budget=told.value.needed)
    torch.testing.assert_close(enough(net, X), kar(rows="all", keys="all")(net, X), atol=1e-13, rtol=1e-12)


def test_several_networks_need_a_regulariser_each():
    nets, regularizers = [network(seed) for seed in range(2)], [kar(rows=30, keys=20, seed=seed) for seed in range(2)]
    options = {"steps": 4, "lr": 1e-3, "progress": False}
    with pytest.raises(ValueError, match=r"regularizers\[0\] holds KAR.*one per network.*modules\[0\]\(net, coords"):
        inr.fit_many(nets, X, Y, regularizers=[regularizers[0]], **options)
    alone, theirs = copy.deepcopy(nets[1]), copy.deepcopy(regularizers[1])
    term = (lambda net, coords, step, modules: modules[0](net, coords, step), 0.3)
    results = inr.fit_many(nets, X, Y, modules=regularizers, regularizers=[term], **options)
    assert inr.fit(alone, X, Y, regularizers=[(theirs, 0.3)], **options).losses == results[1].losses


def test_an_optimizer_without_the_parameters_is_refused():
    net, regularizer = network(), kar()
    with pytest.raises(ValueError, match=r"trainable parameters and those of modules and regularizers.*modules\.0\."):
        inr.fit(net, X, Y, steps=1, optimizer=torch.optim.Adam(net.parameters()), regularizers=[regularizer])
    both = torch.optim.Adam([*net.parameters(), *regularizer.parameters()])
    inr.fit(net, X, Y, steps=2, optimizer=both, regularizers=[regularizer], progress=False)


def test_other_networks_and_precisions():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x):
            assert x.ndim == 3
            return {"colour": self.net(x)}

    points = GRID.float().unsqueeze(0)
    options = {"steps": 2, "progress": False, "select": "colour"}
    own = kar(points, rows=20, keys=20, select="colour")
    result = inr.fit(Named(), points, points[..., :1], regularizers=[own], **options)
    assert math.isfinite(result.losses[-1])
    assert kar(GRID, rows=20, keys=20).to(torch.float32).points.dtype == torch.float32
    net = network(norm="batch", dtype=torch.float32)
    inr.fit(net, X.float(), Y.float(), steps=2, regularizers=[kar(GRID.float(), rows=20, keys=20)], progress=False)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: inr.KAR(), ValueError, "KAR needs points, or in_features"),
        (lambda: kar(r=0), ValueError, "r must be at least 1"),
        (lambda: kar(rows=145), ValueError, "rows must be at most the number of points 144, got 145"),
        (lambda: kar(keys=1), ValueError, "keys must be at least 2"),
        (lambda: kar(norm="l3"), ValueError, "norm must be one of"),
        (lambda: kar(detach=("row",)), ValueError, "detach must be one of .*Did you mean 'rows'"),
        (lambda: kar(detach="rows"), TypeError, "detach must be a sequence"),
        (lambda: kar(GRID * math.nan), ValueError, "points must be finite, got 288 NaN"),
        (lambda: kar(GRID[:, 0]), ValueError, r"points must have shape \(N, d\)"),
        (lambda: kar(GRID.long()), TypeError, "points must have a floating-point dtype"),
        (lambda: kar(attention=3), TypeError, "attention must be a torch.nn.Module"),
        (
            lambda: kar(attention=nn.Linear(3, 5).double())(network(), X),
            ValueError,
            r"attention must take points \(n, 2\) of torch.float64: .*shapes cannot be multiplied",
        ),
        (lambda: kar(memory_budget=0), ValueError, "memory_budget must be at least 1"),
        (lambda: kar()(network(), GRID[:, :1]), ValueError, r"made for 2 coordinates.*\(144, 1\)"),
        (lambda: kar()(network(), X.float()), TypeError, "KAR is of torch.float64.*torch.float32"),
        (lambda: kar()(network(), X[:1]), ValueError, "two training points"),
        (lambda: kar(keys=97)(network(), X), ValueError, "keys must be at most the 96 training points"),
        (lambda: kar(None, in_features=3)(network(), X), ValueError, "made for 3 coordinates"),
    ],
)
def test_bad_input(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_points_may_be_numpy_arrays():
    own, net = kar(GRID.numpy()), network()
    torch.testing.assert_close(own(net, X.numpy(), 0), kar(GRID)(net, X, 0), rtol=0, atol=0)
