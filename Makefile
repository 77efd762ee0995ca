# Everything a contributor or CI does with this repository. `make` prints the list.
# Each target does its own set-up: Debian packages, .venv, Python packages, crates.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python that is new enough; PYTHON=… overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ifeq ($(strip $(PYTHON)),)
$(error fanwire needs Python 3.11 or later: install one, or say make PYTHON=/path/to/python3)
endif

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# As variables, so that the pip that maturin starts is as quiet.
export PIP_QUIET := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# PyO3 must build for the interpreter of .venv, not for whatever `python3` is on the PATH.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
# In CI the lock file is the truth; a developer's build may bring it up to date.
LOCKED := $(if $(CI),--locked)

RUST_FILES := Cargo.toml $(wildcard Cargo.lock) $(shell find src -type f)
CARGO_TEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo nextest run || echo test)

# Arguments for the commands behind `demo`, `pytest` and `bench`.
ARGS ?=

##@ Use it

.PHONY: demo
demo: $(VENV)/.installed-demo $(VENV)/.built ## The demo on memory://, one instance; ARGS="--port 8080"
	@$(BIN)/python -m fanwire demo $(ARGS)

.PHONY: demo-redis
demo-redis: $(VENV)/.installed-demo $(VENV)/.built ## The demo as two instances, with a redis-server of its own
	@PYTHON="$(PYTHON)" .ci/debian-packages redis-server
	@# In a session of its own, so that Ctrl-C ends the demo first and the broker after it.
	@home=$$(mktemp -d); \
	setsid redis-server --port 0 --unixsocket $$home/redis.sock --save "" --dir $$home >$$home/log & \
	server=$$!; \
	trap 'kill $$server 2>/dev/null || true; wait $$server || true; rm -rf $$home' EXIT; \
	until redis-cli -s $$home/redis.sock ping >/dev/null 2>&1; do \
		kill -0 $$server || { cat $$home/log; exit 1; }; \
		sleep 0.05; \
	done; \
	$(BIN)/python -m fanwire demo --redis "unix://$$home/redis.sock" --instances 2 $(ARGS)

##@ Check it

.PHONY: test
test: ## All of it, in the order in which failures are cheapest (installs redis-server, postgresql, pgbouncer, chromium, openssl)
	@$(MAKE) --no-print-directory debian-test
	@$(MAKE) --no-print-directory rust-lint
	@$(MAKE) --no-print-directory rust-test
	@$(MAKE) --no-print-directory python-lint
	@$(MAKE) --no-print-directory stubs
	@$(MAKE) --no-print-directory pytest
	@$(MAKE) --no-print-directory wheel

.PHONY: lint
lint: rust-lint python-lint ## rustfmt, clippy, the layers, ruff, mypy, pyright

.PHONY: rust-lint
rust-lint: $(VENV)/.created
	cargo fmt --check
	.ci/layers
	cargo check $(LOCKED) --quiet --no-default-features
	cargo clippy $(LOCKED) --quiet --all-targets --no-default-features -- -D warnings
	cargo clippy $(LOCKED) --quiet --all-targets -- -D warnings

.PHONY: python-lint
python-lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	if compgen -G 'tests/typing/*.py' >/dev/null; then $(BIN)/pyright; fi

.PHONY: rust-test
rust-test: debian-test $(VENV)/.created ## The tests of the Rust core and of the binding
	cargo $(CARGO_TEST) $(LOCKED)
	cargo $(CARGO_TEST) $(LOCKED) --no-default-features --features loom --test loom_mailbox

.PHONY: stubs
stubs: $(VENV)/.installed-dev $(VENV)/.built ## Hold _core.pyi against the built module
	$(BIN)/python -m mypy.stubtest fanwire._core

.PHONY: pytest
pytest: debian-test $(VENV)/.installed-dev $(VENV)/.built ## The Python tests, four files at a time, against the release build; ARGS="-k name" picks
	$(BIN)/python -m pytest -n 4 --dist loadfile $(ARGS)

.PHONY: wheel
wheel: $(VENV)/.installed-dev ## Build dist/*.whl and try it in an empty virtual environment
	rm -rf dist
	@# The interpreter as `maturin develop` spells it: another path to it would compile PyO3 again.
	$(BIN)/maturin build $(LOCKED) --release --quiet --interpreter $(CURDIR)/$(BIN)/python --out dist
	rm -rf $(VENV)/empty
	$(PYTHON) -m venv $(VENV)/empty
	$(VENV)/empty/bin/python -m pip install --no-index --no-deps dist/*.whl
	$(VENV)/empty/bin/python -I .ci/wheel_roundtrip.py

.PHONY: test-matrix
test-matrix: debian-test wheel ## The Python tests on newer CPythons and on uvloop; ARGS="3.14" picks (target/matrix)
	PYTHON=$(CURDIR)/$(BIN)/python .ci/test-matrix $(ARGS)

.PHONY: test-faults
test-faults: debian-test $(VENV)/.installed-dev $(VENV)/.built ## 200 seeded runs of faults between fanwire and Redis, a quarter of an hour; ARGS="--seed 7" replays
	$(BIN)/python -m tests.faults $(ARGS)

.PHONY: soak
soak: debian-test $(VENV)/.installed-dev $(VENV)/.built ## Ten minutes of load and faults: memory, descriptors and threads stay flat; ARGS="--seconds 60"
	$(BIN)/python -m tests.soak $(ARGS)

.PHONY: fuzz
fuzz: ## Fuzz the RESP reader, the reserved member, the client protocol and PostgreSQL's frames, a minute each; FUZZ_SECONDS=600, ARGS=resp
	PYTHON="$(PYTHON)" fuzz/run $(ARGS)

.PHONY: bench
bench: debian-test $(VENV)/.installed-dev $(VENV)/.built ## Figures against the reference and its peers; a full run renews docs/benchmarks.md
	$(BIN)/python bench/run.py $(ARGS)
	$(BIN)/python bench/plot.py

.PHONY: bench-quick
bench-quick: debian-test $(VENV)/.installed-dev $(VENV)/.built ## The same in four minutes: fanwire and the reference, smaller workloads
	$(BIN)/python bench/run.py --quick $(ARGS)

##@ Keep it

.PHONY: format
format: $(VENV)/.installed-dev ## rustfmt, ruff format, and ruff's safe fixes
	cargo fmt
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

.PHONY: clean
clean: ## Remove everything that was built, .venv too
	rm -rf $(VENV) dist target fuzz/corpus fuzz/artifacts fuzz/target .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/results
	find python -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- Set-up. Each stamp is newer than what it was made from, so a second run does nothing.

.PHONY: debian-build debian-test
debian-build:
	@PYTHON="$(PYTHON)" .ci/debian-packages cc venv
debian-test:
	@PYTHON="$(PYTHON)" .ci/debian-packages cc venv libpython redis-server postgresql pgbouncer chromium openssl

$(VENV)/.created:
	@$(MAKE) --no-print-directory debian-build
	@echo 'Making a virtual environment in $(VENV)…'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1' # the first that knows dependency groups
	@touch $@

# The extra `demo`, a requirement a line.
DEMO_EXTRA := $(VENV)/demo-extra.txt

$(DEMO_EXTRA): $(VENV)/.created pyproject.toml
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]\
	["optional-dependencies"]["demo"], sep="\n")' >$@

$(VENV)/.installed-demo: $(DEMO_EXTRA)
	@echo 'Installing what the demo needs and what builds fanwire…'
	@$(PIP) install --group build --requirement $(DEMO_EXTRA)
	@touch $@

$(VENV)/.installed-dev: $(DEMO_EXTRA)
	@echo 'Installing the Python packages of the tests and the linters…'
	@$(PIP) install --group build --group lint --group test --requirement $(DEMO_EXTRA)
	@touch $@ $(VENV)/.installed-demo

# The module in .venv is always the release build: one profile for everything Python sees.
$(VENV)/.built: $(RUST_FILES) pyproject.toml | $(VENV)/.installed-demo
	@echo 'Compiling fanwire, one to three minutes…'
	@$(BIN)/maturin develop $(LOCKED) --release --quiet
	@touch $@
