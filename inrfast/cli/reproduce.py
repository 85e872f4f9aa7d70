"""``inrfast reproduce``: figures and tables of papers, with the paper's numbers beside ours."""

from __future__ import annotations

import argparse
from typing import Any

from inrfast.cli.options import add_command, common_options, seed_option
from inrfast.cli.output import print_result, progress
from inrfast.experiments.paper import PAPERS, PRESETS
from inrfast.experiments.reproduce import ALL
from inrfast.spelling import path, whole


def add(commands: Any) -> None:
    """Describe the subcommand."""
    known = "; ".join(f"{_spelled(name)}: {', '.join(paper.figures)}" for name, paper in PAPERS.items())
    parser = add_command(
        commands,
        "reproduce",
        run,
        [common_options(), seed_option()],
        "make the figures and tables of a paper, with the paper's numbers beside those measured here",
        "  inrfast reproduce inlet-rank-collapse all\n"
        "  inrfast reproduce inlet-rank-collapse fig7a table1 --images photos --preset paper --device cuda\n",
    )
    parser.add_argument("paper", metavar="PAPER", help=", ".join(map(_spelled, PAPERS)))
    parser.add_argument("figures", metavar="FIGURE", nargs="+", help=f"{known}; {ALL}")
    parser.add_argument("--images", type=path, metavar="DIR", help="folder of images (default: bundled photographs)")
    parser.add_argument(
        "--mesh", type=path, metavar="FILE", action="append", help="a mesh; may be repeated (default: a surface)"
    )
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help="sizes (default: %(default)s)")
    parser.add_argument("--runs", type=whole(), help="random networks per curve (default: the preset's)")
    parser.add_argument("--out", type=path, help="folder of results; a stopped call goes on (out/PAPER-PRESET)")


def run(arguments: argparse.Namespace) -> int:
    """Make the figures and print their tables."""
    from inrfast.experiments.page import HEAD, text_table
    from inrfast.experiments.reproduce import reproduce
    from inrfast.experiments.results import REPORT

    out = arguments.out or f"out/{arguments.paper}-{arguments.preset}"
    made = reproduce(
        arguments.paper,
        arguments.figures,
        out,
        preset=arguments.preset,
        images=arguments.images,
        mesh=arguments.mesh or (),
        runs=arguments.runs,
        seed=arguments.seed,
        device=arguments.device,
        progress=progress(arguments),
    )
    tables = "\n\n".join(f"{found['title']}\n{text_table(HEAD, found['rows'])}" for found in made.values())
    print_result(arguments, made, f"{tables}\n\nwrote {out}: {REPORT}, {', '.join(made)}")
    return 0


def _spelled(name: str) -> str:
    return name.replace("_", "-")
