"""The simulated processors: every value of every variable occurs, and the files of a change are found."""

import subprocess
import sys
from pathlib import Path

import anywhere
import pytest
from anywhere import PROCESSORS, ROOT, Processor

from inrfast.extension import VARIANTS


def test_every_value_occurs():
    values = {}
    for processor in PROCESSORS:
        for name, value in processor.environment.items():
            values.setdefault(name, set()).add(value)
    assert values.pop("INRFAST_NATIVE") == set(VARIANTS) - {"auto"}
    assert values.pop("OMP_NUM_THREADS") == {"1", "2"}
    assert all(len(found) == 3 for found in values.values())
    assert not any(name.startswith("OPENBLAS") for name in values)


def test_numerical_files_are_all_but_the_named_ones():
    assert all((ROOT / path).exists() for path in anywhere.NOT_NUMERICAL)
    files = anywhere.numerical_files()
    assert {"tests/ops/test_gemm.py", "tests/training/test_checkpoint.py"} <= set(files)
    assert not {"tests/test_cli.py", "tests/conftest.py", "tests/anywhere.py"} & set(files)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((folder / name).read_text() + "1\n" if (folder / name).exists() else "0\n")


@pytest.fixture
def history(tmp_path):
    git(tmp_path, "init", "-b", "main")
    write(tmp_path, "tests/test_a.py", "tests/ops/test_b.py", "tests/test_cli.py", "inrfast/a.py")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_the_files_of_a_change(history):
    assert anywhere.changed_files(history)[1] == []  # the first commit has none before it
    write(history, "tests/test_a.py", "tests/test_cli.py", "inrfast/a.py")
    git(history, "commit", "-am", "second")
    assert anywhere.changed_files(history)[1] == ["tests/test_a.py"]
    write(history, "tests/ops/test_b.py", "tests/test_new.py")  # not committed, one of them not even added
    assert anywhere.changed_files(history)[1] == ["tests/ops/test_b.py", "tests/test_a.py", "tests/test_new.py"]
    git(history, "checkout", "-b", "topic")
    git(history, "add", ".")
    git(history, "commit", "-m", "third")
    (history / "tests/test_new.py").unlink()
    git(history, "commit", "-am", "fourth")  # what is gone cannot run
    assert anywhere.changed_files(history)[1] == ["tests/ops/test_b.py"]  # of the branch, not of its last commit


def test_a_clone_of_two_commits_and_a_folder_without_git(history, tmp_path_factory):
    for _ in range(3):
        write(history, "tests/test_a.py")
        git(history, "commit", "-am", "more")
    folder = tmp_path_factory.mktemp("shallow")
    git(history, "clone", "--depth", "2", f"file://{history}", str(folder / "clone"))
    assert anywhere.changed_files(folder / "clone")[1] == ["tests/test_a.py"]
    words, files = anywhere.changed_files(folder)
    assert (words, files) == ("no earlier commit to compare with", [])


def test_a_failure_and_a_missing_instruction_are_told(monkeypatch, tmp_path, capfd):
    (tmp_path / "test_it.py").write_text(
        "import os\ndef test_it():\n    assert os.environ['INRFAST_NATIVE'] == 'plain'\n"
    )
    monkeypatch.setattr(sys, "argv", ["anywhere.py"])
    one = Processor("one", {"INRFAST_NATIVE": "plain"}, ())
    two = Processor("two", {"INRFAST_NATIVE": "absent"}, ())
    none = Processor("none", {}, ("no such instruction",))
    arguments = [str(tmp_path / "test_it.py"), "--rootdir", str(tmp_path)]
    for processors, status in (((one, none), 0), ((one, two), 1)):
        monkeypatch.setattr(anywhere, "PROCESSORS", processors)
        assert anywhere.main(arguments) == status
    printed = capfd.readouterr().out
    assert "one: passed" in printed
    assert "two: FAILED" in printed
    assert "none: left out: this processor has no no such instruction" in printed
    assert anywhere.main([*arguments, "--minutes", "0"]) == 0
    assert "one: left out: no time left" in capfd.readouterr().out


def test_a_failure_before_the_time_is_over_is_told(tmp_path):
    """The interrupt ends both alike; only the results tell a run that failed from one that did not."""
    processor = Processor("this one", {}, ())
    for name, body, said in (("test_bad.py", "assert False", "FAILED"), ("test_good.py", "pass", "cut short")):
        (tmp_path / name).write_text(f"import time\ndef test_one():\n    {body}\ndef test_two():\n    time.sleep(60)\n")
        found = anywhere.run(processor, ["-n", "0", "--rootdir", str(tmp_path), str(tmp_path / name)], 6.0)
        assert found.startswith(said), (name, found)
