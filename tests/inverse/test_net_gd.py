"""Net-GD: signals from linear measurements and magnitudes, histories, restarts, checkpoints, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import inrfast as inr
from inrfast.errors import DivergedError
from inrfast.inverse import (
    Blur,
    Downsample,
    FourierMagnitude,
    Gaussian,
    GaussianMagnitude,
    LinearOperator,
    Mask,
    Radon,
    align_ambiguities,
    net_gd,
)
from inrfast.metrics import psnr

POINTS = inr.grid((16, 16))
SMOOTH = 0.5 + 0.3 * torch.sin(3 * POINTS[:, 0] + 1) * torch.cos(2 * POINTS[:, 1])
TRUTH = SMOOTH.reshape(16, 16, 1)


def network(seed: int = 0, outputs: int = 1, **options) -> inr.INR:
    own = {"width": 32, "hidden_layers": 2, "activation": "sine", "init": "siren", "omega": 6.0, **options}
    return inr.INR(2, outputs, seed=seed, **own)


@pytest.mark.parametrize(
    "operator",
    [
        Mask.random((16, 16), 0.3),
        Downsample((16, 16), 2, "bicubic"),
        Blur.gaussian((16, 16), 1.0, "mirror"),
        Radon(16, 12, circle=False),
        Gaussian((16, 16), measurements=120),
        GaussianMagnitude((16, 16), 1.0),
        FourierMagnitude((16, 16), 2.0),
    ],
    ids=lambda own: own.name,
)
def test_a_smooth_image_is_found_again(operator):
    """35 dB is an error of 2 % of the range: from 30 % of the pixels, half the measurements, or without signs."""
    start = network if operator.ambiguities else network()
    restarts = 3 if operator.ambiguities else 1
    found = net_gd(start, None, operator, operator(TRUTH), 400, 5e-3, target=TRUTH, restarts=restarts, progress=False)
    assert found.psnr > 35
    assert found.residual < 0.05 * found.residuals[0]
    aligned = align_ambiguities(found.signal, TRUTH, operator)
    assert found.psnr == pytest.approx(psnr(aligned, TRUTH, 1.0))
    with torch.no_grad():
        torch.testing.assert_close(found.signal, found.net(POINTS).reshape(16, 16, 1))


def test_restarts_are_chosen_by_what_was_measured():
    operator = GaussianMagnitude((16, 16), 0.5)
    given = {"steps": 30, "lr": 5e-3, "progress": False}
    found = net_gd(network, POINTS, operator, operator(TRUTH), restarts=3, target=TRUTH, seed=5, **given)
    assert found.restart == int(np.argmin(found.restart_residuals))
    assert len(found.restart_psnrs) == 3
    alone = net_gd(network(5 + found.restart), POINTS, operator, operator(TRUTH), seed=5 + found.restart, **given)
    torch.testing.assert_close(alone.signal, found.signal)
    assert alone.psnr is None
    assert alone.psnrs == ()
    blind = net_gd(network, POINTS, operator, operator(TRUTH), restarts=3, target=1 - TRUTH, seed=5, **given)
    assert blind.restart == found.restart  # the truth has no say


class Explosive(torch.nn.Module):
    """A network whose gradient is not finite, where that is asked for."""

    def __init__(self, seed: int, bad: bool = True):
        super().__init__()
        self.inner, self.bad = network(seed), bad

    def forward(self, x):
        found = self.inner(x)
        return found + (found.abs() * 1e38).square() * 0 if self.bad and self.training else found


@pytest.mark.parametrize("why", ["diverges", "cannot be made", "is the one before"])
def test_a_failing_restart_leaves_the_others(why):
    operator = Mask.random((16, 16), 0.5)
    made = {}

    def start(seed):
        if seed == 6 and why == "cannot be made":
            raise OSError("no such weights")
        kept = made.get(5) if seed == 7 and why == "is the one before" else None
        made[seed] = kept or Explosive(seed, seed == 6 and why == "diverges")
        return made[seed]

    given = {"steps": 10, "lr": 5e-3, "seed": 5, "target": TRUTH, "progress": False}
    out = 2 if why == "is the one before" else 1
    message = {"diverges": "DivergedError", "cannot be made": "OSError: no such", "is the one before": "for each seed"}
    with pytest.warns(RuntimeWarning, match=f"restart {out}, of seed {5 + out}, is left out: .*{message[why]}"):
        found = net_gd(start, POINTS, operator, operator(TRUTH), restarts=3, **given)
    alone = net_gd(
        network(5 + found.restart), POINTS, operator, operator(TRUTH), **{**given, "seed": 5 + found.restart}
    )
    assert found.restart == int(np.argmin(found.restart_residuals)) != out
    torch.testing.assert_close(found.signal, alone.signal)
    assert np.isinf(found.restart_residuals[out]) and np.isnan(found.restart_psnrs[out])
    assert np.isfinite(np.delete(found.restart_residuals, out)).all()


@pytest.mark.filterwarnings("ignore:restart")
def test_only_where_all_restarts_diverge_it_is_an_error():
    operator = Mask.random((16, 16), 0.5)
    with pytest.raises(DivergedError, match="none of 2 restarts came to an end; the first: "):
        net_gd(Explosive, POINTS, operator, operator(TRUTH), 5, restarts=2, progress=False)


def test_ctrl_c_between_restarts_keeps_those_that_are_done():
    def start(seed):
        if seed == 2:
            raise KeyboardInterrupt
        return network(seed)

    operator = Mask.random((16, 16), 0.5)
    found = net_gd(start, POINTS, operator, operator(TRUTH), 5, restarts=4, progress=False)
    assert found.interrupted
    assert np.isfinite(found.restart_residuals[:2]).all()


def test_restarts_share_nothing_that_is_trained():
    operator, one = Mask.random((16, 16), 0.5), network()
    shared, steps = inr.KAR(POINTS, rows=16, keys=16), []

    class Counts:
        def on_step(self, state):
            steps.append(state.step)

    given = {"operator": operator, "measurements": operator(TRUTH), "steps": 2, "restarts": 2, "callbacks": [Counts()]}
    with pytest.raises(TypeError, match="net must make a new network"):
        net_gd(lambda seed: one, POINTS, progress=False, **given)
    for options in ({"regularizers": [(shared, 0.1)]}, {"modules": [shared]}):
        with pytest.raises(TypeError, match="KAR is trained with the network, and restarts"):
            net_gd(network, POINTS, progress=False, **options, **given)
    assert not steps  # refused before any work


def test_history_and_settings_become_plain_values():
    operator = Mask.random((16, 16), 0.5)
    found = net_gd(network(), POINTS, operator, operator(TRUTH), 10, target=TRUTH, eval_every=4, progress=False)
    assert found.eval_steps == (0, 4, 8, 10)
    assert len(found.residuals) == len(found.psnrs) == 4
    assert len(found.losses) == found.steps == 10
    text = json.loads(json.dumps(found.to_dict()))
    assert text["config"]["solver"] == "net_gd"
    assert "signal" not in text


def test_channels_and_precision_follow_the_measurements_and_the_network():
    truth = torch.cat([TRUTH, 1 - TRUTH], -1)
    operator = Mask.random((16, 16), 0.5)
    found = net_gd(network(outputs=2, dtype=torch.float64), None, operator, operator(truth), 200, 5e-3, progress=False)
    assert found.signal.dtype == torch.float64
    assert psnr(found.signal.float(), truth) > 30


def test_regularizers_come_with_peak_and_from_the_call():
    asked = []

    def smooth(prediction):
        asked.append(len(prediction))
        return prediction.square().mean()

    operator = Mask.random((16, 16), 0.5)
    peak = inr.PEAK(network(), POINTS, rows=32, keys=32)
    found = net_gd(peak, POINTS, operator, operator(TRUTH), 5, regularizers=[(smooth, 1e-3)], progress=False)
    assert asked == [256] * len(asked)
    assert found.net is peak.net
    plain = net_gd(network(), POINTS, operator, operator(TRUTH), 5, progress=False)
    assert found.losses[0] > plain.losses[0]


def test_what_was_given_may_change_meanwhile():
    class Reuses:
        """Writes into tensors of the caller's."""

        def __init__(self, *own):
            self.own = own

        def on_step(self, state):
            for own in self.own:
                own.zero_()

    operator = Mask.random((16, 16), 0.5)
    runs = []
    for reused in (False, True):
        points, y, truth = POINTS.clone(), operator(TRUTH), TRUTH.clone()
        callbacks = [Reuses(points, y, truth) if reused else Reuses()]
        given = {"steps": 4, "eval_every": 1, "target": truth, "callbacks": callbacks, "progress": False}
        runs.append(net_gd(network(), points, operator, y, **given))
    torch.testing.assert_close(runs[1].signal, runs[0].signal)
    np.testing.assert_allclose(runs[1].psnrs, runs[0].psnrs)


def test_networks_do_not_write_into_the_points_of_the_caller():
    class Scales(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x.mul_(2))

    operator, points = Mask.random((16, 16), 0.5), POINTS.clone()
    with pytest.raises(ValueError, match="writes into its arguments"):
        net_gd(Scales(), points, operator, operator(TRUTH), 2, progress=False)
    assert torch.equal(points, POINTS)


def test_a_fit_goes_on_from_its_checkpoint(tmp_path):
    operator = Mask.random((16, 16), 0.5)
    given = {"operator": operator, "measurements": operator(TRUTH), "steps": 30, "eval_every": 10, "progress": False}
    whole = net_gd(network(), POINTS, **given)

    class Stop:
        def on_step(self, state):
            if state.step == 13:
                raise KeyboardInterrupt

    path = tmp_path / "gd.safetensors"
    part = net_gd(network(), POINTS, checkpoint=path, callbacks=[Stop()], **given)
    assert part.interrupted
    assert part.steps == 13

    class Go:
        def on_step(self, state):
            pass

    with pytest.raises(ValueError, match="of a fit with 1 callbacks, got 0"):  # the solver's own does not count
        net_gd(network(), POINTS, checkpoint=path, resume=True, **given)
    with pytest.warns(RuntimeWarning, match=r"began with: callbacks\[0\]: __class__ .now Go"):
        rest = net_gd(network(), POINTS, checkpoint=path, resume=True, callbacks=[Go()], **given)
    torch.testing.assert_close(rest.signal, whole.signal)
    assert rest.eval_steps == whole.eval_steps
    np.testing.assert_allclose(rest.residuals, whole.residuals)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measurements": torch.ones(100)}, "must be those of Mask"),
        ({"measurements": torch.full((128,), torch.nan)}, "must be finite"),
        ({"measurements": torch.zeros(128)}, "must not all be zero"),
        ({"operator": GaussianMagnitude((16, 16), measurements=128), "measurements": -torch.ones(128)}, "128 negative"),
        ({"operator": LinearOperator(lambda x: x, lambda y: 2 * y, 128, 128)}, "adjoint of LinearOperator"),
        ({"operator": torch.nn.Identity()}, "must be an inrfast.inverse.Operator"),
        ({"coords": inr.grid((16, 15))}, "coords must be the 256 points"),
        ({"target": torch.ones(16, 15)}, "target must be the truth"),
        ({"target": torch.ones(16, 16, 3)}, "target has 3 channels, measurements 1"),
        ({"target": torch.ones(16, 16, dtype=torch.complex64)}, "target must be real"),
        ({"net": None}, "net must be a network or a function"),
        ({"restarts": 2}, "net must be a function of the seed"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 4}, "'batch_size' is no option of this solver"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"callbacks": [torch.ones(1)]}, r"callbacks\[0\] must have a method"),
        ({"callbacks": 3}, "callbacks must be a sequence"),
        ({"measurements": torch.ones(128, 2)}, "measurements have 2 channels, and net has 1 outputs"),
        ({"net": network(outputs=2)}, "measurements have 1 channels, and net has 2 outputs"),
        ({"net": inr.INR(3, 1, width=4)}, "coords must have shape .N, 3."),
        ({"net": torch.nn.Linear(3, 1)}, "net does not take coords of shape .256, 2."),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {
        "net": network(),
        "coords": POINTS,
        "operator": Mask.random((16, 16), 0.5),
        "measurements": torch.ones(128),
    }
    with pytest.raises((ValueError, TypeError), match=message):
        net_gd(**{**given, "steps": 2, "progress": False, **change})
