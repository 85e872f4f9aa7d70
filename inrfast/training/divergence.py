"""A fit that went wrong: where it first met a NaN or Inf, and whether its loss grew, for the advice it gives."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.calling import Calling
from inrfast.losses import BoundLoss
from inrfast.mlp import MLP, describe

LAST = 10
"""Losses whose median is that of the end: single batches scatter."""

GROWN, BATCHES_GROWN = 2.0, 10.0
"""Times its first value from which a loss has grown: of all points at once, of batches or of a loss of one's own."""

BURST = 1e3
"""Times its first value from which a loss has burst, if it does not fall below half of the first again."""

FAR = 10.0
"""Error that is worse than any start should be, in units of the target's range or of 1: networks begin with outputs
near that."""

CLOSE = 1e-3
"""Error, in units of the target's range, below which growing means nothing: it is 60 dB."""

ADVISED_ROWS = 4096


@torch.no_grad()
def first_nonfinite(
    net: nn.Module, coords: Tensor, beside: Mapping[str, Tensor] | None = None, calling: Calling | None = None
) -> str:
    """Say in words where a NaN or Inf arises first: a weight, a layer's output, a prediction, or a gradient.

    ``net`` holds the weights and gradients that failed, and ``beside`` those of modules that are trained with it;
    ``coords`` are the points (n, d) of the failing step, and ``calling`` says how the network is called.
    """
    trained = {**dict(net.named_parameters()), **(beside or {})}
    for name, parameter in trained.items():
        if not bool(torch.isfinite(parameter).all()):
            return f"the weights of {name}"
    seen: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                seen.append(name)

        return hook

    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(name or "the network")) for name, module in leaves]
    try:
        finite = bool(torch.isfinite((calling or Calling()).predicted(net, coords)).all())
    finally:
        for handle in handles:
            handle.remove()
    if seen:
        return f"the output of {seen[0]}"
    if not finite:
        return "the predictions"
    for name, parameter in trained.items():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of {name}"
    return "the loss"


def growth(losses: Sequence[float], loss: BoundLoss | None, span: float, whole: bool) -> str | None:
    """Say in words how a loss grew over a fit, or None if it did not.

    Parameters
    ----------
    losses
        One per update.
    loss
        What they are means of; None for a loss of the user's own, or with regularisers, which may be of any size.
    span
        The target's range.
    whole
        Whether each is a mean over all points, which scatters little.
    """
    if len(losses) < LAST:
        return None
    first, last, most = losses[0], statistics.median(losses[-LAST:]), max(losses)
    if loss is not None and last <= loss.cost(CLOSE * span):
        return None
    if first > 0:
        times = GROWN if whole else BATCHES_GROWN
        if last > times * first:
            return f"ended with a loss of {last:.3g}, {last / first:.3g} times that of its start"
        if most > BURST * first and last > first / 2:
            return f"had a loss of up to {most:.3g}, and ended at {last:.3g} where it had begun at {first:.3g}"
    if loss is not None and last > loss.cost(FAR * max(span, 1.0)):
        return f"ended with a mean {loss.name} loss of {last:.3g} on a target of range {span:.3g}"
    return None


@torch.no_grad()
def remedies(net: nn.Module, coords: Tensor, lr: float) -> str:
    """Say in words what to try where a loss grew."""
    tried = [f"lower lr (it was {lr:.3g})", "omega", "the gain of the initialisation"]
    mlp = describe(net)
    if isinstance(mlp, MLP) and mlp.encoding is not None:
        largest = float(mlp.encoding(coords[:: max(1, len(coords) // ADVISED_ROWS)]).abs().max())
        if largest > 10:
            tried.append(
                f"what makes the features of {type(mlp.encoding).__name__} as large as {largest:.3g} (its degree, its "
                "coefficients, or the range of the coordinates)"
            )
    return f"{', '.join(tried[:-1])} or {tried[-1]}"
