"""A watched loop trains as if nobody looked, and what is seen is true: kernels, dead units, shares, cost."""

import copy
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import others_modules
import pytest
import random_modules
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.errors import UnsupportedModuleError
from inrfast.training import watch as module
from inrfast.training.tracked import KernelSource

COORDS = inr.grid((7, 6))
TARGET = (3 * COORDS).sin()[:, :1]
RTOLS = (1e-1, 1e-3, 1e-5)


def close(found: Tensor, truth: Tensor) -> bool:
    return bool(((found - truth).abs() <= 1e-10 * truth.abs().max()).all())


def moved_(net: nn.Module, seed: int = 0) -> nn.Module:
    """Change all parameters a little, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return net


# ---- what is seen ------------------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(net=random_modules.modules(max_width=4), seed=st.integers(0, 1000))
def test_records_are_those_of_the_exact_jacobian(net: Any, seed: int) -> None:
    """Of the kernel by torch.func in fp64: eigenvalues, ranks, trace and shares, each time; probed in full once."""
    coords = torch.rand(6, net.inlet.in_features, generator=torch.Generator().manual_seed(seed))
    start = copy.deepcopy(net)
    watch = inr.watch(net, coords, every=2, rtols=RTOLS, head=4)
    states = [copy.deepcopy(net)]
    for step in range(1, 4):
        moved_(net, seed + step)
        assert (watch.step(loss=torch.tensor(1.0 / step)) is None) == (step % 2 == 1)
        states += [copy.deepcopy(net)] if step % 2 == 0 else []
    assert [(record.step, record.loss) for record in watch.history] == [(0, None), (2, 0.5)]
    assert watch.probed == 1
    for record, state in zip(watch.history, states, strict=True):
        J = random_modules.jacobian_by_points(state, coords)
        K = torch.einsum("nmp,kmp->nk", J, J)
        values = torch.linalg.eigvalsh(K).flip(0)
        assert close(torch.tensor(record.eigenvalues, dtype=torch.float64), values[:4])
        assert record.trace == pytest.approx(float(K.trace()), rel=1e-10)
        for rank, rtol in zip(record.ranks, RTOLS, strict=True):
            if not bool(((values / values[0] - rtol).abs() < 1e-9).any()):
                assert rank.lower == rank.upper == int((values > rtol * values[0]).sum())
        p = values.clamp_min(1e-300) / values.sum()
        assert record.effective_rank == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-6)
        assert math.fsum(record.layer_shares.values()) == pytest.approx(1)
        alone = inr.ntk(state, coords, params=["inlet"], precision="highest").trace()
        assert record.layer_shares["inlet"] == pytest.approx(alone / record.trace, rel=1e-9)
        now, then = (torch.cat([p.detach().double().flatten() for p in n.parameters()]) for n in (state, start))
        assert record.weights_change == pytest.approx(float((now - then).norm() / then.norm()), rel=1e-9)


OTHERS = [
    "siren batched",
    "finer with its slope",
    "nerf colour",
    "bacon",
    "hash tables",
    "k-planes",
    "deepsdf bare code",
]


@pytest.mark.parametrize("name", [*OTHERS, "deepsdf bare code", "caching", "squeezed"])
def test_networks_of_other_people_are_watched(name: str) -> None:
    """What is captured again without most probes is what a capture from the start gives."""
    torch.manual_seed(0)
    other = others_modules.OTHERS[name]
    net, coords = other.make(others_modules.Size()), 2 * torch.rand(8, other.dimensions) - 1
    watch = inr.watch(net, coords, every=1, select=other.select)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 1 + 0.01 * torch.rand(parameter.shape)
    record = watch.step()
    assert record is not None and watch.probed == 1
    K = inr.ntk(net, coords, select=other.select, precision="highest")
    values = torch.linalg.eigvalsh(K.to_dense()).flip(0)
    assert close(torch.tensor(record.eigenvalues, dtype=torch.float64), values)
    total = K.trace()
    assert record.layer_shares == {n: pytest.approx(own.trace() / total, abs=1e-12) for n, own in K.layers.items()}
    assert str(watch).count("\n") == 4


class Gated(nn.Module):
    """Its activation is a function, in a layer of its own."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class OneActivation(nn.Module):
    """One activation for all layers, and an outlet that drops its axis."""

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(d, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.second(self.act(self.first(x))))).squeeze(-1)


class Functions(OneActivation):
    """ReLU by functions between the layers, one of them in place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.first(x))).relu_())


def rectified(kind: str, width: int) -> tuple[nn.Module, list[str], list[nn.Linear]]:
    """Return a network, the names of its rectified layers, and their linear layers."""
    if kind == "sequential":
        layers = [nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 1)]
        net = nn.Sequential(*layers)
        return net, ["1", "3"], [net[0], net[2]]
    if kind == "own layers":
        net = nn.Sequential(nn.Sequential(Gated(2, width), Gated(width, width)), nn.Sequential(nn.Linear(width, 1)))
        return net, ["0.0", "0.1"], [net[0][0].linear, net[0][1].linear]
    if kind == "one activation":
        one = OneActivation(2, width)
        return one, ["act", "act (call 2)"], [one.first, one.second]
    if kind == "functions":
        one = Functions(2, width)
        return one, ["relu(first)", "relu(second)"], [one.first, one.second]
    inet = inr.INR(2, 1, width=width, hidden_layers=2, activation="relu", norm="layer" if kind == "normed" else None)
    return inet, ["layers.0", "layers.1"], list(inet.layers[:2])


@pytest.mark.parametrize("kind", ["sequential", "own layers", "one activation", "functions", "inr", "normed"])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(0, 3), points=st.sampled_from([5, 100]))
def test_dead_units_are_those_that_are_never_positive(kind: str, seed: int, shift: float, points: int) -> None:
    """On all points, whatever subset the kernel is of, and counted from what enters the activation."""
    torch.manual_seed(seed)
    net, names, linears = rectified(kind, 8)
    with torch.no_grad():
        for linear in linears:
            linear.bias -= shift * torch.rand(8)
    entered: dict[int, list[Tensor]] = {}
    handles = [
        linear.register_forward_hook(lambda _, __, out, k=k: entered.update({k: out.detach().double().clone()}))
        for k, linear in enumerate(linears)
    ]
    net(COORDS)
    for handle in handles:
        handle.remove()
    watch = inr.watch(net, COORDS, every=1, points=points)
    found = watch.history[0].dead_units
    assert set(found) <= set(names)
    for k, name in enumerate(names):
        most = entered[k].amax(0)
        if not bool((most.abs() < 1e-5).any()):
            assert found.get(name, 0.0) == pytest.approx(float((most <= 0).double().mean()))


def test_layers_that_are_negative_somewhere_have_no_dead_units() -> None:
    assert inr.watch(inr.INR(2, 1, width=8, activation="sine"), COORDS, every=1).history[0].dead_units == {}
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 1))
    assert inr.watch(net, COORDS, every=1).history[0].dead_units == {}


# ---- the loop is left alone --------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Batch norm, dropout, a buffer that counts, an activation that is kept, noise in training, a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.calls += 1
            x = x + 0.01 * torch.randn(x.shape)
        h = self.norm(torch.sin(3 * self.a(x)))
        self.last = h = self.drop(torch.relu(self.b(h)))
        return {"rgb": self.c(h), "other": h}


def no_mode() -> AbstractContextManager[Any]:
    return nullcontext()


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "as it is": no_mode,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def trained(mode: str, wrapped: Callable[[nn.Module], nn.Module], watched: bool) -> Iterator[Any]:
    """Yield all that a loop may depend on, at its end; autocast is around all of it, other modes around the watch."""
    torch.manual_seed(1)
    net = Everything()
    net(COORDS)  # the batch norm has seen a batch
    net.b.register_full_backward_hook(lambda *_: None)
    net.b.weight.register_hook(lambda grad: 2 * grad)
    runner = wrapped(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    watch = inr.watch(runner, COORDS, every=2, points=12, select="rgb") if watched else None
    with MODES["autocast"]() if mode == "autocast" else nullcontext():
        for _ in range(5):
            batch = torch.randperm(len(COORDS))[:16]
            optimizer.zero_grad()
            loss = (runner(COORDS[batch])["rgb"] - TARGET[batch]).square().mean()
            loss.backward()
            if watch is not None:  # while gradients are live
                with MODES[mode]():
                    watch.step(loss)
            optimizer.step()
    assert watch is None or [record.step for record in watch.history] == [0, 2, 4]
    assert watch is None or set(watch.history[0].layer_shares) >= {"a", "b", "c"}
    yield from net.state_dict().values()
    yield from (parameter.grad for parameter in net.parameters())
    yield from (entry for own in optimizer.state.values() for entry in own.values())
    yield torch.get_rng_state()
    yield net.last
    yield [m.training for m in net.modules()]
    yield [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()]


@pytest.mark.parametrize("mode", MODES)
def test_a_watched_loop_ends_on_the_same_bits(mode: str) -> None:
    wrappers: list[Callable[[nn.Module], nn.Module]] = [lambda net: net]
    if mode == "as it is":
        wrappers += [nn.DataParallel, lambda net: torch.compile(net, backend="eager")]
    for wrapped in wrappers:
        pairs = zip(trained(mode, wrapped, False), trained(mode, wrapped, True), strict=True)
        for without, with_watch in pairs:
            same = torch.equal(without, with_watch) if isinstance(without, Tensor) else without == with_watch
            assert same


def test_the_kernel_is_that_of_eval_mode_whatever_the_modes_around() -> None:
    net = Everything()
    net(COORDS)
    net.last = None  # or it could not be copied
    exact = inr.ntk(copy.deepcopy(net).eval(), COORDS, select="rgb", precision="highest").trace()
    assert net.training
    for mode in MODES.values():
        with mode():
            assert inr.watch(net, COORDS, every=1, select="rgb").history[0].trace == pytest.approx(exact, rel=1e-12)


# ---- probes are made once, and anew where more than numbers changed ----------------------------------------------

SWITCH = False
"""Read by :class:`Branches`."""


class Branches(nn.Module):
    """A network whose points are coupled, or whose numbers are random, in some branches only."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.head = nn.Linear(2, 6), nn.Linear(6, 1)
        self.drop = nn.Dropout(0.5)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.coupled = False
        self.register_buffer("flag", torch.tensor(False))
        self.about = {"coupled": False}

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.gain * self.inlet(x)))
        if self.coupled or SWITCH or bool(self.flag) or self.about["coupled"]:
            h = h - h.detach().mean(0)
        if float(self.gain) > 1:
            h = h - (h.mean(0) if float(self.gain) < 2 else h.detach().mean(0))
        if float(self.gain) < 0:
            h = h + torch.rand(()) * (float(self.gain) < -0.4)
        if float(self.gain) == 0:
            self.inlet.weight.data *= 0.5
        return self.head(h)


class CoupledFromAHundred(nn.Module):
    """Its points are coupled in long batches alone, and as much as a parameter or a buffer says."""

    def __init__(self, trained: float, fixed: float) -> None:
        super().__init__()
        self.inlet = nn.Linear(2, 3)
        self.trained = nn.Parameter(torch.tensor(trained))
        self.register_buffer("fixed", torch.tensor(fixed))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inlet(x))
        return h - (self.trained + self.fixed) * h.detach().square().mean(0) if len(x) > 100 else h + 0 * self.trained


def test_coupling_that_only_long_batches_have_is_noticed_at_any_time() -> None:
    """At once where a parameter may bring it, and as soon as a buffer does."""
    coords = torch.rand(200, 2)
    with pytest.raises(UnsupportedModuleError, match="couples samples"):
        inr.ntk(CoupledFromAHundred(0.0, 0.0), coords)
    net = CoupledFromAHundred(0.0, 0.0)
    net.trained.requires_grad_(False)
    watch = inr.watch(net, coords, every=1)
    watch.step()
    assert watch.probed == 1
    net.fixed.fill_(0.5)
    with pytest.raises(UnsupportedModuleError, match="couples samples"):
        watch.step()


def coupled_forward(self: Branches, x: Tensor) -> Tensor:
    return self.head(torch.tanh(self.inlet(x))).cumsum(0)


CHANGES: dict[str, Callable[[Branches, pytest.MonkeyPatch], Any]] = {
    "attribute": lambda net, patch: setattr(net, "coupled", True),
    "inside an attribute": lambda net, patch: net.about.update(coupled=True),
    "buffer": lambda net, patch: net.flag.fill_(True),
    "global": lambda net, patch: patch.setitem(Branches.forward.__globals__, "SWITCH", True),
    "class": lambda net, patch: patch.setattr(Branches, "forward", coupled_forward),
    "own method": lambda net, patch: setattr(net, "forward", lambda x: coupled_forward(net, x)),
    "hook": lambda net, patch: net.inlet.register_forward_hook(lambda m, a, out: out - out.detach().mean(0)),
    "mode": lambda net, patch: net.drop.train(),
    "numbers, coupled": lambda net, patch: net.gain.data.fill_(1.5),
    "numbers, coupled without slopes": lambda net, patch: net.gain.data.fill_(2.5),
    "numbers, random": lambda net, patch: net.gain.data.fill_(-0.5),
    "numbers, drawn in vain": lambda net, patch: net.gain.data.fill_(-0.1),
    "numbers, changing parameters": lambda net, patch: net.gain.data.zero_(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_became_a_network_without_a_kernel_is_refused(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Branches().eval()
    source = KernelSource(COORDS)
    for seed in range(2):
        source.kernel(net)
        moved_(net.head, seed)
    assert source.probed == 1
    CHANGES[change](net, monkeypatch)
    with pytest.raises(UnsupportedModuleError):
        source.kernel(net)


@settings(max_examples=10, deadline=None)
@given(
    net=random_modules.modules(max_width=4), seed=st.integers(0, 1000), what=st.sampled_from(["freeze", "new", "fp64"])
)
def test_another_structure_is_captured_anew(net: Any, seed: int, what: str) -> None:
    coords = torch.rand(6, net.inlet.in_features, generator=torch.Generator().manual_seed(seed))
    source = KernelSource(coords)
    source.kernel(net)
    if what == "freeze":
        net.inlet.requires_grad_(False)
    elif what == "new":
        net.blocks.append(random_modules.Gain(net.head.in_features))
    else:
        net.double()
    kernel = source.kernel(moved_(net, seed))
    assert source.probed == 2
    J = random_modules.jacobian_by_points(net, coords, {n for n, p in net.named_parameters() if p.requires_grad})
    assert close(kernel.to_dense(), torch.einsum("nmp,kmp->nk", J, J))


def test_what_cannot_be_compared_has_all_probes_each_time() -> None:
    class Holds(nn.Linear):
        kept = iter(())  # an object of another language, which tells nothing of itself

    source = KernelSource(COORDS)
    net = Holds(2, 1)
    for number in range(1, 3):
        source.kernel(net)
        assert source.probed == number


@pytest.mark.parametrize("select", [lambda out: out - out.mean(0), lambda out: out.cumsum(0), lambda out: out.flip(0)])
def test_a_select_that_couples_points_is_refused(select: Callable[[Tensor], Tensor]) -> None:
    for net in (inr.INR(2, 1, width=8), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))):
        for call in (inr.ntk, inr.jacobian, inr.diagnose, inr.watch):
            with pytest.raises(UnsupportedModuleError, match="couples samples"):
                call(net, COORDS, select=select)


# ---- cost --------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that only moves when it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@settings(max_examples=40, deadline=None)
@given(
    cost=st.floats(0.01, 2.0),
    first=st.floats(0.1, 10.0),
    records=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=5),
    steps=st.lists(st.floats(0.001, 5.0), min_size=1, max_size=80),
)
def test_watching_takes_no_more_than_its_share(
    cost: float, first: float, records: list[float], steps: list[float]
) -> None:
    """Over the share by no more than the last record took longer than the one before it; and made as soon as it may."""
    clock, costs = Clock(), iter([first, *(records[k % len(records)] for k in range(100))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        seen = module.Watch._seen

        def timed(self: Any, loss: float | None) -> dict[str, Any]:
            clock.now += next(costs)
            return one if one else seen(self, loss)

        one: dict[str, Any] = {}
        patch.setattr(module.Watch, "_seen", timed)
        watch = inr.watch(nn.Linear(2, 1), COORDS[:3], cost=cost)
        one = {key: value for key, value in vars(watch.history[0]).items() if key not in ("step", "seconds")}
        own = 0.0
        for seconds in steps:
            clock.now += seconds
            own += seconds
            before = watch.seconds
            last = watch.history[-1].seconds
            made = watch.step()
            assert (made is not None) == (before + last <= cost * own * (1 + 1e-12)) or before + last == pytest.approx(
                cost * own
            )
            assert watch.share == pytest.approx(watch.seconds / own)
            if made is not None:
                assert watch.seconds <= cost * own + max(0.0, made.seconds - last) + 1e-9
    assert watch.seconds == pytest.approx(math.fsum(record.seconds for record in watch.history))


# ---- what is told, and bad input ---------------------------------------------------------------------------------


def test_a_watch_that_is_copied_or_sent_goes_on() -> None:
    watch = inr.watch(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), COORDS, every=2)
    watch.step()
    for other in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        moved_(other.net)
        before, record = other.share, other.step()
        assert record is not None and record.step == 2 and record.trace != watch.history[0].trace
        assert other.net is not watch.net and other.share > before
    assert len(watch.history) == 1


def test_what_is_told_is_plain_and_can_be_drawn(tmp_path: Any) -> None:
    net = inr.INR(2, 1, width=8, activation="relu")
    watch = inr.watch(net, COORDS, every=1, points=10, rtols=(1e-2, 1e-4))
    assert math.isnan(watch.share)
    for step in range(13):
        watch.step(math.nan if step == 3 else step)
    told = json.loads(json.dumps(watch.to_dict(), allow_nan=False))
    assert (told["points"], told["grid_points"], told["steps"], len(told["records"])) == (10, 42, 13, 14)
    assert told["records"][4]["loss"] is None and told["records"][5]["loss"] == 4
    for record, plain in zip(watch.history, told["records"], strict=True):
        assert [rank["upper"] for rank in plain["ranks"]] == [rank.upper for rank in record.ranks]
        assert plain["layer_shares"] == record.layer_shares
    lines = str(watch).splitlines()
    assert "10 of 42 points, 14 records" in lines[0] and any("2 more" in line for line in lines)
    watch.plot(tmp_path / "watch.png")
    assert (tmp_path / "watch.png").stat().st_size > 0
    dead = nn.Linear(2, 1)
    with torch.no_grad():
        dead.weight.zero_()
        dead.bias.zero_()
    for net in (dead, nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
        watch = inr.watch(net, COORDS, every=1)
        watch.plot()
        assert watch.history[0].weights_change is None and str(watch)


def test_coordinates_with_other_axes_and_arrays() -> None:
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    flat = inr.watch(net, COORDS, every=1, points=9).history[0]
    for coords in (COORDS.view(7, 6, 2), COORDS.unsqueeze(0), COORDS.numpy(), COORDS.view(7, 6, 2).numpy()):
        found = inr.watch(net, coords, every=1, points=9).history[0]
        assert found.trace == pytest.approx(flat.trace) and found.dead_units == flat.dead_units
    with pytest.raises(UnsupportedModuleError, match="otherwise than the same points in one row"):
        inr.watch(Rows(), COORDS.view(7, 6, 2), every=1)


class Rows(nn.Linear):
    """Adds a mean over the first axis, which is no axis of points where there are more."""

    def __init__(self) -> None:
        super().__init__(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + x[..., :1].mean(0, keepdim=True)) if x.ndim > 2 else super().forward(x)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no network": ({"net": lambda x: x}, TypeError, r"net must be a torch\.nn\.Module"),
    "both": ({"every": 2, "cost": 0.1}, ValueError, "give every or cost, not both"),
    "every": ({"every": 0}, ValueError, "every must be at least 1"),
    "cost": ({"cost": 0.0}, ValueError, "cost must be above"),
    "points": ({"points": 0}, ValueError, "points must be at least 1"),
    "head": ({"head": 0}, ValueError, "head must be at least 1"),
    "rtols": ({"rtols": (2.0,)}, ValueError, "rtols must be tolerances"),
    "coords": ({"coords": [[0.0, 1.0]]}, TypeError, "coords must be"),
    "nan": ({"coords": torch.full((3, 2), math.nan)}, ValueError, "coords must be finite"),
    "sizes": ({"coords": np.zeros((3, 3), np.float32)}, ValueError, "coords"),
    "params": ({"params": ["layers.7"]}, ValueError, "params names 'layers.7'"),
    "seed": ({"seed": -1}, ValueError, "seed"),
    "fresh batch norm": ({"net": inr.INR(2, 1, width=4, norm="batch")}, UnsupportedModuleError, "has seen no batch"),
    "coupled": ({"net": nn.Sequential(nn.Linear(2, 3), nn.Softmax(0))}, UnsupportedModuleError, "couples samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name: str) -> None:
    given, kind, said = BAD[name]
    arguments = {"net": inr.INR(2, 1, width=4), "coords": COORDS, **given}
    with pytest.raises(kind, match=said):
        inr.watch(**arguments)


def test_a_diverged_network_and_a_loss_of_many_numbers_are_named() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    watch = inr.watch(net, COORDS, every=1)
    with pytest.raises(TypeError, match=r"loss must be one number, got Tensor of shape \(3,\)"):
        watch.step(torch.ones(3))
    before = copy.deepcopy(net.state_dict())
    for bad in (math.nan, -math.inf):
        with torch.no_grad():
            net[2].weight[0, 0] = bad
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert watch.step(bad) is None and watch.step() is None
        assert [str(own.message).count("NaN or Inf in '2.weight'") for own in caught] == [1] * math.isnan(bad)
    with pytest.raises(ValueError, match=r"NaN or Inf in '2\.weight'"):
        inr.watch(net, COORDS)
    net.load_state_dict(before)
    found = watch.step(0.5)
    assert found is not None and [own.step for own in watch.history] == [0, watch.steps]
    assert found.trace == pytest.approx(watch.history[0].trace, rel=1e-12)
