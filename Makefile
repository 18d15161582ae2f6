# The front door. `make` builds build/release/nibble; `make demo` and `make test` also install what they need (Debian, Ubuntu).
.PHONY: all demo test test-all bench install format clean setup setup-tests setup-all
PREFIX ?= /usr/local
SHELL := /bin/bash
# Fewer than all cores if memory is small: about 1 GB each.
JOBS ?= $(shell nproc)

all: build/release/build.ninja
	cmake --build build/release -j $(JOBS) --target nibble nibble_static nibble_shared

build/%/build.ninja: CMakeLists.txt CMakePresets.json
	cmake --preset $*

setup:
	@tools/setup.sh build
setup-tests:
	@tools/setup.sh build test
setup-all:
	@tools/setup.sh build test all

demo: setup
	@$(MAKE) --no-print-directory all
	build/release/nibble study --force

# Release and address + undefined-behaviour sanitizers: one tier, minutes.
test: setup-tests
	@tools/test.sh release asan

# Every compiler and sanitizer.
test-all: setup-all
	@tools/test.sh release debug asan clang tsan msan
	@tools/check_compilers.sh build/compilers

bench: all
	cmake --build build/release -j $(JOBS)
	bench/run.sh build/release

install: all
	cmake --install build/release --prefix $(PREFIX)

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

clean:
	rm -rf build
