"""Installs what ``make wheels`` made in new environments, as a user without rights, without a compiler, and uses it.

    python bench/fresh_install.py [--case PYTHON TORCH KIND ...] [--dist dist] [--torch-from FOLDER] [--file OUT.json]
    python bench/fresh_install.py --here        # what the installed package of this interpreter can do, nothing else

A case is an interpreter, a version of PyTorch, and ``wheel`` (native code for Linux x86-64), ``pure`` (the wheel of
pure Python) or ``sdist`` (built here, without a compiler). Without one, python3.11 to python3.14 as far as they are
here each take the wheel. Run by root, everything is done by the user ``nobody``. PATH holds the environment's own
folder alone, and no compiler is named. The layers of ``rank_expanding`` must be the same to the bit in all cases.
Sizes are of files in the environment; seconds include downloads, of PyTorch except where ``--torch-from`` names a
folder with its files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534
KINDS = {
    "wheel": "inrfast-*-cp{tag}-*manylinux*.whl",
    "pure": "inrfast-*-py3-none-any.whl",
    "sdist": "inrfast-*.tar.gz",
}

FIT = """if True:
    import hashlib, json, time, warnings
    warnings.simplefilter("always")
    import torch, inrfast as inr
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        coords = inr.grid((64, 64))
        net = inr.INR(2, 1, width=128, hidden_layers=3, init="rank_expanding", seed=0)
        result = inr.fit(net, coords, (9 * coords).sin().prod(1), steps=100, progress=False)
    seconds = time.perf_counter() - start
    kinds = [(w, d, t) for w in (1, 257) for d in (1, 2, 9, 40) for t in (torch.float32, torch.float64)]
    layers = [inr.rank_expanding(w, d, dtype=t) for w, d, t in kinds]
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for layer in layers for part in layer)).hexdigest()
    from inrfast.info import info
    print(json.dumps({
        "torch": torch.__version__, "psnr": result.psnr, "fit_seconds": round(seconds, 2), "layers": digest,
        "extension": info()["extension"]["available"], "native_step": info()["fit"]["native step"],
        "warnings": [str(each.message) for each in caught],
    }))
"""


def first_example() -> str:
    """Return the first Python example of the README."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def uses(python: str, script: str) -> dict[str, list[str]]:
    """Return what an installed package is asked to do."""
    return {
        "import": [python, "-c", "import inrfast"],
        "README": [python, "-c", first_example()],
        "help": [script, "--help"],
        "info": [script, "info"],
        "fit": [python, "-c", FIT],
    }


class Place:
    """A folder in which commands run by a user without rights, and without a compiler."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.venv = folder, folder / "home", folder / "venv"
        self.found: dict[str, Any] = {"seconds": {}, "failed": {}}
        self.home.mkdir()
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            for path in (folder, self.home):
                os.chown(path, NOBODY, NOBODY)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_", "OMP_", "LANG", "http"))
        }
        self.environment = kept | {"HOME": str(self.home), "PATH": str(self.venv / "bin"), "CC": "", "CXX": ""}
        self.environment |= {"PIP_NO_CACHE_DIR": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(self, name: str, command: list[str], quiet: bool = True) -> str | None:
        """Run and time a command; return its output, or None where it failed."""
        if self.found["failed"]:
            return None  # what comes later needs what failed
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.home, env=self.environment, capture_output=True, text=True, check=False, **self.user
        )
        self.found["seconds"][name] = round(time.perf_counter() - start, 1)
        if done.returncode != 0:
            self.found["failed"][name] = {"status": done.returncode, "last": done.stderr.strip().splitlines()[-5:]}
            print(done.stderr[-3000:], file=sys.stderr)
            return None
        if not quiet:
            print(done.stdout[-1500:])
        return done.stdout

    def readable(self, python: str) -> str:
        """Return an interpreter that the user may run: itself, or that of a copy."""
        try:
            subprocess.run([python, "-c", ""], cwd="/", check=True, **self.user)
            return python
        except (PermissionError, subprocess.CalledProcessError):
            ask = [python, "-c", "import sys; print(sys.base_prefix, sys._base_executable)"]
            prefix, real = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.split()
            copy = self.folder / "python"
            self.environment["LD_LIBRARY_PATH"] = str(copy / "lib")  # before the library of the unreadable one
            shutil.copytree(
                prefix, copy, symlinks=True, ignore=shutil.ignore_patterns("site-packages", "test", "*.pyc")
            )
            return str(copy / Path(os.path.realpath(real)).relative_to(prefix))


def megabytes(folder: Path) -> float:
    """Return the size of what is in a folder."""
    return round(sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6, 1)


def case(python: str, torch: str, kind: str, dist: Path, torch_from: Path | None) -> dict[str, Any]:
    """Return what happened in a new environment."""
    ask = [python, "-c", "import platform; print(platform.python_version())"]
    version = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    files = sorted(dist.glob(KINDS[kind].format(tag="".join(version.split(".")[:2]))))
    if not files:
        raise SystemExit(f"there is no {kind} for Python {version} in {dist}; `make wheels` makes them")
    file = files[-1]
    with tempfile.TemporaryDirectory(prefix="inrfast-install-") as name:
        os.chmod(name, 0o755)
        place = Place(Path(name))
        given = shutil.copy(file, Path(name, file.name))
        os.chmod(given, 0o644)
        place.run("venv", [place.readable(python), "-m", "venv", str(place.venv)])
        bin_ = place.venv / "bin"
        pip = [str(bin_ / "python"), "-m", "pip", "install", "-q"]
        source = [] if torch_from is None else ["--no-index", f"--find-links={torch_from}"]
        place.run("torch", [*pip, *source, f"torch=={torch}"])
        alone = megabytes(place.venv)
        place.run("package", [*pip, given])
        for step, command in uses(str(bin_ / "python"), str(bin_ / "inrfast")).items():
            output = place.run(step, command)
            if step == "fit" and output is not None:
                place.found |= json.loads(output.splitlines()[-1])
        return {
            "python": version,
            "torch": torch,
            "kind": kind,
            "file": file.name,
            "file_mb": round(file.stat().st_size / 1e6, 2),
            "user": "nobody" if place.user else "the caller",
            "torch_mb": alone,
            "environment_mb": megabytes(place.venv),
            **place.found,
        }


def here() -> int:
    """Use the package of this interpreter; return 1 if something failed."""
    script = shutil.which("inrfast") or "inrfast"
    failed = 0
    for name, command in uses(sys.executable, script).items():
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tempfile.gettempdir())
        print(f"{name}: status {done.returncode}", done.stdout.strip().splitlines()[-1:])
        failed |= done.returncode
        if done.returncode:
            print(done.stderr)
    return int(failed != 0)


def main() -> int:
    """Run the cases, print them and keep them; return 1 if one failed or computed other layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, action="append", metavar=("PYTHON", "TORCH", "KIND"))
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--torch-from", type=Path, help="a folder with wheels of PyTorch and all that it needs")
    parser.add_argument("--file", type=Path, help="JSON to which the cases are added")
    parser.add_argument("--here", action="store_true")
    chosen = parser.parse_args()
    if chosen.here:
        return here()
    present = [python for minor in range(11, 15) if (python := shutil.which(f"python3.{minor}"))]
    cases = chosen.case or [(python, "2.13.0", "wheel") for python in present]
    found = []
    for python, torch, kind in cases:
        if kind not in KINDS:
            parser.error(f"the kind must be one of {', '.join(KINDS)}, got {kind!r}")
        found.append(case(python, torch, kind, chosen.dist, chosen.torch_from))
        print(json.dumps(found[-1], indent=1), flush=True)
        if chosen.file is not None:
            keep(chosen.file, found[-1])
    same = len({each.get("layers") for each in found}) == 1
    print("all layers are the same to the bit" if same else "the layers DIFFER")
    return int(not same or any(each["failed"] for each in found))


def keep(file: Path, one: dict[str, Any]) -> None:
    """Add a case to a file of results, in the place of an earlier one of the same versions and kind."""
    before = json.loads(file.read_text())["cases"] if file.exists() else []
    key = ("python", "torch", "kind")
    cases = [each for each in before if [each.get(k) for k in key] != [one.get(k) for k in key]]
    result = {"date": str(date.today()), "machine": platform.platform(), "cases": [*cases, one]}
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
