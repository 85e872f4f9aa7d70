"""Every engine says why it does not take a task; the first that takes it is taken; a backend that is named raises."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.errors import NotAvailableError
from inrfast.losses import BoundLoss, loss_of
from inrfast.ops import mlp_step
from inrfast.training.data import check_data
from inrfast.training.engines import ENGINES, Task, engine_of
from inrfast.training.engines.chunked import ChunkedGradient
from inrfast.training.engines.fused import FusedGradient
from inrfast.training.engines.native import NativeGradient
from inrfast.training.objective import Objective, check_objective


class Shifted(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + 1


def small(**options: Any) -> inr.INR:
    return inr.INR(2, 1, width=8, hidden_layers=2, **options)


def task(net: nn.Module, **options: Any) -> Task:
    net.train()
    coords = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=next(net.parameters()).dtype)
    return Task([net], check_data(net, 1e5 * coords if options.pop("far", False) else coords, coords[:, :1]), **options)


def absolute(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).abs().mean()


def changed(change: Any) -> inr.INR:
    net = small()
    change(net)
    return net


OWN = check_objective(absolute, False)
SEEING = check_objective("mse", False, [lambda prediction: prediction.square().mean()])
PLAIN = BoundLoss(replace(loss_of("mse").kind, name="plain", native=None, triton=None))
"""A loss without device functions."""

FOURIER = inr.RandomFourier(50, 1.0)
UNKNOWN = {
    "an inrfast.INR": nn.Sequential(nn.Linear(2, 1)),
    "norms": small(norm="layer"),
    "torch.nn.Linear": changed(lambda net: net.layers.__setitem__(1, Shifted(8, 8))),
    "hooks": changed(lambda net: net.layers[0].register_forward_hook(lambda module, inputs, output: None)),
    "method 'forward' of its own": changed(lambda net: setattr(net.layers[0], "forward", net.layers[0].forward)),
}
"""Networks whose formula is not known, by what is said of them."""

REFUSED: list[tuple[type, nn.Module, dict[str, Any], str]] = [
    *((engine, net, {"backend": "triton"}, said) for said, net in UNKNOWN.items() for engine in ENGINES[:3]),
    *((engine, small(), {"objective": OWN, "backend": "triton"}, "one of your own") for engine in ENGINES[:-1]),
    *(
        (engine, small(), {"objective": SEEING, "backend": "triton"}, r"\[0\] asks for the pred")
        for engine in ENGINES[:-1]
    ),
    (FusedGradient, small(), {"objective": Objective(PLAIN), "backend": "triton"}, "'plain' has no fused step"),
    (NativeGradient, small(), {"objective": Objective(PLAIN)}, "'plain' has no native step"),
    (FusedGradient, small(), {"objective": Objective(modules=(nn.Linear(1, 1),)), "backend": "triton"}, "modules"),
    (FusedGradient, small(), {}, "backend='triton'"),
    (FusedGradient, small(activation=["relu", "sine"]), {"backend": "triton"}, "different activations"),
    (FusedGradient, small(), {"backend": "triton", "narrow": True, "far": True}, "coordinates beyond"),
    (FusedGradient, small(encoding=FOURIER), {"backend": "triton", "budget": 10_000}, "encoded points"),
    (NativeGradient, small(activation="tanh"), {}, "'tanh'"),
    (NativeGradient, small().double(), {}, "float64"),
    (NativeGradient, small(), {"narrow": True}, "16 bits"),
    (NativeGradient, small(encoding=FOURIER), {"budget": 10_000}, "encoded points"),
    (NativeGradient, small(), {"budget": 4_000}, "buffers"),
    (ChunkedGradient, small(norm="batch"), {}, "other"),
    (ChunkedGradient, nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1)), {}, "passes .* differ"),
    (ChunkedGradient, UNKNOWN["hooks"], {}, "hooks"),
]


@pytest.mark.skipif(not mlp_step.instructions(), reason="there is no native step here, which is then the reason")
@pytest.mark.parametrize(("engine", "net", "options", "said"), REFUSED)
def test_the_reason_against_an_engine_is_the_one_that_holds(engine, net, options, said):
    reason = engine.reason_against(task(net, **options))
    assert reason is not None
    assert re.search(said, reason)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_first_engine_without_a_reason_is_taken_and_a_named_backend_raises_with_its_own(data: st.DataObject):
    net = data.draw(st.sampled_from([small, lambda: small(activation="tanh"), lambda: small(norm="sphere")]))()
    asked = task(
        net,
        objective=data.draw(st.sampled_from([Objective(), Objective(PLAIN), Objective(loss_of("l1")), OWN, SEEING])),
        narrow=data.draw(st.booleans()),
        backend=data.draw(st.sampled_from(["torch", "triton"])),
        named=data.draw(st.booleans()),
    )
    reasons = [engine.reason_against(asked) for engine in ENGINES]
    if asked.named and asked.backend == "triton" and reasons[0] is not None:
        with pytest.raises(NotAvailableError) as raised:
            engine_of(asked)
        assert reasons[0] in str(raised.value)
    else:
        taken, first = engine_of(asked), reasons.index(None)
        assert taken[0] is ENGINES[first]
        fastest = first == 0 or (first == 1 and asked.backend == "torch")
        assert taken[1] == (None if fastest else reasons[first - 1])


def test_a_result_says_how_gradients_were_taken_and_why_not_faster() -> None:
    x = inr.grid(8)
    tanh = "'tanh'" if mlp_step.instructions() else "no native step"  # the first reason may be the machine's
    for net, gradient, said in (
        (inr.INR(1, 1, width=4, activation="tanh"), "layerwise", tanh),
        (inr.INR(1, 1, width=4, norm="layer"), "chunked", "norms"),
        (inr.INR(1, 1, width=4, norm="batch"), "normed", "norms"),
        (inr.INR(1, 1, width=4, norm=["batch", "sphere", None]), "whole", "others"),
    ):
        config = inr.fit(net, x, x, steps=1).config
        assert config["gradient"] == gradient
        assert said in config["reason"], config["reason"]
