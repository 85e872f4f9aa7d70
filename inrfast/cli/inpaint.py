"""``inrfast inpaint``: the missing pixels of a picture, filled in."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from inrfast.cli.commands import add_command
from inrfast.cli.options import common_options, seed_option
from inrfast.cli.output import reading
from inrfast.cli.restored import (
    add_picture_options,
    check_kept,
    check_pictures,
    load_picture,
    load_truth,
    report,
    restored,
    settings,
    write_picture,
)
from inrfast.errors import warn
from inrfast.metrics import psnr
from inrfast.signals.image import Loaded, load
from inrfast.spelling import choice, path

HALF = 0.5
"""The grey from which on a pixel of a mask counts as white."""

SOFT = (0.05, 0.95)
"""Between these a grey or an opacity is one that somebody meant, not the noise of a JPEG."""


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "inpaint",
        run,
        [common_options(), seed_option()],
        "  inrfast inpaint photo.png mask.png\n"
        "  inrfast inpaint photo.png scribble.png --missing white --out out/restored.png\n"
        "  inrfast inpaint cutout.png --report out/report.json\n"
        "  inrfast inpaint scan.tif mask.png --out scan-restored.tif --seconds 30\n"
        "  inrfast inpaint damaged.png mask.png --truth photo.png --json\n",
    )
    parser.add_argument("image", type=path, metavar="IMAGE", help="the picture; greys, colours and 16 bits stay so")
    parser.add_argument(
        "mask",
        type=path,
        nargs="?",
        metavar="MASK",
        help="a picture of the same size, white where IMAGE is known, black where it is missing; left out, what is "
        "transparent in IMAGE is missing",
    )
    parser.add_argument(
        "--missing",
        type=choice("colour", ("black", "white")),
        help="what is missing where MASK is: black or white (black)",
    )
    parser.add_argument("--truth", type=path, help="the whole picture, to measure what was filled in")
    parser.add_argument(
        "--everywhere", action="store_true", help="write the network's own values everywhere, at known pixels too"
    )
    add_picture_options(parser, "inpainted.png")


def run(arguments: argparse.Namespace) -> int:
    """Fill in, write, and say how well the network knows what is known."""
    from inrfast.inverse.restoring import inpaint

    if arguments.mask is None and arguments.missing is not None:
        raise ValueError("--missing is about the colours of MASK, and there is none: what is transparent is missing")
    arguments.missing = arguments.missing or "black"
    check_pictures(arguments, {"IMAGE": arguments.image, "MASK": arguments.mask, "--truth": arguments.truth})
    source = load_picture(arguments, arguments.image)
    image, known = _known(arguments, source)
    truth = load_truth(arguments, image, source.stored, "IMAGE")
    found = restored(arguments, partial(inpaint, image, known, **settings(arguments)))
    picture = found.own if arguments.everywhere else found.image
    bits = write_picture(arguments, picture, source, image[known])
    kept = None if arguments.everywhere else check_kept(arguments, found.image, known)
    missing = int((~known).sum())
    about: dict[str, Any] = {"bits": bits, "missing": missing, "known_kept": kept, "missing_psnr": None}
    judged = found.held_out_psnr is not None and not arguments.everywhere
    expected = f"; {found.held_out_psnr:.1f} dB at those held out to judge it" if judged else ""
    lines = [f"the network alone has {found.psnr:.2f} dB at known pixels, a share of {found.share:.2f}{expected}"]
    if truth is not None:
        pictures = {"picture": picture, "network": found.own, "biharmonic": found.classical}
        scores = {name: psnr(own.clamp(0, 1)[~known], truth[~known]) for name, own in pictures.items()}
        about["missing_psnr"] = {name: None if value == float("inf") else value for name, value in scores.items()}
        lines.append(
            f"at missing pixels {scores['picture']:.2f} dB; the network alone {scores['network']:.2f} dB, biharmonic "
            f"interpolation alone {scores['biharmonic']:.2f} dB"
        )
    return report(arguments, found, about, lines, f"filled in {missing} of {known.numel()} pixels")


def _known(arguments: argparse.Namespace, source: Loaded) -> tuple[Tensor, Tensor]:
    """Return the picture without its opacity, and where it is known."""
    pixels = source.pixels
    transparent = pixels.shape[2] in (2, 4)
    image, opacity = (pixels[..., :-1].contiguous(), pixels[..., -1]) if transparent else (pixels, None)
    if arguments.mask is not None:
        if transparent:
            warn(f"the transparency of {arguments.image} is dropped; {arguments.mask} says what is missing")
        return image, _mask(arguments, source)
    if opacity is None:
        raise ValueError(
            f"{arguments.image} is opaque everywhere, so that nothing says what is missing; give a MASK, a picture of "
            f"its size that is {arguments.missing} there"
        )
    _tell_soft(arguments.image, opacity, "half transparent", "opaque, thus known", "missing")
    return image, _checked(opacity >= HALF, f"{arguments.image} is transparent", "opaque enough (from one half on)")


def _mask(arguments: argparse.Namespace, source: Loaded) -> Tensor:
    """Return where the picture is known, by the file of the mask."""
    file: Path = arguments.mask
    with reading(arguments, file):
        found = load(file, grey=True, alpha=None, memory_budget=arguments.memory_budget)
    if found.stored != source.stored:
        sizes = ["x".join(map(str, stored)) for stored in (source.stored, found.stored)]
        raise ValueError(f"MASK must have the size of IMAGE, {sizes[0]}, got {sizes[1]} in {file}")
    if found.transparent:
        warn(f"the transparency of {file} is dropped; its colours say what is missing")
    greys = found.pixels[..., 0]
    _tell_soft(file, greys, "between black and white", "white", "black")
    white = greys >= HALF
    other = "black" if arguments.missing == "white" else "white"
    known = white if arguments.missing == "black" else ~white
    return _checked(known, f"{file} is {arguments.missing}", f"{other}; --missing {other} takes it the other way round")


def _tell_soft(file: Path, values: Tensor, between: str, high: str, low: str) -> None:
    soft = int(((values > SOFT[0]) & (values < SOFT[1])).sum())
    if soft:
        warn(f"{file} has {soft} pixels {between}; those from {HALF} on count as {high}, others as {low}")


def _checked(known: Tensor, missing: str, otherwise: str) -> Tensor:
    if not bool(known.any()):
        raise ValueError(f"{missing} everywhere, so that every pixel is missing; nothing is {otherwise}")
    if bool(known.all()):
        raise ValueError(f"{missing} nowhere, so that no pixel is missing; everything is {otherwise}")
    return known
