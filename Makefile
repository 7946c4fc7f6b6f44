# Every target sets up what it needs. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Services and tests share two cores here; more threads than cores makes each forward slower.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
# node and npm come with the development environment.
export PATH := $(abspath $(BIN)):$(PATH)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

.PHONY: setup
setup: $(STAMP) ## Create .venv with everything pinned in constraints.txt

# Once a machine: else the first service that starts compiles them.
.PHONY: kernels
kernels: setup
	$(BIN)/python -m outrider_runtime.model.kernels
	$(BIN)/python -m outrider_runtime.suffix_tree

.PHONY: demo
demo: kernels ## Watch a completion stream from a target fed by a separate draft service
	$(BIN)/outrider demo

# A process for each of two cores; files stay whole, so what their tests share is set up once.
IN_PARALLEL := --numprocesses 2 --dist loadfile

.PHONY: test
test: kernels node-peers ## Run the test suite (10 minutes or less on two cores)
	$(BIN)/python -m pytest $(IN_PARALLEL)

.PHONY: test-slow
test-slow: kernels node-peers ## Run the long exactness and distribution suites
	$(BIN)/python -m pytest $(IN_PARALLEL) -m slow --timeout 1800

.PHONY: fuzz
fuzz: kernels ## Random and broken messages to both services, OUTRIDER_FUZZ_FRAMES of them (a million)
	$(BIN)/python -m pytest -m fuzz -q

.PHONY: soak
soak: kernels node-peers ## Run the load and chaos suites, some minutes each
	$(BIN)/python -m pytest -m soak --timeout 1800

FAULTS := tests/faults tests/exactness/test_drafter_dies.py tests/exactness/test_drafter_misbehaves.py \
  tests/exactness/test_drafter_processes.py tests/exactness/test_two_drafters.py tests/draft/test_hostile_targets.py \
  tests/service/test_service_faults.py tests/service/test_service_lifecycle.py tests/service/test_service_overload.py \
  tests/service/test_service_signals.py tests/hostile tests/target/test_grammar_turns.py \
  tests/runtime/test_open_streams.py tests/service/test_service_turns.py tests/target/test_turns.py \
  tests/service/test_service_quotas.py tests/target/test_token_quotas.py
.PHONY: faults
faults: kernels ## Every row of the fault table in docs/reliability.md, those with whole processes too
	$(BIN)/python -m pytest -m 'not fuzz and not soak' --timeout 600 $(FAULTS)

.PHONY: soak-hour soak-short
soak-hour: kernels ## An hour of mixed traffic with callers that leave and drafters that die; writes a report
	PYTHONPATH=tests $(BIN)/python -m soak --seconds 3600 --report docs/reliability/soak.json
soak-short: kernels ## The same for two minutes
	PYTHONPATH=tests $(BIN)/python -m soak --seconds 120

.PHONY: overload
overload: kernels ## Offer 1, 2, 4 and 10 times what a target can serve; writes the curve
	PYTHONPATH=tests $(BIN)/python -m overload --report docs/reliability/overload.json

.PHONY: bench
bench: kernels ## Compare with every peer that is installed; SUITE=name for one suite, BENCH_FLAGS for more
	$(BIN)/python -m benchmarks $(SUITE:%=--suite %) $(BENCH_FLAGS)

.PHONY: bench-compare
bench-compare: setup ## The newest run of each suite against the last, or of SUITE alone
	$(BIN)/python -m benchmarks --compare $(SUITE:%=--suite %)

.PHONY: bench-peers
bench-peers: setup ## Install what `make bench` compares with; llama.cpp is built from source (minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[peers]'

.PHONY: bench-repetition
bench-repetition: kernels ## Requests that repeat, as agents send them: remembered outputs and predictions beside other drafters
	$(BIN)/python -m benchmarks.repetition

.PHONY: bench-links
bench-links: kernels ## Compare pacings of drafts over slow links with a slowed target; prints tables, writes JSON
	$(BIN)/python -m benchmarks.links

.PHONY: bench-control
bench-control: kernels ## Whether drafting ever costs, and how near to the best it comes: useless, perfect and real drafters
	$(BIN)/python -m benchmarks.control

.PHONY: bench-sizing
bench-sizing: kernels ## Measure the points that the sizing model and simulator are held to; writes JSON
	$(BIN)/python -m tools.sizing.measure benchmarks/results/$(shell date +%F)-sizing.json

.PHONY: check
check: lint type proto-check field-table-check deploy-check audit ## Everything that is checked without running: lint, types, contract, imports

.PHONY: deploy-check
deploy-check: setup ## Render, validate and judge what is in deploy/
	$(BIN)/python -m tools.deployment

.PHONY: audit
audit: setup ## Look the pinned dependencies up in the advisories, where there are any
	$(BIN)/python tools/audit.py

.PHONY: lint
lint: setup ## Lint and format-check the code and the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/buf lint protos

.PHONY: type
type: setup ## Type-check strictly
	$(BIN)/mypy

.PHONY: format
format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: proto
proto: setup ## Regenerate protos/gen from the contract
	$(BIN)/python tools/generate_protos.py

.PHONY: proto-check
proto-check: setup ## Fail when protos/gen differs from what the contract generates
	$(BIN)/python tools/generate_protos.py --check

.PHONY: field-table field-table-check
field-table: setup ## Regenerate docs/generation_config.md from the capability table
	$(BIN)/python tools/generate_field_table.py
field-table-check: setup
	$(BIN)/python tools/generate_field_table.py --check

NODE_STAMPS := $(patsubst %,%/node_modules/.package-lock.json,tests/node_client examples/node_drafter)
$(NODE_STAMPS): %/node_modules/.package-lock.json: %/package-lock.json
	cd $* && npm ci --silent --no-audit --no-fund --prefer-offline
.PHONY: node-peers
node-peers: setup $(NODE_STAMPS)

.PHONY: clean
clean: ## Remove everything that is not source
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache tests/node_client/node_modules examples/node_drafter/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'
