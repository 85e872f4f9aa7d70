"""Nothing is lost: a fit that was stopped anywhere goes on to the same digits, and a bad file is named."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.ops import gemm, mlp_step
from inrfast.training import checkpoint
from inrfast.training.callbacks import TrackNTK
from inrfast.training.checkpoint import load_network, pack, save_network, unpack
from inrfast.training.loop import fit
from inrfast.training.many import fit_many

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


# ---- trees -------------------------------------------------------------------------------------------------------

PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5)
TENSORS = st.builds(
    lambda seed, shape: torch.rand(shape, generator=torch.Generator().manual_seed(seed)),
    st.integers(0, 9),
    st.lists(st.integers(0, 3), max_size=3),
)
TREES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other and type(one) is type(other)


@given(tree=TREES)
def test_trees_come_back_as_they_were(tree: Any) -> None:
    tensors: dict[str, Tensor] = {}
    assert same(tree, unpack(pack(tree, "", tensors), tensors))


@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6), name=st.text("abc", min_size=1, max_size=9))
def test_tensors_of_a_file_have_aligned_memory_of_their_own(
    sizes: list[int], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As tensors that torch makes do: the sum of a dot product depends on where its vectors begin."""
    path = tmp_path_factory.mktemp("aligned") / "tree.safetensors"
    checkpoint.write_tree(path, "kind", {name: [torch.rand(size) for size in sizes]}, {})
    tensors = checkpoint.read_tree(path, ["kind"])[1][name]
    assert all(tensor.data_ptr() % 64 == torch.empty(tensor.shape).data_ptr() % 64 == 0 for tensor in tensors)
    assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for tensor in tensors)


def test_what_a_file_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match=r"got function at a\.1"):
        pack({"a": [1, same]}, "", {})


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
        (layout,) = checkpoint.read_tree(tmp_path / name, [checkpoint.FIT_SCHEMA])[2]["layout"]
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
        nets = [small(seed, norm="batch" if seed == 3 else None) for seed in range(5)]
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


def killed(folder: Path, name: str, after: float) -> bool:
    """Run the script and kill it so many seconds after its fit has begun; return whether it had not ended before."""
    process = subprocess.Popen([sys.executable, SCRIPT, folder, name, "0.02"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"started"
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_a_killed_fit_ends_with_the_weights_of_an_unhurt_one(tmp_path: Path) -> None:
    begun = time.monotonic()
    subprocess.run([sys.executable, SCRIPT, tmp_path, "whole", "1000"], check=True)
    seconds = time.monotonic() - begun
    kills = [killed(tmp_path, "hurt", random.Random(4).uniform(0, 0.4 * seconds)) for _ in range(2)]
    assert any(kills)
    subprocess.run([sys.executable, SCRIPT, tmp_path, "hurt", "1000"], check=True)
    whole, hurt = (torch.load(tmp_path / f"{name}.final") for name in ("whole", "hurt"))
    for one, other in zip(whole, hurt, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
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
        ({"target": 0.5 * TARGET}, "data"),
        ({"weight": torch.arange(144.0)}, "data"),
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
    for key in ("trainable", "evaluation", "identities"):
        del about[key]
    del metadata["sha256"]
    del about["own"][0]["data_range"]
    safetensors.torch.save_file(tensors, saved, {**metadata, "about": json.dumps(about)})
    result = fit(small(), COORDS, TARGET, steps=6, checkpoint=saved, resume=True)
    assert (result.steps, result.data_range) == (6, 1.0)
    safetensors.torch.save_file(tensors, saved, {**metadata, "about": json.dumps(about)})
    with pytest.raises(ValueError, match="data_range"):
        fit(small(), COORDS, TARGET, steps=6, checkpoint=saved, resume=True, data_range=0.5)


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
    with pytest.raises(ValueError, match=r"of the kind 'inrfast\.network/1'"):
        fit(small(), COORDS, TARGET, steps=6, checkpoint=foreign, resume=True)


def test_an_earlier_fit_is_not_overwritten_by_mistake(saved: Path) -> None:
    content = saved.read_bytes()
    with pytest.raises(FileExistsError, match="resume=True, or remove it"):
        fit(small(), COORDS, TARGET, steps=6, checkpoint=saved)
    assert saved.read_bytes() == content


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(saved: Path, monkeypatch: Any) -> None:
    content = saved.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*run\.safetensors"):
        checkpoint.write_tree(saved, "x", {"a": torch.ones(3)}, {})
    assert saved.read_bytes() == content
    assert [path.name for path in saved.parent.iterdir()] == ["run.safetensors"]


def test_other_chunks_are_told(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    fit(small(), COORDS, TARGET, steps=6, callbacks=[InterruptAt(3)], checkpoint=path)
    with pytest.warns(RuntimeWarning, match=r"not bit by bit: other layout"):
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


# ---- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"activation": ["sine", "relu"], "omega": [20.0, 1.0], "init": {"first": "siren", "hidden": "kaiming"}},
        {"encoding": inr.RandomFourier(8, 2.0), "norm": ["batch", None], "norm_position": "post"},
        {"encoding": inr.Polynomial(2, [1.0, 0.5, 0.25]), "bias": False, "norm": "sphere"},
        {"encoding": inr.PositionalEncoding(3), "dtype": torch.float64},
        {"init": "rank_expanding"},
    ],
)
def test_networks_come_back_from_their_files(options: dict[str, Any], tmp_path: Path) -> None:
    net = small(**options)
    with torch.no_grad():
        for tensor in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
            tensor.add_(0.1 * torch.rand_like(tensor))
    path = tmp_path / "net.safetensors"
    save_network(net, path, {"kind": "image", "shape": [3, 4]})
    loaded, signal = load_network(path)
    assert signal == {"kind": "image", "shape": [3, 4]}
    coords = COORDS.to(next(net.parameters()).dtype)
    assert torch.equal(loaded(coords), net.eval()(coords))
    assert not loaded.training
    assert loaded.config() == {**net.config(), "init": "default"}


def test_a_checkpoint_is_a_network_too(saved: Path) -> None:
    net = small()
    fit(net, COORDS, TARGET, steps=6)
    assert torch.equal(load_network(saved)[0](COORDS), net(COORDS))


def test_files_that_hold_no_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    fit_many([small(0), small(1)], COORDS, TARGET, steps=2, checkpoint=path)
    with pytest.raises(ValueError, match=r"2 network\(s\)"):
        load_network(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_network(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_network(tmp_path)
    with pytest.raises(TypeError, match=r"must be an inrfast\.INR"):
        save_network(nn.Linear(2, 1), path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must name a \.safetensors file"):
        save_network(small(), tmp_path / "net.pt")
