"""``inrfast demo``: six starts of one network, fitted and diagnosed."""

from __future__ import annotations

import argparse
from typing import Any

from inrfast.cli.commands import add_command
from inrfast.cli.options import common_options, seed_option
from inrfast.cli.output import print_result
from inrfast.spelling import path


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "demo",
        run,
        [common_options(), seed_option()],
        "  inrfast demo\n"
        "  inrfast demo --quick --out out/quick\n"
        "  inrfast demo --image photo.jpg --json > numbers.json\n",
    )
    parser.add_argument("--out", type=path, default="out/demo", help="folder to write (default: %(default)s)")
    parser.add_argument("--image", type=path, help="photograph to fit (default: the astronaut of scikit-image)")
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds instead of minutes, other numbers")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print its summary."""
    from inrfast.experiments import demo, demo_text

    report = demo.run(
        arguments.out,
        image=arguments.image,
        quick=arguments.quick,
        seed=arguments.seed,
        device=arguments.device,
        progress=not arguments.quiet,
    )
    print_result(arguments, report, f"{demo_text.summary(report)}\n\nwrote {arguments.out}: {', '.join(demo.FILES)}")
    return 0
