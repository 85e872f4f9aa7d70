"""What a command line shows to be wrong is told before a library is imported."""

import subprocess
import sys

import pytest

from inrfast.cli import main
from inrfast.cli.early import NEEDED, READERS

ALONE = """
import sys
from inrfast.cli import main
code = main(sys.argv[1:])
print(code, "torch" in sys.modules, "numpy" in sys.modules)
"""


@pytest.mark.parametrize("command", READERS)
def test_a_missing_file_is_told_without_torch(command, tmp_path):
    words = [sys.executable, "-c", ALONE, command, "missing.png", *(["out.png"] if command == "render" else [])]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["2", "False", "False"]
    assert done.stderr.startswith("inrfast: error: ")
    assert "missing.png" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("suffix", NEEDED)
def test_a_missing_library_is_told_with_what_to_install(suffix, tmp_path, monkeypatch, capsys):
    module, library, extra = NEEDED[suffix]
    file = tmp_path / f"signal{suffix.upper()}"
    file.write_bytes(b"something")
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["fit", str(file)]) == 2
    assert f"needs {library}: pip install 'inrfast[{extra}]'" in capsys.readouterr().err
