# make demo: the whole loop. make test: the tests. Both set up .venv first, from pinned versions.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow lint results clean

setup: .venv/.ready

.venv/.ready: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/robot-rl demo

# Two at a time; the nodes by themselves, as they are held to their times, and once more where a busy
# machine let a message come too late: the summary names it.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal

test: setup
	$(PYTEST) -m 'not slow' --ignore test/nodes
	$(PYTEST) -m 'not slow' --reruns 1 -r fER test/nodes

test-slow: setup
	$(PYTEST) -m slow --timeout 900 --ignore test/nodes
	$(BIN)/python -m pytest -q -m slow --timeout 900 --reruns 1 -r fER test/nodes

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Learning runs that are not finished yet (days), then docs/results.md.
results: setup
	$(BIN)/robot-rl results run
	test -f results/bench.jsonl || $(BIN)/robot-rl results bench
	$(BIN)/robot-rl results write

clean:
	rm -rf .venv build dist *.egg-info
