# `make` alone lists the targets. Works with GNU make 3.81 and later.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
README_TEST := tests/integration/test_readme.py

.DEFAULT_GOAL := help
.PHONY: help setup demo sample test check paper bench bench-quick format pins clean

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## Create .venv with the pinned dependencies
	@echo "Everything is installed in .venv."

demo: $(READY) ## Train on the embedded images, compare with bicubic, show where everything is
	@$(BIN)/python src/train.py

sample: $(READY) ## Prepare the embedded images only
	@$(BIN)/python data_prep/prepare.py dataset=sample

test: check ## Run make check, then every test, with coverage
	$(BIN)/python -m pytest --cov --ignore=$(README_TEST) --durations=5 --numprocesses=2 --dist=loadgroup

check: $(READY) ## Run ruff, mypy, the import contracts and the README's commands
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet $(README_TEST)

paper: $(READY) ## Reproduce the paper, going on where it stopped: make paper [ARGS="budget=twentieth jobs=2 source=DIR"]
	@$(BIN)/python src/reproduce.py $(ARGS); status=$$?; $(BIN)/python src/report.py && exit $$status

bench: $(READY) ## Measure how near to the hardware it runs: 15 minutes on an idle machine
	@$(BIN)/python benchmarks/bench.py

bench-quick: $(READY) ## The same in two minutes, with fewer rounds
	@$(BIN)/python benchmarks/bench.py --quick

format: $(READY) ## Format the code and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

pins: $(READY) ## Renew constraints.txt from pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@# The head and torch's pin stay; torch's CUDA packages go, as each build of torch pins its own.
	@{ sed '/^[^#]/,$$d' constraints.txt; \
	   grep '^torch==' constraints.txt > .venv/torch.txt && \
	   $(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --quiet \
	       --constraints .venv/torch.txt --no-header --no-annotate > .venv/resolved.txt && \
	   grep -vE "^(nvidia|cuda|triton)|win32" .venv/resolved.txt; } > .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt

clean: ## Remove caches and coverage files (runs, data and .venv stay)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov build *.egg-info src/*.egg-info
	find src data_prep tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || \
	    { echo "error: no $(PYTHON); install Python 3.10 or later, or name one: make PYTHON=/path/to/python3 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "error: $$($(PYTHON) --version 2>&1) is too old, 3.10 is needed; name another: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	    { echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing the pinned dependencies into .venv: about a minute, 1.6 GB (more with CUDA)."
	@rm -f $@
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e ".[dev]"
	@touch $@
