"""What an import brings, and when: names and libraries come at their first use, and any module may be the first."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import inrfast
from inrfast import public
from inrfast.cli import COMMANDS

ROOT = Path(inrfast.__file__).parents[1]

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

HEAVY = {
    "igl",
    "imagecodecs",
    "matplotlib",
    "psutil",
    "scipy",
    "skimage",
    "soundfile",
    "tifffile",
    "trimesh",
    "triton",
}
"""Libraries that a first kernel, diagnosis and fit do without."""

EXTRAS = ("igl", "imagecodecs", "matplotlib", "psutil", "skimage", "soundfile", "tifffile", "trimesh")
"""Libraries that an installation without extras has not."""


def run(program, folder=None):
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_those_of_one_list():
    assert inrfast.__all__ == sorted(public.__all__)
    assert set(inrfast.__all__) <= set(dir(inrfast))
    assert all(getattr(inrfast, name) is getattr(public, name) for name in public.__all__)
    with pytest.raises(AttributeError, match="nosuch"):
        _ = inrfast.nosuch
    with pytest.raises(ImportError, match="nosuch"):
        exec("from inrfast import nosuch", {})


def test_names_and_libraries_come_at_their_first_use():
    """A first kernel, diagnosis and fit take nothing that only drawings, files and other analyses need."""
    out = run("""if True:
        import sys
        import inrfast as inr
        print("torch" in sys.modules, "numpy" in sys.modules)
        from inrfast import *
        import pickle, torch
        before = set(sys.modules)
        net, coords = INR(2, 1, width=8, hidden_layers=1), grid((4, 4))
        ntk(net, coords).to_dense()
        str(inr.diagnose(net, coords))
        fit(net, coords, torch.rand(16, 1), steps=2, lr=1e-3)
        assert torch.equal(pickle.loads(pickle.dumps(net))(coords), net(coords))
        inr.signals, inr.metrics.psnr, inr.training.checkpoint
        print(*(set(sys.modules) - before), *before & {"matplotlib", "skimage", "trimesh"})
    """)
    first, found = out.splitlines()
    assert first == "False False"
    assert not {name.partition(".")[0] for name in found.split()} & HEAVY


def test_a_program_without_its_sources_has_all_names():
    """As one that was frozen into a single file."""
    out = run("""if True:
        import importlib.machinery
        importlib.machinery.SourceFileLoader.get_source = lambda *name: None
        import inrfast
        print(inrfast.ResolutionError.__name__, inrfast.__all__ == sorted(inrfast.public.__all__))
    """)
    assert out.split() == ["ResolutionError", "True"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, list(COMMANDS)),
        (["--version"], 0, [f"inrfast {inrfast.__version__}"]),
        (["fti"], 2, ["got 'fti'. Did you mean 'fit'?"]),
        (["--nosuch"], 2, ["required", "diagnose"]),
    ],
)
@pytest.mark.parametrize("module", ["inrfast", "inrfast.cli"])
def test_help_version_and_mistakes_come_before_anything_heavy(module, words, code, said):
    command = [sys.executable, "-X", "importtime", "-m", module, *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    lines = done.stderr.splitlines()
    told = done.stdout + "\n".join(line for line in lines if not line.startswith("import time:"))
    assert all(words in told for words in said), told
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "argparse" in loaded
    assert not loaded & {"torch", "numpy", "PIL", *HEAVY}


def test_without_extras_all_else_works_and_what_is_missing_is_named(tmp_path):
    """Each library is blocked; what needs one names it and the extra that brings it, before any work."""
    run(
        f"""if True:
        import contextlib, io, sys
        sys.modules.update(dict.fromkeys({EXTRAS}))
        import torch
        import inrfast as inr
        from inrfast.cli import main
        from inrfast.metrics import psnr, ssim
        from inrfast.signals.audio import load_audio, save_audio
        from inrfast.signals.image import astronaut, load_image, save_image
        from inrfast.signals.mesh import isosurface, load_mesh

        picture, sound = torch.rand(16, 16, 3), torch.rand(99) - 0.5
        save_image(picture, "photo.png")
        assert psnr(load_image("photo.png"), picture) > 40
        save_audio(sound, "sound.wav", 8000)
        assert (load_audio("sound.wav")[0].flatten() - sound).abs().max() < 1e-4
        small = ["--width", "8", "--hidden-layers", "1", "--quiet"]
        assert main(["fit", "photo.png", "--steps", "2", "--out", "fitted.png", *small]) == 0
        assert main(["render", "fitted.safetensors", "large.png", "--size", "32"]) == 0
        assert main(["diagnose", "--grid", "4x4", *small]) == 0
        net, coords = inr.INR(2, 1, width=8, hidden_layers=1), inr.grid((4, 4))
        report = inr.diagnose(net, coords)
        inr.variance(net, coords)

        corners, faces = "0 0 0  1 0 0  0 1 0  0 0 1", "3 0 2 1  3 0 1 3  3 0 3 2  3 1 2 3"
        open("mesh.off", "w").write("\\n".join(["OFF", "4 4 0", *corners.split("  "), *faces.split("  ")]))
        open("sound.flac", "wb").write(b"fLaC" + bytes(60))
        open("scan.tif", "wb").write(b"II*\\0" + bytes(60))
        cube = torch.linspace(-1, 1, 27).view(3, 3, 3)
        for does in (
            report.plot,
            lambda: astronaut(8),
            lambda: save_image(picture, "deep.png", bits=16),
            lambda: save_image(picture, "deep.tif", bits=16),
            lambda: load_image("scan.tif"),
            lambda: ssim(picture, picture),
            lambda: load_audio("sound.flac"),
            lambda: save_audio(sound, "other.flac", 8000),
            lambda: load_mesh("mesh.off"),
            lambda: isosurface(cube, 0.1),
            lambda: __import__("inrfast.experiments.demo"),
        ):
            try:
                does()
                print("nothing was raised", file=open("told", "a"))
            except ImportError as error:
                print(type(error).__name__, error, file=open("told", "a"))
        for words in (
            ["demo"], ["reproduce", "--help"], ["diagnose", "--out", "out"],
            ["choose", "photo.png", "--out", "out/a.png"], ["fit", "mesh.off"], ["fit", "sound.flac"],
            ["fit", "sound.wav", "--out", "out/sound.flac"],
        ):
            with contextlib.redirect_stderr(io.StringIO()) as said:
                assert main(words) == 2, words
            assert "pip install 'inrfast[" in said.getvalue(), (words, said.getvalue())
        """,
        tmp_path,
    )
    told = (tmp_path / "told").read_text().splitlines()
    needed = [
        ("matplotlib", "plots"),
        ("scikit-image", "images"),
        ("imagecodecs", "images"),
        ("tifffile", "images"),
        ("tifffile", "images"),
        ("scikit-image", "images"),
        ("soundfile", "audio"),
        ("soundfile", "audio"),
        ("trimesh", "mesh"),
        ("trimesh", "mesh"),
        ("matplotlib", "plots"),
    ]
    assert len(told) == len(needed)
    for line, (library, extra) in zip(told, needed, strict=True):
        assert line.startswith("MissingLibraryError "), line
        assert line.endswith(f"needs {library}: pip install 'inrfast[{extra}]'"), line
    assert not (tmp_path / "out").exists()


def test_every_named_extra_has_the_libraries():
    """The extras that messages name are those of the package, and all libraries that are imported late are in one."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name
        for path in (ROOT / "inrfast").rglob("*.py")
        for name in re.findall(r'\bneeds\(\s*"(\w+)"', path.read_text())
    }
    assert named == set(extras) - {"all", "dev", "docs"}
    free = [name for name in extras if name in named and name != "video"]  # whose wheels bring libraries under the GPL
    assert extras["all"] == [f"inrfast[{','.join(free)}]"]
    assert "inrfast[all,video]" in extras["dev"]


def imported(body):
    """Yield what a module imports when it is imported itself: (module, name), the name None for a whole module."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, None) for name in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported(node.orelse)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from imported(node.body)


def packages(module):
    """Return the packages that a module is in."""
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def test_any_module_may_be_the_first():
    """No module waits for one that waits for it: imports, and those of the packages that they lead into, have an order.

    The packages that a module is in itself have begun before it, and it must not ask them for a name.
    """
    files = [path for path in (ROOT / "inrfast").rglob("*.py") if "kernels" not in path.parts]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    waits = {}
    for module, path in modules.items():
        found = imported(ast.parse(path.read_text()).body)
        needed = {f"{source}.{name}" if f"{source}.{name}" in modules else source for source, name in found}
        needed = {source for source in needed if source in modules}
        waits[module] = needed | set().union(*map(packages, needed)) - packages(module) - {module}
    assert len(waits) > 400
    assert any(waits.values())
    TopologicalSorter(waits).prepare()  # raises CycleError, which names the circle
