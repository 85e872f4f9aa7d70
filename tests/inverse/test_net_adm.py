"""Net-ADM: the updates of ADMM are the minima they should be, smooth images are found again, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

import inrfast as inr
from inrfast.inverse import FourierMagnitude, GaussianMagnitude, net_adm
from inrfast.inverse.net_adm import Multipliers

POINTS = inr.grid((16, 16))
TRUTH = (0.5 + 0.3 * torch.sin(3 * POINTS[:, 0] + 1) * torch.cos(2 * POINTS[:, 1])).reshape(16, 16, 1)
OPERATOR = FourierMagnitude((16, 16), 1.9)


def network(seed: int = 0, **options) -> inr.INR:
    own = {"width": 32, "hidden_layers": 2, "activation": "sine", "init": "siren", "omega": 12.0, **options}
    return inr.INR(2, 1, seed=seed, **own)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.sampled_from([1.0, 1.4, 1.9]), st.booleans(), st.integers(0, 99))
def test_the_signal_is_the_least_squares_solution(rows, columns, oversampling, bounded, seed):
    operator = FourierMagnitude((rows, columns), oversampling)
    state = Multipliers(operator, operator(random(rows, columns, 1)), 1.0, (0.0, 1.0) if bounded else None)
    f, state.u = random(*operator.padded, 1, seed=seed), random(*operator.padded, 1, seed=seed + 1)
    pad = operator.pad(torch.eye(rows * columns, dtype=torch.float64).reshape(rows, columns, -1))
    matrix = pad.reshape(-1, rows * columns).numpy()
    bounds = (0, 1) if bounded else (-np.inf, np.inf)
    brute = lsq_linear(matrix, (f - state.u).flatten().numpy(), bounds, tol=1e-14).x
    np.testing.assert_allclose(state.signal(f).flatten(), brute, atol=1e-6 if bounded else 1e-12)


def test_a_round_is_that_of_the_paper():
    """(B.2) with numbers: the objective times m, the multiplier, the signal."""
    operator, rho = FourierMagnitude((3, 4), 1.7, epsilon=0.01), 0.7
    y = operator(random(3, 4, 1))
    state = Multipliers(operator, y, rho, None)
    f, later = random(*operator.padded, 1, seed=1), random(*operator.padded, 1, seed=2)
    state.begin(f)
    assert not bool(state.u.any())
    state.update(later)
    pz = operator.pad(f[:3, :4])
    torch.testing.assert_close(state.u, pz - later)
    torch.testing.assert_close(state.z, (later - state.u)[:3, :4])
    m = later.numel()
    amplitude = (torch.fft.fft2(later[..., 0]).abs().square() + 0.01).sqrt()
    data = (amplitude - (y[..., 0].square() + 0.01).sqrt()).square().sum() / (2 * m)
    apart = (operator.pad(state.z) - later + state.u).square().sum()
    torch.testing.assert_close(m * state.objective(later), data + rho / 2 * apart)
    assert torch.autograd.gradcheck(state.objective, later.requires_grad_())


def test_the_truth_is_a_fixed_point():
    operator = FourierMagnitude((16, 16), 1.9)
    state = Multipliers(operator, operator(TRUTH), 1.0, (0.0, 1.0))
    f = operator.pad(TRUTH)
    state.begin(f)
    for _ in range(3):
        state.update(f)
        torch.testing.assert_close(state.z, TRUTH)
        assert float(state.u.abs().max()) < 1e-6
        assert float(state.objective(f)) < 1e-12


def test_a_smooth_image_is_found_again():
    """Of three starts, by the smallest residual; 25 dB is far above the 13 dB or so of an image's own mean."""

    def start(seed):
        return network(seed, omega=25.0, hidden_layers=3)

    given = {"rho": 0.1, "restarts": 3, "target": TRUTH, "eval_every": 30, "progress": False}
    found = net_adm(start, OPERATOR, OPERATOR(TRUTH), 120, 5, 3e-3, **given)
    assert found.psnr > 25
    assert found.residual < 0.1 * found.residuals[0]
    assert found.gaps[-1] < 0.5 * found.gaps[0]
    assert found.eval_steps == (0, 150, 300, 450, 600)
    assert float(found.signal.min()) >= 0
    assert float(found.signal.max()) <= 1
    assert found.restart == int(np.argmin(found.restart_residuals))


def test_rounds_keep_the_optimiser_and_go_on_from_a_checkpoint(tmp_path):
    given = {"iterations": 8, "inner_steps": 3, "eval_every": 2, "progress": False}
    whole = net_adm(network(), OPERATOR, OPERATOR(TRUTH), **given)

    class Stop:
        def on_step(self, state):
            if state.step == 10:
                raise KeyboardInterrupt

    path = tmp_path / "adm.safetensors"
    part = net_adm(network(), OPERATOR, OPERATOR(TRUTH), checkpoint=path, callbacks=[Stop()], **given)
    assert part.interrupted
    assert part.signal.shape == (16, 16, 1)

    class Go:
        def on_step(self, state):
            pass

    with pytest.raises(ValueError, match="of a fit with 1 callbacks, got 0"):  # the solver's own does not count
        net_adm(network(), OPERATOR, OPERATOR(TRUTH), checkpoint=path, resume=True, **given)
    with pytest.warns(RuntimeWarning, match=r"began with: callbacks\[0\]: __class__ .now Go"):
        rest = net_adm(network(), OPERATOR, OPERATOR(TRUTH), checkpoint=path, resume=True, callbacks=[Go()], **given)
    torch.testing.assert_close(rest.signal, whole.signal)
    np.testing.assert_allclose(rest.gaps, whole.gaps)


def test_regularizers_of_peak_are_part_of_the_objective():
    points = inr.grid(OPERATOR.padded)
    peak = inr.PEAK(network(), points, rows=32, keys=32)
    given = {"iterations": 2, "inner_steps": 2, "progress": False}
    found = net_adm(peak, OPERATOR, OPERATOR(TRUTH), **given)
    assert found.losses[0] > net_adm(network(), OPERATOR, OPERATOR(TRUTH), **given).losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operator": GaussianMagnitude((16, 16), 1.0)}, "must be a FourierMagnitude, got GaussianMagnitude"),
        ({"measurements": torch.ones(16, 16)}, "must be those of FourierMagnitude"),
        ({"measurements": -OPERATOR(TRUTH)}, "magnitudes, zero or more"),
        ({"net": inr.INR(2, 2, width=4)}, "measurements have 1 channels, and net has 2 outputs"),
        ({"rho": 0.0}, "rho must be above 0"),
        ({"bounds": (1.0, 0.0)}, "bounds must rise"),
        ({"bounds": 1.0}, "a smallest and a largest value"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"inner_steps": 0}, "inner_steps must be at least 1"),
        ({"coords": POINTS}, "coords must be the 961 points of the padded grid"),
        ({"eval_target": TRUTH}, "'eval_target' is no option"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"net": network(), "operator": OPERATOR, "measurements": OPERATOR(TRUTH), "iterations": 2}
    with pytest.raises((ValueError, TypeError), match=message):
        net_adm(**{**given, "progress": False, **change})
