"""What ``import inrfast`` brings, and when; any module may be the first."""

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


def test_a_command_has_its_say_before_anything_heavy_is_there(tmp_path):
    script = tmp_path / "inrfast"
    script.write_text("import sys, inrfast.cli; print(*sys.modules); import inrfast as inr; print(inr.grid(2).shape)")
    found = subprocess.run([sys.executable, script], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    loaded, shape = found.stdout.splitlines()
    assert not set(loaded.split()) & {"torch", "numpy", "scipy", "matplotlib", "PIL", "argparse"}
    assert shape == "torch.Size([2, 1])"


def test_everybody_else_has_all_names_and_operators_at_once():
    out = run("""if True:
        import inrfast, torch
        torch.ops.inrfast.gram_, torch.ops.inrfast.fused_linear, torch.ops.inrfast.mlp_slabs
        missing = [name for name in inrfast.__all__ if name not in vars(inrfast)]
        from inrfast import *
        INR, fit, grid, inrfast.signals, inrfast.metrics.psnr, inrfast.training.checkpoint.load_network
        print(missing)
    """)
    assert out.split() == ["[]"]
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
