"""Builds the native modules from ``csrc/``: ``inrfast._C``, and ``inrfast._CUDA`` where ``nvcc`` is found.

Both are optional: without them everything computes by PyTorch and NumPy, training steps and kernels more slowly. What
cannot be built is said, and the installation goes on. The build needs no torch. Everything else about the package
stands in ``pyproject.toml``. Environment variables:

INRFAST_NATIVE_BUILD  ``auto`` (default): build what can be built; ``1``: fail where ``inrfast._C`` cannot be; ``0``:
                      build neither; the wheel is then of pure Python, for any platform.
INRFAST_CUDA          ``auto`` (default): build the CUDA half if nvcc is found; ``0``: never; ``1``: fail where it
                      cannot be built.
INRFAST_CUDA_ARCHS    GPU architectures, default ``sm_80;sm_90``; PTX of the lowest is added for newer GPUs.
INRFAST_OLDER_SYSTEMS ``1``: with GCC 11 to 13 on x86-64, build an ``inrfast._C`` that loads from glibc 2.28 on.
MAX_JOBS              How many architectures nvcc compiles at a time; default: one for every core.

nvcc is looked for in CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda, in this order.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError, SetupError

DEFAULT_CUDA_HOME = "/usr/local/cuda"
# Contracting a product and a sum into one FMA rounds once instead of twice: CPU and CUDA would no longer agree.
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off"]
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]
CUDA_BINDINGS = "csrc/bindings_cuda.cpp"


def wish(name: str) -> str:
    """Return the value of an environment variable that says ``auto``, ``0`` or ``1``."""
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SetupError(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


def say(words: str) -> None:
    """Say something that the log of the build must show."""
    print(f"inrfast: {words}", file=sys.stderr, flush=True)


def find_nvcc() -> Path | None:
    """Return the first nvcc out of CUDA_HOME, CUDA_PATH, PATH and the default place, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home, "bin", "nvcc") for home in homes if home]
    on_path = shutil.which("nvcc")
    if on_path is not None:
        candidates.append(Path(on_path))
    candidates.append(Path(DEFAULT_CUDA_HOME, "bin", "nvcc"))
    return next((nvcc for nvcc in candidates if os.access(nvcc, os.X_OK)), None)


def choose_nvcc() -> Path | None:
    """Return the nvcc to build with, or None for a build without CUDA, as INRFAST_CUDA says."""
    asked = wish("INRFAST_CUDA")
    if asked == "0":
        say("INRFAST_CUDA=0, building without inrfast._CUDA")
        return None
    nvcc = find_nvcc()
    if nvcc is None:
        missing = f"found no nvcc in CUDA_HOME, CUDA_PATH, PATH or {DEFAULT_CUDA_HOME}"
        if asked == "1":
            raise SetupError(f"INRFAST_CUDA=1, but {missing}; set CUDA_HOME, or INRFAST_CUDA=0 to build without CUDA")
        say(f"{missing}; building without inrfast._CUDA")
    return nvcc


def cuda_archs() -> list[str]:
    """Return the GPU architectures to compile for, the lowest first."""
    archs = os.environ.get("INRFAST_CUDA_ARCHS", "sm_80;sm_90").replace(",", ";").split(";")
    archs = [arch.strip() for arch in archs if arch.strip()]
    bad = [arch for arch in archs if not re.fullmatch(r"sm_\d+[af]?", arch)]
    if bad or not archs:
        raise SetupError(f"INRFAST_CUDA_ARCHS must be a list such as sm_80;sm_90, got {bad or 'nothing'}")
    return sorted(archs, key=lambda arch: int(re.sub(r"\D", "", arch)))


def cudart_folders(nvcc: Path) -> list[str]:
    """Return the folders that ``nvcc`` itself links from: it knows them even when it is a wrapper script."""
    command = [str(nvcc), "--dryrun", "-x", "cu", os.devnull]
    plan = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    libraries = "".join(line for line in plan.splitlines() if "LIBRARIES=" in line)
    return re.findall(r'-L([^"\s]+)', libraries)


def modules() -> list[Extension]:
    """Return the native modules to build, as INRFAST_NATIVE_BUILD and INRFAST_CUDA say."""
    if wish("INRFAST_NATIVE_BUILD") == "0":
        say("INRFAST_NATIVE_BUILD=0, building no native module")
        return []
    common = {"include_dirs": ["csrc", pybind11.get_include()], "extra_compile_args": CXX_FLAGS, "language": "c++"}
    macros = [("INRFAST_OLDER_SYSTEMS", None)] if wish("INRFAST_OLDER_SYSTEMS") == "1" else []
    sources = sorted(path.as_posix() for path in Path("csrc").glob("*.cpp"))
    sources.remove(CUDA_BINDINGS)
    # `optional` lets an editable installation go on without the file.
    optional = wish("INRFAST_NATIVE_BUILD") == "auto"
    found = [Extension("inrfast._C", sources=sources, define_macros=macros, optional=optional, **common)]
    if choose_nvcc() is not None:
        optional = wish("INRFAST_CUDA") == "auto"
        found.append(Extension("inrfast._CUDA", sources=[CUDA_BINDINGS], optional=optional, **common))
    return found


class BuildExtension(build_ext):
    """Compiles the ``.cu`` file with nvcc beforehand, and says what could not be built."""

    def build_extension(self, ext: Extension) -> None:
        """Build ``ext``, always anew: what is built depends on the environment, which time stamps do not see."""
        self.force = True
        try:
            if ext.name == "inrfast._CUDA":
                self.add_cuda(ext)
            super().build_extension(ext)
        except (CCompilerError, BaseError, OSError) as error:
            switch = "INRFAST_CUDA" if ext.name == "inrfast._CUDA" else "INRFAST_NATIVE_BUILD"
            if not ext.optional:
                say(f"{ext.name} could not be built, and {switch}=1 asks for it")
                raise
            loss = (
                "rank_expanding fills memory of GPUs by way of the CPU"
                if ext.name == "inrfast._CUDA"
                else "training steps and dense kernels on CPUs take PyTorch's operations, which are slower"
            )
            say(f"{ext.name} could not be built ({error}). Going on without it: {loss}. {switch}=1 makes this an error")

    def add_cuda(self, ext: Extension) -> None:
        """Compile the CUDA half and add it to ``ext``."""
        nvcc = choose_nvcc()
        assert nvcc is not None
        archs = cuda_archs()
        say(f"building inrfast._CUDA with {nvcc} for {' '.join(archs)}")
        ext.define_macros = [*ext.define_macros, ("INRFAST_CUDA_ARCHS", f'"{";".join(archs)}"')]
        ext.extra_objects.append(self.compile_cuda(nvcc, archs))
        ext.library_dirs += cudart_folders(nvcc)
        ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
        # The runtime's own symbols stay inside, away from the CUDA runtime that torch brings.
        ext.extra_link_args.append("-Wl,--exclude-libs,ALL")

    def compile_cuda(self, nvcc: Path, archs: list[str]) -> str:
        """Compile ``csrc/grid_init.cu`` for ``archs`` and return the object's path."""
        target = Path(self.build_temp, "grid_init.cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        codes = [("compute" + arch[2:], arch) for arch in archs]
        codes.append((codes[0][0], codes[0][0]))
        generate = [flag for virtual, code in codes for flag in ("-gencode", f"arch={virtual},code={code}")]
        jobs = os.environ.get("MAX_JOBS", "0")
        macro = f'-DINRFAST_CUDA_ARCHS="{";".join(archs)}"'
        command = [str(nvcc), *NVCC_FLAGS, *generate, f"--threads={jobs}", macro]
        command += ["-c", "csrc/grid_init.cu", "-o", str(target)]
        exit_code = subprocess.run(command, check=False).returncode
        if exit_code != 0:
            raise CompileError(f"{nvcc} failed with exit code {exit_code}; INRFAST_CUDA=0 builds without the CUDA half")
        return str(target)


setup(
    long_description=runpy.run_path("docs/long_description.py")["long_description"](),
    long_description_content_type="text/markdown",
    ext_modules=modules(),
    cmdclass={"build_ext": BuildExtension},
)
