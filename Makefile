# Everything lives in .venv/, made here; each target is safe to run twice.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready
NAME ?= s3
# Some 50 seconds each on two cores: five minutes.
INPUTS ?= 6

.PHONY: setup certify test test-all lint bench bench-certificates docs clean
.DEFAULT_GOAL := certify

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

certify: $(SETUP)
	$(BIN)/fpcheck certify $(NAME) --inputs $(INPUTS) --out out/$(NAME)

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	FPCHECK_HYPOTHESIS_PROFILE=ci $(BIN)/pytest -n 2 -m 'not slow'

test-all: lint
	FPCHECK_HYPOTHESIS_PROFILE=slow $(BIN)/pytest -n 2

bench: $(SETUP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python tests/bench/solvers.py
	$(BIN)/python tests/bench/spectral.py
	$(BIN)/python tests/bench/gradients.py
	$(BIN)/python tests/bench/gradient_error.py

# What certificates reach on held-out inputs, and what they cost: an hour and more.
bench-certificates: $(SETUP)
	$(BIN)/python tests/bench/certificates.py --inputs $(INPUTS)

docs: $(SETUP)
	$(BIN)/python docs/make.py

clean:
	rm -rf .venv out build dist *.egg-info
