# pd-appliance: `make serve` and `make test` each do all set-up on a fresh machine.
.DEFAULT_GOAL := help
.PHONY: help serve test lint format bench gpu-check bench-streams bench-diagnosis bench-knee bench-split chaos wheel clean setup setup-test bench-diagnosis-cpu bench-cost bench-charts pictures bench-viewers bench-peers bench-compare cuda-contract

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q
PURE := $(wildcard tests/unit tests/contract tests/kv)
REAL := $(wildcard tests/process tests/gpu)

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

setup:
	@requirements/setup.sh serve

setup-test:
	@requirements/setup.sh test

serve: setup  ## serve the demo model on this machine; ARGS="…" is passed on
	@exec $(BIN)/pd-appliance serve $(ARGS)

lint: setup-test  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# A browser's driver and asyncio tests each want the main thread's event loop: they are suites of their own.
# pytest exits 5 where a suite has no test to run. With ARGS, e.g. -k, that is no failure unless it is so in all of them.
NO_TESTS := $(if $(strip $(ARGS)),5,never)
test: lint  ## everything that can be tested on this machine, quick ones first; ARGS="-k …" is passed to pytest
	@for suite in "-n 2 $(PURE)" $(if $(REAL),"-n 3 $(REAL)") "-n 2 tests/browser" tests/engine tests/fault; do \
	    echo "$(PYTEST) $$suite $$ARGS"; \
	    $(PYTEST) $$suite $(ARGS); status=$$?; \
	    case $$status in 0) ran=yes;; $(NO_TESTS)) ;; *) exit $$status;; esac; \
	done; \
	[ "$$ran" ] || { echo 'make test: no suite has a test that ARGS select' >&2; exit 5; }

format: setup-test  ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-test  ## split against aggregated, and the hand-off against memcpy; takes a quarter of an hour
	$(BIN)/python -m bench.run $(ARGS)

bench-peers: setup-test  ## this appliance and its peers under the same load, some hours, resumable; ARGS="--quick --only nixl-tuned 1p1d --out DIR"
	$(BIN)/python -m bench.peers $(ARGS)

bench-compare: setup-test  ## this tree against an earlier commit, in turn: is it slower? a quarter of an hour; ARGS="HEAD~20 --only tokens"
	$(BIN)/python -m bench.compare $(ARGS)

bench-streams: setup  ## what the supervisor can carry, over simulated engines; ARGS="--streams 512" is passed on
	$(BIN)/python -m bench.streams $(ARGS)

bench-diagnosis: setup-test  ## whether faults of simulated nodes are named; ARGS="--seeds 100:117 --healthy 50" is passed on
	$(BIN)/python -m bench.diagnosis $(ARGS)

bench-diagnosis-cpu: setup-test  ## the same of real engines on this machine's CPUs, slow; ARGS="--seeds 100:144 --healthy-minutes 60 --out DIR"
	$(BIN)/python -m bench.diagnosis.real $(ARGS)

bench-knee: setup-test  ## the smallest batch that saturates an engine, against brute force; ARGS="--url http://127.0.0.1:8000" for a node that runs
	$(BIN)/python -m bench.knee $(ARGS)

bench-cost: setup-test  ## what telemetry and diagnosis take of a core, and recording of a step
	$(BIN)/python -m bench.diagnosis_cost $(ARGS)

bench-split: setup-test  ## whether the layout that is predicted to be best is; ARGS="--seeds 100:121" is passed on
	$(BIN)/python -m bench.split $(ARGS)

bench-charts: setup-test  ## whether a day of history can be looked through on the page without a task of more than 50 ms
	$(BIN)/python -m bench.charts $(ARGS)

pictures: setup-test  ## every page in each state, light and dark, wide and on a phone, as a contact sheet; ARGS="--states bottleneck --pages overview"
	$(BIN)/python -m bench.pictures $(ARGS)

bench-viewers: setup-test  ## what the page costs: CPU for 50 viewers, what it weighs, when it is painted; ARGS="--viewers 200 --no-browser"
	$(BIN)/python -m bench.viewers $(ARGS)

chaos: setup-test  ## faults under load, every answer checked; ARGS="--minutes 30 --seed 1 --concurrency 16" is passed on
	$(BIN)/python -m bench.chaos $(ARGS)

gpu-check: setup-test  ## what only a machine with an NVIDIA GPU can prove: CUDA IPC between processes, NVML; writes gpu-check.md
	$(BIN)/python -m bench.gpu_check $(ARGS)

cuda-contract:  ## contract tests against vLLM's CUDA build, which is told that there are GPUs; installs 8 GB into .venv-cuda
	@VENV=.venv-cuda CUDA_BUILD=1 requirements/setup.sh test
	.venv-cuda/bin/python -m pytest -q -p tests.contract.claimed_gpus tests/contract $(ARGS)

wheel: setup-test  ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .

clean:  ## remove what set-up and tests have made
	rm -rf .venv .venv-cuda .peers .setup.lock node_modules static/vendor dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
