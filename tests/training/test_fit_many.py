"""Many networks at once end where each would end by itself."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.errors import DivergedError, NotAvailableError
from inrfast.ops import mlp_step
from inrfast.training.engines import tensor
from inrfast.training.fit import fit, fit_many

COORDS = inr.grid((12, 12))


def waves(k: float, coords: Tensor = COORDS, outputs: int = 2) -> Tensor:
    return 0.4 * torch.stack([(k * coords[:, 0] + m).sin() * (2 * coords[:, -1]).cos() for m in range(outputs)], dim=1)


def small(seed: int = 0, **options: Any) -> inr.INR:
    return inr.INR(2, 2, **{"width": 16, "hidden_layers": 2, "activation": "tanh", "seed": seed, **options})


def assert_same(together: inr.FitResult, alone: inr.FitResult) -> None:
    assert together.losses == pytest.approx(alone.losses, rel=1e-5)
    assert together.eval_steps == alone.eval_steps
    assert together.psnrs == pytest.approx(alone.psnrs, abs=1e-4)
    assert (together.steps, together.stopped, together.best_step) == (alone.steps, alone.stopped, alone.best_step)
    assert together.best_state.keys() == alone.best_state.keys()


def assert_same_weights(one: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert float((a.double() - b.double()).norm()) <= tolerance * float(b.double().norm()) + 1e-12


@settings(max_examples=12)
@given(data=st.data())
def test_a_hundred_steps_are_those_of_separate_fits(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    shape = {
        "width": data.draw(st.sampled_from([5, 16])),
        "hidden_layers": data.draw(st.integers(1, 3)),
        "activation": data.draw(st.sampled_from(["tanh", "sine", "gelu"])),
        "omega": 3.0,
        "bias": data.draw(st.booleans()),
        "encoding": data.draw(st.sampled_from([None, None, inr.RandomFourier(6, 1.0), inr.PositionalEncoding(2)])),
    }
    nets = [small(seed, **shape) for seed in range(count)]
    # Differences of a rounding grow with the steps where a network is small and its rate large: fp64 tells them apart.
    nets, dtype = [net.double() for net in nets], torch.float64
    own_coords, own_targets = data.draw(st.booleans()), data.draw(st.booleans())
    points = [torch.rand(60, 2, generator=torch.Generator().manual_seed(i), dtype=dtype) for i in range(count)]
    coords = points if own_coords else points[0]
    values = [waves(1.0 + i, points[i if own_coords else 0]).to(dtype) for i in range(count)]
    targets = values if own_targets else values[0]
    weights = [None, torch.rand(60, generator=torch.Generator().manual_seed(9), dtype=dtype) + 0.1]
    options: dict[str, Any] = {
        "batch_size": data.draw(st.sampled_from([None, 23])),
        "weight": data.draw(st.sampled_from(weights)),
        "optimizer": data.draw(st.sampled_from(["adam", "adamw", "sgd"])),
        "clip_norm": data.draw(st.sampled_from([None, 0.05])),
        "steps": 100,
    }
    rates = [1e-3 * (1 + i) for i in range(count)] if data.draw(st.booleans()) else [2e-3] * count
    seeds = list(range(count)) if data.draw(st.booleans()) else [4] * count
    twins = copy.deepcopy(nets)
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # several chunks of rows
            patch.setattr(tensor, "cached_rows", lambda *sizes: 17)
            patch.setattr(mlp_step, "chunk_rows", lambda *sizes: 17)
        results = fit_many(nets, coords, targets, lr=rates, seed=seeds, **options)
    for i, (twin, result) in enumerate(zip(twins, results, strict=True)):
        where = points[i if own_coords else 0]
        what = values[i if own_targets else 0]
        assert_same(result, fit(twin, where, what, lr=rates[i], seed=seeds[i], **options))
        assert_same_weights(nets[i], twin)


@pytest.mark.parametrize(("optimizer", "steps", "lr"), [("sgd", 100, 0.1), ("adam", 10, 1e-3)])
def test_fp32_networks_follow_separate_fits(optimizer: str, steps: int, lr: float) -> None:
    """Adam divides small gradients by their own size: over many steps it makes large differences of roundings."""
    nets = [small(seed, activation="relu", width=32) for seed in range(5)]
    twins = copy.deepcopy(nets)
    options: dict[str, Any] = {"optimizer": optimizer, "steps": steps, "lr": lr}
    results = fit_many(nets, COORDS, waves(2.0), **options)
    for net, twin, result in zip(nets, twins, results, strict=True):
        assert_same(result, fit(twin, COORDS, waves(2.0), **options))
        assert_same_weights(net, twin)


def test_shapes_norms_and_modules_may_be_mixed() -> None:
    """Also points: a network of its own size, and one on its own number of points."""
    fine = inr.grid((15, 15))
    plain = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    nets = [small(0), small(1, norm="batch"), small(2), small(3, width=9), plain, small(4), small(5, norm="batch")]
    coords = [COORDS] * 5 + [fine, COORDS]
    targets = [waves(1.0 + i, where).double() for i, where in enumerate(coords)]
    nets, coords = [net.double() for net in nets], [where.double() for where in coords]
    twins = copy.deepcopy(nets)
    results = fit_many(nets, coords, targets, steps=30, lr=3e-3)
    for net, twin, result, where, what in zip(nets, twins, results, coords, targets, strict=True):
        assert_same(result, fit(twin, where, what, steps=30, lr=3e-3))
        assert_same_weights(net, twin)
    assert [result.config["gradient"] for result in results] == [
        *["layerwise", "normed", "layerwise", "layerwise", "chunked", "layerwise", "normed"]
    ]


def test_each_network_stops_by_itself() -> None:
    """At its goal, out of patience, diverged; the others go on and keep their memory.

    In fp64 and with a goal far from every PSNR, so that no rounding decides where a network stops.
    """
    nets, coords, target = [small(seed).double() for seed in range(4)], COORDS.double(), waves(2.0).double()
    psnrs = fit(copy.deepcopy(nets[1]), coords, target, steps=60, lr=5e-3, eval_every=2).psnrs
    gains = [psnrs[k] - max(psnrs[:k]) for k in range(5, 15)]
    reached = 5 + gains.index(max(gains))
    goal = psnrs[reached] - max(gains) / 2
    twins = copy.deepcopy(nets)
    rates = [5e-3, 5e-3, 1e200, 1e-200]  # with the last no weight changes, so no PSNR is better than the first
    options: dict[str, Any] = {"steps": 60, "eval_every": 2, "patience": 5}
    results = fit_many(nets, coords, target, lr=rates, target_psnr=[None, goal, None, None], **options)
    assert [result.stopped for result in results] == ["steps", "target_psnr", "diverged", "patience"]
    assert [result.steps for result in (results[0], results[1], results[3])] == [60, results[1].eval_steps[reached], 10]
    assert isinstance(results[2].error, DivergedError)
    assert "network 2" in str(results[2].error)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in nets[2].state_dict().values())
    for i in (0, 1, 3):
        result = fit(twins[i], coords, target, lr=rates[i], target_psnr=goal if i == 1 else None, **options)
        assert_same(results[i], result)
        assert_same_weights(nets[i], twins[i])
        for name, best in results[i].best_state.items():
            torch.testing.assert_close(best, result.best_state[name], rtol=1e-3, atol=1e-5)


def test_networks_have_their_own_memory_again() -> None:
    nets = [small(seed) for seed in range(3)]
    before = [[id(parameter) for parameter in net.parameters()] for net in nets]
    fit_many(nets, COORDS, waves(2.0), steps=2)
    assert [[id(parameter) for parameter in net.parameters()] for net in nets] == before
    for net in nets:
        for parameter in net.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
            assert parameter.grad is None
        assert net.training


def test_one_evaluation_grid_for_all() -> None:
    fine = inr.grid((20, 20))
    nets = [small(seed) for seed in range(3)]
    targets = [waves(k) for k in (1.0, 2.0, 3.0)]
    truths = [waves(k, fine) for k in (1.0, 2.0, 3.0)]
    twins = copy.deepcopy(nets)
    results = fit_many(nets, COORDS, targets, steps=10, eval_coords=fine, eval_target=truths)
    for twin, target, truth, result in zip(twins, targets, truths, results, strict=True):
        assert_same(result, fit(twin, COORDS, target, steps=10, eval_coords=fine, eval_target=truth))


def test_tensors_of_targets_are_shared_or_stacked_by_their_size() -> None:
    values = torch.stack([waves(k) for k in (1.0, 2.0, 3.0)])
    expected = fit_many([small(seed) for seed in range(3)], COORDS, list(values), steps=3)
    for form in (values, values.reshape(3, 12, 12, 2)):
        results = fit_many([small(seed) for seed in range(3)], COORDS, form, steps=3)
        assert [r.losses for r in results] == [r.losses for r in expected]
    stacked = COORDS.expand(3, -1, -1)
    assert fit_many([small(seed) for seed in range(3)], stacked, values, steps=3)[2].losses == pytest.approx(
        expected[2].losses, rel=1e-5
    )
    shared = fit_many([small(seed) for seed in range(3)], COORDS, values[1].reshape(12, 12, 2), steps=3)
    assert shared[1].losses == pytest.approx(expected[1].losses, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"nets": []}, ValueError, "at least one network"),
        ({"nets": small()}, TypeError, "there is fit"),
        ({"nets": 3}, TypeError, "nets must be a sequence"),
        ({"nets": [small(), small().double()]}, ValueError, r"one dtype and device.*nets\[1\]"),
        ({"nets": [small(), F.relu]}, TypeError, r"nets\[1\] must be a torch.nn.Module"),
        ({"coords": COORDS[:5].expand(3, -1, -1)}, ValueError, r"coords must have shape \(N, d\) or \(2, N, d\)"),
        ({"coords": [COORDS]}, ValueError, "coords must be one value or 2"),
        ({"targets": [waves(1.0), waves(1.0)[:9]]}, ValueError, r"nets\[1\]: targets must have shape"),
        ({"targets": [waves(1.0), waves(1.0) / 0]}, ValueError, r"nets\[1\]: targets must be finite"),
        ({"targets": torch.zeros(3, 144, 2)}, ValueError, r"nets\[0\]: targets must have shape"),
        ({"lr": [1e-3]}, ValueError, "lr must be one value or 2"),
        ({"lr": [1e-3, 0]}, ValueError, r"lr\[1\] must be above"),
        ({"seed": [1, -1]}, ValueError, r"seed\[1\]"),
        ({"target_psnr": [30.0]}, ValueError, "target_psnr must be one value or 2"),
        ({"weight": [torch.ones(144)]}, ValueError, "weight must be one value or 2"),
        ({"batch_size": 145}, ValueError, "batch_size"),
        ({"optimizer": torch.optim.SGD(small().parameters())}, TypeError, "call fit for each network"),
        ({"backend": "triton", "loss": F.mse_loss}, NotAvailableError, "triton"),
        ({"eval_coords": COORDS}, ValueError, "eval_coords needs eval_target"),
        ({"steps": 0}, ValueError, "steps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_at_the_door(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"nets": [small(0), small(1)], "coords": COORDS, "targets": waves(1.0), "steps": 2, **change}
    with pytest.raises(error, match=message):
        fit_many(**arguments)


def test_networks_that_share_a_parameter_are_refused() -> None:
    one, other = small(0), small(1)
    other.layers[1] = one.layers[1]
    with pytest.raises(ValueError, match=r"nets\[0\] and nets\[1\] do"):
        fit_many([one, other], COORDS, waves(1.0), steps=2)
    with pytest.raises(ValueError, match="share no parameter"):
        fit_many([one, one], COORDS, waves(1.0), steps=2)


def test_a_network_is_no_module_of_another() -> None:
    """Nor is a part of one, or a view of its memory; its own parts may be, and are trained once."""
    nets, beside = [small(0), small(1)], nn.Linear(1, 1)
    overlapping = nn.Linear(1, 1)
    overlapping.bias = nn.Parameter(nets[0].layers[0].bias.detach()[:1])
    for modules, said in (
        ([nets[1], nets[0]], r"modules\[0\] must share nothing with nets\[1\]"),
        ([beside, nets[0].layers[1]], r"modules\[1\] must share nothing with nets\[0\]"),
        ([beside, overlapping], "overlap in memory"),
    ):
        with pytest.raises(ValueError, match=said):
            fit_many(nets, COORDS, waves(1.0), steps=1, modules=modules)
    with pytest.raises(ValueError, match="overlap in memory"):
        fit(nets[0], COORDS, waves(1.0), steps=1, modules=[overlapping])
    twins = copy.deepcopy(nets)
    options: dict[str, Any] = {"steps": 3, "loss": nn.functional.mse_loss}
    fit_many(nets, COORDS, waves(1.0), modules=[net.layers[0] for net in nets], **options)
    fit_many(twins, COORDS, waves(1.0), **options)
    for net, twin in zip(nets, twins, strict=True):
        assert_same_weights(net, twin)


def test_a_stack_of_grids_is_told_from_one_grid_by_the_number_of_outputs() -> None:
    """As many networks as columns: (3, H, 3) is three signals of one output, or one of three."""
    coords = inr.grid((6, 3))
    signals = torch.rand(3, 6, 3, generator=torch.Generator().manual_seed(0))
    nets = [inr.INR(2, 1, width=4, seed=seed) for seed in range(3)]
    alone = [fit(copy.deepcopy(net), coords, own, steps=2).losses for net, own in zip(nets, signals, strict=True)]
    assert [result.losses for result in fit_many(nets, coords, signals, steps=2)] == [
        pytest.approx(losses, rel=1e-5) for losses in alone
    ]
    with pytest.raises(ValueError, match="its points are a grid"):
        fit_many([inr.INR(2, 3, width=4, seed=seed) for seed in range(3)], coords, signals, steps=2)


def test_each_network_has_the_range_of_its_own_signal() -> None:
    targets = [0.02 * waves(1.0), waves(1.0), 3 * waves(1.0)]
    results = fit_many([small(seed) for seed in range(3)], COORDS, targets, steps=3, data_range=[None, 7.0, None])
    spreads = [float(own.max() - own.min()) for own in targets]
    assert [result.data_range for result in results] == pytest.approx([spreads[0], 7.0, spreads[2]])
    for result, own in zip(results, targets, strict=True):
        square = (result.data_range**2) / 10 ** (result.psnrs[0] / 10)
        assert square == pytest.approx(result.losses[0], rel=1e-5)
        assert result.config["data_range"] == result.data_range
        assert own is not None


def test_encodings_that_differ_in_a_frozen_parameter_are_not_taken_for_one() -> None:
    nets = [small(seed, encoding=inr.RandomFourier(3, 1.0)) for seed in range(2)]
    for net in nets:
        frequencies = net.encoding.frequencies
        del net.encoding.frequencies
        net.encoding.frequencies = nn.Parameter(frequencies, requires_grad=False)
    alone = [fit(copy.deepcopy(net), COORDS, waves(2.0), steps=3).losses for net in nets]
    together = fit_many(nets, COORDS, waves(2.0), steps=3)
    assert [result.losses for result in together] == [pytest.approx(losses, rel=1e-5) for losses in alone]


def test_a_loss_of_ones_own_takes_each_network_by_itself() -> None:
    """Networks of one shape, which named losses take together."""

    def rough(pred: Tensor, target: Tensor) -> Tensor:
        return (pred - target).abs().mean()

    nets = [small(seed) for seed in range(3)]
    twins = copy.deepcopy(nets)
    results = fit_many(nets, COORDS, waves(2.0), steps=10, loss=rough)
    for net, twin, result in zip(nets, twins, results, strict=True):
        assert_same(result, fit(twin, COORDS, waves(2.0), steps=10, loss=rough))
        assert_same_weights(net, twin)
