"""Nothing is lost: a fit that was stopped anywhere goes on to the same digits, and a bad file is named."""

import copy
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.ops import gemm, mlp_step
from inrfast.training import checkpoint, schema, trees
from inrfast.training.callbacks import TrackNTK
from inrfast.training.checkpoint import save_network
from inrfast.training.fit import fit, fit_many
from inrfast.training.trees import digest

COORDS = inr.grid((12, 12))
TARGET = torch.cat([(3 * COORDS).sin(), (2 * COORDS[:, :1]).cos()], dim=1) / 2
SCRIPT = Path(__file__).parents[1] / "killed_fit.py"


def small(seed: int = 0, **options: Any) -> inr.INR:
    return inr.INR(2, 3, **{"width": 16, "hidden_layers": 2, "seed": seed, **options})


class InterruptAt:
    """Press Ctrl-C after some step, once."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, state: Any) -> None:
        if state.step == self.at:
            self.at = -1
            raise KeyboardInterrupt


# ---- resuming ----------------------------------------------------------------------------------------------------


def noisy(pred: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(pred, target + 0.05 * torch.randn_like(target))


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))


class Warming(nn.Module):
    """Counts its steps in a buffer that ``state_dict`` leaves out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 3)
        self.register_buffer("step", torch.zeros(()), persistent=False)

    def forward(self, coords: Tensor) -> Tensor:
        self.step += self.training
        return torch.sin(self.layer(coords) * (1 + self.step / 20))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small, {}),
        (lambda: small(activation="sine", init="siren"), {"batch_size": 50, "optimizer": "adamw", "weight_decay": 0.1}),
        (lambda: small(norm="batch"), {"batch_size": 50, "clip_norm": 0.1}),
        (lambda: small(norm="sphere"), {"optimizer": "sgd", "lr": 0.1}),
        (dropping, {"schedule": "cosine"}),
        (small, {"loss": noisy}),
        (Warming, {}),
        (lambda: small(encoding=inr.RandomFourier(8, 2.0)), {"precision": "medium"}),
        (small, {"optimizer": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5)}),
        (lambda: small(activation="tanh"), {"optimizer": lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=3)}),
    ],
    ids=[
        "layerwise",
        "batches",
        "batch norm",
        "chunked",
        "dropout",
        "noisy loss",
        "buffer",
        "bf16",
        "RMSprop",
        "LBFGS",
    ],
)
def test_an_interrupted_fit_goes_on_to_the_same_digits(
    make: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "multiplies_bf16", lambda: True)

    def run(net: nn.Module, **more: Any) -> inr.FitResult:
        own = {**options}
        if callable(own.get("optimizer")):
            own["optimizer"] = own["optimizer"](net.parameters())
        return fit(net, COORDS, TARGET, steps=24, eval_every=5, seed=3, **own, **more)

    path = tmp_path / "run.safetensors"
    whole = make()
    expected = run(whole, callbacks=[InterruptAt(-1)])
    for at in (7, 15):
        first = run(make(), callbacks=[InterruptAt(at)], checkpoint=path, resume=True)
        assert (first.interrupted, first.stopped, first.steps) == (True, "interrupted", at)
    net = make()
    result = run(net, callbacks=[InterruptAt(-1)], checkpoint=path, resume=True)
    assert (result.losses, result.psnrs, result.eval_steps) == (expected.losses, expected.psnrs, expected.eval_steps)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), whole.state_dict().values(), strict=True))
    assert all(torch.equal(result.best_state[name], tensor) for name, tensor in expected.best_state.items())
    again = run(make(), callbacks=[InterruptAt(-1)], checkpoint=path, resume=True)
    assert (again.steps, again.losses, again.stopped) == (24, expected.losses, "steps")


@pytest.mark.skipif(not mlp_step.instructions(), reason="this processor has no native step")
def test_a_native_step_takes_the_threads_that_a_library_with_its_own_would_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "threads", lambda dtype, device: 1)
    coords = inr.grid((40, 40))
    for name, net in (("native", small()), ("tensors", small(activation="tanh"))):
        fit(net, coords, torch.zeros(1600, net.out_features), steps=1, checkpoint=tmp_path / name)
        (layout,) = trees.read_tree(tmp_path / name, [schema.FIT_SCHEMA])[2]["layout"]
        assert layout["threads"] == (torch.get_num_threads() if name == "native" else 1)


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_an_interrupt_in_the_middle_of_a_step_loses_that_step_alone(where: str, tmp_path: Path) -> None:
    calls = 100

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if where == "gradient" and calls == 6:
            raise KeyboardInterrupt
        return F.mse_loss(pred, target)

    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step()
            if where == "update" and calls == 6:
                raise KeyboardInterrupt

    whole, net = small(norm="batch"), small(norm="batch")
    expected = fit(whole, COORDS, TARGET, steps=12, optimizer=torch.optim.SGD(whole.parameters(), 0.1), loss=loss)
    calls = 0
    path = tmp_path / "run.safetensors"
    options: dict[str, Any] = {"steps": 12, "loss": loss, "checkpoint": path, "checkpoint_seconds": 0, "resume": True}
    first = fit(net, COORDS, TARGET, optimizer=Slow(net.parameters(), 0.1), **options)
    assert first.interrupted and first.steps == 5
    net = small(norm="batch")
    del Slow.step
    with pytest.raises(ValueError, match=r"another fit, with other config.optimizer"):
        fit(net, COORDS, TARGET, optimizer=torch.optim.SGD(net.parameters(), 0.1), **options)
    result = fit(net, COORDS, TARGET, optimizer=Slow(net.parameters(), 0.1), **options)
    assert result.losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), whole.state_dict().values(), strict=True))


def test_many_networks_go_on_with_those_that_had_stopped(tmp_path: Path) -> None:
    def run(at: int, path: Path | None) -> tuple[list[nn.Module], list[inr.FitResult]]:
        nets = [small(seed, norm="batch" if seed == 3 else None, width=9 if seed == 4 else 16) for seed in range(5)]
        goals = [None, 9.0, None, None, 9.5]
        rates = [1e-3, 5e-3, 1e30, 5e-3, 5e-3]
        options: dict[str, Any] = {"steps": 60, "eval_every": 3, "batch_size": 60, "seed": [1, 1, 2, 3, 4]}
        saved: dict[str, Any] = {} if path is None else {"checkpoint": path, "resume": True}
        callbacks = [InterruptAt(at)]
        return nets, fit_many(
            nets, COORDS, TARGET, lr=rates, target_psnr=goals, callbacks=callbacks, **options, **saved
        )

    nets, expected = run(-1, None)
    assert {result.stopped for result in expected} == {"steps", "target_psnr", "diverged"}
    for at in (2, 11, 40, 55):
        run(at, tmp_path / "many.safetensors")
    others, results = run(-1, tmp_path / "many.safetensors")
    for net, other, one, two in zip(nets, others, expected, results, strict=True):
        assert (one.losses, one.psnrs, one.stopped, one.steps) == (two.losses, two.psnrs, two.stopped, two.steps)
        assert str(one.error) == str(two.error)
        for state, twin in ((net.state_dict(), other.state_dict()), (one.best_state, two.best_state)):
            assert all(torch.equal(tensor, twin[name]) for name, tensor in state.items())


def killed(folder: Path, name: str, after: float, how: signal.Signals) -> bool:
    """Run the script and end it so many seconds after its fit has begun; return whether it had not ended before."""
    process = subprocess.Popen([sys.executable, SCRIPT, folder, name, "0.02"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"started"
    time.sleep(after)
    process.send_signal(how)
    return process.wait() == -how


def test_a_killed_fit_ends_with_the_weights_of_an_unhurt_one(tmp_path: Path) -> None:
    """And the fit that goes on removes all that the killed ones have left."""
    begun = time.monotonic()
    subprocess.run([sys.executable, SCRIPT, tmp_path, "whole", "1000"], check=True)
    seconds, draw = time.monotonic() - begun, random.Random(4)
    ways = (signal.SIGKILL, signal.SIGTERM)
    kills = [killed(tmp_path, "hurt", draw.uniform(0, 0.2 * seconds), how) for how in ways]
    assert any(kills)
    subprocess.run([sys.executable, SCRIPT, tmp_path, "hurt", "1000"], check=True)
    whole, hurt = (torch.load(tmp_path / f"{name}.final") for name in ("whole", "hurt"))
    for one, other in zip(whole, hurt, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"whole.safetensors", "hurt.safetensors", "whole.final", "hurt.final"}


def test_tracked_kernels_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole, parts = TrackNTK(points=30), TrackNTK(points=30)
    fit(small(), COORDS, TARGET, steps=12, eval_every=3, callbacks=[InterruptAt(-1), whole])
    fit(
        small(),
        COORDS,
        TARGET,
        steps=12,
        eval_every=3,
        callbacks=[InterruptAt(7), TrackNTK(points=30)],
        checkpoint=path,
    )
    options: dict[str, Any] = {"checkpoint": path, "resume": True}
    fit(small(), COORDS, TARGET, steps=12, eval_every=3, callbacks=[InterruptAt(-1), parts], **options)
    assert [entry.step for entry in parts.history] == [entry.step for entry in whole.history] == [0, 3, 6, 9, 12]
    for one, other in zip(parts.history, whole.history, strict=True):
        assert one.ranks == other.ranks
        assert torch.equal(one.eigenvalues, other.eigenvalues)
    with pytest.raises(ValueError, match="2 callbacks, got 1"):
        fit(small(), COORDS, TARGET, steps=12, eval_every=3, callbacks=[parts], **options)


def test_more_steps_where_no_rate_depends_on_their_number(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole, net = small(), small()
    options: dict[str, Any] = {"schedule": "constant", "eval_every": 4}
    expected = fit(whole, COORDS, TARGET, steps=20, **options)
    fit(small(), COORDS, TARGET, steps=8, checkpoint=path, **options)
    result = fit(net, COORDS, TARGET, steps=20, checkpoint=path, resume=True, **options)
    assert result.losses == expected.losses
    assert result.psnrs == pytest.approx(expected.psnrs, abs=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), whole.parameters(), strict=True))


# ---- bad files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fit(small(), COORDS, TARGET, steps=6, checkpoint=tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"net": small(width=8)}, "nets"),
        ({"net": small(activation="tanh")}, "nets"),
        ({"target": 0.5 * TARGET}, "target;"),
        ({"coords": 0.5 * COORDS}, "coords$"),
        ({"weight": 1 + torch.arange(144.0)}, "weight$"),
        ({"weight": torch.arange(144.0)}, "coords, target, weight$"),
        ({"lr": 2e-3}, r"own.*0\.002"),
        ({"seed": 1}, "own"),
        ({"steps": 7}, r"config.steps \(now 7, in the checkpoint 6\)"),
        ({"schedule": "cosine"}, "config.schedule"),
        ({"batch_size": 50}, "config.batch_size"),
        ({"optimizer": "sgd"}, "config.optimizer"),
        ({"weight_decay": 0.1}, "config.weight_decay"),
        ({"clip_norm": 1.0}, "config.clip_norm"),
        ({"precision": "medium"}, "config.precision"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_checkpoint_of_another_fit_is_refused(change: dict[str, Any], named: str, saved: Path) -> None:
    arguments = {"net": small(), "coords": COORDS, "target": TARGET, "steps": 6, **change}
    before = copy.deepcopy(arguments["net"].state_dict())
    content = saved.read_bytes()
    with pytest.raises(ValueError, match=f"of another fit, with other .*{named}"):
        fit(**arguments, checkpoint=saved, resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in arguments["net"].state_dict().items())
    assert saved.read_bytes() == content


class Waves(torch.nn.Module):
    def __init__(self, omega: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.omega, self.calls, self.layer = omega, 0, nn.Linear(2, 3)

    def forward(self, coords: Tensor) -> Tensor:
        self.calls += 1
        return torch.sin(self.omega * self.layer(coords))


class Holding(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.held, self.layer = held, nn.Linear(2, 3)

    def forward(self, coords: Tensor) -> Tensor:
        return self.layer(coords)


class Setting:
    """An object that knows the module that holds it."""

    def __init__(self, rate: float) -> None:
        self.rate, self.owner = rate, self


class Weighed:
    __slots__ = ("k",)

    def __init__(self, k: float) -> None:
        self.k = k

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        return self.k * F.mse_loss(pred, target)


def hooked(k: float) -> inr.INR:
    net = small()
    net.layers[0].register_forward_hook(lambda module, inputs, output: output * k)
    return net


def scaled(k: float) -> inr.INR:
    class Scaled(inr.INR):
        def forward(self, coords: Tensor) -> Tensor:
            return super().forward(coords) * k

    return Scaled(2, 3, width=16, hidden_layers=2, seed=0)


def grouped(net: nn.Module, decay: float) -> torch.optim.Optimizer:
    first, *others = net.parameters()
    return torch.optim.AdamW([{"params": [first], "weight_decay": decay}, {"params": others}], lr=1e-3)


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    def run(held: Any, resume: bool) -> inr.FitResult:
        net = Holding(held)
        return fit(net, COORDS, TARGET, steps=4, checkpoint=tmp_path / "run", resume=resume)

    run([torch.Generator(), Setting(1.0)], False)
    with pytest.warns(RuntimeWarning, match=r"what it began with: nets\[0\]: held\[0\].*Generator") as caught:
        run([torch.Generator(), Setting(1.0)], True)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(ValueError, match=r"with other nets\[0\]: held\[1\]\.rate"):
        run([torch.Generator(), Setting(2.0)], True)


def test_settings_of_parameter_groups_are_compared(tmp_path: Path) -> None:
    def run(decay: float, resume: bool) -> inr.FitResult:
        net = small()
        optimizer = grouped(net, decay)
        return fit(net, COORDS, TARGET, steps=4, optimizer=optimizer, checkpoint=tmp_path / "run", resume=resume)

    run(0.1, False)
    with pytest.raises(ValueError, match=r"param_groups\[0\]\.weight_decay must be 0\.2, as now, got 0\.1"):
        run(0.2, True)
    assert run(0.1, True).steps == 4


def square() -> inr.INR:
    return inr.INR(4, 4, width=4, hidden_layers=2, seed=0)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("make", [square, lambda: inr.INR(4, 3, width=5, hidden_layers=2)], ids=["alike", "unlike"])
def test_an_optimizer_of_other_parameters_in_any_place_is_refused(make: Any, kind: Any, tmp_path: Path) -> None:
    """Whatever the order and the groups, and whether shapes agree or not; the same ones go on, made anew or not."""
    draw, coords = random.Random(kind.__name__), torch.rand(20, 4)
    target = coords[:, : make().out_features]

    def run(order: list[int], cut: int, resume: bool) -> None:
        net = make()
        given = list(net.parameters())
        groups = [{"params": [given[i] for i in part]} for part in (order[:cut], order[cut:])]
        options: dict[str, Any] = {"lr": 1e-3} | ({"momentum": 0.5} if kind is not torch.optim.Adam else {})
        path = tmp_path / "run"
        fit(net, coords, target, steps=3, optimizer=kind(groups, **options), checkpoint=path, resume=resume)

    run(list(range(6)), 3, False)
    for _ in range(4):
        order, cut = draw.sample(range(6), 6), draw.choice([2, 3, 4])
        if (order, cut) == (list(range(6)), 3):
            continue
        with pytest.raises(ValueError, match=r"param_groups\[[01]\]\.params(\[\d\])? must be .*, as now"):
            run(order, cut, True)
    run(list(range(6)), 3, True)


def test_moments_of_other_shapes_are_refused_in_files_that_name_no_parameters(tmp_path: Path) -> None:
    def run(turned: bool, resume: bool) -> None:
        net = small()
        given = list(net.parameters())
        optimizer = torch.optim.Adam(given[::-1] if turned else given)
        fit(net, COORDS, TARGET, steps=3, optimizer=optimizer, checkpoint=tmp_path / "run", resume=resume)

    run(False, False)
    altered(tmp_path / "run", lambda about: about.pop("optimizer"))
    with pytest.raises(ValueError, match=r"does not fit this fit: .*state\.0\.exp_avg.* must be a tensor"):
        run(True, True)
    run(False, True)


class Scheduled:
    """Change all that a scheduler may, as the fit goes on."""

    def __init__(self, optimizer: torch.optim.Optimizer, at: int = -1) -> None:
        self.optimizer, self.at = optimizer, at

    def on_step(self, state: Any) -> None:
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"], group["mine"] = 1e-4, 0.1 / state.step, state.step
        if state.step == self.at:
            self.at = -1
            raise KeyboardInterrupt


@pytest.mark.parametrize("again", [False, True], ids=["made anew", "the same optimiser"])
def test_groups_are_compared_by_what_their_fits_were_started_with(again: bool, tmp_path: Path) -> None:
    def run(rates: tuple[float, float], at: int, used: Any = None, **more: Any) -> tuple[Any, Any]:
        net, optimizer = used or (small(), None)
        first, *others = net.parameters()
        groups = [{"params": [first], "lr": rates[0]}, {"params": others, "lr": rates[1]}]
        optimizer = optimizer or torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
        scheduled = Scheduled(optimizer, at)
        result = fit(net, COORDS, TARGET, steps=9, optimizer=optimizer, callbacks=[scheduled], **more)
        return result, (net, optimizer)

    options: dict[str, Any] = {"checkpoint": tmp_path / "run", "resume": True}
    expected, _ = run((1e-3, 2e-3), -1)
    used = None
    for at in (3, 6):
        _, used = run((1e-3, 2e-3), at, used if again else None, **options)
        for rates in ((1e-3, 5e-2), (2e-3, 1e-3)):
            with pytest.raises(ValueError, match=r"param_groups\[[01]\]\.lr must be .*, as now, got 0\.00"):
                run(rates, -1, **options)
    result, _ = run((1e-3, 2e-3), -1, used if again else None, **options)
    assert result.losses == expected.losses


def altered(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a checkpoint says about its fit; its hash is right again."""
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["about"])
    change(about)
    metadata["about"] = json.dumps(about)
    metadata["sha256"] = digest(metadata, tensors)
    safetensors.torch.save_file(tensors, path, metadata)


def frozen() -> inr.INR:
    net = small()
    net.layers[0].requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({"net": small}, {"net": frozen}, "trainable"),
        ({"eval_target": TARGET}, {"eval_target": 0.5 * TARGET}, "evaluation"),
        ({}, {"eval_target": TARGET}, "evaluation"),
        (
            {"net": lambda: Waves(1.0)},
            {"net": lambda: Waves(2.0)},
            r"nets\[0\]: omega \(now 2.0, in the checkpoint 1.0\)",
        ),
        ({"net": lambda: Holding(np.ones(3))}, {"net": lambda: Holding(np.zeros(3))}, r"nets\[0\]: held"),
        ({"net": lambda: Holding(lambda t: t)}, {"net": lambda: Holding(lambda t: 2 * t)}, r"nets\[0\]: held.code"),
        ({"loss": lambda p, t: (p - t).abs().mean()}, {"loss": lambda p, t: (p - t).square().mean()}, "loss: code"),
        ({"schedule": lambda t: 1.0}, {"schedule": lambda t: 0.5}, "schedule: code"),
        ({"data_range": 1.0}, {"data_range": 2.0}, "own"),
        (
            {"net": lambda: Holding([{"a": torch.ones(3)}])},
            {"net": lambda: Holding([{"a": torch.zeros(3)}])},
            r"nets\[0\]: held\[0\]\['a'\]",
        ),
        ({"net": lambda: Holding(Setting(1.0))}, {"net": lambda: Holding(Setting(2.0))}, r"nets\[0\]: held\.rate"),
        ({"net": lambda: hooked(1.0)}, {"net": lambda: hooked(2.0)}, r"nets\[0\]: layers\.0\.forward_hooks\[0\]\.k"),
        ({"net": small}, {"net": lambda: hooked(2.0)}, r"nets\[0\]: hooks"),
        ({"net": lambda: scaled(1.0)}, {"net": lambda: scaled(2.0)}, r"nets\[0\]: class .*Scaled\.forward\.k"),
        ({"net": small}, {"net": lambda: scaled(2.0)}, r"nets\[0\]: __class__"),
        ({"loss": Weighed(1.0)}, {"loss": Weighed(2.0)}, r"loss: k"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.split(" ")[0],
)
def test_what_has_no_name_is_compared_too(
    first: dict[str, Any], second: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """And the same again goes on, although a module has counted its calls meanwhile."""

    def run(options: dict[str, Any], steps: int, **more: Any) -> inr.FitResult:
        given = {"schedule": "constant", "net": small, **options}
        net = given.pop("net")()
        return fit(net, COORDS, TARGET, steps=steps, checkpoint=tmp_path / "run", **given, **more)

    run(first, 4)
    steps = 4 if "schedule" in first else 6
    with pytest.raises(ValueError, match=f"of another fit, with other .*{named}"):
        run(second, steps, resume=True)
    assert run(first, steps, resume=True).steps == steps


def test_a_file_that_says_less_is_of_the_same_fit(saved: Path) -> None:
    """As files of earlier versions do; their PSNRs are for a range of 1."""
    with safetensors.safe_open(saved, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["about"])
    for key in ("trainable", "evaluation", "identities", "parts"):
        del about[key]
    del metadata["sha256"]
    del about["own"][0]["data_range"]
    safetensors.torch.save_file(tensors, saved, {**metadata, "about": json.dumps(about)})
    result = fit(small(), COORDS, TARGET, steps=6, checkpoint=saved, resume=True)
    assert (result.steps, result.data_range) == (6, 1.0)
    safetensors.torch.save_file(tensors, saved, {**metadata, "about": json.dumps(about)})
    with pytest.raises(ValueError, match="with other coords, target or weight"):
        fit(small(), COORDS, 0.5 * TARGET, steps=6, checkpoint=saved, resume=True)
    with pytest.raises(ValueError, match="data_range"):
        fit(small(), COORDS, TARGET, steps=6, checkpoint=saved, resume=True, data_range=0.5)


def test_where_norms_would_stand_does_not_matter_of_a_network_without_any(tmp_path: Path) -> None:
    """Files state the default of the version that wrote them."""
    for norm in (None, "batch"):
        path = tmp_path / f"{norm}.safetensors"
        before, now = (small(norm=norm, norm_position=position) for position in ("pre", "post"))
        fit(before, COORDS, TARGET, steps=4, schedule="constant", checkpoint=path)
        if norm is None:
            assert fit(now, COORDS, TARGET, steps=6, schedule="constant", checkpoint=path, resume=True).steps == 6
        else:
            with pytest.raises(ValueError, match="norm_position"):
                fit(now, COORDS, TARGET, steps=6, schedule="constant", checkpoint=path, resume=True)


def test_a_damaged_file_is_named_and_left_alone(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"run\.safetensors is empty, truncated or no safetensors file"):
            fit(small(), COORDS, TARGET, steps=6, checkpoint=saved, resume=True)
        assert saved.read_bytes() == content[:length]
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"w": torch.ones(3)}, foreign)
    with pytest.raises(ValueError, match="of some other program"):
        fit(small(), COORDS, TARGET, steps=6, checkpoint=foreign, resume=True)
    save_network(small(), foreign)
    with pytest.raises(ValueError, match=r"of the kind 'inrfast\.network/2'"):
        fit(small(), COORDS, TARGET, steps=6, checkpoint=foreign, resume=True)


def test_an_earlier_fit_is_not_overwritten_by_mistake(saved: Path) -> None:
    content = saved.read_bytes()
    with pytest.raises(FileExistsError, match="resume=True, or remove it"):
        fit(small(), COORDS, TARGET, steps=6, checkpoint=saved)
    assert saved.read_bytes() == content


def test_a_state_that_does_not_fit_leaves_the_network_as_it_was(saved: Path) -> None:
    with safetensors.safe_open(saved, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    place = "groups.0.optimizer.means.layers.0.weight"
    tensors[place] = tensors[place][..., :1].clone()  # which would spread over all columns
    metadata["sha256"] = digest(metadata, tensors)
    safetensors.torch.save_file(tensors, saved, metadata)
    net = small()
    with pytest.raises(
        ValueError, match=r"does not fit this fit: tree\.groups\[0\]\.optimizer.*layers\.0\.weight must be"
    ):
        fit(net, COORDS, TARGET, steps=6, checkpoint=saved, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), small().state_dict().values(), strict=True))


# ---- faults ------------------------------------------------------------------------------------------------------


def test_what_no_checkpoint_can_be_is_refused_before_the_first_step(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "missing" / "run")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    for name in ("pipe", "dangling", "loop", "a" * 256, "missing/run", "folder", "pipe/run", os.devnull, "a\0b"):
        for resume in (False, True):
            net = small()
            with pytest.raises((OSError, ValueError)) as caught:
                fit(net, COORDS, TARGET, steps=1, checkpoint=tmp_path / name, resume=resume)
            assert "\n" not in str(caught.value) and name[:20].split("/")[0].split("\0")[0] in str(caught.value)
            assert torch.equal(net.layers[0].weight, small().layers[0].weight)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["a" * 255, os.fsdecode(b"\xff\xfe.ckpt"), " \n"])
def test_any_name_of_a_file_is_one_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / name)
    options: dict[str, Any] = {"checkpoint": tmp_path / "link", "schedule": "constant"}
    fit(small(), COORDS, TARGET, steps=2, **options)
    (tmp_path / name).chmod(0o600)
    assert fit(small(), COORDS, TARGET, steps=4, resume=True, **options).steps == 4
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["link", name])


class At:
    """Do something before the step that follows some step, once."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step, self.action = step, action

    def on_step(self, state: Any) -> None:
        if state.step == self.step:
            self.action()


@pytest.mark.parametrize("back", [True, False], ids=["for a while", "to the end"])
@pytest.mark.parametrize("cause", ["folder", "disk"])
def test_a_checkpoint_that_cannot_be_written_costs_the_fit_nothing(cause: str, back: bool, tmp_path: Path) -> None:
    """It is said once for a cause, and at the end; the file is the last whole one, and the result is all there."""
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fails() -> None:
        folder.rename(away) if cause == "folder" else resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    def works() -> None:
        away.rename(folder) if cause == "folder" else resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    expected = fit(small(), COORDS, TARGET, steps=30, callbacks=[InterruptAt(-1)])
    actions = [At(5, fails), *([At(20, works)] if back else [])]
    options: dict[str, Any] = {"checkpoint": folder / "run", "checkpoint_seconds": 0}
    try:
        with pytest.warns(RuntimeWarning, match="a checkpoint was not written") as caught:
            result = fit(small(), COORDS, TARGET, steps=30, callbacks=actions, **options)
    finally:
        if not back:
            works()
    assert (result.losses, result.psnrs) == (expected.losses, expected.psnrs)
    texts = [str(warning.message) for warning in caught]
    reason = "No such file or directory" if cause == "folder" else "File too large"
    assert all(reason in text and str(folder / "run") in text and "\n" not in text for text in texts)
    assert [("it is the last one" in text, "the fit goes on" in text) for text in texts] == (
        [(False, True)] if back else [(False, True), (True, False)]
    )
    assert {warning.filename for warning in caught} == {__file__}
    assert [path.name for path in folder.iterdir()] == ["run"]
    kept = checkpoint.read_fit(folder / "run")[0]["networks"][0]
    assert kept["losses"].tolist() == list(expected.losses[: kept["done"]])
    assert kept["done"] == 30 if back else 4 <= kept["done"] <= 5


def test_one_fit_at_a_time_writes_a_checkpoint(tmp_path: Path) -> None:
    path, told = tmp_path / "run", []

    def second() -> None:
        with pytest.raises(BlockingIOError, match="run: another fit of this process is writing it") as caught:
            fit(small(), COORDS, TARGET, steps=4, checkpoint=path, resume=True)
        told.append(caught)

    result = fit(small(), COORDS, TARGET, steps=4, checkpoint=path, callbacks=[At(2, second)])
    assert (result.steps, len(told)) == (4, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.filterwarnings("ignore:.*with callbacks other than")
def test_a_process_that_is_asked_to_end_keeps_its_fit(tmp_path: Path) -> None:
    """As where a handler of SIGTERM calls ``sys.exit``."""
    expected = fit(small(), COORDS, TARGET, steps=20, callbacks=[InterruptAt(-1)])
    options: dict[str, Any] = {"checkpoint": tmp_path / "run", "resume": True}
    with pytest.raises(SystemExit):
        fit(small(), COORDS, TARGET, steps=20, callbacks=[At(7, sys.exit)], **options)
    assert checkpoint.read_fit(tmp_path / "run")[0]["groups"][0]["done"] == 7
    result = fit(small(), COORDS, TARGET, steps=20, callbacks=[InterruptAt(-1)], **options)
    assert result.losses == expected.losses


class Odd:
    def __init__(self, state: Any) -> None:
        self.state = state

    def on_eval(self, state: Any) -> None:
        pass

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        if state != self.state:
            raise KeyError("another")


@pytest.mark.filterwarnings("ignore:.*with callbacks other than")
def test_states_of_callbacks_that_cannot_be_kept_or_taken_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"got object at callbacks\[1\]\.state_dict\(\)\.a"):
        fit(small(), COORDS, TARGET, steps=1, checkpoint=tmp_path / "a", callbacks=[Odd({}), Odd({"a": object()})])
    options: dict[str, Any] = {"steps": 1, "checkpoint": tmp_path / "b", "resume": True}
    fit(small(), COORDS, TARGET, callbacks=[Odd(1)], **options)
    for other in (Odd(2), At(0, print)):
        with pytest.raises(ValueError, match=rf"callbacks\[0\] \({type(other).__name__}\) does not take its state"):
            fit(small(), COORDS, TARGET, callbacks=[other], **options)


class Counting:
    """Does the same whatever it is made with; its count is state, in the file or not."""

    rate = 0.5

    def __init__(self, every: Any, saves: bool) -> None:
        self.every, self.calls = every, 0
        if saves:
            self.state_dict = lambda: {"calls": self.calls}
            self.load_state_dict = lambda state: setattr(self, "calls", state["calls"])

    def on_step(self, state: Any) -> None:
        self.calls += 1


class Others(Counting):
    def on_eval(self, state: Any) -> None:
        pass


class Rated(Counting):
    rate = 0.25


Rated.__name__ = Rated.__qualname__ = "Counting"


@pytest.mark.parametrize("saves", [False, True], ids=["no state", "a state"])
@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda saves: Others(2, saves), r"__class__ \(now Others, in the checkpoint Counting\)"),
        (lambda saves: Counting(3, saves), r"every \(now 3, in the checkpoint 2\)"),
        (lambda saves: Counting(torch.ones(2), saves), "every"),
        (lambda saves: Rated(2, saves), r"class Counting"),
    ],
    ids=["class", "number", "tensor", "class of the same name"],
)
def test_other_callbacks_are_told(other: Any, named: str, saves: bool, tmp_path: Path) -> None:
    def run(callback: Any, steps: int) -> None:
        options: dict[str, Any] = {"schedule": "constant", "checkpoint": tmp_path / "run", "resume": True}
        fit(small(), COORDS, TARGET, steps=steps, callbacks=[InterruptAt(-1), callback], **options)

    run(Counting(2, saves), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Counting(2, saves), 4)
        run(Counting(2, saves), 6)
    with pytest.warns(RuntimeWarning, match=rf"callbacks other than it began with: callbacks\[1\]: {named}") as caught:
        run(other(saves), 8)
    assert [warning.filename for warning in caught] == [__file__]


def test_another_device_is_told(tmp_path, monkeypatch):
    path = tmp_path / "device.safetensors"
    real = checkpoint._device_name
    for name, named in (("GPU A", "GPU A"), ("GPU A", "GPU B"), (None, "GPU B")):
        path.unlink(missing_ok=True)
        monkeypatch.setattr(checkpoint, "_device_name", real if name is None else lambda device, name=name: name)
        fit(small(), COORDS, TARGET, steps=6, callbacks=[InterruptAt(3)], checkpoint=path)
        monkeypatch.setattr(checkpoint, "_device_name", lambda device, named=named: named)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(small(), COORDS, TARGET, steps=6, callbacks=[InterruptAt(99)], checkpoint=path, resume=True)
        told = [str(w.message) for w in caught if "not bit by bit" in str(w.message)]
        now, then = repr(named), repr("cpu" if name is None else name)
        wanted = f"other machine.device (now {now}, in the checkpoint {then})"
        assert [message.endswith(wanted) for message in told] == ([True] if now != then else [])


def test_other_chunks_are_told(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    fit(small(), COORDS, TARGET, steps=6, callbacks=[InterruptAt(3)], checkpoint=path)
    with pytest.warns(RuntimeWarning, match=r"not bit by bit: other layout") as caught:
        fit(
            small(),
            COORDS,
            TARGET,
            steps=6,
            callbacks=[InterruptAt(-1)],
            checkpoint=path,
            resume=True,
            memory_budget=6000,
        )
    assert [warning.filename for warning in caught] == [__file__]
