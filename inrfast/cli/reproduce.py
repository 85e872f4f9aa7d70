"""``inrfast reproduce``: figures and tables of papers, with the paper's numbers beside ours."""

from __future__ import annotations

import argparse
from typing import Any

from inrfast.cli.commands import add_command
from inrfast.cli.options import common_options, seed_option
from inrfast.cli.output import print_result, progress
from inrfast.errors import check_choice
from inrfast.experiments.paper import PAPERS, PRESETS, Paper, spelled
from inrfast.experiments.reproduce import ALL
from inrfast.spelling import path, whole


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "reproduce",
        run,
        [common_options(), seed_option()],
        "  inrfast reproduce inlet-rank-collapse all\n"
        "  inrfast reproduce inlet-rank-collapse fig7a table1 --images photos --preset paper --device cuda\n",
    )
    parser.description = "\n\n".join([f"{parser.description}", *map(_figures, PAPERS.values())])
    parser.add_argument("paper", metavar="PAPER", help=", ".join(map(spelled, PAPERS)))
    parser.add_argument("figures", metavar="FIGURE", nargs="+", help=f"names out of the list above, or {ALL}")
    parser.add_argument(
        "--images",
        type=path,
        metavar="DIR",
        help=f"folder of images for {_fed('images')} (default: photographs, or "
        f"faces, of scikit-image); the first ones by name are used, a few in quick{_found('images')}",
    )
    parser.add_argument(
        "--mesh",
        type=path,
        metavar="FILE",
        action="append",
        help=f"a mesh for {_fed('mesh')}; may be repeated (default: a surface made by formula)",
    )
    parser.add_argument(
        "--weights",
        type=path,
        metavar="FILE",
        help=f"weights of a meta-learned network for {_fed('weights')} (default: learned here)",
    )
    parser.add_argument(
        "--masks",
        type=path,
        metavar="DIR",
        help=f"folder of masks, white observed and black missing, for {_fed('masks')} "
        f"(default: made by formula){_found('masks')}",
    )
    parser.add_argument(
        "--scene",
        type=path,
        metavar="DIR",
        action="append",
        help=f"a folder of posed images with transforms_train.json, for {_fed('scenes')}; may be repeated (default: "
        "rendered from the meshes)",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=PRESETS[0],
        help="quick: small sizes and other numbers than the paper's, "
        "minutes on two CPU cores; paper: the paper's sizes, for a GPU, many hours on a CPU (%(default)s)",
    )
    parser.add_argument("--runs", type=whole(), help="random networks per curve (default: the preset's)")
    parser.add_argument("--out", type=path, help="folder of results; a stopped call goes on (out/PAPER-PRESET)")


def run(arguments: argparse.Namespace) -> int:
    """Make the figures and print their tables."""
    check_choice("PAPER", spelled(arguments.paper), [spelled(name) for name in PAPERS])
    from inrfast.experiments.page import HEAD, text_table
    from inrfast.experiments.reproduce import reproduce
    from inrfast.experiments.results import REPORT

    out = arguments.out or f"out/{spelled(arguments.paper)}-{arguments.preset}"
    made = reproduce(
        arguments.paper,
        arguments.figures,
        out,
        preset=arguments.preset,
        images=arguments.images,
        mesh=arguments.mesh or (),
        weights=arguments.weights,
        masks=arguments.masks,
        scene=arguments.scene or (),
        runs=arguments.runs,
        seed=arguments.seed,
        device=arguments.device,
        progress=progress(arguments),
    )
    tables = "\n\n".join(f"{found['title']}\n{text_table(HEAD, found['rows'])}" for found in made.values())
    print_result(arguments, made, f"{tables}\n\nwrote {out}: {REPORT}, {', '.join(made)}")
    return 0


def _figures(paper: Paper) -> str:
    """Return the names of a paper's figures with their titles."""
    width = max(map(len, paper.figures), default=0)
    lines = [f"  {name.ljust(width)}  {figure.title}" for name, figure in paper.figures.items()]
    return "\n".join([f"figures of {spelled(paper.name)} ({paper.title}):", *lines])


def _fed(files: str) -> str:
    """Return the names of the figures that take such files, by paper."""
    fed = {
        spelled(paper.name): ", ".join(name for name, one in paper.figures.items() if files in one.takes)
        for paper in PAPERS.values()
    }
    return "; ".join(f"{names} of {paper}" for paper, names in fed.items() if names)


def _found(files: str) -> str:
    """Return by which names figures find such files, where they do; figures that find them alike stand together."""
    told = []
    for paper in PAPERS.values():
        alike: dict[str, list[str]] = {}
        for name, figure in paper.figures.items():
            if files in figure.named:
                alike.setdefault(figure.named[files], []).append(name)
        by_name = "; ".join(f"{pattern} for {', '.join(names)}" for pattern, names in alike.items())
        told += [f"; {spelled(paper.name)} finds them by name, {by_name}"] if alike else []
    return "".join(told)
