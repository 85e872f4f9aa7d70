"""What should `inrfast fit FILE` take by default? Real fits tell, by PSNR and processor time.

    python bench/fit_defaults.py fit image --set tune --side 256 --steps 300 --out FOLDER
    python bench/fit_defaults.py fit image --set test --side 512 --out FOLDER --only "recipe" "finer 30 lr=0.001"
    python bench/fit_defaults.py fit mesh --set test --side 64 --out FOLDER --files spot.obj
    python bench/fit_defaults.py table FOLDER --file bench/results/fit-defaults.json

"tune" signals chose, "test" signals judge. Photographs, of scikit-image, are averaged over areas to twice the side, of
which every second pixel is fitted; "between" is the PSNR of those between them, which no fit saw (from side 512 on the
photographs have none). Sounds, of side^2 samples, are synthetic: voices, plucked strings, noise. Volumes, of side^3
voxels, are synthetic. Of meshes, occupancies at 200,000 points are fitted; "between" is the IoU (%) at others. Fits
take Adam with a rate that falls to a tenth. "recipe" is what `inrfast fit` takes. "seconds" are the processor's, of all
threads. ``fit`` writes one file per fit and goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from skimage import data

import inrfast as inr
from inrfast.encodings import HashGrid, PositionalEncoding, RandomFourier
from inrfast.info import info
from inrfast.memory import chunks
from inrfast.metrics import iou, psnr
from inrfast.signals import audio, image, mesh, volume  # noqa: F401
from inrfast.signals.formats.raster import from_array
from inrfast.signals.image import MID_GREY, _fit_to
from inrfast.signals.kinds import BATCH, SIGNALS, Signal
from inrfast.signals.mesh import sample_occupancy

PHOTOGRAPHS = {
    "tune": ("chelsea", "coffee"),
    "test": ("astronaut", "camera", "rocket", "hubble_deep_field", "immunohistochemistry", "moon"),
}

Score = Callable[[torch.nn.Module], float | None]


@dataclass(frozen=True)
class Case:
    """A signal, and what else is asked of a fitted network."""

    name: str
    signal: Signal
    between: Score = lambda net: None


# ---- signals -----------------------------------------------------------------------------------------------------


def photographs(which: str, side: int, files: list[Path]) -> Iterator[Case]:
    """Return the fitted pixels (side, side, C), every second of a larger square."""
    for name in PHOTOGRAPHS[which]:
        pixels = getattr(data, name)()
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        raster = from_array(pixels, 255, base=pixels.shape[-1])
        twice = 2 * side if side < 512 else side
        whole = _fit_to(raster, (twice, twice), pixels.shape[-1] == 1, transparent=False, strip=2**24) - MID_GREY
        fitted = whole if twice == side else whole[::2, ::2].contiguous()
        signal = Signal(inr.grid((side, side)), fitted, {"shape": [side, side]}, data_range=1.0)
        if twice == side:
            yield Case(name, signal)
            continue
        whole = whole[: twice - 1, : twice - 1]
        seen = torch.zeros(whole.shape[:2], dtype=torch.bool)
        seen[::2, ::2] = True

        def between(net: torch.nn.Module, whole: torch.Tensor = whole, seen: torch.Tensor = seen) -> float:
            values = predicted(net, inr.grid(whole.shape[:2])).reshape(whole.shape)
            return psnr(values[~seen], whole[~seen], data_range=1.0)

        yield Case(name, signal, between)


def sounds(which: str, side: int, files: list[Path]) -> Iterator[Case]:
    """Return sounds at 16 kHz: a voice of pulses through formants, plucked strings, and both with noise."""
    count = side * side
    rng = np.random.default_rng(0 if which == "tune" else 1)
    times = np.arange(count) / 16000
    pitch = 2 * np.pi * np.cumsum(110 + 40 * np.sin(2 * np.pi * 1.3 * times + rng.uniform(0, 6))) / 16000
    formants = rng.uniform(400, 2600, 3)
    voice = np.zeros(count)
    for harmonic in range(1, 30):
        weight = sum(np.exp(-(((harmonic * 130 - centre) / 200) ** 2)) for centre in formants) + 0.02
        voice += weight * np.sin(harmonic * pitch)
    voice *= 0.5 + 0.5 * np.sin(2 * np.pi * 2.7 * times) ** 2
    strings = np.zeros(count)
    for start in np.arange(0, times[-1], 0.4):
        tone = rng.choice([220, 262, 330, 392, 440, 523])
        after = np.clip(times - start, 0, None)
        for harmonic in range(1, 9):
            strings += (
                (times >= start)
                * np.exp(-4 * harmonic**0.5 * after)
                * np.sin(2 * np.pi * tone * harmonic * after)
                / harmonic
            )
    noise = rng.normal(size=count) * (np.sin(2 * np.pi * 0.9 * times) > 0.6)
    for name, wave in (("voice", voice), ("strings", strings), ("both", voice / 2 + strings + 0.05 * noise)):
        values = torch.from_numpy(0.8 * wave / np.abs(wave).max()).float()[:, None]
        yield Case(name, Signal(inr.grid(count), values, {"shape": [count]}))


def volumes(which: str, side: int, files: list[Path]) -> Iterator[Case]:
    """Return blobs, shells and waves in a cube, values from -1/2 to 1/2."""
    x = inr.grid((side, side, side))
    generator = torch.Generator().manual_seed(0 if which == "tune" else 1)
    centres = 2 * torch.rand(40, 3, generator=generator) - 1
    sizes = 0.02 + 0.15 * torch.rand(40, generator=generator)
    blobs = sum((-(x - c).square().sum(1) / s**2).exp() for c, s in zip(centres, sizes, strict=True))
    shells = torch.tanh(20 * ((14 * (x - centres[0]).norm(dim=1)).sin() - 0.6))
    waves = (12 * x.norm(dim=1)).sin() + 0.5 * (x @ torch.tensor([19.0, 25.0, -17.0])).cos()
    for name, values in (("blobs", blobs), ("shells", shells), ("waves", waves)):
        values = (values - values.min()) / (values.max() - values.min()) - 0.5
        yield Case(name, Signal(x, values.reshape(side, side, side, 1), {"shape": [side] * 3}))


def meshes(which: str, side: int, files: list[Path]) -> Iterator[Case]:
    """Return occupancies of a torus and a knobbly sphere, or of files; minus 1/2."""
    knobbly = trimesh.creation.icosphere(5)
    angles = knobbly.vertices @ np.array([[9.0, 4.0], [-3.0, 11.0], [7.0, -5.0]])
    knobbly.vertices *= (1 + 0.15 * np.sin(angles).prod(1))[:, None]
    own = {"torus": trimesh.creation.torus(0.6, 0.25), "knobbly": knobbly}
    named = own if which == "tune" else {file.stem: trimesh.load(file, force="mesh") for file in files}
    for name, surface in named.items():
        coords, inside = sample_occupancy(surface, 200_000, progress=False)
        others, truth = sample_occupancy(surface, 50_000, seed=1, progress=False)

        def between(net: torch.nn.Module, others: torch.Tensor = others, truth: torch.Tensor = truth) -> float:
            return 100 * iou(predicted(net, others) > 0, truth > 0.5)

        yield Case(name, Signal(coords, inside - 0.5, {"shape": [side] * 3}), between)


CASES = {"image": photographs, "audio": sounds, "volume": volumes, "mesh": meshes}


def predicted(net: torch.nn.Module, coords: torch.Tensor) -> torch.Tensor:
    """Return the network's values, some points at a time."""
    with torch.no_grad():
        return torch.cat([net(coords[rows]) for rows in chunks(len(coords), 2**14)])


# ---- networks ----------------------------------------------------------------------------------------------------


def candidates(kind: str, side: int) -> dict[str, dict[str, Any]]:
    """Return networks by name: arguments of ``inr.INR``, and the learning rate ``lr``."""
    found: dict[str, dict[str, Any]] = {"relu lr=0.001": {"lr": 1e-3}}

    def add(name: str, rates: Iterable[float], **network: Any) -> None:
        for lr in rates:
            found[f"{name} lr={lr:g}"] = {**network, "lr": lr}

    if kind == "audio":
        for first in (300, 1000, 3000, 10000):
            omega = {"first": float(first), "hidden": 30.0}
            add(f"sine {first} then 30", (3e-4, 1e-3), activation="sine", omega=omega, init="siren")
            add(f"finer {first} then 30", (3e-4, 1e-3), activation="finer", omega=omega, init="siren")
    else:
        for omega in (5, 10, 15, 20, 30):
            add(f"finer {omega}", (5e-4, 1e-3, 2e-3), activation="finer", omega=float(omega), init="siren")
        for omega in (10, 30, 60):
            add(f"sine {omega}", (1e-3,), activation="sine", omega=float(omega), init="siren")
        for sigma in (side / 64, side / 16):
            add(f"relu on fourier, sigma {sigma:g}", (5e-3,), encoding=RandomFourier(256, sigma))
        add("relu on positional, octaves to the pixel", (5e-3,), encoding=PositionalEncoding(side.bit_length() - 1))
    most = {"image": side * side, "audio": side * side, "volume": side**3, "mesh": 2**19}[kind]
    finest = {"image": side, "audio": side * side, "volume": side, "mesh": 128}[kind]
    for levels, share, width, layers, part in (
        (8, 2, 64, 2, 1),
        (8, 4, 64, 2, 1),
        (8, 2, 32, 2, 1),
        (12, 1, 64, 2, 1),
        (12, 2, 64, 2, 1),
        (12, 4, 64, 2, 1),
        (12, 16, 64, 2, 1),
        (12, 16, 64, 2, 2),
        (16, 2, 64, 2, 1),
    ):
        rows = 2 ** max(int(np.log2(most / share)), 4)
        encoding = HashGrid(levels, 2, rows, min(16, finest), max(finest // part, 16))
        name = f"relu {width}x{layers} on hashgrid, {levels} levels to 1/{part}, rows 1/{share}"
        add(name, (2e-3, 5e-3, 1e-2, 2e-2, 4e-2), encoding=encoding, width=width, hidden_layers=layers)
    return found


def fitted(case: Case, network: dict[str, Any], steps: int, batch: int) -> dict[str, Any]:
    """Fit one network to one signal, and return what came of it."""
    signal = case.signal
    options = {"width": 256, "hidden_layers": 3, **network}
    lr = options.pop("lr")
    net = inr.INR(signal.coords.shape[1], signal.target.shape[-1], seed=0, **options)
    target = signal.target.reshape(len(signal.coords), -1)
    begun, wall = time.process_time(), time.perf_counter()
    result = inr.fit(
        net,
        signal.coords,
        target,
        steps=steps,
        lr=lr,
        batch_size=min(batch, len(target)),
        eval_every=max(steps // 8, 1),
        data_range=signal.data_range,
        progress=False,
    )
    return {
        "steps": steps,
        "batch": min(batch, len(target)),
        "threads": torch.get_num_threads(),
        "parameters": sum(own.numel() for own in net.parameters()),
        "values": target.numel(),
        "seconds": time.process_time() - begun,
        "wall": time.perf_counter() - wall,
        "psnr": result.psnr,
        "eval_steps": list(result.eval_steps),
        "psnrs": list(result.psnrs),
        "between": case.between(net),
    }


def fit(arguments: argparse.Namespace) -> None:
    """Fit every candidate to every signal, one file each."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    kind = arguments.kind
    for case in CASES[kind](arguments.set, arguments.side, arguments.files):
        recipe = SIGNALS[kind].recipe(case.signal)
        networks = {**candidates(kind, arguments.side), "recipe": {**recipe.network, "lr": recipe.lr}}
        for name, network in networks.items():
            if arguments.only and not any(fnmatch(name, only) for only in arguments.only):
                continue
            steps, batch = arguments.steps or recipe.steps, arguments.batch or BATCH
            place = f"{kind} {case.name} {arguments.side} {steps} {batch} {name}".replace("/", "_over_")
            file = arguments.out / f"{place}.json"
            if file.exists():
                continue
            found = fitted(case, network, steps, batch)
            about = {"kind": kind, "set": arguments.set, "signal": case.name, "side": arguments.side, "network": name}
            file.write_text(json.dumps(about | found))
            between = "" if found["between"] is None else f", between {found['between']:.2f}"
            print(f"{place}: {found['psnr']:.2f} dB{between}, {found['seconds']:.1f} s", flush=True)


def table(arguments: argparse.Namespace) -> None:
    """Print means over signals, and write them and all fits to one file."""
    fits = [json.loads(file.read_text()) for file in sorted(arguments.folder.glob("*.json"))]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in fits:
        groups.setdefault(tuple(one[key] for key in ("kind", "set", "side", "steps", "batch", "network")), []).append(
            one
        )
    means = []
    for (kind, which, side, steps, batch, name), ones in sorted(groups.items()):
        between = [one["between"] for one in ones if one["between"] is not None]
        mean = {
            "kind": kind,
            "set": which,
            "side": side,
            "steps": steps,
            "batch": batch,
            "network": name,
            "signals": len(ones),
            "psnr": statistics.mean(one["psnr"] for one in ones),
            "least_psnr": min(one["psnr"] for one in ones),
            "between": statistics.mean(between) if between else None,
            "seconds": statistics.median(one["seconds"] for one in ones),
        }
        means.append(mean)
        told = "" if mean["between"] is None else f"  between {mean['between']:6.2f}"
        print(
            f"{kind} {which} {side:4} {steps:5} x {batch:6} {name:58} {mean['psnr']:6.2f} dB (least "
            f"{mean['least_psnr']:6.2f}){told}  {mean['seconds']:6.1f} s ({len(ones)})"
        )
    if arguments.file is not None:
        machine = {"versions": info()["versions"], "cpu": info()["cpu"]}
        text = json.dumps({"machine": machine, "means": means, "fits": fits}, indent=1)
        arguments.file.write_text(text + "\n")


def main() -> None:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("fit")
    one.add_argument("kind", choices=CASES)
    one.add_argument("--set", choices=PHOTOGRAPHS, default="test")
    one.add_argument("--side", type=int, default=256)
    one.add_argument("--steps", type=int)
    one.add_argument("--batch", type=int)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--only", nargs="+", help="names of networks, or patterns of them")
    one.add_argument("--files", nargs="*", type=Path, default=[], help="meshes")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=fit)
    one = commands.add_parser("table")
    one.add_argument("folder", type=Path)
    one.add_argument("--file", type=Path)
    one.set_defaults(run=table)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
