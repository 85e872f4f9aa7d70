"""What ``inrfast inpaint`` and ``inrfast upscale`` share: options, files, and what is told of a restored picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inrfast.cli.options import memory_option
from inrfast.cli.output import (
    bar,
    check_apart,
    check_file,
    check_target,
    finite,
    make_folder,
    print_result,
    progress,
    reading,
)
from inrfast.cli.shell import INTERRUPTED, at_work, complain
from inrfast.errors import warn
from inrfast.signals.image import DEEP, Loaded, image_suffixes, load, save
from inrfast.signals.paths import readable
from inrfast.spelling import level, path, whole

if TYPE_CHECKING:
    from inrfast.inverse.restoring import Restored


def add_picture_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the options that both commands have."""
    parser.add_argument("--out", type=path, default=Path(out), help="picture to write (default: %(default)s)")
    parser.add_argument("--report", type=path, help="JSON file to write, with what --json prints")
    parser.add_argument("--page", type=whole(0), help="page of IMAGE, a TIFF or animation, from 0")
    group = parser.add_argument_group("effort")
    group.add_argument("--steps", type=whole(), help="updates of the network (default: by the size of the picture)")
    group.add_argument("--seconds", type=level, help="time for the fit, at most (no limit)")
    memory_option(group)


def check_pictures(arguments: argparse.Namespace, read: dict[str, Path | None]) -> None:
    """Refuse files that cannot be read or written before anything takes time."""
    given = {what: file for what, file in read.items() if file is not None}
    for what, file in given.items():
        readable(file, "an image" if what == "IMAGE" else f"a file for {what}")
    check_file(arguments.out, image_suffixes(), ", ".join(image_suffixes()))
    check_apart([arguments.out], given)
    if arguments.report is not None:
        check_target("--report", arguments.report)
        check_apart([arguments.report], {**given, "--out": arguments.out}, "--report")


def load_picture(arguments: argparse.Namespace, file: Path) -> Loaded:
    """Return a picture with the channels of its file, and its opacity where it is transparent."""
    with reading(arguments, file):
        found = load(file, grey=None, alpha=None, page=arguments.page, memory_budget=arguments.memory_budget)
    if found.left_out:
        warn(f"{file} has {found.left_out} samples per pixel beside its colours and opacity, which are dropped")
    return found


def load_truth(arguments: argparse.Namespace, image: Tensor, size: tuple[int, int], of: str) -> Tensor | None:
    """Return the picture of ``--truth`` with the channels of ``image``, fp32; ``size`` is that ``of`` what it shows."""
    if arguments.truth is None:
        return None
    with reading(arguments, arguments.truth):
        found = load(arguments.truth, grey=image.shape[2] == 1, alpha=None, memory_budget=arguments.memory_budget)
    if found.stored != size:
        sizes = ["x".join(map(str, own)) for own in (size, found.stored)]
        raise ValueError(f"--truth must have the size of {of}, {sizes[0]}, got {sizes[1]} in {arguments.truth}")
    if found.transparent:
        warn(f"{arguments.truth} is transparent, and its opacity is not compared")
    if found.grey != (image.shape[2] == 1):
        kinds = ("greys", "colours") if found.grey else ("colours", "greys")
        warn(f"{arguments.truth} has {kinds[0]} and {arguments.image} {kinds[1]}; {kinds[1]} are compared")
    return found.pixels[..., : image.shape[2]].to(torch.float32)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that both functions take."""
    return {
        "steps": arguments.steps,
        "seconds": arguments.seconds,
        "seed": arguments.seed,
        "device": arguments.device,
        "memory_budget": arguments.memory_budget,
        "progress": progress(arguments),
    }


def restored(arguments: argparse.Namespace, work: Callable[[], Restored]) -> Restored:
    """Run one of both functions, and say what takes long."""
    with bar(arguments, "the fit"):
        return work()


def write_picture(arguments: argparse.Namespace, image: Tensor, source: Loaded, given: Tensor) -> int:
    """Write a picture with the colour profile and the resolution of its source, and return its bits per channel.

    They are 16 where the format takes them and the source, whose values are ``given``, has more than 8 or values
    between their steps.
    """
    bits = source.bits
    suffix = arguments.out.suffix.lower()
    depth = 16 if suffix in DEEP and (bits > 8 or not _steps(given, 8)) else 8
    if bits > 8 and depth == 8:
        warn(f"{arguments.image} has {bits} bits per channel, and {arguments.out} gets 8; {', '.join(DEEP)} take 16")
    make_folder(arguments.out, arguments.report)
    with at_work(f"writing {arguments.out}", arguments.quiet):
        held = save(image, arguments.out, depth, source.stated)
    if source.stated.icc != held.icc:
        warn(f"{arguments.out} does not hold the colour profile of {arguments.image}; its colours may look different")
    if source.stated.dpi is not None and held.dpi is None:
        dpi = " x ".join(f"{each:.0f}" for each in source.stated.dpi)
        warn(f"{arguments.out} does not hold the resolution of {arguments.image}, {dpi} dots per inch")
    return depth


def check_kept(arguments: argparse.Namespace, image: Tensor, known: Tensor) -> bool:
    """Return whether the file holds the known pixels bit for bit, and warn where its format has changed them."""
    with reading(arguments, arguments.out):
        back = load(arguments.out, grey=image.shape[-1] == 1, memory_budget=arguments.memory_budget).pixels
    if torch.equal(back[known], image[known]):
        return True
    start = f"known pixels are not bit for bit those of {arguments.image}: {arguments.out}"
    if _steps(image[known], 8) or _steps(image[known], 16):
        warn(f"{start} cannot hold them; .png can")
    else:
        difference = float((back[known].double() - image[known]).abs().max())
        warn(f"{start} has them to {difference:.1g} of white; no format with the up to 16 bits written here holds them")
    return False


def _steps(values: Tensor, bits: int) -> bool:
    """Return whether all values are those of integers of so many bits."""
    most = 2**bits - 1
    return torch.equal(((values.double() * most).round() / most).to(values.dtype), values)


def report(
    arguments: argparse.Namespace, found: Restored, about: dict[str, Any], lines: Iterable[str], outcome: str
) -> int:
    """Print what was found, write the report, and return the exit code."""
    told = {
        "schema": f"inrfast.{arguments.command}/1",
        "image": str(arguments.image),
        "out": str(arguments.out),
        "size": list(found.image.shape),
        **about,
        **found.to_dict(),
        "psnr": finite(found.psnr),
    }
    if arguments.report is not None:
        from inrfast.files import write_whole

        write_whole(arguments.report, (json.dumps(told, indent=2, allow_nan=False) + "\n").encode())
    also = "" if arguments.report is None else f" and {arguments.report}"
    steps = f"after {found.steps} of {found.settings['steps']} steps in {found.seconds:.1f} s"
    written = f"{arguments.out}{also}"
    text = "\n".join([f"{arguments.image}: {outcome} {steps}; wrote {written}", *lines])
    print_result(arguments, told, text)
    if found.interrupted:
        return complain(f"interrupted; kept the result so far, {steps}, in {written}", INTERRUPTED)
    return 0
