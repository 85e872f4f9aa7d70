"""Progress bars: on terminals and in notebooks, off elsewhere and where they are unwanted."""

import io
import subprocess
import sys

import pytest

from inrfast.progress import Bar, in_notebook, parts_told, progress_bar

CELL = """
import warnings
import inrfast as inr
from inrfast.progress import progress_bar
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {work}
print([str(warning.message) for warning in caught])
"""
FIT = "result = inr.fit(inr.INR(2, 1, width=4), inr.grid((4, 4)), inr.grid((4, 4))[:, :1], steps=3)"
BAR = "list(progress_bar(range(3), progress=None))"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [None, True, False])
@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_bar_is_shown_on_a_terminal_or_where_it_is_wanted(monkeypatch, stream, progress):
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    assert not in_notebook()
    assert list(progress_bar(range(3), "counted", progress=progress)) == [0, 1, 2]
    shown = progress if progress is not None else stream is Terminal
    assert ("counted" in written.getvalue()) == shown


def test_parts_are_told_where_no_bar_is_shown(monkeypatch):
    told = []
    for stream, wanted, count in ((io.StringIO, None, 2), (io.StringIO, False, 0), (Terminal, None, 0)):
        monkeypatch.setattr(sys, "stderr", stream())
        told.clear()
        with parts_told(lambda *part: told.append(part)), progress_bar(total=3, progress=wanted) as bar:
            bar.set_description("first")
            bar.update(2)
            bar.set_description("last")
            bar.update()
        assert told == [("first", 1, 3), ("last", 3, 3)][:count]
        with progress_bar(total=3, progress=None) as bar:
            bar.set_description("untold")
        assert len(told) == count


def test_without_stderr_nothing_is_shown_and_nothing_breaks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    for progress in (None, True, False):
        with progress_bar(total=2, progress=progress) as bar:
            bar.update(2)
        assert isinstance(bar, Bar)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_shows_a_widget_or_text_without_a_warning(widgets):
    """In a real kernel: its stderr is no terminal, and its bar is there all the same."""
    pytest.importorskip("ipykernel", reason="the kernel of notebooks is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebook")
    nbformat = pytest.importorskip("nbformat")
    if widgets:
        pytest.importorskip("ipywidgets")
    cell = CELL.format(work=FIT) if widgets else "import sys; sys.modules['ipywidgets'] = None" + CELL.format(work=BAR)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(own) for own in (cell, "result")[: 1 + widgets]])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
    outputs = book.cells[0].outputs
    printed = "".join(own.text for own in outputs if own.output_type == "stream" and own.name == "stdout")
    assert printed.splitlines()[-1] == "[]"  # no warning
    shown = [own.data for own in outputs if own.output_type == "display_data"]
    text = "".join(own.text for own in outputs if own.output_type == "stream" and own.name == "stderr")
    if widgets:
        assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
        assert "step" not in text
        (display,) = [own.data for own in book.cells[1].outputs]
        assert "<table>" in display["text/html"] and display["text/plain"].startswith("FitResult(psnr=")
    else:
        assert not shown
        assert "3/3" in text


def test_a_script_loads_nothing_of_notebooks():
    code = (
        "import sys, inrfast.progress as p; p.progress_bar(total=1, progress=False); print('tqdm.auto' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
