# Everything is installed into $(VENV) from the hashed lock files; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= workdir/quickstart
MINI ?= workdir/paper-mini
BIN := $(VENV)/bin

.PHONY: quickstart paper-mini test campaign lint types format lock clean

quickstart: $(VENV)/core  ## train a small Mixer on real images, evaluate it, draw pictures
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR)

paper-mini: $(VENV)/core  ## the paper's story on small real images, and a report of it
	$(BIN)/python -m mixer_jax.tools.paper_mini --results=$(MINI)

test: $(VENV)/dev  ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 -m "not campaign"

campaign: $(VENV)/dev  ## the long repeats: runs killed and resumed again and again
	$(BIN)/python -m pytest -m campaign -s

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/dev  ## compile the lock files from pyproject.toml
	$(BIN)/uv pip compile $(LOCK) pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) --extra dev pyproject.toml -o requirements-dev.txt
	$(BIN)/uv pip compile $(LOCK) --extra tpu --extra gcs --constraint requirements.txt pyproject.toml \
		-o launch/requirements.txt

LOCK := --universal --python-version 3.11 --fork-strategy requires-python --generate-hashes --no-annotate \
	--quiet --custom-compile-command "make lock"

$(VENV)/core: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

$(VENV)/dev: $(VENV)/core requirements-dev.txt
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) workdir
