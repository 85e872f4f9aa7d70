"""Fits by fused steps: the trajectories of fp64, the same bits one step or many at a time, and everything a fit can."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exact_gradients import exact, of, signal

import inrfast as inr
from inrfast.errors import DivergedError, NotAvailableError
from inrfast.training import group
from inrfast.training.callbacks import Callback
from inrfast.training.data import check_data
from inrfast.training.engines import Task, fused, gradient_of
from inrfast.training.engines.fused import FusedGradient
from inrfast.training.stack import Stack

STEPS = 10


def network(seed=0, **options):
    options = {"width": 16, "hidden_layers": 2, "activation": "sine", "omega": 4.0} | options
    return inr.INR(2, 2, seed=seed, **options)


def data(n=60, dtype=torch.float32, device="cpu"):
    rng = torch.Generator().manual_seed(7)
    coords = 2 * torch.rand(n, 2, generator=rng, dtype=torch.float64) - 1
    target = torch.stack([(3 * coords[:, 0]).sin(), coords[:, 1] ** 2], 1) / 2
    return coords.to(device, dtype), target.to(device, dtype)


def fitted(device, net=None, backend="triton", **options):
    net = (network() if net is None else net).to(device)
    coords, target = data(dtype=net.layers[0].weight.dtype, device=device)
    target = target.abs() if options.get("loss") == "bce" else target
    return net, inr.fit(net, coords, target, **{"steps": STEPS, "lr": 3e-3, "backend": backend, **options})


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Watcher(Callback):
    """A callback that is told every step: steps then come one by one."""

    def __init__(self):
        self.steps = []

    def on_step(self, state):
        self.steps.append(state.step)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_trajectories_are_those_of_fp64(device, optimizer):
    options = {"optimizer": optimizer, "weight_decay": 0.01, "eval_every": 5}
    _, exact = fitted(device, network().double(), "torch", **options)
    for precision, bound in (("high", 2e-5), ("medium", 5e-3)):
        _, result = fitted(device, precision=precision, **options)
        assert result.config["gradient"] == "fused"
        assert result.losses == pytest.approx(exact.losses, rel=bound)
        assert result.psnrs == pytest.approx(exact.psnrs, abs=10 * bound)
    _, highest = fitted(device, network().double(), precision="highest", **options)
    assert highest.losses == pytest.approx(exact.losses, rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu", "encoding": inr.RandomFourier(8, 1.0)},
        {"activation": "finer", "omega": 2.0, "bias": False},
        {"activation": "gaussian", "encoding": inr.PositionalEncoding(2), "hidden_layers": 1},
    ],
)
@pytest.mark.parametrize("fit", [{}, {"batch_size": 30, "seed": 3}])
def test_fits_are_those_of_the_other_backend(device, options, fit):
    """The same batches, the same losses: those of ReLU to the rounding of its gates."""
    _, theirs = fitted(device, network(**options), "torch", **fit)
    _, ours = fitted(device, network(**options), **fit)
    bound = 1e-3 if options.get("activation") == "relu" else 2e-5
    assert ours.losses == pytest.approx(theirs.losses, rel=bound)
    assert ours.psnrs == pytest.approx(theirs.psnrs, abs=20 * bound)


@pytest.mark.parametrize(
    ("loss", "precision", "bound"),
    [("l1", "high", 2e-5), ({"name": "huber", "delta": 0.2}, "medium", 5e-3), ("bce", "high", 2e-5)],
)
def test_named_losses_and_regularisers_are_those_of_the_other_backend(device, loss, precision, bound):
    def decay(net):
        return sum(parameter.square().sum() for parameter in net.parameters())

    options = {"loss": loss, "batch_size": 30, "clip_norm": 0.05, "steps": 5, "eval_every": 5}
    options["regularizers"] = [(decay, 1e-3), lambda net, coords: net(coords).square().mean()]
    _, exact = fitted(device, network().double(), "torch", **options)
    _, ours = fitted(device, precision=precision, **options)
    assert ours.config["gradient"] == "fused"
    assert ours.losses == pytest.approx(exact.losses, rel=bound)
    assert ours.psnrs == pytest.approx(exact.psnrs, abs=20 * bound)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_one_step_at_a_time_or_many_have_the_same_bits(device, precision):
    """And a run repeats bit by bit, wherever it is cut into steps."""
    options = {"precision": precision, "batch_size": 30, "eval_every": 5}
    net, result = fitted(device, **options)
    for other in ({}, {"callbacks": [Watcher()]}):
        again, same = fitted(device, **options, **other)
        assert same_weights(net, again)
        assert same.losses == result.losses
        assert same.psnrs == result.psnrs
    assert other["callbacks"][0].steps == list(range(1, STEPS + 1))


def test_few_steps_at_once_change_nothing(device, monkeypatch):
    net, result = fitted(device, batch_size=30)
    monkeypatch.setattr(fused, "DRAWN_SHARE", 2**22)  # room for the points of three steps
    other, same = fitted(device, batch_size=30, memory_budget=3 * 2**22 * 8 * 30)
    monkeypatch.setattr(group, "LONGEST", 0.0)  # every look at the losses comes too late: ever fewer steps at once
    slow, slower = fitted(device, batch_size=30)
    assert same_weights(net, other)
    assert same_weights(net, slow)
    assert result.losses == same.losses == slower.losses


def test_many_networks_take_their_steps_in_one_sequence(device):
    """Each as its own fit would, with its own rate, target, batches and goal; one that ends leaves the others alone."""
    nets = [network(seed).to(device) for seed in range(3)]
    alone = copy.deepcopy(nets)
    coords, target = data(device=device)
    targets = [target, 0.5 * target, target.flip(1)]
    options = {"steps": STEPS, "batch_size": 30, "eval_every": 4, "backend": "triton"}
    each = [{"lr": 1e-3, "seed": 1}, {"lr": 2e-3, "seed": 2}, {"lr": 3e-3, "seed": 3}]
    singles = [inr.fit(net, coords, y, **own, **options) for net, y, own in zip(alone, targets, each, strict=True)]
    goal = sum(singles[1].psnrs[:2]) / 2  # between two evaluations: no rounding decides which one reaches it
    assert singles[1].psnrs[1] > goal + 1e-3
    results = inr.fit_many(
        nets, coords, targets, lr=[own["lr"] for own in each], seed=[own["seed"] for own in each],
        target_psnr=[None, goal, None], **options,
    )  # fmt: skip
    assert [result.steps for result in results] == [STEPS, 4, STEPS]
    assert results[1].stopped == "target_psnr"
    for result, single in zip(results, singles, strict=True):
        assert result.losses == pytest.approx(single.losses[: result.steps], rel=1e-5)
        assert result.psnrs == pytest.approx(single.psnrs[: len(result.psnrs)], abs=1e-4)
    for net, single, result in zip(nets, singles, results, strict=True):
        assert set(result.best_state) == set(single.best_state)
        assert all(parameter.is_contiguous() and parameter.grad is None for parameter in net.parameters())
        assert len({parameter.untyped_storage().data_ptr() for parameter in net.parameters()}) == 6


@pytest.mark.parametrize(
    ("norm", "precision", "bound"), [(["batch", None], "high", 1e-4), ([None, "batch"], "medium", 2e-2)]
)
def test_batch_norms_are_those_of_fp64(device, norm, precision, bound):
    """Losses, evaluations and running statistics of a stack, and of its networks one by one; many steps at once."""
    options = {"norm": norm, "norm_position": "post"}
    nets = [network(seed, **options).to(device) for seed in range(2)]
    twins, alone = copy.deepcopy(nets), copy.deepcopy(nets[0])
    coords, target = data(device=device)
    fit = {"steps": 6, "lr": 3e-3, "eval_every": 3, "batch_size": 40}
    seeds = [1, 2]
    results = inr.fit_many(nets, coords, target, seed=seeds, precision=precision, backend="triton", **fit)
    _, single = fitted(device, alone, precision=precision, **fit, seed=1)
    exact = inr.fit_many(
        [t.double() for t in twins], coords.double(), target.double(), seed=seeds, backend="torch", **fit
    )
    for net, twin, result, theirs in zip(nets, twins, results, exact, strict=True):
        assert result.config["gradient"] == "fused"
        assert result.losses == pytest.approx(theirs.losses, rel=bound)
        assert result.psnrs == pytest.approx(theirs.psnrs, abs=20 * bound)
        for (name, ours), own in zip(net.named_buffers(), twin.buffers(), strict=True):
            assert torch.allclose(ours.double(), own.double(), rtol=bound, atol=bound), name
    assert single.losses == pytest.approx(results[0].losses, rel=bound)


def test_a_network_that_diverges_is_set_back_and_the_others_go_on(device):
    coords, target = data(device=device)
    nets = [network(seed, activation="gelu").to(device) for seed in range(2)]
    rates = [1e-3, 1e25]
    options = {"steps": STEPS, "optimizer": "sgd", "eval_every": 100, "schedule": "constant", "lr": rates}
    twins = copy.deepcopy(nets)
    results = inr.fit_many(nets, coords, target, backend="triton", **options)
    theirs = inr.fit_many(twins, coords, target, backend="torch", **options)
    assert [result.stopped for result in results] == [result.stopped for result in theirs] == ["steps", "diverged"]
    assert results[1].steps == theirs[1].steps
    assert all(bool(parameter.isfinite().all()) for parameter in nets[1].parameters())
    assert results[0].losses == pytest.approx(theirs[0].losses, rel=1e-5)
    with pytest.raises(DivergedError, match="lower lr"):
        inr.fit(network(1, activation="gelu").to(device), coords, target, backend="triton", **{**options, "lr": 1e25})


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_fit_goes_on_from_its_checkpoint_bit_by_bit(device, tmp_path, precision):
    options = {"precision": precision, "batch_size": 30, "eval_every": 3, "schedule": "constant"}
    net, whole = fitted(device, **options)
    path = tmp_path / "fit.safetensors"
    fitted(device, steps=7, checkpoint=path, **options)
    resumed, result = fitted(device, checkpoint=path, resume=True, **options)
    assert same_weights(net, resumed)
    assert result.losses == whole.losses
    # The state is that of the other backend's optimiser: a fit may move.
    with pytest.warns(RuntimeWarning, match="not bit by bit: other layout"):
        _, moved = fitted(device, steps=STEPS + 2, checkpoint=path, resume=True, backend="torch", **options)
    assert moved.steps == STEPS + 2


def test_frozen_parameters_stay(device):
    net = network()
    for name in ("layers.0.weight", "layers.1.bias"):
        net.get_parameter(name).requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    twin = copy.deepcopy(net)
    net, result = fitted(device, net)
    _, theirs = fitted(device, twin, "torch")
    assert result.losses == pytest.approx(theirs.losses, rel=1e-5)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value.cpu(), before[name])}
    assert moved == set(before) - {"layers.0.weight", "layers.1.bias"}


def test_what_takes_single_steps_is_fused_too(device):
    """Clipping, an optimiser of one's own, weights, and an evaluation elsewhere."""
    coords, target = data(device=device)
    weight = torch.rand(len(coords), generator=torch.Generator().manual_seed(0)).to(device)
    weight[::7] = 0
    cases = [
        {"clip_norm": 0.01},
        {"weight": weight, "batch_size": 20},
        {"eval_coords": coords[:9], "eval_target": target[:9]},
    ]
    for options in cases:
        _, theirs = fitted(device, backend="torch", **options)
        _, ours = fitted(device, **options)
        assert ours.config["gradient"] == "fused"
        assert ours.losses == pytest.approx(theirs.losses, rel=2e-5)
        assert ours.psnrs == pytest.approx(theirs.psnrs, abs=1e-3)
    nets = [network().to(device) for _ in range(2)]
    results = [
        inr.fit(
            net, coords, target, steps=5, optimizer=torch.optim.LBFGS(net.parameters(), max_iter=3), backend=backend
        )
        for net, backend in zip(nets, ("triton", "torch"), strict=True)
    ]
    assert results[0].losses == pytest.approx(results[1].losses, rel=1e-3)


def test_callbacks_of_evaluations_may_change_weights(device):
    class Halve(Callback):
        def on_eval(self, state):
            if state.step == 4:
                with torch.no_grad():
                    state.net.layers[0].weight.mul_(0.5)

    results = [fitted(device, backend=b, eval_every=4, callbacks=[Halve()])[1] for b in ("torch", "triton")]
    assert results[1].losses == pytest.approx(results[0].losses, rel=1e-4)
    assert results[1].losses[5] != pytest.approx(fitted(device)[1].losses[5], rel=1e-2)


def test_a_gradient_that_overflows_sixteen_bits_is_taken_again(device):
    """A scale that is far too large for the errors: backed off, the gradient is as good as ever."""
    net = network()
    coords, target = signal(net, 60)
    stack = Stack([net.to(device)], flat=True)
    points = check_data(net, coords.to(device), target.to(device))
    gradient = gradient_of(stack, Task([net], points, budget=2**40, narrow=True, backend="triton"))
    assert isinstance(gradient, FusedGradient)
    gradient.engine.scales[0] = 2.0**24
    loss, expected = exact(net, coords.to(device), target.to(device))
    assert float(gradient(None)) == pytest.approx(loss, rel=1e-3)
    found = torch.cat([grad[0].double().flatten() for grad in stack.grads.values()])
    assert float((found - expected).norm()) <= 1e-2 * float(expected.norm())


def test_a_backend_that_is_named_never_falls_back(device, monkeypatch):
    coords, target = data(device=device)
    shared = network(hidden_layers=3)
    shared.layers[1] = shared.layers[2]
    refused = [
        (network(activation=["relu", "sine"]), {}, "different activations"),
        (network(norm="sphere"), {}, "have norms"),
        (torch.nn.Linear(2, 2), {}, "not an inrfast.INR"),
        (network(), {"loss": lambda pred, target: (pred - target).abs().mean()}, "loss"),
        (shared, {}, "share parameters"),
        (network(encoding=inr.RandomFourier(50, 1.0)), {"memory_budget": 10_000}, "encoded points"),
        (network(), {"precision": "medium", "coords": 1e5 * coords}, "coordinates beyond"),
    ]
    for net, options, said in refused:
        points = options.pop("coords", coords)
        before = copy.deepcopy(net).to(device)
        with pytest.raises(NotAvailableError, match=f"no fused step here: .*{said}.* use 'torch' or 'auto'"):
            inr.fit(net.to(device), points, target, steps=2, backend="triton", **options)
        assert same_weights(before, net)
    assert of(network(), *signal(network(), 20)).name == "layerwise"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if device.type == "cpu":
        with pytest.raises(NotAvailableError, match="run on CUDA devices"):
            inr.fit(network(), coords, target, steps=2, backend="triton")


def test_blocks_of_steps_are_graphs_of_their_own_gpu():
    """On either of two GPUs: the numbers of the other one, everything in graphs, one wait a block; a capture that fails
    leaves no trace but a warning."""
    script = Path(__file__).parents[2] / "pretend_fits.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    alone, failed, passes = found["cuda:1"]["all points"], found["failing"], 3
    assert found["cuda:0"]["all points"] == alone
    assert found["many"]["violations"] == []
    for name, case in found["cuda:1"].items():
        assert case["violations"] == case["warnings"] == [] and case["current device"] == 0
        first, _, *later = case["blocks"]
        assert first["replays"] == 0 and len(later) >= 2
        assert all(block["replays"] == 1 and block["waits"] == 1 for block in later)
        # Rates, losses, finiteness; with batches the points of each step, and permutations for passes over them.
        assert max(block["kernels"] for block in later) <= (8 if name == "all points" else 12 + 35 * passes)
    assert failed["weights"] == alone["weights"] and failed["losses"] == alone["losses"]
    assert failed["current device"] == 0
    assert any("launched one by one, not as a CUDA graph: operation not permitted" in w for w in failed["warnings"])
    assert not any(block["replays"] for block in failed["blocks"])
