# make demo       set up, then the whole pipeline on embedded real images: filter, GRPO, PeRL, report
# make test       set up, check the format, then the tests (5 to 9 minutes on 2 cores)
# make test-long  set up, then the long ones: servers, kills, whole pipelines (17 to 27 minutes)
# make format     format the code
# make bench      set up, install trl, then one update measured beside a padded batch and TRL
# make gpu        set up, then all that only a GPU can show: under 10 minutes, not yet timed whole
# make paper      set up, then the experiments of docs/results.md: about three hours on 2 cores, resumable
# make setup      only the environment (.venv); quick when it is there
PYTHON ?= python3
SEED ?= 0

.PHONY: demo test test-long format bench gpu paper setup

demo: setup
	.venv/bin/python evals/demo.py --seed $(SEED)

test: setup
	.venv/bin/ruff format --check -q .
	.venv/bin/ruff check -q .
	.venv/bin/python -m pytest -q -m "not long" tests

test-long: setup
	.venv/bin/python -m pytest -q -m long tests

format: setup
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

# The constraints keep every version that is there: trl must not move torch, transformers or vLLM.
bench: setup
	@.venv/bin/python -c "import datasets, trl" 2>/dev/null || { .venv/bin/python -m pip freeze > .venv/kept.txt; \
	  .venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])' \
	  | xargs .venv/bin/python -m pip install -q -c .venv/kept.txt; }
	.venv/bin/python bench/step.py

gpu: setup
	.venv/bin/python bench/gpu.py

paper: setup
	.venv/bin/python evals/paper.py

setup:
	@$(PYTHON) tools/setup_env.py
