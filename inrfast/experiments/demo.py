"""The demo: six starts of one network on a photograph, what each learns, and where it loses rank.

Fits the starts, diagnoses them, and writes a folder of numbers, text and figures (:data:`FILES`). What the fits have
made so far can be seen meanwhile (:data:`FIRST`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inrfast import system
from inrfast.analysis.diagnosis import RTOLS, diagnose
from inrfast.calibration import calibrate_batchnorm_
from inrfast.encodings import RandomFourier
from inrfast.errors import check_seed
from inrfast.experiments import demo_figures, demo_page, demo_text
from inrfast.files import shown
from inrfast.grids import grid
from inrfast.info import info
from inrfast.initialisers import expands_rank
from inrfast.memory import chunks
from inrfast.nn import INR
from inrfast.signals.image import MID_GREY, astronaut, load_image
from inrfast.training.fit import fit

SCHEMA = "inrfast.demo/1"

FORMER = "former"
"""The name of an earlier result while it is replaced."""

FIRST = "first.png"
"""A picture of the fits that are done, in the folder while the demo runs."""

FILES = ("report.html", "report.json", "report.md", "overview.png", "ranks.png", "spectra.png", "reconstructions.png")


@dataclass(frozen=True)
class Start:
    """One way to start the network: its name, the options of :class:`inrfast.INR`, the learning rate of its fit."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 3e-3

    @property
    def cured(self) -> bool:
        """Whether its first layer is the paper's cure."""
        return expands_rank(self.options.get("init", "default")) is not None


STARTS = (
    Start("torch default"),
    Start("rank-expanding", {"init": "rank_expanding"}),
    Start("rank-expanding + He", {"init": {"first": "rank_expanding", "hidden": "kaiming"}}),
    Start("SIREN", {"activation": "sine", "omega": 30.0, "init": "siren"}, lr=1e-3),
    Start("Fourier features", {"encoding": RandomFourier(256, 10.0)}),
    Start("batch norm", {"norm": "batch"}),
)
"""The starts, first the one that the others are compared with."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the demo.

    Attributes
    ----------
    grid
        Points per axis for representations, sensitivities and traces.
    ntk_grid
        Points per axis for the eigenvalues of the tangent kernel and its blocks.
    image_size
        Pixels per axis of the fitted photograph, grey.
    width, hidden_layers
        Of every network.
    jacobian_pixels
        Points at which feature Jacobians are looked at.
    steps, batch_size, eval_every, schedule
        Of every fit: Adam, batches of so many pixels, a PSNR every so many steps, learning rate falling to a tenth.
    """

    grid: tuple[int, int] = (256, 256)
    ntk_grid: tuple[int, int] = (48, 48)
    image_size: tuple[int, int] = (128, 128)
    width: int = 256
    hidden_layers: int = 3
    jacobian_pixels: int = 32
    steps: int = 500
    batch_size: int = 2048
    eval_every: int = 20
    schedule: str = "exponential"


QUICK = Settings(
    grid=(32, 32),
    ntk_grid=(12, 12),
    image_size=(32, 32),
    width=32,
    jacobian_pixels=8,
    steps=30,
    batch_size=512,
    eval_every=5,
)
"""Sizes that run in seconds, to see that everything works; the numbers mean little."""


def run(
    out: str | os.PathLike[str] = "out/demo",
    image: str | os.PathLike[str] | None = None,
    quick: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Run the demo, write its folder and return what ``report.json`` holds.

    Parameters
    ----------
    out
        Folder to write; it must not exist yet, be empty, or hold an earlier result, which stays until the new one is
        complete and is then replaced as a whole.
    image
        A photograph; None takes the astronaut bundled with scikit-image.
    quick
        Small sizes: seconds instead of minutes.
    seed
        Of the networks, the batches and the sampled pixels.
    device
        Where everything runs.
    progress
        Whether to say on stderr what is done, with times.

    Raises
    ------
    FileExistsError, OSError
        ``out`` holds other files, or cannot be written; found before any work is done.
    ValueError, FileNotFoundError
        The image is missing or damaged; a negative seed.
    """
    try:
        out = Path(os.path.realpath(out))
    except ValueError:
        raise ValueError(f"out must be the name of a folder, got {shown(out)}") from None
    settings = QUICK if quick else Settings()
    seed = check_seed("seed", seed)
    photograph = _photograph(image, settings).to(device)
    clock = _Clock(progress)
    with _whole_folder(out) as folder, _Preview(out, photograph, clock) as preview:
        pictures: dict[str, Tensor] = {}
        fits = {}
        for start in STARTS:
            pictures[start.name], fits[start.name] = _fitted(start, photograph, settings, seed, device, clock)
            preview.show(pictures, fits)
        starts = [_diagnosed(start, fits[start.name], settings, seed, device, clock) for start in STARTS]
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "image": "astronaut (scikit-image)" if image is None else shown(Path(image).name),
            "quick": quick,
            "seed": seed,
            "settings": {**asdict(settings), "optimizer": "adam", "rtols": list(RTOLS), "subtracted": MID_GREY},
            "versions": info()["versions"],
            "machine": {**info()["cpu"], "device": str(device)},
            "starts": starts,
        }
        demo_figures.draw(report, photograph.cpu(), pictures, folder)
        clock.done("figures", "drew the figures")
        report["seconds"] = clock.seconds | {"first picture": preview.seconds, "total": clock.passed}
        markdown = demo_text.markdown(report)
        (folder / "report.md").write_text(markdown, encoding="utf-8")
        (folder / "report.html").write_text(demo_page.page(report, markdown, folder).html(), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return report


def _photograph(image: str | os.PathLike[str] | None, settings: Settings) -> Tensor:
    if image is None:
        return astronaut(settings.image_size, grey=True)
    return load_image(image, settings.image_size, grey=True)


def _network(start: Start, settings: Settings, seed: int, device: torch.device | str) -> INR:
    net = INR(
        2, 1, width=settings.width, hidden_layers=settings.hidden_layers, seed=seed, device=device, **start.options
    )
    return net.eval()


def _diagnosed(
    start: Start,
    fitted: Mapping[str, Any],
    settings: Settings,
    seed: int,
    device: torch.device | str,
    clock: _Clock,
) -> dict[str, Any]:
    """Return a start's entry in the report; ``fitted`` is what it says of its fit."""
    coords = grid(settings.grid, device=device)
    net = _network(start, settings, seed, device)
    if start.options.get("norm") == "batch":
        calibrate_batchnorm_(net, coords)
    diagnosis = diagnose(
        net,
        coords,
        ntk_coords=grid(settings.ntk_grid, device=device),
        jacobian_pixels=settings.jacobian_pixels,
        seed=seed,
        progress=clock.bars,
    )
    entry = {"name": start.name, "cured": start.cured, "diagnosis": diagnosis.to_dict(), "fit": fitted}
    clock.done(f"diagnose {start.name}", f"diagnosed {demo_text.one_line(entry)}")
    return entry


def _fitted(
    start: Start,
    photograph: Tensor,
    settings: Settings,
    seed: int,
    device: torch.device | str,
    clock: _Clock,
) -> tuple[Tensor, dict[str, Any]]:
    """Return the reconstruction (H, W), not clipped, and what the report says of the fit."""
    coords = grid(settings.image_size, device=device)
    net = _network(start, settings, seed, device)
    result = fit(
        net,
        coords,
        photograph - MID_GREY,
        steps=settings.steps,
        lr=start.lr,
        schedule=settings.schedule,
        batch_size=settings.batch_size,
        eval_every=settings.eval_every,
        seed=seed,
        progress=clock.bars,
        data_range=1.0,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    with torch.no_grad():
        values = torch.cat([net(coords[rows]) for rows in chunks(len(coords), settings.batch_size)])
    clock.done(f"fit {start.name}", f"fitted {start.name}: {result.psnr:.2f} dB after {result.steps} steps")
    found = {
        "lr": start.lr,
        "steps": result.steps,
        "psnr": result.psnr,
        "best_psnr": result.best_psnr,
        "best_step": result.best_step,
        "eval_steps": list(result.eval_steps),
        "psnrs": list(result.psnrs),
        "seconds": result.seconds,
    }
    return (values + MID_GREY).reshape(settings.image_size).cpu(), found


class _Clock:
    """Seconds of each stage, said on stderr as they pass."""

    def __init__(self, progress: bool) -> None:
        self.progress = progress
        self.bars = None if progress else False
        self.seconds: dict[str, float] = {}
        self._begun = self._last = time.perf_counter()

    @property
    def passed(self) -> float:
        """Seconds since the demo began."""
        return time.perf_counter() - self._begun

    def done(self, stage: str, what: str) -> None:
        """End the stage that ran until now."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now
        self.say(what)

    def say(self, what: str) -> None:
        """Say what is there now."""
        if self.progress:
            print(f"[{self.passed:6.1f} s] {what}", file=sys.stderr, flush=True)


class _Preview:
    """A picture of the fits that are done, in the folder that the result will take the place of.

    It goes with that folder, or, where no result comes, is removed. That it cannot be written ends no demo.
    """

    def __init__(self, out: Path, photograph: Tensor, clock: _Clock) -> None:
        self.out, self.file, self.photograph, self.clock = out, out / FIRST, photograph.cpu(), clock
        self.seconds: float | None = None

    def __enter__(self) -> _Preview:
        return self

    def show(self, pictures: Mapping[str, Tensor], fits: Mapping[str, Mapping[str, Any]]) -> None:
        """Draw what there is."""
        with suppress(OSError):
            self.out.mkdir(exist_ok=True)
            demo_figures.draw_first(self.photograph, pictures, fits, self.file)
            if self.seconds is None:
                self.seconds = self.clock.passed
                self.clock.say(f"first picture: {shown(self.file)}; each fit is added to it")

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self.file.unlink()
        with suppress(OSError):  # an earlier result is there
            self.out.rmdir()


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of ``out`` in the end, and goes if there is no such end.

    It is made in a workshop beside ``out``, which its process has locked; one that nobody has locked is left from a
    process that was killed, and goes too.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out must be a folder, and {shown(out)} is a file")
    if out.exists():
        others = sorted(path.name for path in out.iterdir() if path.name not in (*FILES, FIRST))
        if others:
            raise FileExistsError(
                f"out must be a new folder, an empty one or an earlier result, and {shown(out)} holds "
                f"{', '.join(map(shown, others[:5]))}"
            )
    # The name of out may be as long as names can be.
    prefix = f".inrfast-{hashlib.blake2b(os.fsencode(out.name), digest_size=8).hexdigest()}-demo-"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f"{prefix}*"):
            _remove_if_left(left, out)
        if not out.exists():  # its name, too, is tried before the work
            out.mkdir()
            out.rmdir()
        workshop = Path(tempfile.mkdtemp(dir=out.parent, prefix=prefix))
        lock = _locked(workshop)
    except OSError as error:
        raise OSError(f"cannot write the folder {shown(out)}: {error.strerror or error}") from error
    new = workshop / "new"
    try:
        new.mkdir()
        yield new
        if out.exists():
            os.replace(out, workshop / FORMER)
        os.replace(new, out)
    finally:
        _remove(workshop, out)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of a folder, or None where another process has it, or nobody can."""
    if not system.BY_DESCRIPTOR:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | system.NO_LINK)
    try:
        system.lock(descriptor)
        return descriptor
    except OSError:
        os.close(descriptor)
        return None


def _remove_if_left(workshop: Path, out: Path) -> None:
    with suppress(OSError):
        lock = _locked(workshop)
        if lock is not None:
            _remove(workshop, out)
            os.close(lock)


def _remove(workshop: Path, out: Path) -> None:
    """Remove a workshop; an earlier result that nothing has come in place of goes back."""
    if (workshop / FORMER).exists() and not out.exists():
        os.replace(workshop / FORMER, out)
    shutil.rmtree(workshop)
