"""``inrfast render``: a fitted network at any size."""

from __future__ import annotations

import argparse
import operator
import time
from typing import Any

from inrfast.cli.choose import spelled
from inrfast.cli.commands import add_command
from inrfast.cli.options import common_options, memory_option
from inrfast.cli.output import bar, check_file, make_folder, print_result, progress, reading
from inrfast.cli.shell import at_work, say
from inrfast.cli.signal_options import add_signal_options, given_options
from inrfast.spelling import path

ENLARGED = {"image": "; to enlarge a picture, inrfast upscale does better than render", "video": ""}
"""Kinds of signals that are enlarged to be looked at, and what does so better."""


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "render",
        run,
        [common_options()],
        "  inrfast render result.safetensors large.png --size 1024\n"
        "  inrfast render speech.safetensors speech48.wav --rate 48000\n"
        "  inrfast render bunny.safetensors bunny.ply --size 512 --memory-budget 2G\n",
    )
    parser.add_argument("model", type=path, help="the model that inrfast fit wrote (.safetensors)")
    parser.add_argument("out", type=path, help="file to write; its ending must go with the model's kind")
    add_signal_options(parser, "render_options")
    memory_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the network and write what it stands for."""
    from inrfast.signals.kinds import check_about, listed, write_signal
    from inrfast.signals.render import render
    from inrfast.training.checkpoint import load_network

    start = time.perf_counter()
    with reading(arguments, arguments.model):
        net, said = load_network(arguments.model)
    kind, about = check_about(said, net.in_features, arguments.model)
    named = listed(suffixes := kind.writable(net.out_features))
    if arguments.out.suffix.lower() not in suffixes:
        raise ValueError(
            f"{arguments.model} is of the kind {about['kind']}: OUT must name a {named} file, got {arguments.out}"
        )
    check_file(arguments.out, suffixes, named, "OUT")
    options = given_options(arguments, about["kind"], "render_options", arguments.model)
    sizes, bounds = kind.grid(about, **options)
    if not arguments.quiet and about["kind"] in ENLARGED and max(map(operator.sub, sizes, about["shape"])) > 0:
        say(f"inrfast: the fit's PSNR holds at its {spelled(about['shape'])} points alone{ENLARGED[about['kind']]}")
    with bar(arguments, "evaluating the network"):
        predictions = render(
            net.to(arguments.device),
            sizes,
            bounds=bounds,
            memory_budget=arguments.memory_budget,
            progress=progress(arguments),
        )
    make_folder(arguments.out)
    with at_work(f"writing {arguments.out}", arguments.quiet):
        write_signal(about["kind"], predictions, {**about, **options}, arguments.out)
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
