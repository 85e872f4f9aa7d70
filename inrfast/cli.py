"""The command line: ``inrfast demo | diagnose | ntk | fit | info``.

Results go to stdout (text, or with ``--json`` JSON alone), progress and errors to stderr. What one subcommand alone
needs is imported when that one runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from inrfast.encodings import Encoding, Polynomial, PositionalEncoding, RandomFourier
from inrfast.errors import DivergedError, InrfastError, check_choice
from inrfast.grids import grid
from inrfast.memory import chunks, format_bytes
from inrfast.nn import INR, calibrate_batchnorm_

COMMANDS = ("demo", "diagnose", "ntk", "fit", "info")

EXIT_CODES = """\
exit codes:
  0    done
  1    the computation failed: a fit diverged
  2    bad usage or bad input: one line on stderr says what was given and what is accepted
  130  interrupted (Ctrl-C); no file is left half-written
"""

ENCODINGS: dict[str, tuple[type[Encoding], tuple[int | float, ...]]] = {
    "fourier": (RandomFourier, (256, 10.0)),
    "positional": (PositionalEncoding, (10,)),
    "polynomial": (Polynomial, (8,)),
}
"""Encodings by their name on the command line, with the numbers that follow it and their defaults."""

PREDICTION_ROWS = 8192


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code (see :data:`EXIT_CODES`)."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words and not words[0].startswith("-"):
            check_choice("command", words[0], COMMANDS)
        arguments = _parser().parse_args(words)
        return int(arguments.run(arguments))
    except SystemExit as stop:  # argparse has printed the help, or the error
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _complain("interrupted; no file is left half-written", 130)
    except DivergedError as error:
        return _complain(error, 1)
    except (ValueError, OSError, InrfastError) as error:
        return _complain(error, 2)


def _complain(what: object, code: int) -> int:
    print(f"inrfast: {'' if code == 130 else 'error: '}{what}", file=sys.stderr)
    return code


# ---- arguments ---------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong, and exit with the code of bad usage."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="inrfast",
        description="See where an implicit neural representation loses rank, cure it, and fit it fast.",
        epilog="Try:  inrfast demo\n      inrfast fit --help\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    common, network = _common_options(), _network_options()

    def command(name: str, run: Any, parents: list[_Parser], summary: str, examples: str) -> _Parser:
        added = commands.add_parser(
            name,
            parents=parents,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    demo = command(
        "demo",
        _demo,
        [common],
        "diagnose six starts of one network, fit some of them to a photograph, write numbers, text and figures",
        "  inrfast demo\n"
        "  inrfast demo --quick --out out/quick\n"
        "  inrfast demo --image photo.jpg --json > numbers.json\n",
    )
    demo.add_argument("--out", type=Path, default="out/demo", help="folder to write (default: %(default)s)")
    demo.add_argument("--image", type=Path, help="photograph to fit (default: the astronaut bundled with scikit-image)")
    demo.add_argument("--quick", action="store_true", help="small sizes: seconds instead of minutes, other numbers")

    diagnose = command(
        "diagnose",
        _diagnose,
        [common, network],
        "measure the numerical ranks of a network's layers and of its tangent kernel at several tolerances",
        "  inrfast diagnose --grid 128x128\n"
        "  inrfast diagnose --init rank_expanding --hidden-init kaiming --out out/diagnosis\n"
        "  inrfast diagnose --activation sine --init siren --rtols 1e-3 1e-5 --json\n",
    )
    diagnose.add_argument("--grid", type=_shape, default="256x256", help="points an axis (default: %(default)s)")
    diagnose.add_argument("--outputs", type=int, default=1, help="outputs of the network (default: %(default)s)")
    diagnose.add_argument("--rtols", type=float, nargs="+", help="relative tolerances (default: 1e-2 to 1e-6)")
    diagnose.add_argument(
        "--ntk-points", type=int, default=None, help="points of the tangent kernel at most, thins the grid (all)"
    )
    diagnose.add_argument("--out", type=Path, help="folder for report.json, report.txt and report.png")

    ntk = command(
        "ntk",
        _ntk,
        [common, network],
        "print the cost, trace, Frobenius norm and ranks of a tangent kernel, or write the kernel itself",
        "  inrfast ntk --grid 64x64\n"
        "  inrfast ntk --grid 48x48 --rtols 1e-2 1e-4 1e-6 --activation sine --init siren\n"
        "  inrfast ntk --grid 64x64 --out kernel.npy\n",
    )
    ntk.add_argument("--grid", type=_shape, default="64x64", help="points an axis (default: %(default)s)")
    ntk.add_argument("--outputs", type=int, default=1, help="outputs of the network (default: %(default)s)")
    ntk.add_argument("--output", type=_output, default="trace", help="trace, full, or an output's number (%(default)s)")
    ntk.add_argument("--precision", default="high", help="highest, high or medium (default: %(default)s)")
    ntk.add_argument("--rtols", type=float, nargs="+", help="print ranks at these tolerances, as intervals")
    ntk.add_argument("--out", type=Path, help="write the dense kernel to this .npy file")

    fit = command(
        "fit",
        _fit,
        [common, network],
        "fit a network to an image; write the reconstruction and a report beside it",
        "  inrfast fit photo.jpg\n"
        "  inrfast fit photo.jpg --activation sine --init siren --lr 5e-4 --steps 1000\n"
        "  inrfast fit photo.jpg --size 128 --grey --init rank_expanding --batch-size 4096 --out out/photo.png\n",
    )
    fit.add_argument("image", type=Path, help="the image, in any format that Pillow reads")
    fit.add_argument("--size", type=_shape, default="256", help="pixels to fit, like 256 or 240x320 (%(default)s)")
    fit.add_argument("--grey", action="store_true", help="one channel instead of three")
    fit.add_argument("--steps", type=int, default=2000, help="updates (default: %(default)s)")
    fit.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam (default: %(default)s)")
    fit.add_argument("--schedule", default="exponential", help="exponential (to 0.1), cosine, constant (%(default)s)")
    fit.add_argument("--batch-size", type=int, help="pixels an update (default: all)")
    fit.add_argument("--out", type=Path, default="result.png", help="PNG to write, its report beside it (%(default)s)")

    show = command(
        "info",
        _info,
        [],
        "say what is installed, how the extension was built, and which backends run here",
        "  inrfast info\n  inrfast info --json\n",
    )
    show.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def _common_options() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress on stderr")
    common.add_argument("--device", type=_device, default=torch.device("cpu"), help="cpu, cuda, ... (default: cpu)")
    common.add_argument("--seed", type=int, default=0, help="of everything drawn at random (default: 0)")
    return common


def _network_options() -> _Parser:
    network = _Parser(add_help=False)
    options = network.add_argument_group("network")
    options.add_argument("--width", type=int, default=256, help="units of a hidden layer (%(default)s)")
    options.add_argument("--hidden-layers", type=int, default=3, help="activated layers (%(default)s)")
    options.add_argument("--activation", default="relu", help="relu, sine, gaussian, finer, tanh, ... (%(default)s)")
    options.add_argument("--omega", type=float, default=30.0, help="frequency of sine, gaussian, finer (%(default)s)")
    options.add_argument("--init", default="default", help="rank_expanding, siren, kaiming, xavier or %(default)s")
    options.add_argument("--hidden-init", help="initialisation of the layers after the first, where it differs")
    options.add_argument("--norm", help="batch (calibrated on the grid) or sphere (default: none)")
    options.add_argument("--encoding", type=_encoding, help="fourier:256:10, positional:10 or polynomial:8")
    return network


def _shape(text: str) -> tuple[int, ...]:
    """Return the sizes in ``256x256``; one size alone is a one-dimensional grid, or a square image."""
    try:
        return tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes sizes joined by x, such as 256x256, got {text!r}") from None


def _output(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _device(text: str) -> torch.device:
    """Return a device that can hold a tensor."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"takes a device of this machine, got {text!r}: {reason}") from None


def _encoding(text: str) -> Encoding:
    """Return the encoding in ``name:number:...``; numbers left out have their defaults."""
    name, *given = text.split(":")
    try:
        make, defaults = ENCODINGS[check_choice("the encoding's name", name, ENCODINGS)]
        if len(given) > len(defaults):
            raise ValueError(f"{name} takes {len(defaults)} number(s), as in {':'.join(map(str, (name, *defaults)))}")
        numbers = [type(default)(number) for default, number in zip(defaults, given, strict=False)]
        return make(*numbers, *defaults[len(numbers) :])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; got {text!r}") from None


# ---- subcommands -------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    from inrfast.experiments import demo, demo_text

    report = demo.run(
        arguments.out,
        image=arguments.image,
        quick=arguments.quick,
        seed=arguments.seed,
        device=arguments.device,
        progress=not arguments.quiet,
    )
    _print(arguments, report, f"{demo_text.summary(report)}\n\nwrote {arguments.out}: {', '.join(demo.FILES)}")
    return 0


def _diagnose(arguments: argparse.Namespace) -> int:
    from inrfast.analysis.diagnosis import RTOLS, diagnose
    from inrfast.files import write_whole

    coords = grid(arguments.grid, device=arguments.device)
    net = _network(arguments, coords, arguments.outputs)
    if arguments.out is not None:
        _check_folder(arguments.out)
    report = diagnose(
        net,
        coords,
        rtols=arguments.rtols or RTOLS,
        ntk_points=arguments.ntk_points,
        seed=arguments.seed,
        progress=_progress(arguments),
    )
    if arguments.out is not None:
        write_whole(arguments.out / "report.txt", f"{report}\n".encode())
        report.plot(arguments.out / "report.png")
        report.to_json(arguments.out / "report.json")
    _print(arguments, report.to_dict(), str(report))
    return 0


def _ntk(arguments: argparse.Namespace) -> int:
    from inrfast.tangent_kernel import ntk

    coords = grid(arguments.grid, device=arguments.device)
    net = _network(arguments, coords, arguments.outputs)
    kernel = ntk(net, coords, output=arguments.output, precision=arguments.precision)
    cost = kernel.cost()
    if arguments.out is not None:
        _check_file(arguments.out, ".npy")
        free = shutil.disk_usage(arguments.out.parent).free
        if cost.dense_bytes > free:
            raise OSError(
                f"{arguments.out} would take {format_bytes(cost.dense_bytes)} and {format_bytes(free)} are free there; "
                "use a smaller grid"
            )
    if not arguments.quiet:
        print(cost, file=sys.stderr)
    # First what may be refused for its size, before anything long.
    ranks, note = [], ""
    if arguments.rtols:
        spectrum = kernel.spectrum(min(arguments.rtols), progress=None if not arguments.quiet else False)
        note = spectrum.note
        if spectrum.method == "dense":
            ranks = [asdict(spectrum.rank(rtol)) for rtol in arguments.rtols]
        else:  # an interval even where it is wide
            largest = float(spectrum.eigenvalues[0])
            ranks = [asdict(spectrum.count_above(rtol * largest, rtol)) for rtol in arguments.rtols]
    found = {
        "network": net.config(),
        "grid": list(arguments.grid),
        "shape": list(kernel.shape),
        "output": arguments.output,
        "precision": arguments.precision,
        "cost": asdict(cost),
        "trace": float(kernel.trace()),
        "frobenius": float(kernel.frobenius()),
        "ranks": ranks,
        "note": note,
        "out": None if arguments.out is None else str(arguments.out),
    }
    if arguments.out is not None:
        with _whole_file(arguments.out) as temporary:
            _write_dense(kernel, temporary)
    lines = [f"kernel     {kernel.shape[0]:,} x {kernel.shape[1]:,}, output {arguments.output}, {arguments.precision}"]
    lines += [f"trace      {found['trace']:.6g}", f"Frobenius  {found['frobenius']:.6g}"]
    lines += [f"rank       {_interval(rank)} at lambda/lambda_1 > {rank['rtol']:g}" for rank in ranks]
    lines += [f"by         {note}"] if note else []
    lines += [] if arguments.out is None else [f"wrote      {arguments.out} ({format_bytes(cost.dense_bytes)})"]
    _print(arguments, found, "\n".join(lines))
    return 0


def _fit(arguments: argparse.Namespace) -> int:
    from inrfast.files import write_whole
    from inrfast.signals.image import MID_GREY, load_image, save_image
    from inrfast.training.loop import fit

    size = arguments.size * 2 if len(arguments.size) == 1 else arguments.size
    image = load_image(arguments.image, size, arguments.grey).to(arguments.device)
    report_file = arguments.out.with_suffix(".json")
    _check_file(arguments.out, ".png")
    _check_file(report_file, ".json")
    if arguments.out.resolve() == arguments.image.resolve():
        raise ValueError(f"--out must be another file than the image, got {arguments.out} for both")
    coords = grid(image.shape[:2], device=arguments.device)
    net = _network(arguments, None, image.shape[2])
    result = fit(
        net,
        coords,
        image - MID_GREY,
        steps=arguments.steps,
        lr=arguments.lr,
        schedule=arguments.schedule,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        progress=_progress(arguments),
    )
    with torch.no_grad():
        values = torch.cat([net(coords[rows]) for rows in chunks(len(coords), PREDICTION_ROWS)])
    found = {
        "schema": "inrfast.fit/1",
        "image": str(arguments.image),
        "size": list(image.shape),
        "out": str(arguments.out),
        "interrupted": result.interrupted,
        "steps": result.steps,
        "seconds": result.seconds,
        "psnr": _finite(result.psnr),
        "best_psnr": _finite(result.best_psnr),
        "best_step": result.best_step,
        "eval_steps": result.eval_steps,
        "psnrs": [_finite(psnr) for psnr in result.psnrs],
        "settings": result.config,
    }
    save_image(values.reshape(image.shape) + MID_GREY, arguments.out)
    write_whole(report_file, (json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
    outcome = f"{result.psnr:.2f} dB after {result.steps} of {arguments.steps} steps"
    text = f"{arguments.image}: {outcome} in {result.seconds:.1f} s; wrote {arguments.out} and {report_file}"
    _print(arguments, found, text)
    if result.interrupted:
        return _complain(f"interrupted; kept the result so far, {outcome}, in {arguments.out} and {report_file}", 130)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from inrfast import info

    found = info.info()
    _print(arguments, found, info.render(found))
    return 0


# ---- what subcommands share --------------------------------------------------------------------------------------


def _network(arguments: argparse.Namespace, coords: Tensor | None, outputs: int) -> INR:
    """Return the network of the options in eval mode, batch norms calibrated on ``coords`` (None: left to a fit)."""
    hidden = arguments.hidden_init
    net = INR(
        2 if coords is None else coords.shape[1],
        outputs,
        width=arguments.width,
        hidden_layers=arguments.hidden_layers,
        activation=arguments.activation,
        omega=arguments.omega,
        encoding=arguments.encoding,
        norm=arguments.norm,
        init=arguments.init if hidden is None else {"first": arguments.init, "hidden": hidden},
        seed=arguments.seed,
        device=arguments.device,
    ).eval()
    if arguments.norm == "batch" and coords is not None:
        calibrate_batchnorm_(net, coords)
    return net


def _progress(arguments: argparse.Namespace) -> bool | None:
    return False if arguments.quiet else None


def _print(arguments: argparse.Namespace, found: dict[str, Any], text: str) -> None:
    print(json.dumps(found, indent=2, allow_nan=False) if arguments.json else text)


def _interval(rank: dict[str, Any]) -> str:
    return str(rank["lower"]) if rank["lower"] == rank["upper"] else f"{rank['lower']} to {rank['upper']}"


def _finite(value: float) -> float | None:
    """Return the number, or None for the infinite PSNR of an exact fit, which JSON lacks."""
    return value if math.isfinite(value) else None


def _check_folder(folder: Path) -> None:
    """Make the folder and write a nameless file into it: what would fail after the work fails before."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
    except OSError as error:
        raise OSError(f"--out: cannot write into the folder {folder}: {error.strerror or error}") from error


def _check_file(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise ValueError(f"--out must name a {suffix} file, got {path}")
    if path.is_dir():
        raise IsADirectoryError(f"--out: {path} is a folder")
    _check_folder(path.parent)


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its name in the end, and goes if there is no such end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_dense(kernel: Any, path: Path) -> None:
    """Write the dense kernel in NumPy's format, tile by tile."""
    from numpy.lib.format import open_memmap

    dtype = "float64" if kernel.dtype == torch.float64 else "float32"
    target = open_memmap(path, mode="w+", dtype=dtype, shape=kernel.shape)
    if kernel.device.type == "cpu":
        kernel.to_dense(out=target)
    else:
        target[:] = kernel.to_dense().cpu().numpy()
    target.flush()


if __name__ == "__main__":
    sys.exit(main())
