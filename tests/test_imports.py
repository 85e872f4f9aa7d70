"""``import inrfast`` is light, its names are there when they are used, and any module may be the first."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import inrfast

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def run(program):
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["inrfast", "inrfast.cli"])
def test_the_package_and_the_command_line_import_nothing_heavy(module):
    loaded = set(run(f"import sys, {module}; print(*sys.modules)").split())
    assert not loaded & {"torch", "numpy", "scipy", "matplotlib", "PIL", "argparse"}


def test_what_type_checkers_see_is_what_there_is():
    (guarded,) = (node for node in ast.parse(Path(inrfast.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {f"{node.module}.{alias.name}" for node in guarded.body for alias in node.names}
    there = {f"inrfast.{home}.{name}" for home, names in inrfast._HOMES.items() for name in names.split()}
    assert seen == there | {"inrfast.distributed", "inrfast.init"}
    assert {name.rpartition(".")[2] for name in seen} == set(inrfast.__all__)
    for name in inrfast.__all__:
        assert getattr(inrfast, name) is not None
    assert set(inrfast.__all__) <= set(dir(inrfast))
    with pytest.raises(AttributeError, match="nosuch"):
        _ = inrfast.nosuch


def test_a_module_that_imports_a_sibling_may_be_the_first():
    """Each in a fork of a process that has the libraries, but nothing of this package."""
    top = Path(inrfast.__file__).parent
    files = [path for path in top.rglob("*.py") if "kernels" not in path.parts]
    names = [
        ".".join(path.relative_to(top.parent).with_suffix("").parts)
        for path in files
        if "\nfrom inrfast import " in path.read_text()
    ]
    assert len(names) > 10
    failed = run(f"""if True:
        import importlib, os
        import matplotlib.pyplot, scipy.sparse.linalg, torch.distributed, tqdm, inrfast
        for name in {names}:
            child = os.fork()
            if child == 0:
                try:
                    importlib.import_module(name)
                    os._exit(0)
                finally:
                    os._exit(1)
            if os.waitpid(child, 0)[1]:
                print(name)
    """)
    assert failed.split() == []


def test_a_name_of_a_package_brings_what_is_in_it():
    run("import inrfast; inrfast.training.checkpoint.load_network; inrfast.metrics.psnr; inrfast.fit")
