"""The GPU benchmark where there is no GPU: its driver outlives its parts, and its parts run on the pretend machine."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import gpu
import gpu_cache
import gpu_parts
import gpu_table
import tiles

from inrfast.kernels import tiles as table

BENCH = Path(__file__).parents[2] / "bench"
PROGRAMS = {
    "fine": "save(seconds=1.0); save(second=2.0)",
    "crash": "save(before=1.0); import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hang": "save(before=1.0); import time; time.sleep(600)",
    "wrong": "save(failed='WrongResult: error 1 above 0'); raise SystemExit(1)",
    "unwritten": "raise ImportError('nothing here')",
    "after": "save(figure={'seconds': 0.5, 'quartiles': [0.4, 0.6], 'target': 1.0})",
}
SAVE = """
import json, sys
found = {}
def save(**more):
    found.update(more)
    open(sys.argv[1], "w").write(json.dumps(found))
"""


class Programs(gpu.Run):
    """A run whose parts are small programs; the file is whole whenever a part begins."""

    def command(self, part, file, limit):
        if self.file.exists():
            json.loads(self.file.read_text())
        return [sys.executable, "-S", "-c", SAVE + PROGRAMS[part.name], str(file)]


def test_a_part_that_crashes_hangs_or_is_wrong_leaves_the_others(tmp_path, capsys):
    parts = [gpu_parts.Part(name, "", limit=3.0 if name == "hang" else 30.0) for name in PROGRAMS]
    run = Programs(tmp_path, 120.0)
    begin = time.monotonic()
    run.all(parts, 2)
    assert time.monotonic() - begin < 30
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == list(PROGRAMS)
    assert found["fine"]["second"] == 2
    assert "failed" not in found["fine"]
    assert "SIGSEGV" in found["crash"]["failed"]
    assert "hangs" in found["hang"]["failed"]
    assert found["crash"]["before"] == found["hang"]["before"] == 1  # what came before is kept
    assert found["wrong"]["failed"].startswith("WrongResult")
    assert "nothing here" in found["unwritten"]["failed"]
    printed = capsys.readouterr().out
    assert [name for name in PROGRAMS if name in printed] == list(PROGRAMS)
    last = gpu_table.last(found, 1.0)
    assert "failed: crash, hang, wrong, unwritten" in last
    assert "reached" in last


def test_parts_without_time_are_skipped_by_name(tmp_path):
    run = Programs(tmp_path, gpu.LEAST - 1)
    run.all([gpu_parts.Part("fine", ""), gpu_parts.Part("after", "", smoke=True)], 1)
    run.tests(["tests/test_words.py"], 1)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == ["after", "fine", "tests/test_words.py"]
    assert all(set(entry) == {"skipped"} for entry in found.values())
    assert "skipped: after, fine, tests/test_words.py" in gpu_table.last(found, 1.0)


STOPPED = """
import signal, sys, gpu, gpu_parts
from pathlib import Path
out = Path(sys.argv[1])
class Hanging(gpu.Run):
    def command(self, part, file, limit):
        program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
        return [sys.executable, "-S", "-c", program, str(self.out / (part.name + ".pid"))]
gpu.measured = lambda chosen: Hanging(out, 300.0).all([gpu_parts.Part(n, "", smoke=True) for n in "abc"], 2)
sys.exit(gpu.main(["--out", str(out)]))
"""


def test_a_run_that_is_stopped_leaves_nothing_running(tmp_path):
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = tmp_path / str(status)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCH), str(BENCH.parent)])}
        run = subprocess.Popen([sys.executable, "-c", STOPPED, str(out)], env=environment, start_new_session=True)
        pids: list[str] = []
        for _ in range(600):
            pids = [text for file in out.glob("*.pid") if (text := file.read_text())]
            if len(pids) == 2:
                break
            time.sleep(0.05)
        os.killpg(run.pid, number)
        assert run.wait(20) == status
        assert len(pids) == 2
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert not (out / "c.pid").exists()  # nothing begins any more


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], "nonsense"),
        (["--only", "("], "--only"),
        (["--only", "no such part"], "--only"),
        (["--seconds", "nan"], "--seconds"),
        (["--seconds", "0"], "--seconds"),
        (["--at-once", "0"], "--at-once"),
        (["--out", "/dev/null/here"], "--out"),
    ],
)
def test_wrong_arguments_are_named(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 64
    said = capsys.readouterr().err
    assert said.startswith("stopped: ")
    assert words in said
    assert said.count("\n") == 1


def test_an_old_result_does_not_pass_for_a_new_one(tmp_path):
    (tmp_path / "gpu.json").write_text("{}")
    gpu.Run(tmp_path, 1.0)
    assert [file.name for file in tmp_path.glob("*.json")] == ["gpu.before.json"]


def test_failed_tests_are_listed(tmp_path):
    file = tmp_path / "test_two.py"
    file.write_text("def test_good(): pass\ndef test_bad(): assert False\n")
    run = gpu.Run(tmp_path, 120.0)
    run.tests([str(file)], 1)
    found = run.results[str(file)]
    assert "1 failures" in found["failed"]
    assert len(found["failures"]) == 1
    assert "test_bad" in found["failures"][0]


def call(out, *arguments, **environment):
    """Run the benchmark's own command."""
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment
    command = ["bash", str(BENCH / "gpu.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_preflight_says_what_is_missing(tmp_path):
    assert call(tmp_path, PYTHON="/no/python").returncode == 6
    done = call(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 3
    assert "sees no GPU" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


def test_parts_are_rehearsed_on_the_pretend_gpu(tmp_path):
    """One part of each kind, in order: right results, times with quartiles, one file."""
    names = ("smoke columns", "dense relu high", "step 64x64 relu medium")
    done = call(tmp_path, "--rehearse", "--at-once", "1", "--only", "^(" + "|".join(names) + ")$")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, done.stdout
    assert tuple(found) == ("environment", *names)
    assert found["environment"]["rehearsal"] == "interpret"
    assert found["smoke columns"]["error"]["largest"] <= 1e-6
    dense, step = found["dense relu high"], found["step 64x64 relu medium"]
    assert dense["error"]["largest"] <= 1e-6
    low, high = dense["to_dense"]["quartiles"]
    assert 0 < low <= dense["to_dense"]["seconds"] <= high
    assert step["error"]["gradient"] <= 2e-2
    assert {"ratio to eager fp32", "ratio to compiled bf16, CUDA graph"} <= set(step)
    assert "a REHEARSAL" in done.stdout


def test_every_part_has_its_function():
    assert len({part.name for part in gpu_parts.PARTS}) == len(gpu_parts.PARTS)
    program = "import gpu_parts; [gpu_parts.function_of(part.name) for part in gpu_parts.PARTS]"
    program += "; import gpu_smoke; assert set(gpu_parts.SMOKES) == set(gpu_smoke.SMOKES)"
    paths = os.pathsep.join([str(BENCH), str(BENCH.parent)])
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": paths})


CACHED = """
import sys
sys.path[:0] = [{tests!r}, {bench!r}]
import gpu_cache, pretend_gpu
print(gpu_cache.use(__import__("pathlib").Path({cache!r})))
pretend_gpu.install("compile")
import triton
import inrfast as inr
triton.knobs.compilation.listener = lambda **found: print("hit" if found["cache_hit"] else "miss")
net = inr.INR(2, 1, width=16, hidden_layers=1).to("cuda")
inr.ntk(net, inr.grid((4, 4)).to("cuda"), precision="highest").to_dense()
"""


def test_carried_kernels_are_found_wherever_they_lie(tmp_path):
    """A cache made in one folder serves in another; the group files' absolute paths are made anew."""
    made, used = tmp_path / "made", tmp_path / "used"
    found = []
    for folder in (made, used):
        if folder != made:
            made.rename(folder)
        names = {"tests": str(BENCH.parent / "tests"), "bench": str(BENCH), "cache": str(folder)}
        environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TRITON_CACHE_DIR")}
        environment |= {"PYTHONPATH": str(BENCH.parent), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-W", "ignore", "-c", CACHED.format(**names)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found.append(done.stdout.split())
    assert found[0] == ["cold", "miss", "miss"]
    assert found[1] == ["2", "kernels", "carried", "hit", "hit"]
    assert gpu_cache.relocate(used) == 2


TABLE = '''"""Kept as it is."""
OTHER = {("gram_tile", "fp16", "large"): 1}
TILES: dict[Key, Row] = {
    ("gram_tile", "fp16", "large"): (128, 8, 3, True, 100, "tile", "reasoned"),
    # A comment that stays.
    ("gram_tile", "fp64", "large"): (64, 8, 3, True, 34, "tile", "reasoned"),
}
"""What is launched: é."""
LAYERS: dict[Key, ProductRow] = {("fused_linear", "fp16", "any"): (128, 128, 64, 8, 3, None, "reasoned")}
'''


def test_the_fastest_tiles_are_written_into_the_table(tmp_path):
    """Only rows that were timed, right and faster than what is in use change, and say where they were measured."""
    file, results = tmp_path / "tiles.py", tmp_path / "gpu.json"
    file.write_text(TABLE)

    def row(stages, design, seconds):
        key = {"key": ["gram_tile", "fp16", "large"], "row": [128, 8, stages, True, 116, design, "reasoned"]}
        return key | {"seconds": seconds, "quartiles": [seconds, seconds]}

    timed = {"a": row(3, "tile", 0.030), "b": row(4, "stream", 0.020), "c": row(2, "tile", 0.025)}
    timed["d"] = {"key": ["gram_tile", "fp16", "large"], "row": [1, 1, 1, True, 1, "tile", ""], "failed": "wrong"}
    layer = {"key": ["fused_linear", "fp16", "any"]}
    layers = {"used": layer | {"row": [128, 128, 64, 8, 3, None, "reasoned"], "seconds": 2, "quartiles": [2, 2]}}
    layers["new"] = layer | {"row": [64, 128, 64, 4, 4, 255, "reasoned"], "seconds": 1, "quartiles": [1, 1]}
    environment = {"gpu": "GPU", "date": "2026-01-02T03:04:05+00:00", "rehearsal": ""}
    results.write_text(json.dumps({"environment": environment, "candidates x": timed, "candidates y": layers}))
    assert tiles.main([str(results), "--table", str(file)]) == 0
    new = '(128, 8, 4, True, 116, "stream", "measured: GPU, 2026-01-02")'
    written = TABLE.replace('(128, 8, 3, True, 100, "tile", "reasoned")', new)
    other = '(64, 128, 64, 4, 4, 255, "measured: GPU, 2026-01-02")'
    assert file.read_text() == written.replace('(128, 128, 64, 8, 3, None, "reasoned")', other)
    assert tiles.main([str(results), "--table", str(file)]) == 0
    assert file.read_text().count(new) == 1
    results.write_text(json.dumps({"environment": environment | {"rehearsal": "interpret"}, "candidates x": timed}))
    assert tiles.main([str(results), "--table", str(file)]) == 1  # no table from a pretend GPU


def test_every_candidate_has_a_row_that_can_be_rewritten():
    """Where the command finds a row of the project's own table, that row stands."""
    text = tiles.TABLE.read_text()
    where, tables = tiles.places(text), (table.TILES, table.TANGENTS, table.LAYERS, table.STEPS)
    assert {*table.CANDIDATES, *table.PRODUCT_CANDIDATES} <= set(where)
    assert len(where) == sum(map(len, tables))
    for key, (begin, end) in where.items():
        row = next(rows[key] for rows in tables if key in rows)
        assert ast.literal_eval(text.encode()[begin:end].decode()) == row == ast.literal_eval(tiles.literal(row))
