# SPDX-License-Identifier: Apache-2.0
# make demo           replay a recorded decode and check every step
# make test           pytest, then the C++ tests
# make sanitize       the C++ tests with address and undefined-behaviour checks
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
.PHONY: help build demo test sanitize mutation cuda-compile format lint clean

PYTHON ?= python3
GVR_CATCH2_INCLUDE ?=
PY = $$(PYTHON="$(PYTHON)" tools/find_python.sh)
CPP_BUILD := build/cpp
SANITIZE_BUILD := build/cpp-sanitize
CUDA_ARCHITECTURES ?= 80 90 100 120
CUDA_HOME ?= /usr/local/cuda
CUDA_OBJECTS := build/cuda-compile

help:
	@sed -n '2,11s/^# \{0,1\}//p' Makefile

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
	ctest --test-dir $(CPP_BUILD) --output-on-failure --no-tests=error || status=1; \
	exit $$status

sanitize:
	@python="$(PY)"; \
	cmake -S tests/cpp -B $(SANITIZE_BUILD) -DGVR_SANITIZE=ON -DPython_EXECUTABLE="$$python" \
	  -DGVR_CATCH2_INCLUDE="$(GVR_CATCH2_INCLUDE)"; \
	cmake --build $(SANITIZE_BUILD) --parallel "$${MAX_JOBS:-$$(nproc)}"; \
	ctest --test-dir $(SANITIZE_BUILD) --output-on-failure --no-tests=error

# Copies of the sources are built apart; the CUDA faults need a GPU: tests/mutation/run.py.
mutation:
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
