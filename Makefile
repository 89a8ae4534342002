PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
PARALLEL := --numprocesses auto --dist loadfile
ARGS ?=
QUIET_NOTEBOOKS := 'ignore:IProgress not found,ignore:`torch.jit.script` is deprecated'

.PHONY: help install rotated-mnist test coverage test-oldest lint types tables bench device-check paper kill-test docs dist ci clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(VENV)/.installed  ## an environment in .venv with the package and its tools

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

rotated-mnist: install  ## the paper's experiment, short form (ARGS='--preset paper --seeds 5' for the whole)
	$(BIN)/python -W ignore::FutureWarning:torch.jit._script examples/rotated_mnist.py $(ARGS)

test: install  ## all tests, a process for each core, warnings are errors (ARGS='-k posterior' for some)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

coverage: install  ## all tests, and the lines of src that they run: at least 97 %
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report term-missing:skip-covered $(ARGS)

test-oldest:  ## all tests with the oldest versions that pyproject.toml allows (Python 3.11)
	$(PYTHON) -m venv $(OLDEST)
	sed -nE 's/^ +"([a-z-]+)>=([0-9.]+)",$$/\1==\2/p' pyproject.toml > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/oldest.txt --editable '.[dev]'
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -W default $(ARGS)

lint: install  ## format check and lint, of GitHub's files too
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml

types: install  ## pyright on src
	$(BIN)/pyright --pythonpath $(BIN)/python src

tables: install  ## the league of tables: the missing runs, then the pages (needs pip install -e ".[peers]")
	$(BIN)/python -m benchmarks.runner --only tables more_tables $(ARGS)
	$(BIN)/python -m benchmarks.tables

bench: install  ## step time, posterior time and large groups beside their rivals, measured here
	rm -rf runs/bench
	$(BIN)/python -m benchmarks.runner --only step_time posterior large_groups streaming --out runs/bench

device-check: install  ## operations, training, times and memory on a GPU (ARGS='--device cpu --quick' without one)
	$(BIN)/python -W ignore -m benchmarks.device_check $(ARGS)

paper: install  ## the missing runs of all studies, figures, pages (ARGS='--jobs 2', ARGS=--quick for a short form)
	$(BIN)/python -m benchmarks.runner $(ARGS)

kill-test: install  ## kill 40 training processes, resume each, and compare bit for bit (a few minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.kill_test $(ARGS)

$(VENV)/.docs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs  ## the documentation site in site/; a warning, a dead link or a missing name fails
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 MPLCONFIGDIR=$(CURDIR)/.cache/matplotlib \
		PYTHONWARNINGS=$(QUIET_NOTEBOOKS) $(BIN)/mkdocs build --strict
	$(BIN)/python -W ignore -m scripts.check_site site

dist: install  ## wheel and sdist in dist/, checked; the README's program runs from the wheel in an empty environment
	rm -rf build dist
	$(BIN)/pip install --quiet --editable '.[release]'
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv dist/.venv
	dist/.venv/bin/pip install --quiet "$$(ls dist/*.whl)[plots]"
	cd dist && .venv/bin/python -W error::UserWarning -m fgp_gpytorch info
	cd dist && .venv/bin/python -W ignore ../scripts/run_readme.py ../README.md

ci: lint types test  ## what .ci/run does in an environment that exists
	rm -rf runs/ci
	$(BIN)/python examples/rotated_mnist.py --epochs 20 --no-progress --out runs/ci --assert-test-mse-below 0.042

clean:  ## remove the environment and all runs
	rm -rf $(VENV) $(OLDEST) runs .pytest_cache .ruff_cache .hypothesis .cache build dist site
