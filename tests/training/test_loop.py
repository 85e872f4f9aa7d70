"""A fit is the plain training loop, only faster; it can be stopped, repeated and trusted at every point."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.errors import DivergedError, NotAvailableError
from inrfast.metrics import psnr
from inrfast.training import loop
from inrfast.training.loop import fit

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
    batches = []
    net = small()
    expected_net = copy.deepcopy(net)
    for batch in loop._batches(144, 50, 7, torch.device("cpu")):
        batches.append(batch)
        if len(batches) == 20:
            break
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
        step = loop.Adam.step

        def half_step(self: loop.Adam) -> None:
            step(self)
            fifth_time()

        monkeypatch.setattr(loop.Adam, "step", half_step)
    if where == "bar":
        calls = 1  # the bar moves after the update

        class Bar(loop.tqdm):
            def update(self, n: float = 1) -> None:
                fifth_time()

        monkeypatch.setattr(loop, "tqdm", Bar)
    result = fit(net, COORDS, picture(), steps=50, schedule="constant", loss=loss)
    assert result.interrupted
    assert (result.steps, len(result.losses), result.eval_steps[-1]) == (4, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True))
    assert net.training
    assert psnr(net(COORDS), picture()) == pytest.approx(result.psnr, abs=1e-3)


@pytest.mark.parametrize("kind", ["layerwise", "whole"])
def test_a_diverging_fit_stops_with_advice_on_its_last_good_weights(kind: str) -> None:
    net = small(activation="relu", norm="batch" if kind == "whole" else None)
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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"net": F.relu}, TypeError, "net must be"),
        ({"net": nn.ReLU()}, ValueError, "trainable"),
        ({"net": nn.Linear(3, 1)}, ValueError, "net does not take coords"),
        ({"net": nn.Sequential(nn.Linear(2, 4), nn.Flatten(0))}, ValueError, "net must map"),
        ({"net": small().half()}, TypeError, "fp32 or fp64"),
        ({"coords": COORDS[:, :1]}, ValueError, "coords"),
        ({"coords": COORDS.reshape(12, 12, 2)}, ValueError, "coords"),
        ({"coords": COORDS[:0]}, ValueError, "coords must not be empty"),
        ({"coords": COORDS.double()}, TypeError, "coords must have the network's dtype"),
        ({"coords": COORDS.numpy()}, TypeError, "coords"),
        ({"coords": COORDS * NAN}, ValueError, "coords must be finite"),
        ({"coords": COORDS.to("meta")}, ValueError, "coords is on meta"),
        ({"target": picture()[:-1]}, ValueError, r"target must have shape \(144, 3\)"),
        ({"target": picture(1)}, ValueError, "target must have shape"),
        ({"target": picture().T}, ValueError, "target must have shape"),
        ({"target": torch.tensor(1.0)}, ValueError, "target must have shape"),
        ({"target": (255 * picture()).to(torch.uint8)}, TypeError, "target"),
        ({"target": picture().double()}, TypeError, "target must have the network's dtype"),
        ({"target": picture() / 0}, ValueError, "target must be finite"),
        ({"target": picture().to("meta")}, ValueError, "target is on meta"),
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
        ({"precision": "hihg"}, ValueError, "'high'"),
        ({"precision": "medium"}, NotAvailableError, "precision"),
        ({"backend": "tritn"}, ValueError, "'triton'"),
        ({"backend": "triton"}, NotAvailableError, "triton"),
        ({"weight": torch.ones(144)}, NotAvailableError, "weight"),
        ({"callbacks": (print,)}, NotAvailableError, "callbacks"),
        ({"checkpoint": "run.pt"}, NotAvailableError, "checkpoint"),
        ({"resume": True}, NotAvailableError, "resume"),
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
