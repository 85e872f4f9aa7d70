"""The rules of the house that a tool can check: sizes, first lines, and a test for every module."""

import ast
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("inrfast", "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.is_relative_to(ROOT / "inrfast" / "kernels")  # a link to kernels/
}

MOST_LINES, MOST_CODE = 600, 60

LONG_FUNCTIONS = {
    "kernels/factors.py::mlp_slabs": "a Triton kernel: its tiles live in registers from first to last line",
    "kernels/mlp_forward.py::mlp_forward": "a Triton kernel",
    "kernels/mlp_backward.py::mlp_backward": "a Triton kernel",
    "kernels/gram.py::gram_stream": "a Triton kernel",
    "kernels/pivots.py::accept_pivots": "a Triton kernel",
}
"""Functions that may have more code, with the reason."""

TESTED_BY = {
    "inrfast/activations/*.py": "tests/activations/test_activations.py",
    "inrfast/analysis/dictionary_*.py": "tests/analysis/test_dictionary.py",
    "inrfast/analysis/energy.py": "tests/analysis/test_dictionary.py",
    "inrfast/analysis/report_*.py": "tests/analysis/test_report.py",
    "inrfast/analysis/power_series.py": "tests/analysis/test_dot_product.py",
    "inrfast/analysis/variance_[fmr]*.py": "tests/analysis/test_variance.py",
    "inrfast/choosing/*.py": "tests/choosing/test_choose.py",
    "inrfast/cli/*.py": "tests/test_cli.py",
    "inrfast/doubts.py": "tests/test_switches.py",
    "inrfast/encodings/*.py": "tests/encodings/test_encodings.py",
    "inrfast/experiments/demo_*.py": "tests/experiments/test_demo.py",
    "inrfast/experiments/drawing.py": "tests/experiments/inlet_rank_collapse/test_spectra.py",
    "inrfast/experiments/runs.py": "tests/experiments/inlet_rank_collapse/test_spectra.py",
    "inrfast/experiments/inr_dictionaries/networks.py": "tests/experiments/inr_dictionaries/test_recovery.py",
    "inrfast/experiments/inr_dictionaries/fig[39].py": "tests/experiments/inr_dictionaries/test_tones.py",
    "inrfast/experiments/inr_dictionaries/fig[2678].py": "tests/experiments/inr_dictionaries/test_recovery.py",
    "inrfast/experiments/inr_dictionaries/energy.py": "tests/experiments/inr_dictionaries/test_fig4.py",
    "inrfast/experiments/inr_dictionaries/fig1[05].py": "tests/experiments/inr_dictionaries/test_fig4.py",
    "inrfast/experiments/inlet_rank_collapse/comparison.py": "tests/experiments/inlet_rank_collapse/test_table1.py",
    "inrfast/experiments/inlet_rank_collapse/fig[13].py": "tests/experiments/inlet_rank_collapse/test_table1.py",
    "inrfast/experiments/inlet_rank_collapse/table1_best.py": "tests/experiments/inlet_rank_collapse/test_table1.py",
    "inrfast/experiments/inlet_rank_collapse/methods.py": "tests/experiments/inlet_rank_collapse/test_protocol.py",
    "inrfast/experiments/ntk_variance/*.py": "tests/experiments/ntk_variance/test_comparison.py",
    "inrfast/experiments/peak/fig[3789].py": "tests/experiments/peak/test_peak_figures.py",
    "inrfast/experiments/peak/fitting.py": "tests/experiments/peak/test_peak_figures.py",
    "inrfast/experiments/peak/images.py": "tests/experiments/peak/test_peak_pictures.py",
    "inrfast/experiments/peak/masks.py": "tests/experiments/peak/test_peak_pictures.py",
    "inrfast/experiments/peak/methods.py": "tests/experiments/peak/test_peak_figures.py",
    "inrfast/experiments/peak/scenes.py": "tests/experiments/peak/test_table3.py",
    "inrfast/experiments/peak/sweeps.py": "tests/experiments/peak/test_peak_figures.py",
    "inrfast/experiments/peak/table1.py": "tests/experiments/peak/test_peak_figures.py",
    "inrfast/experiments/peak/weights.py": "tests/experiments/peak/test_peak_figures.py",
    "inrfast/experiments/pictures.py": "tests/experiments/test_reproduce.py",
    "inrfast/importing/*.py": "tests/importing/test_network.py",
    "inrfast/inverse/history.py": "tests/inverse/test_net_gd.py",
    "inrfast/inverse/restarts.py": "tests/inverse/test_net_gd.py",
    "inrfast/inverse/result.py": "tests/inverse/test_net_gd.py",
    "inrfast/layers/*.py": "tests/tangent/test_capture.py",
    "inrfast/linalg/pivot_block.py": "tests/linalg/test_pivoted_cholesky.py",
    "inrfast/linalg/elimination.py": "tests/linalg/test_pivoted_cholesky.py",
    "inrfast/linalg/conjugate_gradients.py": "tests/tangent/test_kernel.py",
    "inrfast/linalg/counting.py": "tests/linalg/test_inertia.py",
    "inrfast/linalg/demands.py": "tests/linalg/test_certified.py",
    "inrfast/linalg/factor_file.py": "tests/linalg/test_stored_ldl.py",
    "inrfast/linalg/operators.py": "tests/linalg/test_lanczos.py",
    "inrfast/linalg/partition.py": "tests/test_distributed.py",
    "inrfast/linalg/preconditioners/*.py": "tests/tangent/test_kernel.py",
    "inrfast/linalg/refinement.py": "tests/linalg/test_factorization.py",
    "inrfast/linalg/certificates.py": "tests/linalg/test_spectrum.py",
    "inrfast/linalg/spectrum_figure.py": "tests/linalg/test_spectrum.py",
    "inrfast/linalg/scales.py": "tests/linalg/test_systems.py",
    "inrfast/linear_calls.py": "tests/test_init.py",
    "inrfast/losses/*.py": "tests/losses/test_formulas.py",
    "inrfast/linalg/ldl_factor.py": "tests/linalg/test_block_ldl.py",
    "inrfast/modulations/*.py": "tests/modulations/test_modulations.py",
    "inrfast/norms/*.py": "tests/norms/test_norms.py",
    "inrfast/ops/fused_norms.py": "tests/ops/test_fused_mlp.py",
    "inrfast/ops/sparse_rows.py": "tests/layers/test_table.py",
    "inrfast/pages/pictures.py": "tests/pages/test_page.py",
    "inrfast/public.py": "tests/test_imports.py",
    "inrfast/signals/formats/[am]*.py": "tests/signals/test_video.py",
    "inrfast/signals/formats/[dhpr]*.py": "tests/signals/test_image.py",
    "inrfast/signals/formats/[ow]*.py": "tests/signals/test_audio.py",
    "inrfast/signals/meshes/*.py": "tests/signals/meshes/test_files.py",
    "inrfast/signals/comparison.py": "tests/signals/test_fit_page.py",
    "inrfast/signals/views.py": "tests/signals/test_fit_page.py",
    "inrfast/tangent/agreement.py": "tests/test_distributed.py",
    "inrfast/tangent/*.py": "tests/tangent/test_kernel.py",
    "inrfast/testing/modulation.py": "tests/modulations/test_modulations.py",
    "inrfast/testing/entrywise.py": "tests/testing/test_activation.py",
    "inrfast/training/engines/*.py": "tests/training/engines/test_engines.py",
    "inrfast/training/meta/*.py": "tests/training/meta/test_learn.py",
    "inrfast/training/tracked.py": "tests/training/test_watch.py",
    "inrfast/training/units.py": "tests/training/test_watch.py",
    "inrfast/training/watch_*.py": "tests/training/test_watch.py",
    "inrfast/training/*.py": "tests/training/test_fit.py",
    "kernels/formats.py": "tests/kernels/test_tensor_cores.py",
    "kernels/gram_*.py": "tests/kernels/test_gram.py",
    "kernels/mlp_*.py": "tests/kernels/test_fused_mlp.py",
    "kernels/tiles.py": "tests/kernels/test_ahead_of_time.py",
}
"""Modules without a test file of their own name, and the file that tests them. The first pattern that fits counts."""


def functions(path):
    """Yield the functions of a file with the number of their lines of code: no comments, blanks or docstring."""
    text = path.read_text()
    lines = [bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines()]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, sum(lines[body[0].lineno - 1 : node.end_lineno]) if body else 0


def test_no_file_is_longer_than_600_lines():
    assert [name for name, path in FILES.items() if len(path.read_text().splitlines()) > MOST_LINES] == []


def test_no_function_has_more_than_60_lines_of_code_without_a_reason():
    long = {f"{file}::{name}" for file, path in FILES.items() for name, count in functions(path) if count > MOST_CODE}
    assert long == set(LONG_FUNCTIONS)


def test_every_file_says_in_its_first_line_what_it_is_for():
    for name, path in FILES.items():
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        assert first and first[0].endswith((".", ":", "``")), name


def test_every_module_has_its_tests():
    """``inrfast/room/file.py`` is tested by ``tests/room/test_file.py``, or by the file that the table names."""
    used = set()
    for name in FILES:
        path = Path(name)
        if path.stem.startswith("__"):
            continue
        own = path.relative_to("inrfast") if path.parts[0] == "inrfast" else path
        if (ROOT / "tests" / own.with_name(f"test_{own.name}")).is_file():
            continue
        pattern = next((pattern for pattern in TESTED_BY if fnmatch(name, pattern)), None)
        assert pattern, f"{name} has no tests/{own.with_name(f'test_{own.name}')} and no line in TESTED_BY"
        used.add(pattern)
    assert used == set(TESTED_BY), "lines that no module needs"
    assert all((ROOT / file).is_file() for file in TESTED_BY.values())
