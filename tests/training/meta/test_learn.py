"""Meta-learning finds the start that it says, repeats itself, goes on where it was stopped, and refuses what is bad."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import inrfast as inr
from inrfast.errors import DivergedError
from inrfast.training.meta import outer
from inrfast.training.networks import load_network, save_network

COORDS = inr.grid(24)


def network(**options: Any) -> inr.INR:
    return inr.INR(1, 1, **{"width": 12, "hidden_layers": 2, "activation": "tanh", **options})


def forgotten() -> inr.INR:
    """Return the network as another process begins with it, whose weights the checkpoint brings."""
    net = network()
    with torch.no_grad():
        net.layers[1].weight.zero_()
    return net


def waves(count: int = 8, seed: int = 0) -> Tensor:
    phases = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))
    return 0.5 * torch.sin(3 * COORDS.T + 2 * phases)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: own.clone() for name, own in net.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("method", ["maml", "fomaml", "reptile"])
def test_a_learned_start_fits_new_signals_of_its_kind_better_than_it_did(method: str) -> None:
    net, new = network(), waves(5, seed=1)
    before = inr.adapt(net, COORDS, new, steps=3, lr=0.1).psnrs[3]
    result = inr.meta_learn(net, COORDS, waves(), method, inner_lr=0.1, steps=80, lr=5e-3, batch=4, progress=False)
    after = inr.adapt(net, COORDS, new, steps=3, lr=0.1).psnrs[3]
    assert float((after - before).min()) > 1
    assert result.steps == len(result.losses) == len(result.start_losses) == 80
    assert sum(result.losses[-10:]) < sum(result.losses[:10])
    assert not net.layers[0].weight.grad


def test_the_outer_steps_are_torchs_adam_on_the_mean_over_a_batch_of_everything() -> None:
    net = network().double()
    plain, x, y = copy.deepcopy(net), COORDS.double(), waves(3).double().unsqueeze(2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        total = torch.zeros((), dtype=torch.float64)
        for target in y:
            at = dict(plain.named_parameters())
            for _ in range(2):
                loss = (functional_call(plain, at, (x,)) - target).square().mean()
                grads = torch.autograd.grad(loss, list(at.values()), create_graph=True)
                at = {name: p - 0.1 * grad for (name, p), grad in zip(at.items(), grads, strict=True)}
            total = total + (functional_call(plain, at, (x,)) - target).square().mean() / 3
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    result = inr.meta_learn(net, x, y, inner_lr=0.1, steps=5, lr=1e-2, batch=3, progress=False)
    assert result.losses == pytest.approx(losses)
    for name, own in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], own)


class Interrupting:
    """Raises in the middle of a step, once a number of them is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]) -> None:
        real = outer.Outer.step

        def step(self: outer.Outer) -> None:
            if self.done == at:
                raise error
            real(self)

        monkeypatch.setattr(outer.Outer, "step", step)


@pytest.mark.parametrize("method", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_stopped_call_goes_on_to_the_same_digits(
    method: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"method": method, "steps": 9, "lr": 1e-2, "batch": 3, "seed": 5, "progress": False}
    whole = network()
    wanted = inr.meta_learn(whole, COORDS, waves(), **given)
    file, net = tmp_path / "meta.safetensors", network()
    with monkeypatch.context() as patch:
        Interrupting(patch, 4, error)
        if error is SystemExit:
            with pytest.raises(SystemExit):
                inr.meta_learn(net, COORDS, waves(), checkpoint=file, **given)
        else:
            result = inr.meta_learn(net, COORDS, waves(), checkpoint=file, **given)
            assert result.interrupted
            assert result.steps == 4
    fresh = forgotten()
    found = inr.meta_learn(fresh, COORDS, waves(), checkpoint=file, resume=True, **given)
    assert_equal(state(fresh), state(whole))
    assert found.losses == wanted.losses
    assert found.start_losses == wanted.start_losses
    again = forgotten()
    assert inr.meta_learn(again, COORDS, waves(), checkpoint=file, resume=True, **{**given, "steps": 9}).steps == 9
    assert_equal(state(again), state(whole))


def test_a_seed_repeats_itself_and_another_draws_other_batches() -> None:
    found = []
    for seed in (1, 1, 2):
        net = network()
        inr.meta_learn(net, COORDS, waves(), steps=4, lr=1e-2, batch=2, seed=seed, progress=False)
        found.append(state(net))
    assert_equal(found[0], found[1])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_a_checkpoint_of_something_else_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    file = tmp_path / "meta.safetensors"
    given: dict[str, Any] = {"steps": 2, "batch": 2, "progress": False, "checkpoint": file}
    inr.meta_learn(network(), COORDS, waves(), **given)
    with pytest.raises(FileExistsError, match="resume=True"):
        inr.meta_learn(network(), COORDS, waves(), **given)
    for other, words in (
        ({"net": network(width=13)}, "net.width .now 13, in the checkpoint 12"),
        ({"signals": waves(seed=3)}, "data.signals"),
        ({"coords": COORDS + 1}, "data.coords"),
        ({"inner_lr": 0.5}, "config.inner_lr .now 0.5, in the checkpoint 0.01"),
        ({"method": "reptile"}, "config.method"),
        ({"steps": 1}, "holds 2 steps, more than steps=1"),
    ):
        net = other.get("net", network())
        before = state(net)
        arguments = {"net": net, "coords": COORDS, "signals": waves(), **given, "resume": True, **other}
        with pytest.raises(ValueError, match=words):
            inr.meta_learn(**arguments)
        assert_equal(state(net), before)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        inr.meta_learn(network(), COORDS, waves(), resume=True, **given)


def test_a_divergence_ends_with_the_last_good_weights() -> None:
    net = network(activation="relu", hidden_layers=4)
    before = state(net)
    with pytest.raises(DivergedError, match=r"outer step 0 .* lower inner_lr .it was 1e\+30"):
        inr.meta_learn(net, COORDS, waves(), inner_lr=1e30, steps=5, progress=False)
    assert_equal(state(net), before)
    with pytest.raises(DivergedError):
        inr.meta_learn(net, COORDS, waves(), lr=1e25, steps=50, progress=False)
    assert all(math.isfinite(float(own.sum())) for own in net.state_dict().values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_inner_steps_that_do_harm_are_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match="the inner steps raise the loss"):
        inr.meta_learn(network(), COORDS, waves(), inner_lr=3.0, steps=20, lr=1e-9, progress=False)


def test_a_start_is_saved_and_read(tmp_path: Path) -> None:
    net = network()
    inr.meta_learn(net, COORDS, waves(), steps=2, progress=False)
    save_network(net, tmp_path / "start.safetensors")
    assert_equal(state(load_network(tmp_path / "start.safetensors")[0]), state(net))


def test_frozen_parameters_stay_and_modes_come_back() -> None:
    net = network()
    net.layers[0].weight.requires_grad_(False)
    first = net.layers[0].weight.clone()
    net.eval()
    with torch.no_grad():
        inr.meta_learn(net, COORDS, waves(), steps=3, lr=1e-2, progress=False)
    assert torch.equal(net.layers[0].weight, first)
    assert not net.training
    assert not torch.equal(net.layers[1].weight, network().layers[1].weight)


def test_bad_arguments_are_named() -> None:
    net, y = network(), waves()
    bad: list[tuple[dict[str, Any], str]] = [
        ({"method": "mamll"}, "method must be one of .* Did you mean 'maml'"),
        ({"batch": 9}, "batch must be at most the number of signals 8, got 9"),
        ({"inner_lr": 0.0}, "inner_lr must be above 0"),
        ({"inner_steps": 0}, "inner_steps must be at least 1"),
        ({"signals": y[0]}, r"signals must have shape \(B, N, M\)"),
        ({"signals": y[:, :5]}, r"signals\[0\] must have shape \(24, 1\)"),
        ({"signals": 255 * y + 128}, "signals must span a range near 1"),
        ({"signals": y.log()}, "signals.* must be finite"),
        ({"coords": COORDS.expand(3, 24, 1)}, r"coords must have shape \(N, d\), or \(8, N, d\)"),
        ({"net": network(norm="batch")}, "batch norm and dropout"),
        ({"net": nn.Sequential(nn.Linear(1, 4), nn.Dropout(), nn.Linear(4, 1))}, "batch norm and dropout"),
    ]
    for other, words in bad:
        arguments = {"net": net, "coords": COORDS, "signals": y, "steps": 1, "progress": False, **other}
        with pytest.raises(ValueError, match=words):
            inr.meta_learn(**arguments)
    with pytest.raises(TypeError, match=r"^signals\[0\] must .*got torch.int64; \.float\(\)"):
        inr.meta_learn(net, COORDS, list(y.long()), steps=1)


class InADict(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, coords):
        return {"values": self.net(coords), "more": coords}


@pytest.mark.parametrize("method", ["maml", "fomaml", "reptile"])
def test_the_output_is_taken_from_what_a_network_returns(method, tmp_path):
    y, found = waves(4).unsqueeze(2), {}
    for number, select in enumerate((None, "values", lambda returned: returned["values"])):
        net = network() if select is None else InADict(network())
        given = {
            "method": method,
            "batch": 2,
            "progress": False,
            "select": select,
            "checkpoint": tmp_path / f"{number}",
        }
        inr.meta_learn(net, COORDS, y, steps=1, seed=0, **given)
        result = inr.meta_learn(net, COORDS, y, steps=2, seed=0, resume=True, **given)
        found[number] = [*result.losses, *inr.adapt(net, COORDS, y, steps=2, select=select).psnrs.flatten().tolist()]
    first, *others = found.values()
    assert all(torch.allclose(torch.tensor(first), torch.tensor(other), rtol=1e-4) for other in others)
    with pytest.raises(TypeError, match="pass select="):
        inr.meta_learn(InADict(network()), COORDS, y, steps=1)


@pytest.mark.filterwarnings("ignore:.*pixels of")
def test_signals_of_other_numbers_are_taken_as_a_fit_takes_them():
    y = waves(4).abs().unsqueeze(2)
    usual = inr.meta_learn(network(), COORDS, (255 * y).byte() / 255, steps=2, progress=False).losses
    for signals in ((255 * y).byte(), list((255 * y).byte().numpy())):
        assert inr.meta_learn(network(), COORDS, signals, steps=2, progress=False).losses == usual
    found = inr.meta_learn(network(), COORDS.double(), ((255 * y).byte() / 255).double(), steps=2, progress=False)
    assert found.losses == usual


@pytest.mark.filterwarnings("error")
def test_signals_of_another_graph_are_taken_as_numbers() -> None:
    y = waves().requires_grad_()
    for given in (y, list(y)):
        net = network()
        inr.meta_learn(net, COORDS, given, steps=2, progress=False)
        inr.adapt(net, COORDS, given, steps=1)
    assert y.grad is None
