"""``inrfast variance``: how far the eigenvalues of a tangent kernel spread, by layer."""

from __future__ import annotations

import argparse
import json
from typing import Any

from inrfast.cli.commands import add_command
from inrfast.cli.options import calibrated_network, common_options, memory_option, network_options, seed_option
from inrfast.cli.output import bar, print_result, progress
from inrfast.grids import grid
from inrfast.spelling import choice, level, shape, whole

METHODS = ("auto", "exact", "estimate")


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "variance",
        run,
        [common_options(), seed_option(), network_options()],
        "  inrfast variance --grid 64x64\n"
        "  inrfast variance --grid 64x64 --norm topk:64 --json\n"
        "  inrfast variance --grid 256x256 --activation sine --init siren --method estimate --rtol 0.05\n",
    )
    parser.add_argument("--grid", type=shape, default="64x64", help="points per axis (default: %(default)s)")
    parser.add_argument("--outputs", type=whole(), default=1, help="outputs of the network (default: %(default)s)")
    parser.add_argument("--precision", default="high", help="highest, high or medium (default: %(default)s)")
    parser.add_argument(
        "--method",
        type=choice("method", METHODS),
        default="auto",
        help="exact: all pairs of points; estimate: random ones; auto: by the cost (auto)",
    )
    parser.add_argument(
        "--rtol", type=level, default=0.01, help="of an estimate: half its 95 %% interval (default: %(default)s)"
    )
    memory_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the variance."""
    from inrfast.analysis.variance import variance

    coords = grid(arguments.grid, device=arguments.device)
    net = calibrated_network(arguments, coords, arguments.outputs)
    with bar(arguments, "the variance"):
        found = variance(
            net,
            coords,
            precision=arguments.precision,
            method=arguments.method,
            rtol=arguments.rtol,
            seed=arguments.seed,
            progress=progress(arguments),
            memory_budget=arguments.memory_budget,
        )
    print_result(arguments, {"network": net.config(), **json.loads(found.to_json())}, str(found))
    return 0
