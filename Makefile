# SPDX-License-Identifier: Apache-2.0
# make demo           replay a recorded decode and check every step
# make test           pytest, then the C++ tests
# make docs           build the documentation site into build/site; a warning is an error
# make notebooks      execute every notebook and keep what it shows
# make figures        rewrite the numbers and plots of the documentation from benchmarks/results
# make distribution   sdist and wheel into an empty environment, CPU only
# make test-transformers   the adapter with the oldest and the newest transformers it is tested with
# make sanitize       the C++ tests with address, undefined-behaviour and race checks
# make mutation       put small faults into the CPU kernels; every one must be noticed
# make cuda-compile   compile every .cu for every supported architecture; needs nvcc, no GPU
# make format lint    as pre-commit does
#
# PYTHON=...                the Python to start from, see tools/find_python.sh
# GVR_CPU_ONLY=1            no CUDA code; TORCH_CUDA_ARCH_LIST=...: other architectures than below
# GVR_CATCH2_INCLUDE=...    the folder with catch2/catch.hpp, where no Catch2 is installed
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build demo test sanitize mutation test-transformers docs notebooks test-notebooks figures distribution cuda-compile format lint clean

PYTHON ?= python3
GVR_CATCH2_INCLUDE ?=
PY = $$(PYTHON="$(PYTHON)" tools/find_python.sh)
CPP_BUILD := build/cpp
SANITIZE_BUILD := build/cpp-sanitize
CUDA_ARCHITECTURES ?= 80 90 100 120
CUDA_HOME ?= /usr/local/cuda
CUDA_OBJECTS := build/cuda-compile
TRANSFORMERS ?= 5.11.0 5.23.0

help:
	@sed -n '2,16s/^# \{0,1\}//p' Makefile

# For the GPUs of this machine; for one architecture where there is none, to save minutes. A wheel
# is built by pip and has setup.py's full list.
build:
	@python="$(PY)"; \
	export TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$("$$python" tools/gpu_architectures.py)}"; \
	"$$python" setup.py -q build_ext --inplace

demo: build
	@"$(PY)" -m gvr_topk demo

# Both suites run, whatever the other says; what is compiled comes first, so that the last lines are
# their results.
test: build
	@python="$(PY)"; status=0; \
	{ cmake -S tests/cpp -B $(CPP_BUILD) -DPython_EXECUTABLE="$$python" \
	    -DGVR_CATCH2_INCLUDE="$(GVR_CATCH2_INCLUDE)" && \
	  cmake --build $(CPP_BUILD) --parallel "$${MAX_JOBS:-$$(nproc)}"; } || status=1; \
	"$$python" -m pytest || status=1; \
	ctest --test-dir $(CPP_BUILD) --output-on-failure --no-tests=error \
	  --parallel "$${MAX_JOBS:-$$(nproc)}" || status=1; \
	exit $$status

# Reads the sources; the extension is not needed.
docs:
	@python=$$(PYTHON="$(PYTHON)" tools/find_python.sh material=mkdocs-material \
	  mkdocstrings='mkdocstrings[python]'); \
	NO_MKDOCS_2_WARNING=1 "$$python" -m mkdocs build --quiet --strict && echo "docs: build/site/index.html"

NOTEBOOK_PYTHON = $$(PYTHON="$(PYTHON)" tools/find_python.sh nbclient nbformat ipykernel matplotlib pandas)

notebooks: build
	@"$(NOTEBOOK_PYTHON)" tools/run_notebooks.py

# The notebooks without writing them, and the documentation against the records.
test-notebooks: build
	@"$(NOTEBOOK_PYTHON)" -m pytest -m '' tests/test_notebooks.py tests/test_report.py

figures: build
	@"$(NOTEBOOK_PYTHON)" -m gvr_topk bench report

distribution:
	@PYTHON="$(PYTHON)" tools/check_distribution.sh

# Each version lies in a folder of its own, in front of what is installed.
test-transformers: build $(TRANSFORMERS:%=build/transformers/%/.installed)
	@python="$(PY)"; status=0; \
	for version in $(TRANSFORMERS); do \
	  PYTHONPATH="build/transformers/$$version" GVR_TRANSFORMERS="$$version" \
	    "$$python" -m pytest tests/integrations/test_transformers.py || status=1; \
	done; exit $$status

build/transformers/%/.installed:
	"$(PY)" -m pip install -q --disable-pip-version-check --target $(@D) transformers==$*
	touch $@

sanitize:
	@python="$(PY)"; \
	cmake -S tests/cpp -B $(SANITIZE_BUILD) -DGVR_SANITIZE=ON -DPython_EXECUTABLE="$$python" \
	  -DGVR_CATCH2_INCLUDE="$(GVR_CATCH2_INCLUDE)"; \
	cmake --build $(SANITIZE_BUILD) --parallel "$${MAX_JOBS:-$$(nproc)}"; \
	ctest --test-dir $(SANITIZE_BUILD) --output-on-failure --no-tests=error \
	  --parallel "$${MAX_JOBS:-$$(nproc)}"

# Copies of the sources, linked to the objects of the build; the CUDA faults need a GPU:
# tests/mutation/run.py.
mutation: build
	@python="$(PY)"; \
	GVR_CATCH2_INCLUDE="$(GVR_CATCH2_INCLUDE)" "$$python" tests/mutation/run.py --device cpu --workers "$${MAX_JOBS:-$$(nproc)}" \
	  --out build/mutation-cpu.json

CUDA_SOURCES := $(shell find csrc -name '*.cu')
CUDA_HEADERS := $(shell find csrc -name '*.cuh' -o -name '*.h')
GENCODE := $(foreach a,$(CUDA_ARCHITECTURES),-gencode=arch=compute_$(a),code=sm_$(a))

cuda-compile: $(CUDA_SOURCES:csrc/%.cu=$(CUDA_OBJECTS)/%.o)
	@echo "compiled $(words $(CUDA_SOURCES)) CUDA sources for sm $(CUDA_ARCHITECTURES)"

# Kernels know nothing of torch, so nvcc alone compiles them.
$(CUDA_OBJECTS)/%.o: csrc/%.cu $(CUDA_HEADERS)
	@mkdir -p $(@D)
	$(CUDA_HOME)/bin/nvcc -std=c++20 -O3 --expt-relaxed-constexpr -Xptxas=--warn-on-spills $(GENCODE) -c $< -o $@

format:
	ruff format . && ruff check --fix .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

lint:
	ruff format --check . && ruff check .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror

clean:
	rm -rf build gvr_topk/*.so gvr_topk/_build.json
