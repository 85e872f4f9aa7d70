"""What do ``inr.inpaint`` and ``inr.upscale`` add to the classical methods? PSNR on scikit-image's photographs.

    python bench/restore.py tune --out FOLDER [--only inpaint|upscale]
    python bench/restore.py score --out FOLDER --file bench/results/restore.json

``tune`` fits networks of several kinds on two photographs and says what each reaches alone, and joined to the classical
picture with several shares; the constants of ``inrfast/inverse/restoring.py`` are the best of it. ``score`` runs both
functions as they stand on the other photographs, beside nearest, linear and biharmonic interpolation
(scipy.interpolate.griddata, skimage.restoration.inpaint_biharmonic), and bicubic and Lanczos enlargement (Pillow).
Photographs are central squares averaged to 256x256 pixels (the small ones of the upscaling to 256 / factor). One
thread; seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import griddata
from skimage import data
from skimage.metrics import structural_similarity
from skimage.restoration import inpaint_biharmonic

import inrfast as inr
from inrfast.inverse import restoring
from inrfast.inverse.biharmonic import biharmonic
from inrfast.inverse.enlarging import area_means, back_projected

SIDE = 256
TUNING, SCORING = ("astronaut", "chelsea"), ("coffee", "camera", "rocket", "brick")
MASKS, FACTORS = ("random", "patches", "text"), (2, 4)
PULLS = (0.03, 0.1, 0.3)
SHARES = (0.25, 0.5, 0.75, 1.0)


def photograph(name: str, side: int = SIDE) -> torch.Tensor:
    """Return the central square of a photograph, fp32 (side, side, C), averaged over areas."""
    pixels = torch.from_numpy(np.array(getattr(data, name)())).float() / 255
    pixels = pixels.unsqueeze(-1) if pixels.ndim == 2 else pixels
    height, width = pixels.shape[:2]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    cut = pixels[top : top + square, left : left + square].permute(2, 0, 1)
    return F.adaptive_avg_pool2d(cut, side).permute(1, 2, 0).contiguous()


def mask(kind: str, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    """Return what is known: half of the pixels at random; all but 24 squares of side / 16; all but lines of text."""
    draws = np.random.default_rng(seed)
    if kind == "random":
        return torch.from_numpy(draws.random((side, side)) < 0.5)
    known = np.ones((side, side), dtype=bool)
    if kind == "patches":
        edge = side // 16
        for _ in range(24):
            top, left = draws.integers(0, side - edge, 2)
            known[top : top + edge, left : left + edge] = False
        return torch.from_numpy(known)
    page = Image.new("L", (side, side), 255)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=side // 10)
    for line in range(7):
        pen.text((2 + line % 3 * 5, line * side // 7), "Lorem ipsum dolor sit", fill=0, font=font)
    return torch.from_numpy(np.array(page) > 127)


def psnr(found: Any, truth: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """Return the PSNR of a clipped picture, of all pixels or some."""
    difference = torch.as_tensor(np.asarray(found)).double().clamp(0, 1) - truth.double()
    return float(-10 * (difference if where is None else difference[where]).square().mean().log10())


def networks(channels: int) -> dict[str, dict[str, Any]]:
    """Return networks by name, with their learning rate."""
    found: dict[str, dict[str, Any]] = {}
    for omega in (10.0, 20.0):
        found[f"siren {omega:g}"] = {"activation": "sine", "omega": omega, "init": "siren", "lr": 0.05 / omega}
    for sigma in (1.5, 2.0, 3.0, 4.0):
        found[f"fourier {sigma:g}"] = {"encoding": inr.RandomFourier(128, sigma), "lr": 5e-3}
    found["hash grid"] = {"encoding": "hashgrid", "lr": 1e-2}
    return {name: {"channels": channels, **own} for name, own in found.items()}


def network(channels: int, width: int = restoring.WIDTH, **own: Any) -> inr.INR:
    """Return one of :func:`networks`."""
    if own.get("encoding") == "hashgrid":
        from inrfast.encodings.hash_grid import HashGrid

        own["encoding"] = HashGrid(levels=8, features=2, coarsest=8, finest=128)
    return inr.INR(2, channels, width=width, hidden_layers=3, seed=0, **own)


def tune_inpaint(name: str, kind: str, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what every network and weight of the classical picture reaches on missing pixels."""
    truth, known = photograph(name), mask(kind)
    given = torch.where(known.unsqueeze(-1), truth, float("nan"))
    for label, own in networks(truth.shape[2]).items():
        if wanted and label not in wanted:
            continue
        lr = own.pop("lr")
        for pull in PULLS if label == "fourier 2" else (restoring.PULL,):
            begun = time.process_time()
            with mock.patch.object(restoring, "PULL", pull):
                found = inr.inpaint(given, known, net=network(**own), lr=lr, progress=False)
            adds = found.own - biharmonic(found.own, known)
            joined = {str(s): psnr(found.classical + s * adds, truth, ~known) for s in SHARES}
            yield {
                "network": label,
                "pull": pull,
                "classical": psnr(found.classical, truth, ~known),
                "own": psnr(found.own, truth, ~known),
                "joined": joined,
                "known": found.psnr,
                "chosen": psnr(found.image, truth, ~known),
                "share": found.share,
                "expected": found.held_out_psnr,
                "seconds": time.process_time() - begun,
            }


def tune_upscale(name: str, factor: int, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what every network reaches on the large picture."""
    truth = photograph(name)[: SIDE // factor * factor, : SIDE // factor * factor]
    small = area_means(truth, (SIDE // factor, SIDE // factor)).float()
    for label, own in networks(truth.shape[2]).items():
        if wanted and label not in wanted:
            continue
        lr = own.pop("lr")
        begun = time.process_time()
        found = inr.upscale(small, factor, net=network(**own), lr=lr, progress=False)
        sides = (truth.shape[0], truth.shape[1])
        adds = found.own - back_projected(area_means(found.own, (small.shape[0], small.shape[1])), sides)
        yield {
            "network": label,
            "classical": psnr(found.classical, truth),
            "own": psnr(found.own, truth),
            "joined": {str(s): psnr(found.classical + s * adds, truth) for s in SHARES},
            "known": found.psnr,
            "seconds": time.process_time() - begun,
        }


def tune(arguments: argparse.Namespace) -> None:
    """Write a line of JSON per fit."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    for task, cases, run in (("inpaint", MASKS, tune_inpaint), ("upscale", FACTORS, tune_upscale)):
        if arguments.only not in (None, task):
            continue
        with open(arguments.out / f"{task}.jsonl", "a") as file:
            for name in arguments.photographs or TUNING:
                for case in cases:
                    for row in run(name, case, arguments.networks):
                        file.write(json.dumps({"photograph": name, "case": case, **row}) + "\n")
                        file.flush()


def measured(found: Any, truth: torch.Tensor, where: torch.Tensor | None = None) -> dict[str, float]:
    """Return PSNR, of all or some pixels, and the SSIM of the whole picture."""
    picture = np.clip(np.asarray(found, dtype=np.float64), 0, 1)
    window = structural_similarity(picture, truth.double().numpy(), data_range=1.0, channel_axis=-1)
    return {"psnr": round(psnr(picture, truth, where), 3), "ssim": round(float(window), 4)}


def score_inpaint(name: str, kind: str) -> dict[str, Any]:
    """Return what all methods reach on missing pixels."""
    truth, known = photograph(name), mask(kind)
    pixels, holes = truth.double().numpy(), ~known.numpy()
    found: dict[str, Any] = {"missing": round(float(holes.mean()), 3)}
    at, wanted = np.argwhere(~holes), np.argwhere(holes)
    near = griddata(at, pixels[~holes], wanted, method="nearest")
    line = griddata(at, pixels[~holes], wanted, method="linear")
    for method, filled in (("nearest", near), ("linear", np.where(np.isnan(line), near, line))):
        picture = pixels.copy()
        picture[holes] = filled
        found[method] = measured(picture, truth, ~known)
    begun = time.process_time()
    smooth = inpaint_biharmonic(np.where(holes[..., None], 0, pixels), holes, channel_axis=-1)
    found["biharmonic"] = {**measured(smooth, truth, ~known), "seconds": round(time.process_time() - begun, 2)}
    begun = time.process_time()
    restored = inr.inpaint(truth, known, progress=False)
    seconds = round(time.process_time() - begun, 2)
    found["network alone"] = measured(restored.own, truth, ~known)
    found["inrfast inpaint"] = {**measured(restored.image, truth, ~known), "seconds": seconds}
    return found


def score_upscale(name: str, factor: int) -> dict[str, Any]:
    """Return what all methods reach on the large picture."""
    side = SIDE // factor * factor
    truth = photograph(name, side)
    small = area_means(truth, (side // factor, side // factor)).float()
    found: dict[str, Any] = {}
    for method, how in (("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)):
        channels = [Image.fromarray(small[..., c].numpy()).resize((side, side), how) for c in range(small.shape[2])]
        found[method] = measured(np.stack([np.asarray(own) for own in channels], -1), truth)
    found["back-projected bicubic"] = measured(back_projected(small, (side, side)), truth)
    begun = time.process_time()
    restored = inr.upscale(small, factor, progress=False)
    seconds = round(time.process_time() - begun, 2)
    found["network alone"] = measured(restored.own, truth)
    found["inrfast upscale"] = {**measured(restored.image, truth), "seconds": seconds}
    return found


def score(arguments: argparse.Namespace) -> None:
    """Write the table of all cases; a case that is there is not run again."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for task, cases, run in (("inpaint", MASKS, score_inpaint), ("upscale", FACTORS, score_upscale)):
        if arguments.only not in (None, task):
            continue
        for name in SCORING:
            for case in cases:
                file = arguments.out / f"{task}-{name}-{case}.json"
                if not file.exists():
                    file.write_text(json.dumps(run(name, case)))
                found.setdefault(task, {}).setdefault(name, {})[str(case)] = json.loads(file.read_text())
                print(task, name, case, found[task][name][str(case)], flush=True)
    about = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "photographs": f"scikit-image: {', '.join(SCORING)}; tuned on {', '.join(TUNING)}; {SIDE}x{SIDE}",
    }
    if arguments.file is not None:
        arguments.file.write_text(json.dumps({"about": about, **found}, indent=1) + "\n")


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "score"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("inpaint", "upscale"))
    parser.add_argument("--photographs", nargs="*", help="of tune, in place of the usual ones")
    parser.add_argument("--networks", nargs="*", default=[], help="of tune: some of them, such as 'fourier 2'")
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    (tune if given.what == "tune" else score)(given)
