"""The fuzzer finds every planted fault, tells no other, repeats itself, and its independent readers are readers."""

import random

import pytest
from fuzz import commands, files, runner
from fuzz.formats import Format
from fuzz.mutations import dump_json, mutate_bytes, mutate_json, mutate_text
from fuzz.readers import KNOWN, Disagreement
from fuzz.runner import Job
from hypothesis import given
from hypothesis import strategies as st
from planted_faults import EXPECTED, LAX, TARGETS

# ---- laws --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The report on all planted faults, and the folder with what was kept of them."""
    out = tmp_path_factory.mktemp("fuzz")
    return runner.fuzz("planted_faults", count=1, minutes=2, out=out, progress=False, seconds=1.0), out


@pytest.mark.parametrize("name", TARGETS)
def test_every_planted_fault_is_found_and_no_other(planted, name):
    report, _ = planted
    assert {law for target, law, _ in report.faults if target == name} == {EXPECTED[name]} - {None}
    assert (report.counts[name]["broken"] > 0) == (EXPECTED[name] is not None)


def test_a_fault_is_kept_with_its_file_and_can_be_repeated(planted, tmp_path):
    report, out = planted
    (job, _), *_ = next(cases for (target, _, _), cases in report.faults.items() if target == "lax")
    kept = out / str(job).replace(":", "-")
    assert f"--case {job}" in (kept / "fault.txt").read_text()
    again = runner.fuzz("planted_faults", out=tmp_path, processes=1, progress=False, single=Job.of(str(job)))
    assert [name for name, counts in again.counts.items() for _ in range(counts.total())] == ["lax"]
    assert [key[:2] for key in again.faults] == [("lax", "accepted")]
    assert (tmp_path / kept.name / "case.txt").read_bytes() == (kept / "case.txt").read_bytes()


def test_the_command_prints_a_table_and_fails_if_a_law_is_broken(capsys, tmp_path):
    arguments = ["--count", "2", "--processes", "1", "--only"]
    for name, code in (("reads", 0), ("key error", 1)):
        assert runner.main([*arguments, name], "planted_faults", tmp_path) == code
    printed = capsys.readouterr().out.splitlines()
    assert ["reads", "2", "2", "0", "0"] in [line.split()[:5] for line in printed]
    assert ["key", "error", "2", "0", "0", "2"] in [line.split()[:6] for line in printed]


def test_time_is_shared_evenly_and_counts_are_kept():
    plan = runner.Plan(["slow", "fast"], 0, None, float("inf"))
    for job, _ in zip(plan, range(400), strict=False):
        plan.took(job.target, 1.0 if job.target == "slow" else 0.1)
    assert plan.spent["slow"] == pytest.approx(plan.spent["fast"], abs=2)
    plan = runner.Plan(["many", "few"], 0, {"many": 20, "few": 5}, float("inf"))
    jobs = list(plan)
    assert len(jobs) == len(set(jobs)) == 25
    assert {job.target for job in jobs[:10]} == {"many", "few"}  # none waits for the other
    assert not list(runner.Plan(["many"], 0, None, 0.0))


def test_a_known_disagreement_is_passed_over_and_only_that():
    def found(known):
        Format(**{**vars(LAX), "known": known}).compare([1], b"1 2")

    with pytest.raises(Exception, match="sums does not agree"):
        found(())
    found((Disagreement("lax", "sums", "another sum", "planted"),))
    for other in (("lax", "sums", "no such words"), ("lax", "others", "another"), ("wrong", "sums", "another")):
        with pytest.raises(Exception, match="sums does not agree"):
            found((Disagreement(*other, "planted"),))


def test_known_disagreements_name_what_there_is_and_say_why():
    readers = {form.name: form.others for form in files.FORMATS}
    for known in KNOWN:
        assert known.reader in readers[known.target]
        assert len(known.reason.split()) > 5


@pytest.mark.parametrize(
    ("words", "code", "out", "said", "wrong"),
    [
        ("info", 0, "text", "", None),
        ("info", 0, "text", "inrfast: the grid is small\n", None),
        ("info --json", 0, "{}", "", None),
        ("info --json", 0, "text", "", "JSON"),
        ("ntk", 2, "", "inrfast: error: --width must be 1 at least\n", None),
        ("ntk", 2, "", "inrfast ntk: error: what?\n", None),
        ("ntk", 0, "", "inrfast: error: what?\n", "exit code 0"),
        ("ntk", 2, "", "", "0 lines"),
        ("ntk", 2, "", "inrfast: error: a\ninrfast: error: b\n", "2 lines"),
        ("ntk", 3, "", "inrfast: error: a\n", "exit code 3"),
        ("ntk", 1, "", "Traceback (most recent call last):\n", "raw words"),
        ("ntk", 0, "", "loop.py:1: RuntimeWarning: it grew\n", "raw words"),
        ("ntk", 2, "", f"inrfast: error: {'x' * 5000}\n", "characters"),
    ],
)
def test_how_a_command_ends(words, code, out, said, wrong):
    found = commands.wrong_ending(words.split(), code, out, said)
    assert (found is None) if wrong is None else (wrong in found)


# ---- cases -------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.binary(max_size=60), st.binary(max_size=60), JSON, st.integers())
def test_mutations_take_anything_and_repeat_themselves(data, other, value, seed):
    for mutate in (mutate_bytes, mutate_text):
        assert mutate(data, other, random.Random(seed)) == mutate(data, other, random.Random(seed))
    text = dump_json(value)
    assert dump_json(mutate_json(value, random.Random(seed))) == dump_json(mutate_json(value, random.Random(seed)))
    assert dump_json(value) == text  # what is given stays as it is


@pytest.mark.parametrize("form", files.FORMATS, ids=lambda form: form.name)
def test_a_name_makes_a_case_and_other_names_make_others(form, tmp_path):
    def made(name):
        return form.make(random.Random(name), tmp_path).files[0].read_bytes()

    first = [made(f"{form.name}:0:{number}") for number in range(20)]
    assert first == [made(f"{form.name}:0:{number}") for number in range(20)]
    assert len(set(first)) > 10


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_command_lines_try_every_option(command):
    rng = random.Random(0)
    lines = [commands.draw_command_line(command, rng) for _ in range(300)]
    words = {word.partition("=")[0] for line in lines for word in line}
    assert all(set(action.option_strings) & words for action in commands.options_of(command) if action.option_strings)


# ---- independent readers -----------------------------------------------------------------------------------------

READERS = [(form, name) for form in files.FORMATS for name in form.others if form.name != "picture"]


@pytest.mark.parametrize(("form", "name"), READERS, ids=lambda value: getattr(value, "name", value))
def test_readers_take_what_other_programs_wrote_and_refuse_what_is_cut(form, name):
    read, rng, refused = form.others[name], random.Random(0), 0
    for data in form.files():
        if b"'descr': '|O'" in data:  # objects are nothing to read
            continue
        read(data)
        for at in rng.sample(range(1, len(data) - 2), min(12, len(data) - 3)):
            try:
                read(data[:at])
            except Exception:  # each in its own way
                refused += 1
    assert refused > 0
