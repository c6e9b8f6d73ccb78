# make demo    set up, then the whole pipeline on embedded real images: filter, GRPO, PeRL, evaluation, report
# make test    set up, then pass the tests
# make setup   only the environment (.venv); quick when it is there
PYTHON ?= python3
SEED ?= 0

.PHONY: demo test setup

demo: setup
	.venv/bin/python evals/demo.py --seed $(SEED)

test: setup
	.venv/bin/python -m pytest -q tests

setup:
	@$(PYTHON) tools/setup_env.py
