"""Table 3: radiance fields from 100, 50 and 25 views, a hash grid with and without PEAK, PSNR of held-out views."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from inrfast.encodings.hash_grid import HashGrid
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Work, uninterrupted
from inrfast.experiments.peak.scenes import Scene, scenes
from inrfast.scenes.alignment import FieldKAR
from inrfast.scenes.fields import RadianceField
from inrfast.scenes.fit import fit_scene
from inrfast.scenes.renderer import render

PAPER = {
    "chair": {100: (30.60, 30.32), 50: (24.97, 28.34), 25: (23.79, 24.42)},
    "hotdog": {100: (32.50, 32.76), 50: (29.85, 31.34), 25: (23.32, 24.51)},
    "lego": {100: (27.98, 28.01), 50: (26.23, 27.03), 25: (21.74, 23.27)},
    "drums": {100: (23.93, 24.19), 50: (19.43, 20.08), 25: (16.92, 17.66)},
    "ficus": {100: (24.07, 24.08), 50: (21.48, 21.86), 25: (18.75, 19.65)},
    "mic": {100: (28.35, 29.94), 50: (25.17, 26.87), 25: (21.72, 22.39)},
}
"""The paper's PSNRs (dB) by scene and views: Instant-NGP, PEAK."""

HASH, PEAK, LONGER = "hash", "peak", "hash-longer"
LABELS = {HASH: "hash grid", PEAK: "PEAK", LONGER: "hash grid, as long as PEAK"}

KAR = {"of": "outputs", "where": "full", "norm": "squared", "r": 32, "width": 32, "hidden_layers": 2}
"""The regulariser, chosen on the surface by formula (40x40 pixels, 25 views, 500 steps, one seed).

Held-out PSNR there: 20.90 without PEAK and 20.99 with the polynomial alone; of the outputs with the squared norm 21.07,
21.33 and 20.64 at the factors 1e-5, 1e-4 and 1e-3; of opacities and radiances between 20.95 and 20.98."""

FACTOR = 1e-4
"""Of the regulariser, chosen there too."""

TRIAL_STEPS = 100
"""Steps whose time decides how much longer PEAK takes; the first half, before empty space is known, is left out."""

SHOWN = 3
"""Held-out views in the drawing."""

SURE = 2.0
"""Standard errors by which a mean gain must differ from 0 to be called one."""


@dataclass(frozen=True)
class Sizes:
    """Views to fit and held out, side of the images, and the field, its fit and the samples of the regulariser."""

    views: tuple[int, ...]
    held_out: int
    side: int
    steps: int
    rays: int
    samples: int
    levels: int
    table_size: int
    finest: int
    width: int
    points: int
    runs: int


SIZES = {
    "quick": Sizes((50, 25), 8, 40, 500, 512, 40, 6, 2**14, 64, 32, 256, 1),
    "paper": Sizes((100, 50, 25), 25, 400, 10_000, 4096, 192, 16, 2**19, 1024, 64, 2048, 3),
}


class Table3(Figure):
    """Two methods at equal steps, and the hash grid for as long as PEAK takes."""

    name = "table3"
    title = "Table 3: radiance fields from few views, with and without PEAK"
    takes = ("mesh", "scenes")

    def check(self, request: Request) -> None:
        """See :class:`inrfast.experiments.paper.Figure`."""
        sizes = SIZES[request.preset]
        for scene in scenes(request):
            scene.check(sizes.side, max(sizes.views), sizes.held_out)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        sizes, there = SIZES[request.preset], scenes(request)
        trial = _trial_cell(there[0], sizes, request)
        if trial.name not in found:
            return [trial]
        longer = max(round(sizes.steps * found[trial.name].numbers["ratio"]), 1)
        return [trial] + [
            _fit_cell(scene, count, method, longer if method == LONGER else sizes.steps, seed, sizes)
            for scene in there
            for count in sizes.views
            for seed in _seeds(request, sizes)
            for method in LABELS
        ]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        sizes, there, seeds = SIZES[request.preset], scenes(request), _seeds(request, SIZES[request.preset])
        psnrs = {
            (scene.name, count, method): [found[_name(scene, count, method, seed)].numbers["psnr"] for seed in seeds]
            for scene in there for count in sizes.views for method in LABELS
        }  # fmt: skip
        settings = (
            f"{sizes.side}x{sizes.side} pixels, {sizes.held_out} held-out views, {sizes.steps} steps of {sizes.rays} "
            f"rays, {sizes.samples} samples, {len(seeds)} seeds"
        )
        rows = []
        for scene in there:
            for count in sizes.views:
                paper = PAPER.get(scene.name, {}).get(count)
                for method, label in LABELS.items():
                    said = "—" if paper is None or method == LONGER else f"{paper[method == PEAK]:.2f}"
                    own = _told(psnrs[scene.name, count, method])
                    rows.append(Row(f"{scene.name}, {count} views, {label}", said, own, settings))
        rows += [_gain_row(psnrs, there, count, against) for count in sizes.views for against in (HASH, LONGER)]
        ratio = found[_trial_cell(there[0], sizes, request).name].numbers["ratio"]
        return Outcome(
            rows, {self.name: _drawing(found, there[0], min(sizes.views), seeds[0])},
            _text(psnrs, there, sizes, ratio, found), (),
            {"psnr": {f"{s}, {c} views, {LABELS[m]}": own for (s, c, m), own in psnrs.items()}, "time ratio": ratio},
        )  # fmt: skip


def _seeds(request: Request, sizes: Sizes) -> list[int]:
    return [(request.seed + run) % 2**32 for run in range(request.runs or sizes.runs)]


def _name(scene: Scene, count: int, method: str, seed: int) -> str:
    return f"{scene.name}.{count}.{method}.{seed}"


def field(scene: Scene, method: str, sizes: Sizes, seed: int, device: torch.device) -> RadianceField:
    """Return the field of a method: a hash grid, for PEAK behind a trained polynomial of degree 1."""
    encoding = HashGrid(levels=sizes.levels, table_size=sizes.table_size, coarsest=8, finest=sizes.finest)
    return RadianceField(
        scene.bounds, encoding, width=sizes.width, polynomial=method == PEAK, seed=seed, device=device
    )  # fmt: skip


def regularizers(method: str, sizes: Sizes, seed: int, device: torch.device) -> list[tuple[Any, float]]:
    """Return the regulariser of a method with its factor."""
    if method != PEAK:
        return []
    return [(FieldKAR(rows=sizes.points, keys=sizes.points, seed=seed, device=device, **KAR), FACTOR)]  # type: ignore[arg-type]


def _settings(scene: Scene, count: int, method: str, steps: int, seed: int, sizes: Sizes) -> dict[str, Any]:
    own = {"kar": KAR, "factor": FACTOR} if method == PEAK else {}
    return {**scene.settings, **asdict(sizes), **own, "views": count, "method": method, "steps": steps, "seed": seed}


def _fit_cell(scene: Scene, count: int, method: str, steps: int, seed: int, sizes: Sizes) -> Cell:
    """Return the cell of one fit."""

    def run(work: Work) -> Found:
        seen, unseen = scene.views(sizes.side, count, sizes.held_out)
        start = time.process_time()
        result = fit_scene(
            seen, steps, field=field(scene, method, sizes, seed, work.device), held_out=unseen, rays=sizes.rays,
            samples=sizes.samples, regularizers=regularizers(method, sizes, seed, work.device), seed=seed,
            checkpoint=work.checkpoint, resume=True, progress=work.progress,
        )  # fmt: skip
        uninterrupted([result.fit])
        seconds = time.process_time() - start
        numbers = {"psnr": result.psnr, "psnrs": list(result.psnrs), "seconds": seconds, "a1": result.field.scale,
                   "path": [result.fit.eval_steps, result.fit.psnrs]}  # fmt: skip
        shown = [render(result.renderer, camera).colours for camera in unseen.cameras[:SHOWN]]
        pictures = {"found": torch.stack(shown).cpu(), "truth": unseen.colours()[:SHOWN]}
        return Found(numbers, {name: (255 * own.clamp(0, 1)).round().byte().numpy() for name, own in pictures.items()})

    cost = steps * sizes.rays * sizes.samples * 1e-6
    return Cell(_name(scene, count, method, seed), _settings(scene, count, method, steps, seed, sizes), run, cost)


def _trial_cell(scene: Scene, sizes: Sizes, request: Request) -> Cell:
    """Return the cell that measures how much longer a step with PEAK takes."""

    def run(work: Work) -> Found:
        seen, _ = scene.views(sizes.side, min(sizes.views), 1)
        seconds = {}
        for method in (HASH, PEAK):
            clock = _Clock()
            fit_scene(
                seen, TRIAL_STEPS, field=field(scene, method, sizes, request.seed, work.device), rays=sizes.rays,
                samples=sizes.samples, regularizers=regularizers(method, sizes, request.seed, work.device),
                callbacks=[clock], eval_every=10 * TRIAL_STEPS, seed=request.seed, progress=False,
            )  # fmt: skip
            seconds[method] = float(np.median(np.diff(clock.times[TRIAL_STEPS // 2 + 1 :])))
        return Found({**seconds, "ratio": round(seconds[PEAK] / seconds[HASH], 2)})

    settings = _settings(scene, min(sizes.views), PEAK, TRIAL_STEPS, request.seed, sizes)
    return Cell(f"time.{scene.name}", settings, run, 2 * TRIAL_STEPS * sizes.rays * sizes.samples * 1e-6)


class _Clock:
    """When every step ended, in seconds of the processor (on a GPU of the wall clock)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, state: Any) -> None:
        """Note the time."""
        if next(state.net.parameters()).is_cuda:
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())
        else:
            self.times.append(time.process_time())


def _told(values: Sequence[float]) -> str:
    """Return a mean with its standard deviation."""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


Psnrs = Mapping[tuple[str, int, str], Sequence[float]]


def gains(psnrs: Psnrs, there: Sequence[Scene], count: int, against: str) -> list[float]:
    """Return by how much PEAK is better, for every scene and seed."""
    return [
        peak - other
        for scene in there
        for peak, other in zip(psnrs[scene.name, count, PEAK], psnrs[scene.name, count, against], strict=True)
    ]


def _gain_row(psnrs: Psnrs, there: Sequence[Scene], count: int, against: str) -> Row:
    own = gains(psnrs, there, count, against)
    paper = [peak - other for scene in PAPER.values() for other, peak in [scene[count]]]
    said = f"{np.mean(paper):+.2f} ({min(paper):+.2f} to {max(paper):+.2f})" if against == HASH else "—"
    ours = f"{np.mean(own):+.2f} ({min(own):+.2f} to {max(own):+.2f})"
    how = "equal steps" if against == HASH else "equal time"
    return Row(
        f"PEAK's gain (dB), {count} views, {how}", said, ours, f"mean and range of {len(own)} fits; paper: 6 scenes"
    )


def verdict(own: Sequence[float]) -> str:
    """Return what gains over pairs of fits say: the sign of their mean, where it is beyond its standard error."""
    mean = float(np.mean(own))
    if len(own) < 2:
        return f"{mean:+.2f} dB in a single pair of fits, which decides nothing"
    error = float(np.std(own, ddof=1)) / math.sqrt(len(own))
    if abs(mean) <= SURE * error:
        return f"{mean:+.2f} dB with a standard error of {error:.2f}: no difference that {len(own)} pairs of fits show"
    word = "confirmed" if mean > 0 else "refuted: PEAK is worse"
    return f"{mean:+.2f} dB with a standard error of {error:.2f} over {len(own)} pairs of fits: {word}"


def _text(psnrs: Psnrs, there: Sequence[Scene], sizes: Sizes, ratio: float, found: Mapping[str, Found]) -> list[str]:
    """Return what is seen."""
    said = [
        f"{count} views, {how}: {verdict(gains(psnrs, there, count, against))}."
        for count in sizes.views for against, how in ((HASH, "equal steps"), (LONGER, "equal time"))
    ]  # fmt: skip
    scales = [own.numbers["a1"] for own in found.values() if own.numbers.get("a1") is not None]
    own = [scene.name for scene in there if not scene.folder]
    stand_in = (
        f"The scenes ({', '.join(own)}) are pictures of meshes made here; the paper's are beside ours only by name."
        if own else ""
    )  # fmt: skip
    return [
        "PEAK's gain in PSNR on held-out views. " + " ".join(said),
        "The paper does not say what f is in a radiance field. Here it is all outputs of the network of points, the "
        "logarithm of the density and the features that the colour is made of, at samples of the step's rays in cells "
        f"that may hold something. What f is, where x lies, the norm and the factor {FACTOR:g} were chosen on the "
        "surface by formula with 25 views and one seed.",
        f'A step with PEAK takes {ratio:.2f} times as long; "{LABELS[LONGER]}" has so many more steps. The trained '
        f"polynomial's a_1 began at 1 and ended between {min(scales):.2f} and {max(scales):.2f}.",
        *([stand_in] if stand_in else []),
    ]


def _drawing(found: Mapping[str, Found], scene: Scene, count: int, seed: int) -> Drawing:
    """Return held-out views: the truth, without and with PEAK."""
    hashed, peak = (found[_name(scene, count, method, seed)] for method in (HASH, PEAK))
    columns = [
        ("held-out view", hashed.arrays["truth"], None),
        (LABELS[HASH], hashed.arrays["found"], hashed.numbers["psnrs"]),
        (LABELS[PEAK], peak.arrays["found"], peak.numbers["psnrs"]),
    ]
    rows = len(hashed.arrays["truth"])
    drawing = Drawing(figsize=(7.2, 2.5 * rows), layout="constrained")
    panels = drawing.subplots(rows, 3, squeeze=False)
    for (label, pictures, psnrs), column in zip(columns, panels.T, strict=True):
        for row, axes in enumerate(column):
            axes.imshow(pictures[row], interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            told = [label] if row == 0 else []
            axes.set_title("\n".join([*told, *([] if psnrs is None else [f"{psnrs[row]:.2f} dB"])]), fontsize=10)
    drawing.suptitle(f"{scene.name}, {count} views", fontsize=11)
    return drawing
