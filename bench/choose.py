"""Does ``inr.choose`` predict which network reconstructs a signal best between its samples? Real fits are the truth.

    python bench/choose.py fit --set tune --out FOLDER
    python bench/choose.py fit --set test --out FOLDER --photographs DIR --sounds A.wav B.wav --volume V.npy \\
        --shape M.obj
    python bench/choose.py score --set test --out FOLDER ... --file bench/results/choose.json

Half of the samples, drawn at random, train; the other half judge. Truth: the held-out PSNR of 19 candidates (3 hidden
layers of 128) after 500 steps of Adam on batches of 4,096 with a rate that falls to a tenth. It starts at 5e-3 (better
than 1e-3 wherever both were tried); for sine layers, whose weights have a size of 1 / omega, at the better of 0.03 and
0.1 over omega. ``fit`` writes one file per signal and goes on where it was. ``score`` asks ``inr.choose``, fits what it
found by its own search in the same way, and prints rank correlations and how far its first choice is below the best.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

import inrfast as inr
from inrfast.choosing.choice import arguments_of
from inrfast.ops import gemm
from inrfast.signals.image import load_image

WIDTH, HIDDEN, STEPS, BATCH, SIDE = 128, 3, 500, 4096, 256
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
"""Of scikit-image, for tuning."""


@dataclass(frozen=True)
class Case:
    """A signal: points (N, d), values (N, M), the grid's shape (None for scattered points) and the kind of list."""

    name: str
    coords: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, ...] | None

    @property
    def trained(self) -> torch.Tensor:
        """Mask (N,) of the half that trains."""
        order = torch.randperm(len(self.coords), generator=torch.Generator().manual_seed(0))
        mask = torch.zeros(len(self.coords), dtype=torch.bool)
        mask[order[: len(order) // 2]] = True
        return mask

    @property
    def data_range(self) -> float:
        """Largest minus smallest value, 1 for photographs."""
        return 1.0 if self.values.shape[1] == 3 else float(self.values.max() - self.values.min())


def candidates(axes: int) -> dict[str, dict[str, Any]]:
    """Return 19 networks by name, as arguments of ``inr.INR``; those for a sound have the frequencies of sounds."""
    omegas, sigmas, octaves = (5, 10, 20, 30, 60, 100), (1, 2, 4, 8, 16, 32), (3, 6, 9)
    if axes == 1:
        omegas, sigmas, octaves = (100, 300, 1000, 3000, 10000, 30000), (10, 30, 100, 300, 1000, 3000), (6, 9, 12)
    found: dict[str, dict[str, Any]] = {}
    for omega in omegas:
        found[f"siren {omega}"] = {"activation": "sine", "omega": float(omega), "init": "siren"}
    for sigma in sigmas:
        found[f"fourier {sigma}"] = {"encoding": inr.RandomFourier(128, float(sigma))}
    for octave in octaves:
        found[f"positional {octave}"] = {"encoding": inr.PositionalEncoding(octave)}
    found["relu"] = {}
    found["rank-expanding"] = {"init": "rank_expanding"}
    found["gaussian"] = {"activation": "gaussian"}
    found["tanh"] = {"activation": "tanh"}
    return found


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Return the signals of a set, photographs last."""
    yield from _tune() if arguments.set == "tune" else _test(arguments)


def _tune() -> Iterator[Case]:
    import trimesh
    from skimage import data

    time_ = np.arange(16384) / 16384
    tones = sum(np.sin(2 * np.pi * (110 * k * time_ + 40 * k * time_**2)) / k for k in range(1, 12))
    bursts = np.exp(-((time_[:, None] - np.linspace(0.1, 0.9, 5)) ** 2) / 1e-3) @ np.array([1, 0.5, 0.8, 0.4, 0.9])
    yield _grid_case("synthetic-sound", torch.from_numpy(tones * (0.2 + bursts)).float()[:, None] / 4)
    x = inr.grid((40, 40, 40))
    field = (12 * x.norm(dim=1)).sin() / (1 + 3 * x.norm(dim=1)) + 0.3 * (x @ torch.tensor([9.0, 5.0, -7.0])).cos()
    yield _grid_case("synthetic-volume", (0.25 * field + 0.5).view(40, 40, 40, 1))
    yield _shape_case("torus", trimesh.creation.torus(0.6, 0.25))
    for name in PHOTOGRAPHS:
        yield _photograph(name, torch.from_numpy(getattr(data, name)()).float() / 255)


def _test(arguments: argparse.Namespace) -> Iterator[Case]:
    import soundfile
    import trimesh

    for path in arguments.sounds:
        sound, _ = soundfile.read(path, always_2d=True)
        yield _grid_case(path.stem, torch.from_numpy(sound).float()[:, :1])
    yield _grid_case(arguments.volume.stem, torch.from_numpy(np.load(arguments.volume)).float()[..., None])
    yield _shape_case(arguments.shape.stem, trimesh.load(arguments.shape, force="mesh"))
    for path in sorted(arguments.photographs.iterdir())[arguments.first : arguments.first + 8]:
        yield _photograph(path.stem, load_image(path))


def _photograph(name: str, image: torch.Tensor) -> Case:
    """Return the central square of an image, averaged over areas to 256x256 pixels."""
    image = image[..., :3].expand(*image.shape[:2], 3).permute(2, 0, 1)[None]
    side = min(image.shape[-2:])
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    square = F.interpolate(image[..., top : top + side, left : left + side], size=(SIDE, SIDE), mode="area")
    return _grid_case(name, square[0].permute(1, 2, 0).contiguous())


def _grid_case(name: str, values: torch.Tensor) -> Case:
    shape = tuple(values.shape[:-1])
    return Case(name, inr.grid(shape), values.reshape(-1, values.shape[-1]), shape)


def _shape_case(name: str, mesh: Any) -> Case:
    from inrfast.signals.mesh import sample_occupancy

    points, inside = sample_occupancy(mesh, 40_000, progress=False)
    return Case(name, points.float(), inside.float().reshape(-1, 1), None)


def made(case: Case, network: dict[str, Any]) -> inr.INR:
    """Return a network of the list for a signal."""
    sizes = case.coords.shape[1], case.values.shape[1]
    return inr.INR(*sizes, width=WIDTH, hidden_layers=HIDDEN, seed=0, **network)


def rates(network: dict[str, Any]) -> tuple[float, ...]:
    """Return the learning rates that a network is fitted with."""
    if network.get("activation") != "sine":
        return (5e-3,)
    return tuple(rate / network["omega"] for rate in (0.03, 0.1))


def fitted(case: Case, make: Callable[[], inr.INR], given: tuple[float, ...]) -> dict[str, Any]:
    """Return held-out PSNRs (dB) of a network fitted with each rate: at the end, and the best of ten evaluations."""
    mask = case.trained
    nets = [make() for _ in given]
    start = time.perf_counter()
    results = inr.fit_many(
        nets,
        case.coords[mask],
        case.values[mask],
        steps=STEPS,
        lr=list(given),
        batch_size=min(BATCH, int(mask.sum())),
        eval_every=STEPS // 10,
        eval_coords=case.coords[~mask],
        eval_target=case.values[~mask],
        data_range=case.data_range,
        progress=False,
        seed=0,
    )
    ends = [result.psnr if math.isfinite(result.psnr) else -100.0 for result in results]
    bests = [result.best_psnr if math.isfinite(result.best_psnr) else -100.0 for result in results]
    return {"rates": given, "psnr": ends, "best_psnr": bests, "seconds": time.perf_counter() - start}


def fit(arguments: argparse.Namespace) -> None:
    """Fit every candidate to every signal of a set."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    every = list(cases(arguments))
    for case in every[::-1] if arguments.backwards else every:
        path = arguments.out / f"{arguments.set}-{case.name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        for name, network in candidates(case.coords.shape[1]).items():
            if name not in found or not set(rates(network)) <= set(found[name]["rates"]):
                found[name] = fitted(case, partial(made, case, network), rates(network))
                path.write_text(json.dumps(found, indent=1))
                told = " ".join(f"{psnr:.2f}" for psnr in found[name]["psnr"])
                print(f"{case.name}: {name}: {told} dB, {found[name]['seconds']:.0f} s", flush=True)


def best_of(fit: dict[str, Any]) -> float:
    """Return the PSNR at the best of the rates."""
    return max(fit["psnr"])


def scored(case: Case, truth: dict[str, Any]) -> dict[str, Any]:
    """Return how near the predictions for one signal come to its fits, and what the network found by search reaches."""
    listed = candidates(case.coords.shape[1])
    signal = case.values if case.shape is None else case.values.reshape(*case.shape, -1)
    given = {"width": WIDTH, "hidden_layers": HIDDEN, "data_range": case.data_range, "progress": False}
    given["coords"] = case.coords if case.shape is None else None
    ranked = inr.choose(signal, candidates=list(listed.values()), **given)
    wanted = {name: arguments_of(made(case, network)) for name, network in listed.items()}
    found = {name: next(one for one in ranked.candidates if one.arguments == wanted[name]) for name in listed}
    predicted = {name: one.psnr for name, one in found.items()}
    real = {name: best_of(truth[name]) for name in predicted}
    best = max(real.values())
    searched = inr.choose(signal, **given)
    rates_of_choice = [rate * searched.lr for rate in (0.3, 1.0, 3.0)]
    own = fitted(case, searched.network, tuple(rates_of_choice))
    return {
        "predicted": predicted,
        "fitted": real,
        "rank_correlation": float(spearmanr(list(predicted.values()), list(real.values())).statistic),
        "below_best": best - real[max(predicted, key=predicted.__getitem__)],
        "seconds": ranked.seconds,
        "search": {
            "line": searched.line,
            "lr": searched.lr,
            "predicted": searched.candidates[0].psnr,
            "standard_error": searched.candidates[0].error,
            "candidates": len(searched.candidates),
            "seconds": searched.seconds,
            "fitted": own,
            "below_best": best - best_of(own),
            "below_best_at_its_rate": best - own["psnr"][1],
        },
    }


def score(arguments: argparse.Namespace) -> None:
    """Compare predictions with fits on all signals of a set."""
    found = {}
    for case in cases(arguments):
        if arguments.only and case.name not in arguments.only:
            continue
        truth = json.loads((arguments.out / f"{arguments.set}-{case.name}.json").read_text())
        one = found[case.name] = scored(case, truth)
        print(
            f"{case.name}: rank correlation {one['rank_correlation']:.2f}, first of the list {one['below_best']:.2f} "
            f"dB below the best, by search {one['search']['below_best']:.2f} dB in {one['search']['seconds']:.0f} s: "
            f"{one['search']['line']}",
            flush=True,
        )
    medians = {
        "rank_correlation": float(np.median([one["rank_correlation"] for one in found.values()])),
        "below_best": float(np.median([one["below_best"] for one in found.values()])),
        "search_below_best": float(np.median([one["search"]["below_best"] for one in found.values()])),
        "search_seconds": float(np.median([one["search"]["seconds"] for one in found.values()])),
    }
    print("medians:", json.dumps(medians))
    if arguments.file is not None:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": gemm.processor()}
        arguments.file.write_text(json.dumps({"about": about, "medians": medians, "signals": found}, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["fit", "score"])
    parser.add_argument("--set", choices=["tune", "test"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the real fits")
    parser.add_argument("--photographs", type=Path, help="folder of images, of which eight are taken by name")
    parser.add_argument("--first", type=int, default=0, help="number of the first photograph taken (%(default)s)")
    parser.add_argument("--sounds", type=Path, nargs="+", help="two sounds of some 30,000 samples")
    parser.add_argument("--volume", type=Path, help="a .npy of some 60,000 numbers")
    parser.add_argument("--shape", type=Path, help="a mesh")
    parser.add_argument("--backwards", action="store_true", help="the last signal first, beside another process")
    parser.add_argument("--only", nargs="+", help="names of the signals to score (default: all)")
    parser.add_argument("--file", type=Path, help="JSON to write the scores to")
    return parser.parse_args()


if __name__ == "__main__":
    given = parsed()
    {"fit": fit, "score": score}[given.command](given)
