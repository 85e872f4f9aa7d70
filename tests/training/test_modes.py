"""A fit is the same fit whatever its caller has switched on."""

import copy
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inrfast as inr
from inrfast.training.fit import fit, fit_many

COORDS = inr.grid((10, 10))
TARGET = 0.5 + 0.4 * (3 * COORDS).sin().prod(1, keepdim=True)


def absolute(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).abs().mean()


MODES: dict[str, Any] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "another device by default": lambda: torch.device("meta"),
}
NETS: dict[str, Any] = {
    "layerwise": lambda: inr.INR(2, 1, width=12, hidden_layers=2, activation="tanh"),
    "chunked": lambda: nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 1)),
    "whole": lambda: inr.INR(2, 1, width=12, hidden_layers=2, norm="batch"),
}


@pytest.mark.parametrize(
    "options", [{}, {"loss": absolute}, {"precision": "medium"}], ids=["mse", "own loss", "medium"]
)
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("mode", MODES)
def test_a_fit_is_that_outside_to_the_bit(mode: str, kind: str, options: dict[str, Any], monkeypatch: Any) -> None:
    """And a prediction by the caller's autocast has the weights of the end, not those it saw before."""
    monkeypatch.setattr("inrfast.ops.gemm.multiplies_bf16", lambda: True)
    torch.manual_seed(0)
    net = NETS[kind]()
    twin, probed = copy.deepcopy(net), copy.deepcopy(net).eval()
    expected = fit(net, COORDS, TARGET, steps=6, lr=1e-2, **options)
    context: AbstractContextManager[Any] = MODES[mode]()
    with context:
        before = probed(COORDS)
        inside = fit(probed, COORDS, TARGET, steps=6, lr=1e-2, **options)
        after = probed(COORDS)
        fit_many([twin], COORDS, TARGET, steps=6, lr=1e-2, **options)
        coords, target = COORDS + 0, TARGET + 0
    with MODES[mode]():
        fresh = copy.deepcopy(probed)(COORDS)
    assert inside.losses == expected.losses
    assert inside.psnrs == expected.psnrs
    for other in (probed, twin):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert torch.equal(after, fresh)
    assert not torch.equal(before, after)
    again = fit(copy.deepcopy(net), coords, target, steps=2)  # points made inside are points like others
    assert again.losses == fit(copy.deepcopy(net), COORDS, TARGET, steps=2).losses


def test_a_network_made_in_inference_mode_is_refused_by_name_and_its_copy_is_trained() -> None:
    with torch.inference_mode():
        net = NETS["chunked"]()
        with pytest.raises(ValueError, match=r"net\.0\.weight was made inside torch\.inference_mode"):
            fit(net, COORDS, TARGET, steps=1)
    assert fit(copy.deepcopy(net), COORDS, TARGET, steps=1).steps == 1
