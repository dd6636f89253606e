# pairio: `make demo` and `make test` work on a fresh machine with Python, make and a package index.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,14))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin

.PHONY: compare bench-warm escape interop bench-content bench-dht attacks simulate defects scale chaos burst venv demo test check docs wheel format lint types lock clean

venv: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "pairio needs Python 3.11, 3.12 or 3.13: install one of them, or run make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: venv
	$(BIN)/pairio demo

test: venv
	$(BIN)/pytest -q --durations=15

SEEDS ?= 300
NODES ?= 0
FROM ?= 0
SEED ?=

simulate: venv
	$(BIN)/python tests/simulation --seeds $(SEEDS) --nodes $(NODES) --from $(FROM) $(if $(SEED),--seed $(SEED))

defects: venv
	$(BIN)/python tests/simulation/defects.py

JOBS ?= 200

scale: venv
	$(BIN)/python tests/simulation/scale.py --nodes $(if $(filter 0,$(NODES)),10 100 1000,$(NODES)) --jobs $(JOBS) $(if $(SEED),--seed $(SEED)) $(if $(WRITE),--write)

ROUNDS ?= 20

chaos: venv
	$(BIN)/python -m tests.integration.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

attacks: venv
	$(BIN)/python -m tests.integration.attacks $(if $(WRITE),--write) $(if $(ONLY),--only "$(ONLY)")

escape: venv
	$(BIN)/python -m tests.integration.escape $(if $(WRITE),--write) $(if $(ONLY),--only "$(ONLY)")

COUNT ?= 200

bench-warm: venv
	$(BIN)/python scripts/bench_jobs $(COUNT) --one --batch

burst: venv
	$(BIN)/python -m tests.integration.burst $(if $(WRITE),--write)

SIZE ?= 1024

bench-content: venv
	$(BIN)/python -m tests.integration.content --size $(SIZE) $(if $(WRITE),--write)

REPEATS ?= 200

bench-dht: venv
	$(BIN)/python -m tests.integration.lookups --repeats $(REPEATS) $(if $(WRITE),--write)

compare: venv
	$(BIN)/python -m tests.integration.compare $(if $(WRITE),--write)

SIZES ?= 1,20,200

interop: venv
	scripts/kubo
	$(BIN)/python -m tests.integration.interop --sizes $(SIZES) $(if $(WRITE),--write)

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: venv
	$(BIN)/mypy

docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: venv
	rm -rf dist
	$(BIN)/hatchling build

check: lint types test docs wheel
	scripts/check_wheel

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	uv lock
	scripts/export_locks

clean:
	rm -rf .venv dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
