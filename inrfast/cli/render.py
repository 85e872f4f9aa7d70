"""``inrfast render``: a fitted network at any size."""

from __future__ import annotations

import argparse
import time
from typing import Any

from inrfast.cli.options import add_command, common_options, memory_option
from inrfast.cli.output import bar, check_file, make_folder, print_result, progress, reading
from inrfast.cli.shell import at_work
from inrfast.errors import check_int
from inrfast.spelling import path, shape, whole


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "render",
        run,
        [common_options()],
        "write the image, sound, volume or mesh that a fitted network stands for, at any size",
        "  inrfast render result.safetensors large.png --size 1024x1024\n"
        "  inrfast render speech.safetensors speech48.wav --rate 48000\n"
        "  inrfast render bunny.safetensors bunny.ply --size 512 --memory-budget 2G\n",
    )
    parser.add_argument("model", type=path, help="the model that inrfast fit wrote (.safetensors)")
    parser.add_argument("out", type=path, help="file to write; its ending must go with the model's kind")
    parser.add_argument(
        "--size", type=shape, help="points an axis, such as 1024x1024 (default: as fitted; a mesh: 256 an axis)"
    )
    parser.add_argument(
        "--rate", type=whole(), help="of a sound, in Hz (default: as fitted); it lasts as long, to a sample"
    )
    memory_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the network and write what it stands for."""
    from inrfast.cli import kinds
    from inrfast.signals.render import render
    from inrfast.training.checkpoint import load_network

    start = time.perf_counter()
    with reading(arguments, arguments.model):
        net, said = load_network(arguments.model)
    about = kinds.check_about(said, net.in_features, arguments.model)
    kind = kinds.KINDS[about["kind"]]
    suffixes = kind.suffixes(net.out_features)
    if arguments.out.suffix.lower() not in suffixes:
        raise ValueError(
            f"{arguments.model} is of the kind {about['kind']}: OUT must name a {kinds.listed(suffixes)} file, "
            f"got {arguments.out}"
        )
    check_file(arguments.out, suffixes, kinds.listed(suffixes), "OUT")
    sizes, bounds = _grid(arguments, about)
    with bar(arguments, "evaluating the network"):
        predictions = render(
            net.to(arguments.device),
            sizes,
            bounds=bounds,
            memory_budget=arguments.memory_budget,
            progress=progress(arguments),
        )
    about = about if arguments.rate is None else {**about, "rate": arguments.rate}
    make_folder(arguments.out)
    with at_work(f"writing {arguments.out}", arguments.quiet):
        kind.write(predictions, about, arguments.out)
    found = {
        "schema": "inrfast.render/1",
        "model": str(arguments.model),
        "kind": about["kind"],
        "size": list(predictions.shape),
        "out": str(arguments.out),
        "seconds": time.perf_counter() - start,
    }
    size = "x".join(map(str, sizes))
    print_result(arguments, found, f"{arguments.model}: {about['kind']} of {size} points; wrote {arguments.out}")
    return 0


def _grid(arguments: argparse.Namespace, about: dict[str, Any]) -> tuple[list[int], tuple[float, float]]:
    """Return the points an axis and the bounds of the grid to evaluate."""
    from inrfast.cli.kinds import KINDS, MESH_RENDER_SIDE

    name, fitted = about["kind"], list(about["shape"])
    if name == "audio":
        if arguments.size is not None:
            raise ValueError("--size does not go with a sound; use --rate")
        return _resampled(fitted[0], about["rate"], about["rate"] if arguments.rate is None else arguments.rate)
    if arguments.rate is not None:
        raise ValueError(f"--rate goes with a sound; {arguments.model} is of the kind {name}")
    if arguments.size is None:
        return [MESH_RENDER_SIDE] * 3 if name == "mesh" else fitted, (-1.0, 1.0)
    sizes = list(arguments.size) * (len(fitted) if len(arguments.size) == 1 else 1)
    least = 2 if name == "mesh" else 1
    if len(sizes) != len(fitted) or min(sizes) < least:
        raise ValueError(
            f"--size must be one size or {len(fitted)} of them, each at least {least}, for {KINDS[name].called}; "
            f"got {'x'.join(map(str, arguments.size))}"
        )
    return sizes, (-1.0, 1.0)


def _resampled(samples: int, fitted: int, rate: int) -> tuple[list[int], tuple[float, float]]:
    """Return the samples at another rate and their bounds: the same times, none of them after the last fitted one."""
    check_int("--rate", rate, minimum=1)
    count = (samples - 1) * rate // fitted + 1
    if rate == fitted or samples == 1:
        return [samples], (-1.0, 1.0)
    if count < 2:
        raise ValueError(f"--rate must leave at least 2 samples of {samples} at {fitted} Hz, got {rate}")
    return [count], (-1.0, min(2.0 * (count - 1) * fitted / (rate * (samples - 1)) - 1.0, 1.0))
