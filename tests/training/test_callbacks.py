"""Callbacks are told what happened, may end a fit, and may watch the tangent kernel."""

import copy
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inrfast as inr
from inrfast.errors import MissingLibraryError
from inrfast.linalg import eigenvalues
from inrfast.training.callbacks import Callback, FitState, TensorBoard, TrackNTK, WandB
from inrfast.training.checkpoint import read_fit
from inrfast.training.fit import fit, fit_many

COORDS = inr.grid((10, 10))
TARGET = (3 * COORDS).sin()[:, :1] / 2


def small(seed: int = 0, **options: Any) -> inr.INR:
    return inr.INR(2, 1, **{"width": 16, "hidden_layers": 2, "activation": "tanh", "seed": seed, **options})


class Notes(Callback):
    def __init__(self) -> None:
        self.steps: list[FitState] = []
        self.evaluations: list[FitState] = []
        self.weights: list[Tensor] = []

    def on_step(self, state: FitState) -> None:
        assert not state.net.training
        self.steps.append(state)
        self.weights.append(state.net.layers[0].weight.detach().clone())

    def on_eval(self, state: FitState) -> None:
        assert not state.net.training
        self.evaluations.append(state)


def test_what_is_told_is_what_is_reported() -> None:
    for options in ({}, {"norm": "batch"}):
        notes, net = Notes(), small(**options)
        result = fit(net, COORDS, TARGET, steps=9, eval_every=4, schedule="cosine", callbacks=[notes])
        assert [state.step for state in notes.steps] == list(range(1, 10))
        assert tuple(state.loss for state in notes.steps) == result.losses
        assert [state.lr for state in notes.steps] == pytest.approx(
            [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 9)) for step in range(9)]
        )
        assert tuple(state.step for state in notes.evaluations) == result.eval_steps == (0, 4, 8, 9)
        assert tuple(state.psnr for state in notes.evaluations) == result.psnrs
        assert [state.best_psnr for state in notes.evaluations] == [max(result.psnrs[: i + 1]) for i in range(4)]
        assert torch.equal(notes.weights[-1], net.layers[0].weight)
        assert torch.equal(notes.steps[0].coords, COORDS)
        assert net.training


def test_a_callback_may_change_weights_and_end_the_fit() -> None:
    class Clamp:
        def on_step(self, state: FitState) -> None:
            with torch.no_grad():
                state.net.layers[0].weight.clamp_(-0.1, 0.1)
            if state.step == 6:
                state.stop()

    net = small()
    result = fit(net, COORDS, TARGET, steps=20, callbacks=[Clamp()])
    assert (result.steps, result.stopped) == (6, "callback")
    assert result.eval_steps[-1] == 6
    assert float(net.layers[0].weight.detach().abs().max()) <= 0.1 + 1e-7


def test_each_network_of_many_is_told_and_ended_by_itself() -> None:
    class EndSecond(Notes):
        def on_eval(self, state: FitState) -> None:
            super().on_eval(state)
            if state.index == 1 and state.step >= 4:
                state.stop()

    notes = EndSecond()
    nets = [small(seed) for seed in range(3)]
    results = fit_many(nets, COORDS, TARGET, steps=8, eval_every=2, callbacks=[notes])
    assert [result.stopped for result in results] == ["steps", "callback", "steps"]
    assert results[1].steps == 4
    assert {state.index for state in notes.steps if state.step > 4} == {0, 2}
    assert all(state.net is nets[state.index] for state in notes.steps)


def test_an_error_in_a_callback_is_the_caller_s_and_loses_nothing() -> None:
    class Broken:
        def on_step(self, state: FitState) -> None:
            if state.step == 3:
                raise RuntimeError("mine")

    net, twin = small(), small()
    with pytest.raises(RuntimeError, match="mine"):
        fit(net, COORDS, TARGET, steps=9, schedule="constant", callbacks=[Broken()])
    fit(twin, COORDS, TARGET, steps=3, schedule="constant")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert net.training


@pytest.mark.parametrize("options", [{}, {"norm": "batch"}])
def test_tracked_kernels_are_those_of_the_network_at_that_step(options: dict[str, Any]) -> None:
    states: list[inr.INR] = []

    class Keep:
        def on_eval(self, state: FitState) -> None:
            states.append(copy.deepcopy(state.net))

    tracker = TrackNTK(points=40, rtols=(1e-2, 1e-4), every=2)
    net, twin = small(**options), small(**options)
    if options:
        inr.calibrate_batchnorm_(net, COORDS)
        twin.load_state_dict(net.state_dict())
    result = fit(net, COORDS, TARGET, steps=12, eval_every=3, callbacks=[tracker, Keep()])
    unwatched = fit(twin, COORDS, TARGET, steps=12, eval_every=3)
    assert result.losses == unwatched.losses
    assert [entry.step for entry in tracker.history] == [0, 6, 12]
    assert tracker._source is not None and tracker._source.probed == 1
    subset = tracker._subset(COORDS)
    assert subset.shape == (40, 2)
    for entry, state in zip(tracker.history, states[::2], strict=True):
        dense = inr.ntk(state, subset, precision="highest").to_dense()
        values = torch.linalg.eigvalsh(dense).flip(0)
        assert torch.allclose(entry.eigenvalues, values, atol=1e-10 * float(values[0]))
        assert entry.trace == pytest.approx(float(dense.trace()))
        for rank, rtol in zip(entry.ranks, (1e-2, 1e-4), strict=True):
            assert int((values > rtol * values[0]).sum()) in rank
        assert entry.seconds > 0
    assert tracker.seconds == pytest.approx(sum(entry.seconds for entry in tracker.history))


def test_ranks_of_more_points_than_have_all_eigenvalues_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigenvalues, "SMALL", 40)
    tracker = TrackNTK(points=60, rtols=(1e-2, 1e-4))
    nets = [small(), small()]
    for net in nets:
        fit(net, COORDS, TARGET, steps=2, eval_every=2, callbacks=[tracker])
    dense = inr.ntk(nets[-1], tracker._subset(COORDS), precision="highest").to_dense()
    values = torch.linalg.eigvalsh(dense).flip(0)
    last = tracker.history[-1]
    assert last.trace == pytest.approx(float(dense.trace()))
    for rank, rtol in zip(last.ranks, (1e-2, 1e-4), strict=True):
        assert int((values > rtol * values[0]).sum()) in rank
    again = TrackNTK()
    again.load_state_dict(tracker.state_dict())
    assert [entry.ranks for entry in again.history] == [entry.ranks for entry in tracker.history]


def test_a_tracker_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="points"):
        TrackNTK(points=0)
    with pytest.raises(ValueError, match="rtols must be tolerances"):
        TrackNTK(rtols=(2.0,))
    with pytest.raises(ValueError, match="every"):
        TrackNTK(every=0)


def test_a_kernel_of_zeros_has_no_rank_and_ends_no_fit() -> None:
    dead = small(activation="relu", bias=False)
    with torch.no_grad():
        for layer in dead.layers:
            layer.weight.zero_()
    tracker = TrackNTK(points=20)
    fit(dead, COORDS, TARGET, steps=2, callbacks=[tracker])
    for entry in tracker.history:
        assert (entry.trace, entry.effective_rank, entry.stable_rank) == (0.0, 0.0, 0.0)
        assert all((rank.lower, rank.upper) == (0, 0) for rank in entry.ranks)


class Scalars(Callback):
    """Writes what a TensorBoard writer takes: (name, value, step), of each network."""

    def __init__(self) -> None:
        self.written: list[tuple[str, float, int]] = []
        self.nets: list[tuple[str, int, Any]] = []

    def on_step(self, state: FitState) -> None:
        self.written.append((f"{state.index}/step", state.gradient_norm(), state.step - 1))

    def on_eval(self, state: FitState) -> None:
        self.written.append((f"{state.index}/eval", state.gradient_norm(), state.step))
        self.nets.append((f"{state.index}", state.step, copy.deepcopy(state.net)))


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
@pytest.mark.parametrize("kind", ["native", "tensor", "normed", "chunked", "whole", "many"])
def test_the_norm_of_the_gradient_is_that_of_autodiff_before_clipping(kind: str, clip_norm: float | None) -> None:
    coords = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    target, writer = coords.prod(1, keepdim=True), Scalars()
    options: dict[str, Any] = {"activation": "relu" if kind == "native" else "tanh"}
    options |= {"norm": {"chunked": "layer", "normed": "batch", "whole": ["batch", "sphere"]}.get(kind)}
    nets = [inr.INR(2, 1, width=8, hidden_layers=2, seed=seed, **options) for seed in range(3 if kind == "many" else 1)]
    given: dict[str, Any] = {"steps": 5, "eval_every": 1, "callbacks": [writer], "clip_norm": clip_norm}
    # Decay is added to gradients, and is no part of their norm.
    given |= {"optimizer": "sgd", "weight_decay": 0.5, "lr": 1e-2}
    if kind == "many":
        fit_many(nets, coords, target, **given)
    else:
        fit(nets[0], coords, target, **given)
    found = {(name, step): value for name, value, step in writer.written}
    for index, step, net in writer.nets:
        if step == 5:
            assert math.isnan(found[f"{index}/eval", step])
            continue
        twin = net.double().train()
        (twin(coords.double()) - target.double()).square().mean().backward()
        exact = torch.cat([parameter.grad.flatten() for parameter in twin.parameters()]).norm()
        assert found[f"{index}/eval", step] == found[f"{index}/step", step] == pytest.approx(float(exact), rel=1e-4)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "freezing": (lambda net: net.layers[1].requires_grad_(False), r"net\.layers\.1\.weight was frozen"),
    "thawing": (lambda net: net.layers[0].bias.requires_grad_(True), r"net\.layers\.0\.bias was unfrozen"),
    "another parameter": (
        lambda net: setattr(net.layers[1], "weight", nn.Parameter(net.layers[1].weight.detach().clone())),
        r"net\.layers\.1\.weight was replaced",
    ),
    "another layer": (
        lambda net: net.layers.__setitem__(1, copy.deepcopy(net.layers[1])),
        r"net\.layers\.1 was replaced",
    ),
    "other memory": (
        lambda net: setattr(net.layers[1].weight, "data", net.layers[1].weight.detach().clone()),
        r"net\.layers\.1\.weight has other memory",
    ),
    "assigned": (
        lambda net: net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True),
        r"net\.layers\.0\.weight was replaced",
    ),
    "converting": (lambda net: net.double(), r"net\.layers\.0\.weight is torch.float64 now"),
    "a hook": (
        lambda net: net.layers[1].register_forward_hook(lambda module, inputs, output: output),
        r"hooks of net\.layers\.1 were added or removed",
    ),
    "a hook of a parameter": (
        lambda net: net.layers[1].weight.register_hook(lambda grad: 0 * grad),
        r"hooks of net\.layers\.1\.weight were",
    ),
    "a new part": (lambda net: net.add_module("more", nn.Linear(1, 1)), r"net\.more\S* is new"),
}


@pytest.mark.parametrize("method", ["on_step", "on_eval"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_fit_would_not_follow_is_refused_by_name(change: str, method: str, tmp_path: Path) -> None:
    """Nothing is saved then; what is done to weights in place, and undone within a call, is fine."""
    do, said = CHANGES[change]

    def changer(doing: Callable[[Any], Any]) -> Any:
        def call(self: Any, state: FitState) -> None:
            if state.step == 4:
                doing(state.net)

        return type("Changer", (), {method: call})()

    def run(doing: Callable[[Any], Any], **options: Any) -> Any:
        net = small()
        net.layers[0].bias.requires_grad_(False)
        return fit(net, COORDS, TARGET, steps=8, eval_every=2, callbacks=[changer(doing)], **options)

    path = tmp_path / "fit.safetensors"
    with pytest.raises(ValueError, match=rf"callbacks \(Changer\) .* after {method} {said}"):
        run(do, checkpoint=path)
    assert not path.exists()

    def fine(net: Any) -> None:
        with torch.no_grad():
            net.layers[1].weight.mul_(0.99)
        net.layers[1].weight.requires_grad_(False)
        net.layers[1].weight.requires_grad_(True)
        net.layers[1].register_forward_hook(lambda *_: None).remove()

    assert run(fine).steps == 8


def test_one_fit_at_a_time_trains_a_network() -> None:
    """Neither a thread nor a callback trains what is being trained; afterwards, and after errors, anybody may."""
    net, other = small(), small(1)
    shared = nn.Sequential(net.layers[0], nn.Linear(16, 1))
    found: list[str] = []

    class Nested:
        def on_step(self, state: FitState) -> None:
            def again(nested: Any) -> None:
                try:
                    fit(nested, COORDS, TARGET, steps=1)
                    found.append("fitted")
                except RuntimeError as error:
                    found.append(str(error))

            if state.step == 2:
                for nested in (state.net, shared, other):
                    again(nested)
                thread = threading.Thread(target=again, args=(state.net,))
                thread.start()
                thread.join()
            if state.step == 3:
                raise KeyError("mine")

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            fit(net, COORDS, TARGET, steps=4, callbacks=[Nested()])
    words = "is being trained by another fit"
    assert [words in text or text for text in found] == [True, True, "fitted", True] * 2
    assert found[0].startswith("net.layers.0.weight") and found[1].startswith("net.0.weight")
    fit(shared, COORDS, TARGET, steps=1)


@pytest.mark.parametrize("where", ["on_step", "on_eval", "loss", "the last evaluation"])
def test_an_error_loses_no_update(where: str, tmp_path: Path) -> None:
    """The checkpoint holds the last complete update, and the fit goes on from it bit by bit."""
    at = 12 if where == "the last evaluation" else 6
    repaired = tmp_path / "repaired"

    class Broken:
        def on_step(self, state: FitState) -> None:
            if not repaired.exists() and where == "on_step" and state.step == at:
                raise RuntimeError("mine")

        def on_eval(self, state: FitState) -> None:
            if not repaired.exists() and where in ("on_eval", "the last evaluation") and state.step == at:
                raise RuntimeError("mine")

    def loss(prediction: Tensor, target: Tensor, step: int) -> Tensor:
        if not repaired.exists() and where == "loss" and step == at:
            raise RuntimeError("mine")
        return (prediction - target).abs().mean()

    def run(**options: Any) -> tuple[Any, Any]:
        net = small()
        extra = {"loss": loss} if where == "loss" else {}
        return net, fit(net, COORDS, TARGET, steps=12, eval_every=3, callbacks=[Broken()], **extra, **options)

    path = tmp_path / "fit.safetensors"
    with pytest.raises(RuntimeError, match="mine"):
        run(checkpoint=path)
    tree, _ = read_fit(path)
    assert tree["networks"][0]["done"] == at
    repaired.touch()
    net, result = run(checkpoint=path, resume=True)
    whole, expected = run()
    assert (result.losses, result.psnrs) == (expected.losses, expected.psnrs)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), whole.parameters(), strict=True))


def test_a_state_belongs_to_its_call() -> None:
    notes = Notes()
    fit(small(), COORDS, TARGET, steps=2, callbacks=[notes])
    for state in (*notes.steps, *notes.evaluations):
        for call in (state.gradient_norm, state.stop):
            with pytest.raises(RuntimeError, match=r"belongs to the call of step \d"):
                call()


# ---- loggers ---------------------------------------------------------------------------------------------------------

SHAPE = (10, 10)


class FakeRun:
    """A run of Weights & Biases that keeps what it is told."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str]] = []

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("wandb")
    module.Image = lambda values: ("image", values)  # type: ignore[attr-defined]
    module.run = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_tensorboard_is_told_every_evaluation_and_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    net = small()
    result = fit(net, COORDS, TARGET, steps=9, eval_every=4, callbacks=[TensorBoard(tmp_path, shape=SHAPE, every=2)])
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    told = {tag: read.Scalars(f"fit/{tag}") for tag in ("psnr", "best_psnr", "loss", "lr")}
    assert tuple(own.step for own in told["psnr"]) == result.eval_steps
    assert [own.value for own in told["psnr"]] == pytest.approx(result.psnrs)
    losses = [result.losses[step - 1] for step in result.eval_steps[1:]]
    assert [own.value for own in told["loss"]] == pytest.approx(losses)
    pictures = read.Images("fit/reconstruction")
    assert [own.step for own in pictures] == [0, 8]
    assert (pictures[0].width, pictures[0].height) == SHAPE


def test_a_run_of_weights_and_biases_is_told_every_evaluation_and_the_picture(wandb: ModuleType) -> None:
    run, net = FakeRun(), small()
    logger = WandB(run, shape=SHAPE, every=1, value_range=(-1.0, 1.0))  # type: ignore[arg-type]
    result = fit(net, COORDS, TARGET, steps=9, eval_every=4, callbacks=[logger])
    assert run.metrics == [("fit/*", "fit/step")]
    assert tuple(own["fit/step"] for own in run.logged) == result.eval_steps
    assert tuple(own["fit/psnr"] for own in run.logged) == result.psnrs
    assert "fit/loss" not in run.logged[0] and run.logged[1]["fit/loss"] == result.losses[3]
    kind, picture = run.logged[-1]["fit/reconstruction"]
    expected = (net(COORDS).detach().clamp(-1, 1) + 1) / 2 * 255
    assert kind == "image" and picture.dtype == "uint8"
    assert torch.allclose(torch.as_tensor(picture).float(), expected.reshape(SHAPE), atol=0.51)


def test_networks_that_step_together_are_told_apart(wandb: ModuleType) -> None:
    wandb.run = FakeRun()  # type: ignore[attr-defined]
    results = fit_many([small(), small(1)], COORDS, [TARGET, -TARGET], steps=4, callbacks=[WandB(name="own")])
    for name, result in zip(("own", "own-1"), results, strict=True):
        told = [own for own in wandb.run.logged if f"{name}/step" in own]
        assert tuple(own[f"{name}/psnr"] for own in told) == result.psnrs


@pytest.mark.parametrize("many", [False, True])
def test_a_logged_fit_is_the_same_to_the_bit_and_as_fast(tmp_path: Path, many: bool, wandb: ModuleType) -> None:
    def run(callbacks: list[Any]) -> tuple[Any, list[Tensor]]:
        nets = [small(activation="sine", init="siren"), small(1, activation="sine", init="siren")]
        if many:
            results = fit_many(nets, COORDS, [TARGET, -TARGET], steps=20, callbacks=callbacks)
        else:
            results = [fit(nets[0], COORDS, TARGET, steps=20, batch_size=32, callbacks=callbacks)]
        return results, [tensor for net in nets for tensor in net.parameters()]

    loggers = [WandB(FakeRun(), shape=SHAPE, every=1)]
    if many:
        pytest.importorskip("tensorboard")
        loggers.append(TensorBoard(tmp_path, shape=SHAPE))  # type: ignore[arg-type]
    (plain, before), (logged, after) = run([]), run(loggers)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for one, other in zip(plain, logged, strict=True):
        assert one.losses == other.losses and one.config["gradient"] == other.config["gradient"]


def test_a_picture_of_anybodys_network_with_leading_axes_and_a_dict(wandb: ModuleType) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 3)

        def forward(self, coords: Tensor) -> dict[str, Tensor]:
            assert coords.ndim == 3
            return {"colour": self.line(coords)}

    run, net = FakeRun(), Own()
    fit(net, COORDS[None], TARGET.expand(-1, 3)[None], steps=1, select="colour", callbacks=[WandB(run, shape=SHAPE)])
    assert run.logged[0]["fit/reconstruction"][1].shape == (*SHAPE, 3)


def test_loggers_refuse_what_they_cannot_log(wandb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, error, told in (
        ({"run": 3}, TypeError, "run must be what wandb.init returned"),
        ({"name": 3}, TypeError, "name must be a text"),
        ({"shape": (10,)}, ValueError, r"shape must be \(H, W\)"),
        ({"shape": (10, 0)}, ValueError, "shape"),
        ({"every": 0}, ValueError, "every"),
        ({"value_range": (1.0, 1.0)}, ValueError, "value_range must rise"),
    ):
        with pytest.raises(error, match=told):
            WandB(**{"run": FakeRun(), **given})
    with pytest.raises(ValueError, match=r"call wandb\.init\(\.\.\.\) first"):
        WandB()
    with pytest.raises(TypeError, match="writer must be a folder"):
        TensorBoard(3)
    with pytest.raises(ValueError, match="shape must hold the 100 points"):
        fit(small(), COORDS, TARGET, steps=1, callbacks=[WandB(FakeRun(), shape=(10, 9))])
    two = inr.INR(2, 2, width=4)
    with pytest.raises(ValueError, match="a network of 2 outputs"):
        fit(two, COORDS, TARGET.expand(-1, 2), steps=1, callbacks=[WandB(FakeRun(), shape=SHAPE)])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingLibraryError, match="pip install wandb"):
        WandB(FakeRun())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingLibraryError, match="pip install tensorboard"):
        TensorBoard("runs")
