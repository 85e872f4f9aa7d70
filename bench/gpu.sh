#!/usr/bin/env bash
# The project's GPU check in one command, without network: builds the extension with CUDA, runs the tests of the kernels
# on the GPU, then the benchmarks; under 9 minutes. Writes gpu-build.log, gpu-tests.log and gpu.json to ${OUT}, by default
# bench/results, and prints a short table last. PYTHON names the interpreter that has torch, triton and pytest.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-bench/results}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
status=0

echo "== build"
INRFAST_CUDA=1 timeout 120 "$PYTHON" setup.py build_ext --inplace >"$OUT/gpu-build.log" 2>&1 ||
	{ echo "the extension did not build:"; tail -n 5 "$OUT/gpu-build.log"; status=1; }

echo "== tests"
workers=$("$PYTHON" -c 'import xdist, os; print(f"-n {min(8, os.cpu_count())}")' 2>/dev/null)
# shellcheck disable=SC2086  # no workers are no argument
timeout 240 "$PYTHON" -m pytest -q -p no:cacheprovider $workers tests/kernels/test_activations.py \
	tests/kernels/test_gram.py tests/kernels/test_factors.py tests/kernels/test_rows.py tests/ops/test_gram.py \
	tests/ops/test_factors.py tests/ops/test_rows.py tests/ops/test_reductions.py tests/ops/test_fused_linear.py \
	tests/ops/test_grid_init.py tests/test_tangent_kernel.py tests/test_jacobians.py \
	tests/kernels/test_fused_mlp.py tests/ops/test_fused_mlp.py tests/training/test_fused.py >"$OUT/gpu-tests.log" 2>&1 ||
	{ echo "tests failed (or ran past their limit):"; status=1; }
grep -E '^(FAILED|ERROR)|passed|failed' "$OUT/gpu-tests.log" | tail -n 20

echo "== benchmarks"
timeout 215 "$PYTHON" bench/gpu.py --out "$OUT/gpu.json" --seconds 120 || status=1
exit "$status"
