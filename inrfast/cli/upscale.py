"""``inrfast upscale``: a picture enlarged, so that its means over areas are the picture."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from inrfast.cli.commands import add_command
from inrfast.cli.options import common_options, seed_option
from inrfast.cli.restored import (
    add_picture_options,
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
from inrfast.spelling import level, path


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "upscale",
        run,
        [common_options(), seed_option()],
        "  inrfast upscale photo.png --factor 2\n"
        "  inrfast upscale thumbnail.jpg --factor 4 --out out/large.png\n"
        "  inrfast upscale scan.tif --factor 1.5 --out scan-large.tif --seconds 60\n"
        "  inrfast upscale small.png --factor 2 --truth photo.png --json\n",
    )
    parser.add_argument("image", type=path, metavar="IMAGE", help="the picture; greys, colours and 16 bits stay so")
    parser.add_argument("--factor", type=level, default=2.0, help="of both sides, above 1, whole or not (2)")
    parser.add_argument("--truth", type=path, help="the picture at the new size, to measure the result")
    add_picture_options(parser, "upscaled.png")


def run(arguments: argparse.Namespace) -> int:
    """Enlarge, write, and say how well the network knows the picture."""
    from inrfast.inverse.enlarging import bicubic
    from inrfast.inverse.restoring import enlarged, upscale

    if arguments.factor <= 1:
        raise ValueError(f"--factor must be above 1, got {arguments.factor:g}")
    check_pictures(arguments, {"IMAGE": arguments.image, "--truth": arguments.truth})
    source = load_picture(arguments, arguments.image)
    image = source.pixels
    if image.shape[2] in (2, 4):
        warn(f"the transparency of {arguments.image} is dropped")
        image = image[..., :-1].contiguous()
    large = enlarged((image.shape[0], image.shape[1]), arguments.factor)
    truth = load_truth(arguments, image, large, "the result")
    found = restored(arguments, partial(upscale, image, arguments.factor, **settings(arguments)))
    bits = write_picture(arguments, found.image, source, image)
    about: dict[str, Any] = {"bits": bits, "factor": arguments.factor, "truth_psnr": None}
    lines = [
        f"averaged back, the picture is {arguments.image} to {found.mean_difference:.1g} of white, before rounding to "
        f"{bits} bits; the network alone has {found.psnr:.2f} dB"
    ]
    if truth is not None:
        plain = bicubic(image, large)
        pictures = {"picture": found.image, "network": found.own, "back_projected": found.classical, "bicubic": plain}
        scores = {name: psnr(own.double().clamp(0, 1), truth.double()) for name, own in pictures.items()}
        about["truth_psnr"] = {name: None if value == float("inf") else value for name, value in scores.items()}
        lines.append(
            f"{scores['picture']:.2f} dB from the truth; the network alone {scores['network']:.2f} dB, back-projected "
            f"bicubic {scores['back_projected']:.2f} dB, bicubic {scores['bicubic']:.2f} dB"
        )
    sizes = "x".join(map(str, found.image.shape[:2]))
    return report(arguments, found, about, lines, f"enlarged to {sizes}")
