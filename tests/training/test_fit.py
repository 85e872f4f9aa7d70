"""A fit is the plain training loop, only faster; it can be stopped, repeated and trusted at every point."""

import copy
import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exact_gradients import formula
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import inrfast as inr
from inrfast.errors import DivergedError, MemoryBudgetError, NotAvailableError
from inrfast.losses import LOSSES, Loss
from inrfast.metrics import psnr
from inrfast.ops import gemm
from inrfast.progress import Bar
from inrfast.training import trainer
from inrfast.training.batches import Batches
from inrfast.training.callbacks import TrackNTK
from inrfast.training.derivatives import laplacian
from inrfast.training.fit import fit
from inrfast.training.optimizers.adam import Adam

COORDS = inr.grid((12, 12))


def picture(outputs: int = 3) -> Tensor:
    x, y = COORDS[:, :1], COORDS[:, 1:]
    return 0.5 + 0.4 * torch.cat([torch.sin(3 * x + k) * torch.cos(2 * y - k) for k in range(outputs)], dim=1)


def small(**options: Any) -> inr.INR:
    return inr.INR(2, 3, **{"width": 16, "hidden_layers": 2, "activation": "tanh", **options})


def eager_losses(net: nn.Module, steps: int, lr: float, batches: list[Tensor] | None = None) -> list[float]:
    """The loop everybody writes."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 ** (step / steps))
    losses = []
    for step in range(steps):
        rows = slice(None) if batches is None else batches[step]
        loss = F.mse_loss(net(COORDS[rows]), picture()[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu", "init": "rank_expanding"},
        {"activation": "sine", "init": "siren", "omega": 10.0},
        {"encoding": inr.RandomFourier(8, 1.0)},
        {"norm": "sphere"},
        {"norm": "batch"},
    ],
    ids=str,
)
def test_fifty_steps_follow_the_eager_loop(options: dict[str, Any]) -> None:
    net = small(**options)
    expected = eager_losses(copy.deepcopy(net), 50, 2e-3)
    result = fit(net, COORDS, picture(), steps=50, lr=2e-3)
    assert result.losses == pytest.approx(expected, rel=1e-3)
    assert result.losses[-1] < 0.7 * result.losses[0]


@settings(max_examples=12)
@given(data=st.data())
def test_a_hundred_steps_in_fp32_follow_eager_autograd_in_fp64(data: st.DataObject) -> None:
    """Whatever the network, the batches, the weights and the optimiser."""
    net = inr.INR(
        2,
        3,
        width=data.draw(st.integers(4, 40)),
        hidden_layers=data.draw(st.integers(1, 3)),
        activation=data.draw(st.sampled_from(["tanh", "sine", "gelu", "softplus", "gaussian"])),
        omega=data.draw(st.floats(0.5, 3.0)),
        encoding=data.draw(st.sampled_from([None, None, inr.RandomFourier(6, 1.0), inr.PositionalEncoding(2)])),
        norm=data.draw(st.sampled_from([None, None, None, "sphere"])),
        bias=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 1000)),
    )
    twin = copy.deepcopy(net).double()
    name = data.draw(st.sampled_from(["adam", "adamw", "sgd"]))
    decay, size = data.draw(st.sampled_from([0.0, 0.01])), data.draw(st.sampled_from([None, 37]))
    weighted = data.draw(st.booleans())
    weight = torch.rand(144, 1, generator=torch.Generator().manual_seed(1)) + 0.1 if weighted else torch.ones(144, 1)
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    optimizer = make(twin.parameters(), lr=1e-3, weight_decay=decay)
    drawn, losses = Batches(144, size, [5], torch.device("cpu")), []
    for step in range(100):
        batch = drawn.rows(step)
        rows = slice(None) if batch is None else batch[0]
        optimizer.zero_grad()
        loss = formula("mse", weight[rows].double())(twin(COORDS[rows].double()), picture()[rows].double())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    options = {"optimizer": name, "weight_decay": decay, "batch_size": size, "seed": 5}
    result = fit(net, COORDS, picture(), steps=100, schedule="constant", weight=weight if weighted else None, **options)
    assert result.losses == pytest.approx(losses, rel=1e-3)


def test_every_form_of_target_is_the_same_signal() -> None:
    forms = [picture(), picture().reshape(12, 12, 3), picture().reshape(3, 48, 3)]
    losses = {fit(small(), COORDS, form, steps=3).losses for form in forms}
    assert len(losses) == 1
    flat = {
        fit(inr.INR(2, 1, width=8), COORDS, form, steps=3).losses
        for form in (picture(1), picture(1).reshape(12, 12, 1), picture(1).reshape(12, 12), picture(1).reshape(144))
    }
    assert len(flat) == 1


def test_batches_come_from_the_seed_and_cover_the_points() -> None:
    runs = [fit(small(), COORDS, picture(), steps=12, batch_size=40, seed=seed) for seed in (5, 5, 6)]
    assert runs[0].losses == runs[1].losses
    assert runs[0].losses != runs[2].losses

    seen: list[Tensor] = []

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return F.mse_loss(pred, target)

    index = torch.arange(144.0).reshape(144, 1)
    fit(inr.INR(2, 1, width=8), COORDS, index, steps=6, batch_size=48, loss=loss)
    for epoch in range(2):
        assert torch.equal(torch.cat(seen[3 * epoch : 3 * epoch + 3]).sort(0).values, index)
    assert not torch.equal(seen[0], seen[3])


def test_mini_batches_follow_the_eager_loop() -> None:
    net = small()
    expected_net = copy.deepcopy(net)
    drawn = Batches(144, 50, [7], torch.device("cpu"))
    batches = [drawn.rows(step)[0] for step in range(20)]
    result = fit(net, COORDS, picture(), steps=20, lr=2e-3, batch_size=50, seed=7)
    assert result.losses == pytest.approx(eager_losses(expected_net, 20, 2e-3, batches), rel=1e-3)
    assert {len(batch) for batch in batches} == {50}


def test_what_is_reported_can_be_measured_again() -> None:
    for options in ({}, {"batch_size": 30}, {"loss": F.l1_loss}):
        net = small(norm="batch")
        result = fit(net, COORDS, picture(), steps=23, lr=0.02, schedule="constant", eval_every=5, **options)
        assert result.eval_steps == (0, 5, 10, 15, 20, 23)
        assert (result.steps, len(result.losses), result.interrupted) == (23, 23, False)
        with torch.no_grad():
            assert psnr(net.eval()(COORDS), picture()) == pytest.approx(result.psnr, abs=1e-4)
            net.load_state_dict(result.best_state)
            assert psnr(net(COORDS), picture()) == pytest.approx(result.best_psnr, abs=1e-4)
        assert result.best_psnr == max(result.psnrs) == result.psnrs[result.eval_steps.index(result.best_step)]


def test_the_free_psnr_is_the_measured_one() -> None:
    """With full batches and a mean squared error the loss of the next step is the evaluation."""
    weights: list[dict[str, Tensor]] = []
    net = small()

    def remember(step: int) -> float:
        weights.append(copy.deepcopy(net.state_dict()))
        return 1.0

    result = fit(net, COORDS, picture(), steps=10, eval_every=1, schedule=remember)
    assert result.eval_steps == tuple(range(11))
    for state, value in zip(weights, result.psnrs[:-1], strict=True):
        twin = small()
        twin.load_state_dict(state)
        assert psnr(twin(COORDS), picture()) == pytest.approx(value, abs=1e-3)


def test_the_caller_gets_back_what_was_lent() -> None:
    net = small(norm="batch")
    net.norms[0].eval()
    modes = [module.training for module in net.modules()]
    net.layers[0].weight.requires_grad_(False)
    frozen = net.layers[0].weight.clone()
    coords, target = COORDS.clone(), picture()
    before = torch.get_rng_state()
    fit(net, coords, target, steps=3, batch_size=50)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(net.layers[0].weight, frozen)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(coords, COORDS)
    assert torch.equal(target, picture())


def test_target_psnr_stops_early() -> None:
    full = fit(small(), COORDS, picture(), steps=60, lr=5e-3, eval_every=1)
    goal = full.psnrs[30]
    net = small()
    result = fit(net, COORDS, picture(), steps=60, lr=5e-3, eval_every=1, target_psnr=goal)
    first = next(step for step, value in zip(full.eval_steps, full.psnrs, strict=True) if value >= goal)
    assert result.steps == result.eval_steps[-1] == first
    assert len(result.losses) == first
    assert psnr(net(COORDS), picture()) >= goal - 1e-3


@pytest.mark.parametrize("where", ["loss", "update", "bar"])
def test_an_interrupt_keeps_the_last_complete_step(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it comes in a gradient, in the middle of an update, or after one."""
    expected = small()
    fit(expected, COORDS, picture(), steps=4, schedule="constant", loss=lambda p, t: F.mse_loss(p, t))
    calls = 0

    def fifth_time() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        if where == "loss":
            fifth_time()
        return F.mse_loss(pred, target)

    net = small()
    if where == "update":
        step = Adam.step

        def half_step(self: Adam, rates: Any, again: Any) -> None:
            step(self, rates, again)
            fifth_time()

        monkeypatch.setattr(Adam, "step", half_step)
    if where == "bar":
        calls = 1  # the bar moves after the update

        class Moved(Bar):
            def update(self, n: float = 1) -> None:
                if n:
                    fifth_time()

        monkeypatch.setattr(trainer, "progress_bar", lambda **_: Moved(disable=True))
    result = fit(net, COORDS, picture(), steps=50, schedule="constant", loss=loss)
    assert result.interrupted
    assert (result.steps, len(result.losses), result.eval_steps[-1]) == (4, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True))
    assert net.training
    assert psnr(net(COORDS), picture()) == pytest.approx(result.psnr, abs=1e-3)


@pytest.mark.parametrize("norm", [None, "batch", ["batch", "sphere"]])
def test_a_diverging_fit_stops_with_advice_on_its_last_good_weights(norm: Any) -> None:
    net = small(activation="relu", norm=norm)
    target = picture()
    with pytest.raises(DivergedError, match=r"first in .*; lower lr") as caught:
        fit(net, COORDS, target, steps=200, lr=1e30, schedule="constant")
    assert "updates" in str(caught.value)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values())
    assert math.isfinite(float(F.mse_loss(net(COORDS), target).detach()))


def test_a_loss_that_turns_nan_leaves_the_weights_before_it() -> None:
    expected = small()
    fit(expected, COORDS, picture(), steps=2, schedule="constant", loss=lambda p, t: F.mse_loss(p, t))
    calls = 0

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.mse_loss(pred, target) * (math.nan if calls == 4 else 1.0)

    net = small()
    with pytest.raises(DivergedError, match="after 3 updates"):
        fit(net, COORDS, picture(), steps=9, schedule="constant", loss=loss)
    # The third update made the weights that gave NaN: those of the second are the last good ones.
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True))


def test_progress_shows_the_psnr_on_request_only(capfd: pytest.CaptureFixture[str]) -> None:
    fit(small(), COORDS, picture(), steps=5)
    assert capfd.readouterr().err == ""
    fit(small(), COORDS, picture(), steps=5, progress=True)
    assert "PSNR" in capfd.readouterr().err


def test_highest_precision_is_fp64() -> None:
    net = small(dtype=torch.float64)
    result = fit(net, COORDS.double(), picture().double(), steps=3, precision="highest")
    assert result.config["precision"] == "highest"
    with pytest.raises(ValueError, match=r"net\.double"):
        fit(small(), COORDS, picture(), steps=3, precision="highest")


NAN = float("nan")


class OfTwo:
    def on_eval(self, state: Any, more: Any) -> None: ...


class OneArgument(nn.Module):
    def forward(self, prediction: Tensor) -> Tensor:
        return prediction.sum()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"net": F.relu}, TypeError, "net must be"),
        ({"net": nn.ReLU()}, ValueError, "trainable"),
        ({"net": nn.Linear(3, 1)}, ValueError, "net does not take coords"),
        ({"net": nn.Sequential(nn.Linear(2, 4), nn.Flatten(0))}, ValueError, "one row per point"),
        ({"net": small().half()}, TypeError, "fp32 or fp64"),
        ({"coords": COORDS[:, :1]}, ValueError, "coords"),
        ({"coords": COORDS.reshape(24, 12, 1)}, ValueError, "coords"),
        ({"coords": COORDS[:0]}, ValueError, "coords must not be empty"),
        ({"coords": 1e300 * COORDS.double()}, ValueError, "coords must be within the range of the network's dtype"),
        ({"coords": COORDS.tolist()}, TypeError, "coords"),
        ({"coords": COORDS * NAN}, ValueError, "coords must be finite"),
        ({"coords": COORDS.to("meta")}, ValueError, "coords is on meta"),
        ({"target": picture()[:-1]}, ValueError, r"target must have shape \(144, 3\)"),
        ({"target": picture(1)}, ValueError, "target must have shape"),
        ({"target": picture().T}, ValueError, "target must have shape"),
        ({"target": torch.tensor(1.0)}, ValueError, "target must have shape"),
        ({"target": (255 * picture()).int()}, TypeError, "target"),
        ({"target": 1e300 * picture().double()}, ValueError, "target must be within the range of the network's dtype"),
        ({"target": picture() / 0}, ValueError, "target must be finite"),
        ({"target": picture().to("meta")}, ValueError, "target is on the meta device"),
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 1.5}, TypeError, "steps"),
        ({"lr": 0}, ValueError, "lr"),
        ({"lr": -1e-3}, ValueError, "lr"),
        ({"lr": NAN}, ValueError, "lr"),
        ({"schedule": "exponental"}, ValueError, "'exponential'"),
        ({"schedule": lambda step: -1.0}, ValueError, r"schedule\(0\)"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 145}, ValueError, "batch_size must be at most"),
        ({"loss": "msee"}, ValueError, "'mse'"),
        ({"loss": 3}, TypeError, "loss"),
        ({"optimizer": "Adam"}, ValueError, "'adam'"),
        ({"optimizer": torch.optim.Adam}, TypeError, "torch.optim.Optimizer"),
        ({"optimizer": torch.optim.Adam(small().parameters())}, ValueError, "must hold the network's trainable"),
        ({"precision": "hihg"}, ValueError, "'high'"),
        ({"backend": "tritn"}, ValueError, "'triton'"),
        ({"backend": "triton", "loss": F.mse_loss}, NotAvailableError, "triton"),
        ({"target": 255 * picture()}, ValueError, "divide by 255"),
        ({"weight": torch.ones(143)}, ValueError, r"weight must hold one number a point \(144\)"),
        ({"weight": torch.zeros(144)}, ValueError, "weight must be above 0 somewhere"),
        ({"weight": -torch.ones(144)}, ValueError, "weight must not be negative"),
        ({"weight": torch.ones(144) * NAN}, ValueError, "weight must be finite"),
        ({"weight": torch.ones(144, dtype=torch.int64)}, TypeError, "weight must be boolean or"),
        ({"weight": [1.0] * 144}, TypeError, "weight must be a torch.Tensor"),
        ({"weight": torch.ones(144), "loss": lambda p, y: (p - y).mean()}, ValueError, "a parameter named weight"),
        ({"callbacks": (print,)}, TypeError, r"callbacks\[0\] must have a method on_step"),
        ({"callbacks": [TrackNTK]}, TypeError, r"callbacks\[0\] must .* got the class TrackNTK; write TrackNTK\("),
        ({"callbacks": [OfTwo()]}, TypeError, r"callbacks\[0\]\.on_eval is called with \(state\).* argument: 'more'"),
        ({"loss": nn.MSELoss}, TypeError, r"loss must .* got the class MSELoss; write MSELoss\("),
        ({"loss": lambda f: f.sum()}, TypeError, r"loss is called with \(prediction, target\), and .*too many"),
        ({"loss": OneArgument()}, TypeError, r"loss is called with \(prediction, target\), and .*too many"),
        ({"regularizers": [nn.MSELoss]}, TypeError, r"regularizers\[0\] must .* got the class MSELoss"),
        ({"callbacks": 3}, TypeError, "callbacks must be a sequence"),
        ({"checkpoint": "/nowhere/run.safetensors"}, FileNotFoundError, "/nowhere is not an existing folder"),
        ({"checkpoint": "/"}, IsADirectoryError, "checkpoint must be a file"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a path"),
        ({"resume": True}, ValueError, "resume=True needs checkpoint"),
        ({"resume": "yes"}, TypeError, "resume must be True or False"),
        ({"weight_decay": -1}, ValueError, "weight_decay"),
        ({"clip_norm": 0}, ValueError, "clip_norm"),
        ({"patience": 0}, ValueError, "patience"),
        ({"eval_coords": COORDS}, ValueError, "eval_coords needs eval_target"),
        ({"eval_target": picture()[:-1]}, ValueError, "eval_target must have shape"),
        ({"checkpoint_seconds": -1}, ValueError, "checkpoint_seconds"),
        ({"eval_every": 0}, ValueError, "eval_every"),
        ({"target_psnr": NAN}, ValueError, "target_psnr"),
        ({"seed": -1}, ValueError, "seed"),
        ({"progress": "yes"}, TypeError, "progress"),
        ({"memory_budget": 0}, ValueError, "memory_budget"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_at_the_door(change: dict[str, Any], error: type[Exception], message: str) -> None:
    net = small()
    before = copy.deepcopy(net.state_dict())
    arguments = {"net": net, "coords": COORDS, "target": picture(), "steps": 2, **change}
    with pytest.raises(error, match=message):
        fit(**arguments)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_network_that_is_already_broken_is_refused() -> None:
    net = small()
    with torch.no_grad():
        net.layers[1].weight[0, 0] = NAN
    with pytest.raises(ValueError, match=r"layers\.1\.weight must be finite"):
        fit(net, COORDS, picture(), steps=2)


# ---- weights and masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [None, "sphere", "batch"])
@pytest.mark.parametrize("per_output", [False, True])
def test_weights_follow_the_eager_loop(norm: str | None, per_output: bool) -> None:
    net = small(norm=norm)
    twin = copy.deepcopy(net)
    weight = torch.rand(144, 3 if per_output else 1, generator=torch.Generator().manual_seed(0)) + 0.1
    optimizer = torch.optim.Adam(twin.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = formula("mse", weight)(twin(COORDS), picture())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    result = fit(net, COORDS, picture(), steps=30, lr=2e-3, schedule="constant", weight=weight.reshape(12, 12, -1))
    assert result.losses == pytest.approx(losses, rel=1e-3)


def test_a_masked_fit_is_the_fit_of_the_known_points() -> None:
    """Whatever stands at the others, and wherever batches are cut."""
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.4
    broken = torch.where(mask.reshape(144, 1), picture(), torch.tensor(NAN))
    known = mask.flatten()
    for options in ({}, {"batch_size": 20, "seed": 3}):
        masked, alone = small(), small()
        results = [
            fit(masked, COORDS, broken, steps=20, weight=mask, **options),
            fit(alone, COORDS[known], picture()[known], steps=20, **options),
        ]
        assert results[0].losses == pytest.approx(results[1].losses, rel=1e-5)
        assert results[0].psnr == pytest.approx(results[1].psnr, abs=1e-4)
    whole = fit(small(), COORDS, broken, steps=20, weight=mask, eval_target=picture())
    net = small()
    fit(net, COORDS[known], picture()[known], steps=20)
    assert whole.psnr == pytest.approx(psnr(net(COORDS), picture()), abs=1e-3)


# ---- optimisers, losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", lambda parameters: torch.optim.Adam(parameters, lr=2e-3, weight_decay=1e-2)),
        ("adamw", lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2)),
        ("sgd", lambda parameters: torch.optim.SGD(parameters, lr=2e-3, weight_decay=1e-2)),
    ],
)
def test_named_optimisers_follow_torch_s(name: str, make: Any) -> None:
    twin = small()
    by_torch = fit(twin, COORDS, picture(), steps=30, optimizer=make(twin.parameters()), clip_norm=0.3)
    result = fit(small(), COORDS, picture(), steps=30, lr=2e-3, optimizer=name, weight_decay=1e-2, clip_norm=0.3)
    assert result.losses == pytest.approx(by_torch.losses, rel=1e-4)
    assert result.losses[-1] < result.losses[0]


def test_torch_s_own_optimisers_keep_their_rates() -> None:
    net = small()
    groups = [{"params": net.layers[:-1].parameters(), "lr": 1e-3}, {"params": net.layers[-1].parameters(), "lr": 1e-2}]
    optimizer = torch.optim.RMSprop(groups)
    seen = []

    class Watch:
        def on_step(self, state: Any) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    result = fit(net, COORDS, picture(), steps=10, optimizer=optimizer, schedule="cosine", callbacks=[Watch()])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-2]
    expected = [[rate * 0.5 * (1 + math.cos(math.pi * step / 10)) for rate in (1e-3, 1e-2)] for step in range(10)]
    assert torch.allclose(torch.tensor(seen), torch.tensor(expected))
    assert result.config["optimizer"].startswith("RMSprop(lr=")


def test_an_optimiser_that_searches_gets_its_gradients() -> None:
    net = small(dtype=torch.float64)
    coords, target = COORDS.double(), picture().double()
    optimizer = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe", max_iter=10)
    result = fit(net, coords, target, steps=10, optimizer=optimizer, schedule="constant")
    adam = fit(small(dtype=torch.float64), coords, target, steps=100)
    assert result.losses[-1] < adam.losses[-1]


def test_losses_may_differentiate_with_respect_to_the_coordinates() -> None:
    """A Poisson problem with its values on the boundary: -laplace f = 2 pi^2 sin(pi x) sin(pi y)."""
    coords = inr.grid((16, 16), dtype=torch.float64)
    truth = torch.sin(math.pi * coords).prod(1, keepdim=True)
    edge = (coords.abs() == 1).any(1)

    def poisson(pred: Tensor, target: Tensor, points: Tensor) -> Tensor:
        residual = (laplacian(pred, points) + target) / (2 * math.pi**2)
        return residual.square().mean() + pred[edge].square().mean()

    net = inr.INR(2, 1, width=32, hidden_layers=2, activation="tanh", dtype=torch.float64)
    target = 2 * math.pi**2 * truth
    result = fit(net, coords, target, steps=500, lr=1e-2, loss=poisson, eval_target=truth, data_range=1.0)
    assert result.psnr > 25 > 10 > result.psnrs[0]


def test_what_is_drawn_at_random_comes_from_the_seed() -> None:
    def noisy(pred: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(pred, target + 0.1 * torch.randn_like(target))

    before = torch.get_rng_state()
    losses = [fit(small(), COORDS, picture(), steps=5, loss=noisy, seed=seed).losses for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)


# ---- when to stop, where to measure ------------------------------------------------------------------------------


def test_patience_counts_evaluations_without_a_better_one() -> None:
    net = small()
    result = fit(net, COORDS, picture(), steps=500, lr=0.5, schedule="constant", eval_every=3, patience=4)
    assert result.stopped == "patience"
    best = result.psnrs.index(result.best_psnr)
    assert len(result.psnrs) == best + 1 + 4
    assert result.steps == result.eval_steps[-1] < 500
    net.load_state_dict(result.best_state)
    assert psnr(net(COORDS), picture()) == pytest.approx(result.best_psnr, abs=1e-3)


def test_the_evaluation_may_have_another_resolution() -> None:
    fine = inr.grid((23, 23))
    x, y = fine[:, :1], fine[:, 1:]
    truth = 0.5 + 0.4 * torch.cat([torch.sin(3 * x + k) * torch.cos(2 * y - k) for k in range(3)], dim=1)
    for options in ({}, {"norm": "batch"}, {"norm": "sphere"}):
        net = small(**options)
        result = fit(
            net, COORDS, picture(), steps=8, eval_every=4, eval_coords=fine, eval_target=truth.reshape(23, 23, 3)
        )
        assert result.eval_steps == (0, 4, 8)
        assert psnr(net.eval()(fine), truth) == pytest.approx(result.psnr, abs=1e-3)


def test_medium_precision_follows_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With bfloat16 products, as where they pay: losses to a few per cent, reported in fp32."""
    monkeypatch.setattr(gemm, "multiplies_bf16", lambda: True)
    for options in ({}, {"activation": "relu"}, {"encoding": inr.RandomFourier(16, 1.0)}, {"norm": "sphere"}):
        fine, coarse = small(width=32, **options), small(width=32, **options)
        expected = fit(fine, COORDS, picture(), steps=100, lr=5e-3)
        result = fit(coarse, COORDS, picture(), steps=100, lr=5e-3, precision="medium")
        assert result.losses == pytest.approx(expected.losses, rel=0.1)
        assert result.psnr == pytest.approx(psnr(coarse(COORDS), picture()), abs=1e-3)
    with pytest.raises(ValueError, match="takes fp32 networks"):
        fit(small(dtype=torch.float64), COORDS.double(), picture().double(), steps=2, precision="medium")


@pytest.mark.parametrize(("norm", "budget"), [("batch", 20_000), (["batch", "sphere"], 40_000)])
def test_a_batch_that_does_not_fit_names_one_that_does(norm: Any, budget: int) -> None:
    net = small(norm=norm)
    with pytest.raises(MemoryBudgetError, match=r"batch_size=\d+ would fit") as caught:
        fit(net, COORDS, picture(), steps=2, memory_budget=budget)
    size = int(str(caught.value).split("batch_size=")[1].split()[0])
    assert 2 <= size < 144
    fit(net, COORDS, picture(), steps=2, memory_budget=budget, batch_size=size)


def test_memory_that_ends_during_a_step_says_what_would_fit() -> None:
    def hungry(pred: Tensor, target: Tensor) -> Tensor:
        torch.empty(2**60, dtype=torch.uint8)
        return F.mse_loss(pred, target)

    net = small()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MemoryBudgetError, match="a smaller batch_size or a narrower network would fit"):
        fit(net, COORDS, picture(), steps=2, loss=hungry)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("scale", [0.02, 1.0, 20.0])
def test_a_psnr_means_the_same_at_every_scale(scale: float) -> None:
    """A goal is not met because the signal is small; the result says the range."""
    target = scale * picture() * (1 if scale == 1 else 1 / 0.8)
    result = fit(small(), COORDS, target, steps=5, target_psnr=40.0)
    assert (result.stopped, result.steps) == ("steps", 5)
    spread = float(target.max() - target.min())
    assert result.data_range == (1.0 if scale == 1 else pytest.approx(spread))
    own = fit(small(), COORDS, target, steps=1, data_range=3.0)
    assert own.psnrs[0] - result.psnrs[0] == pytest.approx(20 * math.log10(3 / result.data_range))
    with pytest.raises(ValueError, match="target must span"):
        fit(small(), COORDS, 400 * picture())
    assert fit(small(), COORDS, 400 * picture(), steps=1, data_range=400.0).data_range == 400.0


def test_a_target_that_stands_in_ends_no_fit_of_a_loss_of_ones_own() -> None:
    net = small()
    with torch.no_grad():
        net.layers[-1].weight.zero_()
        net.layers[-1].bias.zero_()
    zeros = torch.zeros(144, 3)
    before = copy.deepcopy(net.state_dict())
    result = fit(net, COORDS, zeros, steps=4, loss=lambda pred, target: (pred - 1).square().mean())
    assert (result.stopped, result.steps, result.psnrs[0]) == ("steps", 4, math.inf)
    assert any(not torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    for stop in ({"target_psnr": 30.0}, {"patience": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(stop))} stops a fit by its PSNR, but target is 0 everywhere"):
            fit(net, COORDS, zeros, steps=4, loss=lambda pred, target: (pred - 1).square().mean(), **stop)
    assert fit(net, COORDS, zeros, steps=2, target_psnr=10.0).stopped == "target_psnr"  # by the mean square it is real


class Counting(nn.Module):
    """Counts its passes in a plain attribute, and may be interrupted in one of them."""

    def __init__(self, interrupted: int = -1) -> None:
        super().__init__()
        self.layer, self.passes, self.all, self.interrupted = nn.Linear(2, 1), 0, [0], interrupted

    def forward(self, coords: Tensor) -> Tensor:
        self.passes += self.training
        self.all[0] += 1
        if self.all[0] == self.interrupted:
            raise KeyboardInterrupt
        return self.layer(coords)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = Counting(self.interrupted)
        twin.layer, twin.passes, twin.all = copy.deepcopy(self.layer, memo), self.passes, self.all
        return twin


def test_probes_leave_no_trace_in_what_a_module_counts() -> None:
    net = Counting()
    fit(net, COORDS, picture()[:, :1], steps=7)
    assert net.passes == 7


@pytest.mark.parametrize("number", [1, 2, 5, 11, 20])
def test_an_interrupt_before_the_first_step_is_not_swallowed(number: int) -> None:
    """Whichever pass of a probe it comes in; once steps are taken, the result tells of it."""
    try:
        result = fit(Counting(number), COORDS, picture()[:, :1], steps=50, eval_every=50)
    except KeyboardInterrupt:
        return
    assert result.interrupted
    assert result.stopped == "interrupted"


class Writing(inr.encodings.Encoding):
    """An encoding that doubles what it was given to read."""

    def build(self, in_features, generator, device, dtype):
        built = Writing()
        built.in_features = built.out_features = in_features
        return built

    def forward(self, coords):
        found = coords.clone()
        with torch.no_grad():
            coords.mul_(2)
        return found


class WritingNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, coords):
        found = super().forward(coords.clone())
        coords.mul_(2)
        return found


def writing_values(prediction, target):
    with torch.no_grad():
        target.add_(1)
    return (prediction - target).square()


def writing_loss(prediction, target):
    with torch.no_grad():
        target.add_(1)
    return (prediction - target).square().mean()


def writing_regularizer(net, coords, weight):
    with torch.no_grad():
        coords.add_(1)
        weight.mul_(2)
    return sum(parameter.square().sum() for parameter in net.parameters())


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize(
    ("net", "settings", "culprit"),
    [
        (lambda: inr.INR(2, 1, width=8, encoding=Writing()), {}, r"coords of the fit .*the encoding \(Writing\)"),
        (WritingNet, {}, r"coords of the fit .*the network \(WritingNet\)"),
        (lambda: inr.INR(2, 1, width=8), {"loss": writing_loss}, "target of the fit .*loss writes"),
        (
            lambda: inr.INR(2, 1, width=8),
            {"regularizers": [writing_regularizer]},
            r"coords and weight of the fit .*regularizers\[0\]",
        ),
        (lambda: inr.INR(2, 1, width=8), {"loss": "writing"}, "target of the fit .*loss='writing'"),
    ],
)
def test_functions_that_write_into_their_arguments_never_reach_the_callers(
    net, settings, culprit, batch_size, monkeypatch
):
    monkeypatch.setattr(LOSSES, "_items", {**LOSSES, "writing": Loss("writing", writing_values, lambda f, y: f - y)})
    coords, target, weight = inr.grid((4, 3)), torch.rand(12, 1), torch.rand(12, 1) + 0.5
    kept = [tensor.clone() for tensor in (coords, target, weight)]
    if "weight" in culprit:
        settings = {**settings, "weight": weight}
    if batch_size is None:
        with pytest.raises(ValueError, match=culprit):
            inr.fit(net(), coords, target, steps=3, **settings)
    else:  # only evaluations hand over more than a batch, which is a copy
        with suppress(ValueError):
            inr.fit(net(), coords, target, steps=3, batch_size=batch_size, **settings)
    if "encoding" in culprit:
        points = coords.double()
        for measure in (inr.ntk, inr.jacobian, inr.diagnose):
            measure(net().double(), points)
        assert torch.equal(points, coords.double())
    assert all(map(torch.equal, kept, (coords, target, weight)))


def test_the_figure_of_a_fit_shows_losses_psnrs_and_pictures(tmp_path) -> None:
    net = small()
    result = fit(net, COORDS, picture(), steps=5, progress=False)
    loss, psnrs = result.plot().axes
    assert list(loss.get_lines()[0].get_ydata()) == list(result.losses) and loss.get_yscale() == "log"
    assert tuple(psnrs.get_lines()[0].get_xdata()) == result.eval_steps
    assert tuple(psnrs.get_lines()[0].get_ydata()) == result.psnrs
    shape = inr.grids.shape_of(COORDS)
    assert shape is not None
    made = net(COORDS)
    off = (made - picture()).abs().mean(1).reshape(shape)
    for own in (made, made.reshape(*shape, 3)):
        figure = result.plot(tmp_path / "fit.png", target=picture(), reconstruction=own, shape=shape)
        pictures = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
        assert torch.allclose(torch.as_tensor(pictures[2].data).float(), off, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*pixels of")
def test_the_figure_of_a_fit_takes_what_the_fit_took() -> None:
    pixels = torch.randint(0, 256, (4, 6, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    net = small()
    for own in (pixels, pixels.numpy(), Image.fromarray(pixels.numpy()), pixels.reshape(-1, 3)):
        result = fit(net, target=pixels, steps=1, progress=False)
        figure = result.plot(target=own, reconstruction=net(inr.grid((4, 6))))
        target, made, _ = (axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images())
        assert np.allclose(target, pixels / 255) and made.shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"target": torch.ones(4, 5, 2)}, ValueError, "target must be a picture"),
        ({"target": torch.ones(4, 5), "reconstruction": torch.ones(5, 4)}, ValueError, "the shape of target"),
        ({"target": torch.full((4, 5), math.nan)}, ValueError, "target"),
        ({"target": torch.ones(19), "shape": (4, 5)}, ValueError, "target must have 20 values"),
        ({"target": torch.ones(20), "shape": (20,)}, ValueError, "shape must be"),
        ({"reconstruction": "picture.png"}, TypeError, "reconstruction"),
        ({"path": "fit.gif"}, ValueError, "path must end in one of"),
    ],
)
def test_the_figure_of_a_fit_refuses_what_it_cannot_draw(given: Any, error: Any, told: str) -> None:
    result = fit(small(), COORDS, picture(), steps=1, progress=False)
    with pytest.raises(error, match=told):
        result.plot(**given)


def test_the_figure_of_a_fit_draws_curves_and_fits_without_a_positive_loss() -> None:
    result = fit(small(), COORDS, picture(), steps=3, progress=False)
    odd = replace(result, losses=(-1.0, 0.0, 2.0), psnrs=(-3.0, math.inf), eval_steps=(0, 3), psnr=math.inf)
    figure = odd.plot(target=torch.sin(torch.arange(50.0)), reconstruction=torch.zeros(50, 1))
    scales = {axes.get_ylabel(): axes.get_yscale() for axes in figure.axes}
    assert scales["training loss"] == "linear"
    figure.canvas.draw()
