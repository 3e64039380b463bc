# make demo: convert, profile and run the bundled model.   make test: the tests.   make check: lint, types, layers.
PYTHON ?= python3
# 2.13.0 has a small CPU build where one is at hand; any torch from 2.11 on will do.
TORCH ?= torch==2.13.0

BIN := .venv/bin
MODEL := examples/models/qwen3_moe
TEXT := $(wildcard examples/text/*.txt)
PACK := build/demo/qwen3_moe
# This machine's GPU, else the oldest that krasis runs on: a tenth of the time that all of them take.
CUDA_ARCHITECTURES ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .),80)
BUILD := --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)
NATIVE := CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo test check format clean

demo: .venv/built
	$(BIN)/krasis convert $(MODEL) $(PACK) --force
	$(BIN)/krasis inspect $(PACK)
	$(BIN)/krasis profile-heat $(PACK) --text $(TEXT) --tokens 8192 --report build/demo/heat.html
	$(BIN)/krasis run $(PACK) --raw --prompt "def " --temperature 0.7 --top-p 0.9 --seed 1 --stats

test: .venv/dev
	$(BIN)/pytest -n 2 --dist loadfile

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build

.venv/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "krasis needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

.venv/built: .venv/torch pyproject.toml $(NATIVE)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable . $(BUILD)
	touch $@

.venv/dev: .venv/built
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' $(BUILD) \
	    --config-settings=cmake.define.KRASIS_EMULATED=ON
	touch $@
