"""Kill fits at random moments and let them go on: ``python bench/killed.py [KILLS] [--out results.json]``.

Each fit runs in a process of its own, forked before any thread is started, is killed by SIGKILL at a random moment of
its time, then runs again with ``resume=True``. Its weights must be those of an unhurt fit, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

import inrfast as inr
from inrfast.files import write_whole
from inrfast.info import info
from inrfast.ops import gemm

FITS: dict[str, dict[str, Any]] = {
    "full batch": {"net": {"activation": "sine", "init": "siren"}, "fit": {}},
    "mini-batches": {"net": {"encoding": inr.RandomFourier(32, 3.0)}, "fit": {"batch_size": 700, "optimizer": "adamw"}},
    "batch norm": {"net": {"norm": "batch"}, "fit": {"batch_size": 500}},
    "bf16": {"net": {}, "fit": {"precision": "medium"}},
}


def fit(name: str, path: Path, seconds: float) -> None:
    """Fit one network, from its checkpoint if there is one, and write its final weights beside it."""
    coords = inr.grid((64, 64))
    target = torch.cat([(3 * coords).sin(), (2 * coords[:, :1] * coords[:, 1:]).cos()], dim=1) / 2
    net = inr.INR(2, 3, width=64, hidden_layers=3, seed=0, **FITS[name]["net"])
    options = {
        "seed": 0,
        "steps": 500,
        "progress": False,
        "resume": True,
        "checkpoint_seconds": seconds,
        **FITS[name]["fit"],
    }
    inr.fit(net, coords, target, checkpoint=path, **options)
    torch.save(net.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path.with_suffix(".final"))


def forked(name: str, path: Path, seconds: float, kill_after: float | None = None) -> bool:
    """Run a fit in a child process; return whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            fit(name, path, seconds)
        finally:
            os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    gemm.multiplies_bf16 = lambda: True  # also where it does not pay
    rng = random.Random(0)
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[str, float] = {}
        for name in FITS:
            start = time.monotonic()
            forked(name, Path(folder) / f"{name}.safetensors", 1e6)
            whole[name] = time.monotonic() - start
        while sum(trial["killed"] for trial in trials) < arguments.kills:  # some fits end before their moment comes
            number = len(trials)
            name = list(FITS)[number % len(FITS)]
            path = Path(folder) / f"{number}.safetensors"
            after = rng.uniform(0, whole[name])
            killed = forked(name, path, 0.05, after)
            found = path.exists()
            forked(name, path, 1e6)
            states = [torch.load(p) for p in (path.with_suffix(".final"), Path(folder) / f"{name}.final")]
            same = all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
            trials.append({"fit": name, "after": round(after, 3), "killed": killed, "checkpoint": found, "same": same})
            print(trials[-1], flush=True)
    good = sum(trial["same"] for trial in trials)
    dead = sum(trial["killed"] for trial in trials)
    print(f"{good} of {len(trials)} fits ended with the weights of an unhurt one; {dead} were killed before their end")
    if arguments.out is not None:
        result = {"date": str(date.today()), "versions": info()["versions"], "same": good, "trials": trials}
        write_whole(arguments.out, (json.dumps(result, indent=1) + "\n").encode())
    if good < len(trials):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
