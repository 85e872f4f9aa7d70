"""``inrfast diagnose``: the numerical ranks of a network, layer by layer."""

from __future__ import annotations

import argparse
from typing import Any

from inrfast.cli.commands import add_command
from inrfast.cli.options import calibrated_network, common_options, network_options, seed_option
from inrfast.cli.output import (
    bar,
    check_file,
    check_folder,
    make_folder,
    parts,
    print_result,
    progress,
    tell_missing_figures,
)
from inrfast.files import shown
from inrfast.grids import grid
from inrfast.plots import check_drawable
from inrfast.spelling import path, shape, share, whole

PAGES = (".html", ".htm")
"""Suffixes of pages."""

NO_FOLDERS = (*PAGES, ".json", ".txt", ".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
"""Suffixes of files, which nobody means a folder by."""

SMALLER, LARGE = "64x64", 64 * 64
"""A grid that is quick, and its points."""


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "diagnose",
        run,
        [common_options(), seed_option(), network_options()],
        "  inrfast diagnose --grid 128x128\n"
        "  inrfast diagnose --init rank_expanding --hidden-init kaiming --out out/diagnosis\n"
        "  inrfast diagnose --html report.html\n"
        "  inrfast diagnose --ntk-points 0 --jacobian-pixels 0\n"
        "  inrfast diagnose --first-norm batch --norm-position pre\n"
        "  inrfast diagnose --activation sine --init siren --rtols 1e-3 1e-5 --json\n",
    )
    parser.add_argument("--grid", type=shape, default="256x256", help="points per axis (default: %(default)s)")
    parser.add_argument("--outputs", type=whole(), default=1, help="outputs of the network (default: %(default)s)")
    parser.add_argument("--rtols", type=share, nargs="+", help="relative tolerances (default: 1e-2 to 1e-6)")
    parser.add_argument(
        "--ntk-points", type=whole(0), help="points of the tangent kernel at most, thins the grid; 0: no kernel (all)"
    )
    parser.add_argument(
        "--jacobian-pixels",
        type=whole(0),
        default=256,
        help="points at which feature Jacobians are looked at; 0: none (%(default)s)",
    )
    parser.add_argument("--out", type=path, help="folder for report.html, report.json, report.txt and report.png")
    parser.add_argument("--html", type=path, help="file for the report as a page: figures, tables, what they mean")


def run(arguments: argparse.Namespace) -> int:
    """Print the report, and write it where a folder is named."""
    from inrfast.analysis.diagnosis import RTOLS, diagnose
    from inrfast.files import write_whole

    coords = grid(arguments.grid, device=arguments.device)
    net = calibrated_network(arguments, coords, arguments.outputs)
    if arguments.out is not None:
        if arguments.out.suffix.lower() in NO_FOLDERS and not arguments.out.is_dir():
            raise ValueError(
                f"--out is a folder, for report.png and three more files, got {shown(arguments.out)}; take "
                f"--out {shown(arguments.out.with_suffix(''))}, or --html {shown(arguments.out.with_suffix('.html'))}"
            )
        check_folder("--out", arguments.out)
        check_drawable(arguments.out / "report.png")
    if arguments.html is not None:
        check_file(arguments.html, PAGES, " or ".join(PAGES), "--html")
        tell_missing_figures(arguments)
    advice = f"a smaller grid, --grid {SMALLER}, takes less" if len(coords) > LARGE else ""
    with bar(arguments, "the diagnosis", advice), parts(arguments, "the diagnosis"):
        report = diagnose(
            net,
            coords,
            rtols=arguments.rtols or RTOLS,
            ntk_points=arguments.ntk_points,
            jacobian_pixels=arguments.jacobian_pixels,
            seed=arguments.seed,
            progress=progress(arguments),
        )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.out / "report.txt", f"{report}\n".encode())
        report.plot(arguments.out / "report.png")
        report.to_json(arguments.out / "report.json")
        report.to_html(arguments.out / "report.html")
    if arguments.html is not None:
        make_folder(arguments.html)
        report.to_html(arguments.html)
    print_result(arguments, report.to_dict(), str(report))
    return 0
