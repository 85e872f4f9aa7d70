"""Fused fits on a pretended machine of two GPUs, in a process of their own; prints what the test asks for, as JSON."""

import contextlib
import json
import os
import sys
import warnings

os.environ["TRITON_INTERPRET"] = "1"

import pretend_gpu
import torch

pretend_gpu.install("interpret")

import inrfast as inr  # noqa: E402 (a machine is pretended before it is looked at)
from inrfast.training.engines.fused import FusedSteps  # noqa: E402

CASES = {
    "all points": {},
    "batches": {"batch_size": 10, "seed": 3},
    "medium": {"precision": "medium", "optimizer": "sgd", "batch_size": 10},
}
STEPS, BLOCK = 12, 3


def data(device):
    rng = torch.Generator().manual_seed(7)
    coords = 2 * torch.rand(20, 2, generator=rng) - 1
    target = torch.stack([(3 * coords[:, 0]).sin(), coords[:, 1] ** 2], 1) / 2
    return coords.to(device), target.to(device)


def nets(device, count=1):
    options = {"width": 16, "hidden_layers": 1, "activation": "sine", "omega": 4.0}
    return [inr.INR(2, 2, seed=seed, **options).to(device) for seed in range(count)]


@contextlib.contextmanager
def blocks(into):
    """Note what every block of steps asked of the GPU."""
    real = FusedSteps.take

    def take(self, *arguments):
        with pretend_gpu.counted() as found:
            result = real(self, *arguments)
        into.append({"waits": found.waits, "kernels": found.kernels, "replays": found.replays})
        return result

    FusedSteps.take = take
    try:
        yield
    finally:
        FusedSteps.take = real


def fitted(device, **options):
    """Return losses, weights, blocks and violations of one fit."""
    (net,), found = nets(device), []
    with blocks(found), pretend_gpu.counted() as record, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        options = {"steps": STEPS, "lr": 3e-3, "eval_every": BLOCK, "backend": "triton", **options}
        result = inr.fit(net, *data(device), **options)
    weights = torch.cat([parameter.detach().cpu().flatten() for parameter in net.parameters()])
    return {
        "losses": result.losses,
        "weights": weights.tolist(),
        "blocks": found,
        "violations": [list(key) for key in record.violations],
        "warnings": [str(warning.message) for warning in told if warning.category is RuntimeWarning],
        "current device": torch.cuda.current_device(),
    }


def many(device):
    """Return the losses of three networks in one sequence."""
    own = nets(device, 3)
    with pretend_gpu.counted() as record:
        results = inr.fit_many(
            own, *data(device), steps=STEPS, lr=[1e-3, 2e-3, 3e-3], eval_every=BLOCK, backend="triton"
        )
    return {"losses": [result.losses for result in results], "violations": [list(key) for key in record.violations]}


def failing(device):
    """Return what comes of a fit whose every capture fails in the middle."""
    real = FusedSteps._launch

    def launch(self, count):
        if torch.cuda.is_current_stream_capturing():
            real(self, count // 2)
            raise RuntimeError("operation not permitted when stream is capturing")
        real(self, count)

    FusedSteps._launch = launch
    try:
        return fitted(device)
    finally:
        FusedSteps._launch = real


def main():
    found = {"failing": failing("cuda:1")}
    found["cuda:0"] = {"all points": fitted("cuda:0")}
    found["cuda:1"] = {name: fitted("cuda:1", **options) for name, options in CASES.items()}
    found["many"] = many("cuda:1")
    json.dump(found, sys.stdout)


main()
