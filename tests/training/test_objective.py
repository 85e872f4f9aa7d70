"""Regularised fits are those of a plain PyTorch loop; modules are trained; what cannot be meant is refused."""

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.errors import DivergedError
from inrfast.training.derivatives import gradient

STEPS, LR = 6, 1e-2


def signal(n: int = 60, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    coords = 2 * torch.rand(n, 2, generator=rng, dtype=dtype) - 1
    return coords, torch.rand(n, 1, generator=rng, dtype=dtype), torch.rand(n, 1, generator=rng, dtype=dtype)


def small(dtype: torch.dtype = torch.float64, **options: Any) -> inr.INR:
    return inr.INR(2, 1, width=10, hidden_layers=2, activation="sine", omega=3.0, dtype=dtype, **options)


class Normed(nn.Module):
    """A network that no fast engine knows, but that treats its points one by one; with batch norm it couples them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.Sequential(nn.Linear(2, 8), norm, nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, coords: Tensor) -> Tensor:
        return self.parts(coords)


def decay(net: nn.Module) -> Tensor:
    return torch.stack([parameter.square().sum() for parameter in net.parameters()]).sum()


def variation(net: nn.Module, coords: Tensor) -> Tensor:
    """Total variation along the first axis, at points of its own beside those of the batch."""
    return (net(coords + 1e-2) - net(coords)).abs().mean()


def smooth(prediction: Tensor, coords: Tensor) -> Tensor:
    return gradient(prediction, coords).square().mean()


def drawn(net: nn.Module) -> Tensor:
    """Draws its points: from the seed of the fit and the step."""
    return net(torch.rand(5, 2, dtype=torch.float64)).square().mean()


KINDS: dict[str, Callable[[], nn.Module]] = {
    "native": functools.partial(small, torch.float32),
    "tensor": small,
    "chunked": lambda: Normed(nn.LayerNorm(8)),
    "whole": lambda: Normed(nn.BatchNorm1d(8)),
}


def loop(net: nn.Module, coords: Tensor, target: Tensor, weight: Tensor, total: Any, rows: list[Tensor]) -> list[float]:
    """The loop that everybody writes: Adam on the weighted Huber loss plus regularisers, on these batches."""
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=LR), []
    for index in rows:
        optimizer.zero_grad()
        x = coords[index].requires_grad_()
        prediction = net(x)
        values = weight[index] * F.huber_loss(prediction, target[index], reduction="none", delta=0.3)
        value = values.sum() / weight[index].sum() + total(net, prediction, x)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [None, 20])
@pytest.mark.parametrize("predicted", [False, True])
def test_a_regularised_fit_is_that_of_a_plain_loop(kind: str, batch: int | None, predicted: bool) -> None:
    net = KINDS[kind]()
    dtype = next(net.parameters()).dtype
    coords, target, weight = signal(dtype=dtype)
    weight[::5] = 0  # such points leave the fit: what is told of the others has their own numbers
    twin, seen = copy.deepcopy(net), []

    def watch(net: nn.Module, index: Tensor, coords: Tensor, target: Tensor, weight: Tensor, step: int) -> Tensor:
        given = signal(dtype=dtype)
        for mine, theirs in zip((coords, target, weight), given, strict=True):
            assert torch.equal(mine.detach(), theirs[index])
        assert step == len(seen)
        seen.append(index)
        return 0.0 * decay(net)

    extra: list[Any] = [(smooth, 1e-3)] if predicted else []
    result = inr.fit(
        net,
        coords,
        target,
        steps=STEPS,
        lr=LR,
        schedule="constant",
        loss={"name": "huber", "delta": 0.3},
        weight=weight,
        batch_size=batch,
        regularizers=[(decay, 1e-3), watch, (variation, 0.1), *extra],
        progress=False,
    )
    assert result.config["gradient"] in (("whole",) if predicted or kind == "whole" else (kind, "layerwise"))
    assert [len(index) for index in seen] == [batch or 48] * STEPS

    def total(net: nn.Module, prediction: Tensor, x: Tensor) -> Tensor:
        value = 1e-3 * decay(net) + 0.1 * variation(net, x)
        return value + 1e-3 * smooth(prediction, x) if predicted else value

    losses = loop(twin, coords, target, weight, total, seen)
    close = {"rtol": 1e-3, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(torch.tensor(result.losses), torch.tensor(losses), **close, check_dtype=False)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **close)


def test_networks_that_are_fitted_together_are_regularised_each_for_itself() -> None:
    coords, target, _ = signal()
    nets = [small(seed=seed) for seed in range(2)]
    alone = copy.deepcopy(nets)
    options: dict[str, Any] = {"steps": STEPS, "regularizers": [(decay, 1e-2), drawn], "progress": False}
    results = inr.fit_many(nets, coords, [target, 1 - target], seed=[3, 4], **options)
    for net, one, own, seed, result in zip(nets, alone, (target, 1 - target), (3, 4), results, strict=True):
        assert inr.fit(one, coords, own, seed=seed, **options).losses == result.losses
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), one.parameters(), strict=True))


def test_networks_that_are_fitted_together_train_modules_of_their_own() -> None:
    coords, target, _ = signal()

    def loss(pred: Tensor, target: Tensor, modules: tuple[nn.Module, ...]) -> Tensor:
        return modules[0](pred, target)

    nets, scales = [small(seed=seed) for seed in range(2)], [Scale(0.1), Scale(0.9)]
    alone = copy.deepcopy((nets, scales))
    options: dict[str, Any] = {"steps": STEPS, "loss": loss, "progress": False}
    results = inr.fit_many(nets, coords, target, modules=scales, **options)
    for net, scale, own, one, result in zip(nets, scales, *alone, results, strict=True):
        assert inr.fit(own, coords, target, modules=[one], **options).losses == result.losses
        assert torch.equal(scale.log, one.log)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), own.parameters(), strict=True))
    for given, kind, said in (
        (scales[:1], ValueError, "modules must be one value or 2"),
        ([scales[0]] * 2, ValueError, r"modules\[0\] and modules\[1\] must share no parameter"),
        (scales[0], TypeError, "one per network"),
        ([3, 4], TypeError, r"modules\[0\] must be a sequence of torch.nn.Module"),
    ):
        with pytest.raises(kind, match=said):
            inr.fit_many(nets, coords, target, modules=given, **options)


class Scale(nn.Module):
    """A loss with a number of its own, and a buffer that counts its calls."""

    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        self.calls += 1
        errors = (pred - target).square() if weight is None else weight * (pred - target).square()
        return errors.mean() * torch.exp(-self.log) + self.log


def test_modules_are_trained_with_the_network_and_clipped_with_it() -> None:
    coords, target, weight = signal()
    net, scale = small(), Scale()
    twins = copy.deepcopy((net, scale))
    options: dict[str, Any] = {"steps": STEPS, "lr": LR, "schedule": "constant", "clip_norm": 0.5, "progress": False}
    scale.eval()
    result = inr.fit(net, coords, target, loss=scale, weight=weight, modules=[scale], **options)
    optimizer = torch.optim.Adam([p for twin in twins for p in twin.parameters()], lr=LR)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = twins[1](twins[0](coords), target, weight)
        value.backward()
        nn.utils.clip_grad_norm_([p for twin in twins for p in twin.parameters()], 0.5)
        optimizer.step()
        losses.append(float(value.detach()))
    torch.testing.assert_close(torch.tensor(result.losses), torch.tensor(losses), rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(
        [*net.parameters(), *scale.parameters()], [p for twin in twins for p in twin.parameters()], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert scale.log.grad is None
    assert not scale.training
    assert float(scale.log.detach()) != 0.5


@pytest.mark.parametrize("way", ["loss", "regularizer"])
@pytest.mark.parametrize("optimizer", ["adam", "own"])
def test_a_fit_with_modules_goes_on_bit_by_bit(way: str, optimizer: str, tmp_path: Path) -> None:
    coords, target, _ = signal()
    file = tmp_path / "fit.checkpoint"

    def run(steps: int, start: float, **more: Any) -> tuple[Any, ...]:
        net, scale = small(), Scale(start)
        both: dict[str, Any] = {"steps": steps, "schedule": "constant", "modules": [scale], "progress": False}
        if way == "loss":
            both["loss"] = scale
        else:
            both["regularizers"] = [penalty_of(scale)]
        if optimizer == "own":
            both["optimizer"] = torch.optim.Adam([*net.parameters(), *scale.parameters()], lr=1e-3)
        result = inr.fit(net, coords, target, batch_size=20, **both, **more)
        return net, scale, result

    def penalty_of(scale: Scale) -> Callable[..., Tensor]:
        return lambda net, target, coords: scale(net(coords), target)

    whole = run(10, 0.5)
    run(4, 0.5, checkpoint=file)
    net, scale, result = run(10, 0.5, checkpoint=file, resume=True)
    assert result.losses == whole[2].losses
    for ours, theirs in zip(
        [*net.parameters(), *scale.state_dict().values()],
        [*whole[0].parameters(), *whole[1].state_dict().values()],
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"checkpoint: .* is of .*regularizers|modules"):
        inr.fit(small(), coords, target, steps=10, schedule="constant", checkpoint=file, resume=True, batch_size=20)


def test_a_module_that_diverges_is_named_and_set_back() -> None:
    coords, target, _ = signal()
    net, scale = small(), Scale()

    def broken(net: nn.Module, step: int) -> Tensor:
        return decay(net) * 1e-9 + (scale.log * math.inf if step == 3 else scale.log)

    with pytest.raises(DivergedError, match="after 3 updates"):
        inr.fit(net, coords, target, steps=9, regularizers=[broken], modules=[scale], progress=False)
    assert bool(scale.log.isfinite())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["plain", "batches", "elsewhere", "weighted", "many", "regularised"])
def test_psnrs_compare_what_a_loss_makes_of_its_predictions(kind: str, way: str) -> None:
    """Of logits the probabilities: by every engine, at the start and the end, and for the best weights."""
    nets = [KINDS[kind]() for _ in range(3 if way == "many" else 1)]
    dtype = next(nets[0].parameters()).dtype
    coords, target, weight = signal(dtype=dtype)
    points, values = coords[:25] + 0.01, target[:25]
    ways: dict[str, dict[str, Any]] = {
        "batches": {"batch_size": 20},
        "elsewhere": {"eval_coords": points, "eval_target": values},
        "weighted": {"weight": weight},
        "regularised": {"regularizers": [(decay, 1e-3)]},
    }
    if way != "elsewhere":
        points, values = coords, target

    @torch.no_grad()
    def psnr(net: nn.Module) -> float:
        error = copy.deepcopy(net).eval()(points).sigmoid().double() - values.double()
        return float(-10 * error.square().mean().log10())

    first = [psnr(net) for net in nets]
    options = {"loss": "bce", "steps": 8, "eval_every": 2, "lr": 1e-2, "data_range": 1.0, "progress": False}
    if way == "many":
        results = inr.fit_many(nets, coords, target, **options)
    else:
        results = [inr.fit(nets[0], coords, target, **options, **ways.get(way, {}))]
    for net, result, start in zip(nets, results, first, strict=True):
        if kind != "whole":  # whose first step changes the statistics of its norm before
            assert result.psnrs[0] == pytest.approx(start, abs=1e-4)
        assert result.psnr == pytest.approx(psnr(net), abs=1e-4)
        net.load_state_dict(result.best_state)
        assert result.best_psnr == max(result.psnrs) == pytest.approx(psnr(net), abs=1e-4)


def in_place(net: nn.Module) -> Tensor:
    with torch.no_grad():
        next(net.parameters()).clamp_(-1, 1)
    return decay(net)


def of_a_leaf(net: nn.Module) -> Tensor:
    return next(net.parameters()).mul_(2).sum()


def backwards(net: nn.Module) -> Tensor:
    value = decay(net)
    value.backward()
    return value


def backwards_twice(net: nn.Module) -> Tensor:
    value = decay(net)
    value.backward(retain_graph=True)
    return value


def freed(net: nn.Module) -> Tensor:
    value = decay(net)
    torch.autograd.grad(value, list(net.parameters()))
    return value


def overwritten(net: nn.Module) -> Tensor:
    values = torch.cat([parameter.flatten() for parameter in net.parameters()]).exp()
    value = (values * values).sum()
    values.zero_()
    return value


FAULTS: dict[str, tuple[Callable[..., Tensor], type[Exception], str]] = {
    "weights in place": (in_place, ValueError, "changes the network's weights in place"),
    "a leaf in place": (of_a_leaf, RuntimeError, "a leaf Variable"),
    "its own backward": (backwards, ValueError, r"changes the gradients.* as backward\(\) does"),
    "twice": (backwards_twice, ValueError, r"changes the gradients.* as backward\(\) does"),
    "a freed graph": (freed, RuntimeError, "cannot be differentiated: .*second time"),
    "overwritten": (overwritten, RuntimeError, "cannot be differentiated: .*inplace"),
    "complex": (lambda net: decay(net) * 1j, TypeError, "must return a real number, got torch.complex128"),
    "no graph": (
        lambda net: torch.autograd.grad(torch.ones(1).sum(), list(net.parameters()))[0].sum(),
        RuntimeError,
        "does not require grad",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", ["beside", "with predictions", "as the loss"])
def test_what_a_function_may_not_do_is_said_with_its_name(fault: str, way: str) -> None:
    call, kind, said = FAULTS[fault]
    coords, target, _ = signal()
    options: dict[str, Any] = {"regularizers": [decay, call]}
    if way == "with predictions":
        options = {"regularizers": [smooth, call]}
    if way == "as the loss":
        options = {"loss": lambda prediction, target, net: (prediction - target).square().mean() + call(net)}
    place = "loss" if way == "as the loss" else r"regularizers\[1\]"
    with pytest.raises(kind, match=rf"{place}.*{said}"):
        inr.fit(small(), coords, target, steps=3, progress=False, **options)


def test_predictions_changed_in_place_are_said_with_the_name_of_who_does_it() -> None:
    """Where that harms; a loss may use their memory where nobody else needs them."""
    coords, target, _ = signal()
    with pytest.raises(RuntimeError, match=r"regularizers\[1\] changes what it is given in place"):
        inr.fit(
            small(), coords, target, steps=1, loss="bce", progress=False,
            regularizers=[decay, lambda prediction: prediction.mul_(2).sum()],
        )  # fmt: skip
    inr.fit(small(), coords, target, steps=1, loss=lambda p, t: p.sub_(t).square().mean(), progress=False)


def test_a_network_that_changes_its_own_weights_in_each_pass_is_regularised() -> None:
    coords, target, _ = signal()
    net = nn.Sequential(Cells(), nn.Linear(3, 1)).double()
    for regularizer in (lambda net, coords: net(coords).square().mean(), lambda prediction: prediction.square().mean()):
        inr.fit(net, coords, target, steps=3, regularizers=[regularizer], progress=False)


class Cells(nn.Module):
    """A table whose rows are shortened in place when they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3, max_norm=0.5)

    def forward(self, coords: Tensor) -> Tensor:
        return self.table((4 * (coords[:, 0] + 1)).long())


NOT_FINITE: dict[str, tuple[dict[str, Any], str]] = {
    "a loss": ({"loss": lambda p, t: (p - t).mean() * math.nan}, "first in loss, which is nan"),
    "a regulariser": (
        {"regularizers": [decay, lambda net: (-1 - decay(net)).log()]},
        r"first in regularizers\[1\], which is nan",
    ),
    "its gradient": (
        {"regularizers": [lambda net: (decay(net) * 0).sqrt()]},
        r"first in the gradient of regularizers\[0\], which is finite",
    ),
    "a named loss": ({"loss": "mse", "data_range": 1.0}, "first in the loss 'mse', which is inf"),
}


@pytest.mark.parametrize("case", NOT_FINITE)
@pytest.mark.parametrize("batch", [None, 20])
def test_what_is_not_finite_before_any_update_is_named(case: str, batch: int | None) -> None:
    options, said = NOT_FINITE[case]
    coords, target, _ = signal()
    target = target * 1e200 if case == "a named loss" else target
    with pytest.raises(DivergedError, match=rf"{said}.*whatever lr is") as found:
        inr.fit(small(), coords, target, steps=3, batch_size=batch, progress=False, **options)
    assert "lower lr" not in str(found.value)


HELD = Scale()

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"regularizers": decay}, TypeError, "one alone goes into a list"),
    ({"regularizers": "decay"}, TypeError, "regularizers must be a sequence"),
    ({"regularizers": [3]}, TypeError, r"regularizers\[0\] must be a callable or a pair"),
    ({"regularizers": [(decay, 1, 2)]}, TypeError, "must be a callable or a pair"),
    ({"regularizers": [decay, (decay, "x")]}, TypeError, r"regularizers\[1\]\[1\], the factor, must be a number"),
    ({"regularizers": [(decay, math.nan)]}, ValueError, "the factor, must be finite"),
    (
        {"regularizers": [lambda network: network]},
        TypeError,
        r"regularizers\[0\] asks for 'network'.*Did you mean 'net'",
    ),
    ({"regularizers": [lambda net, /: net]}, TypeError, "'net' is positional only"),
    (
        {"regularizers": [lambda net: 1.0]},
        TypeError,
        r"regularizers\[0\] must return a tensor of one element, got float",
    ),
    ({"regularizers": [lambda coords: coords]}, TypeError, r"one element, got shape \(60, 2\)"),
    ({"loss": lambda pred, target, *, mask: pred}, TypeError, "loss asks for 'mask'"),
    ({"loss": lambda pred, target: pred.sum(), "weight": torch.ones(60)}, ValueError, "parameter named weight"),
    ({"loss": "bce"}, ValueError, r"target must lie in \[0, 1\] for loss='bce', got -"),
    ({"loss": "hubber"}, ValueError, "Did you mean 'huber'"),
    (
        {"weight": torch.full((60,), 1e307, dtype=torch.float64)},
        ValueError,
        "weight must have a sum within float64, got up to 1e\\+307 and a sum of inf",
    ),
    (
        {"weight": torch.arange(60) < 5, "batch_size": 6},
        ValueError,
        "at most the number of points of weight above 0, 5, got 6",
    ),
    ({"batch_size": 61}, ValueError, "at most the number of points 60, got 61"),
    ({"modules": 3}, TypeError, "modules must be a sequence"),
    ({"modules": [3]}, TypeError, r"modules\[0\] must be a torch.nn.Module, got int"),
    ({"modules": [nn.Tanh()]}, ValueError, r"modules\[0\] has no trainable parameter"),
    ({"modules": [nn.Linear(1, 1).half()]}, TypeError, r"modules\[0\] must be fp32 or fp64"),
    ({"regularizers": [lambda net, scale=HELD: scale.log]}, ValueError, r"regularizers\[0\] holds scale \(Scale\)"),
    ({"loss": Scale()}, ValueError, r"loss holds Scale \(Scale\).*modules=\[...\]"),
]


@pytest.mark.parametrize(("options", "kind", "said"), REFUSED)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], kind: type[Exception], said: str) -> None:
    coords, target, _ = signal()
    with pytest.raises(kind, match=said):
        inr.fit(small(), coords, target - 0.5, steps=2, progress=False, **options)


def test_targets_of_an_evaluation_are_those_that_the_loss_takes() -> None:
    coords, target, _ = signal()
    with pytest.raises(ValueError, match=r"eval_target must lie in \[0, 1\] for loss='bce', got "):
        inr.fit(small(), coords, target, steps=2, loss="bce", eval_target=target + 0.5, progress=False)


def test_functions_are_given_what_they_ask_for_and_keep_their_own_defaults() -> None:
    coords, target, weight = signal()
    seen: dict[str, Any] = {}

    def loss(pred: Tensor, target: Tensor, coords: Tensor, index: Tensor, weight: Any = None, step: int = 7) -> Tensor:
        seen.update(coords=coords, index=index, weight=weight, step=step)
        return (pred - target).square().mean()

    inr.fit(small(), coords, target, steps=1, loss=loss, weight=weight, progress=False)
    assert torch.equal(seen["index"], torch.arange(60))
    assert torch.equal(seen["weight"], weight)
    assert seen["coords"].requires_grad
    assert seen["step"] == 7
    inr.fit(small(), coords, target, steps=1, loss=lambda p, t, x: (p - t * x[:, :1]).square().mean(), progress=False)
    inr.fit(small(), coords, target, steps=1, loss=F.mse_loss, weight=weight, progress=False)
    with pytest.warns(UserWarning, match=r"regularizers\[1\] has no gradient"):
        inr.fit(small(), coords, target, steps=2, regularizers=[decay, lambda target: target.mean()], progress=False)
