# Everything is installed into $(VENV) from the hashed lock files; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= workdir/quickstart
MINI ?= workdir/paper-mini
REFERENCE ?= workdir/reference
NEWEST ?= python3.13
BIN := $(VENV)/bin

.PHONY: quickstart paper-mini test newest campaign lint types format reference lock clean

quickstart: $(VENV)/core  ## train a small Mixer on real images, evaluate it, draw pictures
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR)

paper-mini: $(VENV)/core  ## the paper's story on small real images, and a report of it
	$(BIN)/python -m mixer_jax.tools.paper_mini --results=$(MINI)

test: $(VENV)/dev  ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 -m "not campaign"

newest: $(VENV)/dev  ## a few tests with another Python, NEWEST, and what the lock files have for it
	$(BIN)/uv venv --quiet --allow-existing --python $(NEWEST) $(VENV)/newest
	$(BIN)/uv pip install --quiet --python $(VENV)/newest/bin/python --require-hashes -r requirements-dev.txt
	$(VENV)/newest/bin/python -m pytest -n 2 -m "not campaign" --durations=5 $(SHORT)

# The authors' numbers, pixels, a run that is killed, resumed and evaluated, an export.
SHORT := \
	"tests/models/test_mixer.py::test_logits_and_pre_logits_are_the_authors" \
	"tests/models/test_mixer.py::test_losses_and_gradients_are_the_authors" \
	"tests/data/test_ops.py::test_evaluation_pipelines_are_the_authors" \
	"tests/training/test_loop.py::test_interrupted_runs_end_bit_identical" \
	"tests/test_commands.py::test_eval_evaluates_a_run" \
	"tests/inference/test_export.py::test_files_give_the_models_logits"

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

reference: $(VENV)/dev  ## pages of all modules but the commands, from their docstrings
	$(BIN)/python -W ignore -c "$(PDOC)" --docformat google --output-directory $(REFERENCE) \
		$$(find mixer_jax -name '*.py' -not -path '*/tools/*' | sed 's#\.py$$##; s#/__init__$$##; s#/#.#g' | sort)

# pdoc shows what is in the package already; its own functions come there on first use.
PDOC := import mixer_jax, pdoc.__main__ as p; [getattr(mixer_jax, n) for n in mixer_jax.__all__]; p.cli()

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
