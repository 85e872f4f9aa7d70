"""Where a diverged fit first met a NaN or Inf, for the advice it gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def first_nonfinite(net: nn.Module, coords: Tensor) -> str:
    """Say in words where a NaN or Inf arises first: a weight, a layer's output, a prediction, or a gradient.

    ``net`` holds the weights and gradients that failed; ``coords`` are the points (n, d) of the failing step.
    """
    for name, parameter in net.named_parameters():
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
        finite = bool(torch.isfinite(net(coords)).all())
    finally:
        for handle in handles:
            handle.remove()
    if seen:
        return f"the output of {seen[0]}"
    if not finite:
        return "the predictions"
    for name, parameter in net.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of {name}"
    return "the loss"
