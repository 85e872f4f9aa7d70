"""``inrfast ntk``: a tangent kernel's cost, norms and ranks, or the kernel itself."""

from __future__ import annotations

import argparse
import io
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.lib import format as npy_format

from inrfast.cli.commands import add_command
from inrfast.cli.options import calibrated_network, common_options, network_options, seed_option
from inrfast.cli.output import bar, check_file, existing_folder, make_folder, print_result, progress
from inrfast.cli.shell import at_work, say
from inrfast.errors import check_choice, nearest
from inrfast.files import shown, whole_file
from inrfast.grids import grid
from inrfast.memory import format_bytes
from inrfast.spelling import level, path, shape, share, whole

if TYPE_CHECKING:
    from inrfast.linalg.spectrum import Spectrum
    from inrfast.tangent.local import NTK

OUTPUTS = ("trace", "full")


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "ntk",
        run,
        [common_options(), seed_option(), network_options()],
        "  inrfast ntk --grid 64x64\n"
        "  inrfast ntk --grid 48x48 --rtols 1e-2 1e-4 1e-6 --activation sine --init siren\n"
        "  inrfast ntk --grid 96x96 --activation gaussian --rtols 1e-4 --method inertia\n"
        "  inrfast ntk --grid 64x64 --out kernel.npy\n",
    )
    parser.add_argument("--grid", type=shape, default="64x64", help="points per axis (default: %(default)s)")
    parser.add_argument("--outputs", type=whole(), default=1, help="outputs of the network (default: %(default)s)")
    parser.add_argument("--output", type=_output, default="trace", help="trace, full, or an output's number (trace)")
    parser.add_argument("--precision", default="high", help="highest, high or medium (default: %(default)s)")
    parser.add_argument("--rtols", type=share, nargs="+", help="print ranks at these tolerances, as intervals")
    parser.add_argument("--levels", type=level, nargs="+", help="print the numbers of eigenvalues above these numbers")
    parser.add_argument(
        "--method", help="auto, dense, cholesky, lanczos, quadrature or inertia: how they are found (auto)"
    )
    parser.add_argument("--out", type=path, help="write the dense kernel to this .npy file")


def run(arguments: argparse.Namespace) -> int:
    """Print the kernel's numbers, and write it where a file is named."""
    from inrfast.linalg.eigenvalues import METHODS
    from inrfast.tangent.local import ntk

    if arguments.method is not None:
        check_choice("--method", arguments.method, METHODS)
        if not (arguments.rtols or arguments.levels):
            raise ValueError("--method needs --rtols or --levels: without one of them nothing is counted")
    coords = grid(arguments.grid, device=arguments.device)
    net = calibrated_network(arguments, coords, arguments.outputs)
    kernel = ntk(net, coords, output=arguments.output, precision=arguments.precision)
    cost = kernel.cost()
    if arguments.out is not None:
        check_file(arguments.out, {".npy"}, ".npy")
        free = shutil.disk_usage(existing_folder(arguments.out)).free
        if cost.dense_bytes > free:
            raise OSError(
                f"--out: {shown(arguments.out)} would take {format_bytes(cost.dense_bytes)} and "
                f"{format_bytes(free)} are free there; use a smaller grid"
            )
    if not arguments.quiet:
        say(str(cost))
    # First what may be refused for its size, before the long computations.
    ranks, counts, notes = _counted(kernel, arguments)
    with at_work("computing the kernel's norms", arguments.quiet):
        trace, frobenius = float(kernel.trace()), float(kernel.frobenius())
    found = {
        "network": net.config(),
        "grid": list(arguments.grid),
        "shape": list(kernel.shape),
        "output": arguments.output,
        "precision": arguments.precision,
        "cost": asdict(cost),
        "trace": trace,
        "frobenius": frobenius,
        "ranks": ranks,
        "counts": counts,
        "note": "; ".join(notes),
        "out": None if arguments.out is None else str(arguments.out),
    }
    if arguments.out is not None:
        make_folder(arguments.out)
        with at_work("computing the dense kernel", arguments.quiet):
            _write_dense(kernel, arguments.out)
    lines = [f"kernel     {kernel.shape[0]:,} x {kernel.shape[1]:,}, output {arguments.output}, {arguments.precision}"]
    lines += [f"trace      {found['trace']:.6g}", f"Frobenius  {found['frobenius']:.6g}"]
    lines += [f"rank       {_interval(rank)} at lambda/lambda_1 > {rank['rtol']:g}{_by(rank)}" for rank in ranks]
    lines += [f"count      {_interval(count)} at lambda > {count['level']:g}{_by(count)}" for count in counts]
    lines += [f"by         {note}" for note in notes]
    lines += [] if arguments.out is None else [f"wrote      {arguments.out} ({format_bytes(cost.dense_bytes)})"]
    print_result(arguments, found, "\n".join(lines))
    return 0


def _counted(kernel: NTK, arguments: argparse.Namespace) -> tuple[list[Any], list[Any], list[str]]:
    """Return the ranks at ``--rtols``, the counts above ``--levels``, and why they were found in this way."""
    from inrfast.analysis.proofs import proof

    options: dict[str, Any] = {"method": arguments.method or "auto", "seed": arguments.seed}
    options["progress"] = progress(arguments)
    ranks, counts, notes = [], [], []
    left = arguments.levels or []
    if arguments.rtols:
        with bar(arguments, "the spectrum"):
            spectrum = kernel.spectrum(arguments.rtols, **options)
        notes.append(spectrum.note)
        for rtol in arguments.rtols:
            threshold = rtol * float(spectrum.eigenvalues[0])
            # Report the interval even if it is wide, but of a dense kernel, which has no finer one.
            found = spectrum.rank(rtol) if spectrum.method == "dense" else spectrum.count_above(threshold, rtol)
            ranks.append(asdict(found) | asdict(proof(spectrum, threshold, rtol)))
        if spectrum.method == "dense":
            counts, left = [_count(spectrum, threshold) for threshold in left], []
    if left:
        with bar(arguments, "the spectrum"):
            spectrum = kernel.spectrum(levels=left, **options)
        notes.append(spectrum.note)
        counts = [_count(spectrum, threshold) for threshold in left]
    return ranks, counts, [note for note in dict.fromkeys(notes) if note]


def _count(spectrum: Spectrum, threshold: float) -> dict[str, Any]:
    """Return how many eigenvalues exceed a level, and how that was found."""
    from inrfast.analysis.proofs import proof

    found = spectrum.count_above(threshold)
    return {"level": threshold, "lower": found.lower, "upper": found.upper} | asdict(proof(spectrum, threshold))


def _by(count: dict[str, Any]) -> str:
    """Return in words by what a count holds but for a probability; empty for one that holds without."""
    return f" (by {count['method']}; failure {count['failure']:.1g})" if count["failure"] else ""


def _output(text: str) -> str | int:
    if text.isdecimal() and len(text) < 19:
        return int(text)
    if text not in OUTPUTS:
        hint = nearest(text, OUTPUTS)
        raise argparse.ArgumentTypeError(f"takes trace, full or the number of an output, from 0, got {text!r}.{hint}")
    return text


def _interval(rank: dict[str, Any]) -> str:
    return str(rank["lower"]) if rank["lower"] == rank["upper"] else f"{rank['lower']} to {rank['upper']}"


def _write_dense(kernel: NTK, path: Path) -> None:
    """Write the dense kernel in NumPy's format, tile by tile, into a file whose space is reserved.

    Writing through a memory map without reserved space would end the process by SIGBUS on a full disk.
    """
    header = io.BytesIO()
    dtype = np.dtype(np.float64 if kernel.dtype == torch.float64 else np.float32)
    npy_format.write_array_header_1_0(
        header, {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(kernel.shape)}
    )
    begun = len(header.getvalue())
    size = begun + dtype.itemsize * kernel.shape[0] * kernel.shape[1]
    with whole_file(path, size=size) as file:
        file.write(header.getvalue())
        file.flush()
        target = np.memmap(file, dtype, "r+", begun, tuple(kernel.shape))
        if kernel.device.type == "cpu":
            kernel.to_dense(out=target)
        else:
            target[:] = torch.as_tensor(kernel.to_dense()).cpu().numpy()
        target.flush()
        del target  # Windows renames no file that is mapped
