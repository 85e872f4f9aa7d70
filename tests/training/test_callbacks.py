"""Callbacks are told what happened, may end a fit, and may watch the tangent kernel."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import inrfast as inr
from inrfast.training.callbacks import Callback, FitState, TrackNTK
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
@pytest.mark.parametrize("kind", ["native", "tensor", "chunked", "whole", "many"])
def test_the_norm_of_the_gradient_is_that_of_autodiff_before_clipping(kind: str, clip_norm: float | None) -> None:
    coords = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    target, writer = coords.prod(1, keepdim=True), Scalars()
    options: dict[str, Any] = {"activation": "relu" if kind == "native" else "tanh"}
    options |= {"norm": {"chunked": "sphere", "whole": "batch"}.get(kind)}
    nets = [inr.INR(2, 1, width=8, hidden_layers=1, seed=seed, **options) for seed in range(3 if kind == "many" else 1)]
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
