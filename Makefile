# make train      an environment in .venv, then a training run on the embedded corpus
# make notebook   the same environment, then titanet.ipynb from top to bottom, written to
#                 runs/titanet.ipynb; STUDY in the environment chooses the speech;
#                 experiments/players.py makes the copy without players
# make docs       every measured number of README.md, docs and the model card, from assets
# make study      the runs and figures of docs/results.md; wants DATA, a folder with the
#                 excerpts below data
# make soak       kills and damaged files by the thousand; writes assets/soak.json
# make test       the same environment with the test packages, then lint and tests
# make test-all   also the slow tests of reliability
#
# ARGS passes overrides on:  make train ARGS="loss.name=cosface training.epochs=2"

PYTHON ?= python3
BIN := .venv/bin

.PHONY: train notebook docs study soak test test-all lint
.DELETE_ON_ERROR:

train: .venv/requirements.stamp
	$(BIN)/python src/train.py -p parameters.yml $(ARGS)

notebook: .venv/requirements.stamp
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute \
	  --ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.record_timing=False \
	  --output-dir runs titanet.ipynb

docs: .venv/requirements.stamp
	$(BIN)/python experiments/documents.py

study: .venv/requirements.stamp
	cd $(DATA) && $(CURDIR)/$(BIN)/python $(CURDIR)/experiments/study.py $(ARGS)

soak: .venv/requirements-dev.stamp
	TQDM_DISABLE=1 $(BIN)/python experiments/soak.py $(ARGS)

test test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(MARKED) $(ARGS)
test: MARKED := -m "not reliability"

lint: .venv/requirements-dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "expected Python 3.10 or later; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/%.stamp: init/%.txt $(wildcard init/requirements*.txt) | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -r $<
	touch $@
