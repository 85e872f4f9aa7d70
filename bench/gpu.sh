#!/usr/bin/env bash
# The project's GPU check in one command, without network, under 9 minutes: see bench/gpu.py, which does it all.
# Writes gpu.json and gpu-logs/ to ${OUT}, by default bench/results, and prints a table as it goes. PYTHON names the
# interpreter that has torch and triton, and pytest and hypothesis for the tests. Compiled kernels are found in
# ${OUT}/triton-cache, or TRITON_CACHE_DIR, and kept there.
#   bash bench/gpu.sh [--rehearse | --compile] [--only EXPRESSION] [--seconds S] [--no-tests]
# Status: 0 all well; 1 a part failed or none ran; 2 no torch; 3 no GPU; 4 no Triton that can; 5 no C compiler for it;
# 6 no Python; 64 wrong arguments; 130 and 143 stopped by Ctrl-C and SIGTERM
set -uo pipefail
[[ -z ${OUT:-} || $OUT == /* ]] || OUT=$PWD/$OUT
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 6
PYTHON=${PYTHON:-python3}
command -v "$PYTHON" >/dev/null || { echo "stopped: $PYTHON is not here; name one: PYTHON=... bash bench/gpu.sh" >&2; exit 6; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
exec "$PYTHON" bench/gpu.py --out "${OUT:-bench/results}" "$@"
