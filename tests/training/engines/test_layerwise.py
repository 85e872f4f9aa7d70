"""The layerwise gradient is that of fp64 autodiff, whatever the network, the chunks and the threads."""

import copy
import threading

import pytest
import torch
from exact_gradients import assert_exact, flat, formula, losses, of, off_kinks, signal
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import mild

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.errors import MemoryBudgetError
from inrfast.ops import gemm, mlp_step
from inrfast.training.engines import layerwise, tensor
from inrfast.training.engines.layerwise import LayerwiseGradient


@st.composite
def networks(draw: st.DrawFn, dtype: torch.dtype, smooth: bool, native: bool) -> inr.INR:
    hidden = draw(st.integers(1, 4))
    # ReLU gates of fp32 and fp64 differ near 0, which is not an error of the gradient: fp32 takes the smooth ones.
    kinds = [kind for kind in ACTIVATIONS.values() if not native or kind.native is not None]
    names = [mild(kind.name) for kind in kinds if not (smooth and kind.keeps == "mask")]
    encoding = draw(
        st.sampled_from([None, None, inr.RandomFourier(5, 1.0), inr.PositionalEncoding(2), inr.Polynomial(2)])
    )
    return inr.INR(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        width=draw(st.integers(1, 40)),
        hidden_layers=hidden,
        activation=draw(st.lists(st.sampled_from(names), min_size=hidden, max_size=hidden)),
        omega=draw(st.floats(0.5, 2.0)),
        encoding=encoding,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
        dtype=dtype,
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_fp64_autodiff(dtype: torch.dtype, data: st.DataObject) -> None:
    native = dtype == torch.float32 and bool(mlp_step.instructions()) and data.draw(st.booleans())
    net = data.draw(networks(dtype, smooth=dtype == torch.float32, native=native))
    coords, target = signal(net, data.draw(st.integers(1, 60)))
    for parameter in net.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    net.layers[data.draw(st.integers(0, net.hidden_layers))].weight.requires_grad_(True)
    rows, threads = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 3))
    with pytest.MonkeyPatch.context() as patch:  # several chunks and threads on few points
        patch.setattr(layerwise, "LEAST_ROWS", 5)
        patch.setattr(tensor, "cached_rows", lambda *sizes: rows)
        patch.setattr(gemm, "threads", lambda dtype, device: threads)
        patch.setattr(mlp_step, "chunk_rows", lambda width, points: rows)
        if not native:
            patch.setattr(mlp_step, "instructions", lambda: "")
        loss, weight = data.draw(losses()), None
        if data.draw(st.booleans()):
            columns = data.draw(st.sampled_from([1, net.out_features]))
            weight = torch.rand(len(coords), columns, generator=torch.Generator().manual_seed(4), dtype=dtype) + 0.01
        target = off_kinks(net, coords, target)
        gradient = of(net, coords, target, loss, weight, cores=threads)
        assert isinstance(gradient, LayerwiseGradient)
        assert bool(gradient.native) == native
        assert_exact(net, gradient, coords, target, None, formula(loss, weight))
        batch = torch.randperm(len(coords), generator=torch.Generator().manual_seed(3))[: 1 + len(coords) // 2]
        assert_exact(net, gradient, coords, target, batch, formula(loss, None if weight is None else weight[batch]))
        squares = (copy.deepcopy(net)(coords) - target).detach().double().square().mean()
        assert float(gradient.mean_square()) == pytest.approx(float(squares), rel=1e-5)
    assert set(gradient.stack.grads) == {name for name, p in net.named_parameters() if p.requires_grad}


def test_many_chunks_in_fp32_stay_accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor, "cached_rows", lambda *sizes: 16)
    monkeypatch.setattr(mlp_step, "chunk_rows", lambda *sizes: 16)
    net = inr.INR(2, 3, width=64, hidden_layers=2, activation="sine", omega=5.0)
    coords, target = signal(net, 128 * 128)
    for available in {mlp_step.instructions(), ""}:
        monkeypatch.setattr(mlp_step, "instructions", lambda: available)  # noqa: B023
        assert_exact(net, of(net, coords, target), coords, target, None)


def test_measuring_takes_more_points_than_a_step() -> None:
    net = inr.INR(2, 3, width=16, hidden_layers=2)
    coords, target = signal(net, 5000)
    for cores in (1, 2, 3):
        gradient = of(net, coords, target, batch=600, cores=cores)
        exact = (net(coords) - target).detach().double().square().mean()
        assert float(gradient.mean_square()) == pytest.approx(float(exact), rel=1e-5)
        assert_exact(net, gradient, coords, target, torch.arange(10, 610))


@pytest.mark.parametrize("native", [True, False])
def test_threads_repeat_bit_by_bit_and_keep_to_themselves(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(mlp_step, "instructions", lambda: "")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        net = inr.INR(2, 3, width=32, hidden_layers=2)
        coords, target = signal(net, 5000)
        gradient = of(net, coords, target)
        assert isinstance(gradient, LayerwiseGradient)
        assert len(gradient.passes) in (1, 3)  # 1 where the matrix library has a pool of its own
        runs = []
        for _ in range(3):
            gradient(None)
            runs.append(flat(gradient))
        assert all(torch.equal(run, runs[0]) for run in runs)
        assert torch.get_num_threads() == 3
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [3]
    finally:
        torch.set_num_threads(before)


def test_an_encoding_too_large_to_keep_is_taken_again_at_every_step() -> None:
    net = inr.INR(2, 1, width=8, hidden_layers=1, activation="tanh", encoding=inr.RandomFourier(50, 1.0))
    coords, target = signal(net, 200)
    small = of(net, coords, target, budget=2**14)
    assert isinstance(small, LayerwiseGradient)
    assert small.encodings is not None
    assert len(small.passes) * small.rows < 200
    assert_exact(net, small, coords, target, None)
    with pytest.raises(MemoryBudgetError, match="one row"):
        of(net, coords, target, budget=10)


def test_shared_layers_add_up() -> None:
    net = inr.INR(2, 1, width=8, hidden_layers=3, activation="tanh")
    net.layers[1] = net.layers[2]
    coords, target = signal(net, 30)
    gradient = of(net, coords, target)
    assert_exact(net, gradient, coords, target, None)
