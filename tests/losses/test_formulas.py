"""Named losses: their slopes are the derivatives of their values, which are torch's own; bad settings are refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from inrfast.losses import LOSSES, loss_of

TORCH: dict[str, Any] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "bce": F.binary_cross_entropy_with_logits,
}
"""The same losses as PyTorch has them."""


def entries(seed: int, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    target = torch.rand(n, 2, generator=rng, dtype=torch.float64)
    prediction = target + torch.randn(n, 2, generator=rng, dtype=torch.float64).pow(3)
    target[0], prediction[1] = 1.0, target[1]  # an entry of no error, too
    return prediction.requires_grad_(), target


@pytest.mark.parametrize("name", list(LOSSES))
@given(seed=st.integers(0, 1000), delta=st.floats(0.01, 10))
def test_values_are_torch_s_and_slopes_their_derivatives(name: str, seed: int, delta: float) -> None:
    numbers = {"delta": delta} if name == "huber" else {}
    loss, (prediction, target) = loss_of({"name": name, **numbers}), entries(seed)
    values = loss.value(prediction, target)
    torch.testing.assert_close(values, TORCH[name](prediction, target, reduction="none", **numbers))
    (slope,) = torch.autograd.grad(values.sum(), prediction)
    torch.testing.assert_close(loss.slope(prediction.detach(), target), slope, rtol=1e-12, atol=1e-14)
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert float(loss.mean(prediction.detach(), target, weight)) == pytest.approx(
        float((weight * values.detach()).sum() / weight.sum())
    )
    assert loss_of(loss.config()) == loss


def test_costs_tell_small_losses_from_large_ones() -> None:
    """Predictions that are off by little cost little, and more than starts do where they are off by a lot."""
    for name in LOSSES:
        costs = [loss_of(name).cost(error) for error in (1e-3, 0.1, 1.0, 10.0)]
        assert costs == sorted(costs)
        assert costs[0] <= 2e-3
        assert costs[-1] >= 5


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ("hubber", ValueError, "Did you mean 'huber'"),
        (3, TypeError, "loss must be a name"),
        ({"delta": 1.0}, ValueError, "which loss"),
        ({"name": "huber", "dlta": 1.0}, ValueError, "takes delta, got 'dlta'. Did you mean 'delta'"),
        ({"name": "mse", "delta": 1.0}, ValueError, "has no numbers"),
        ({"name": "huber", "delta": 0.0}, ValueError, "above 0"),
        ({"name": "huber", "delta": "1"}, TypeError, "must be a number"),
    ],
)
def test_bad_settings_are_refused(spec: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        loss_of(spec)


def test_targets_outside_a_loss_s_range_are_refused() -> None:
    for bad in ([0.0, 1.1], [-0.1, 1.0]):
        with pytest.raises(ValueError, match=r"target must lie in \[0, 1\] for loss='bce'"):
            loss_of("bce").check_target("target", torch.tensor(bad))
        loss_of("huber").check_target("target", torch.tensor(bad))
