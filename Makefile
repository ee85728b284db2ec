# make demo    the paper's central result, on the models that ship: out/report.html
# make test    the test suite, under TransformerLens 3.9
# make test-4  the core of it under TransformerLens 4, in .venv-4
# make docs    the documentation site, in site/
# make notebooks  runs notebooks/ and keeps their outputs, which the site shows (8 needs make pretrained)
# make browser headless Chromium, for the tests of pages (Debian, Ubuntu; others: install one)
# make pretrained  SmolLM2-135M from pip, for the tests of a real model, into the user's cache
# make bench   speed, as ratios against peers measured in the same run
# make runs    the training runs that findings need, at the lowest priority; goes on where it stopped
#              (real text: make runs CORPUS=folder with train.txt and valid.txt; grafts: MODEL=a model, too)
# make lint, make types, make format

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What a model computes, is edited in, saved as and generates, without what only draws and counts.
CORE := $(addprefix tests/test_,$(addsuffix .py,streams hooks circuits generation checkpoint \
	weights patching attribution config skipping_models grafting bridge formats oracle \
	tools notebooks))

.PHONY: demo test test-4 docs notebooks browser pretrained bench runs lint types format clean

demo: $(INSTALLED)
	$(BIN)/resval-lens compare --report out

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

test-4: .venv-4/.installed
	OMP_NUM_THREADS=1 .venv-4/bin/python -m pytest -n $(JOBS) $(CORE)

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: $(INSTALLED)
	$(BIN)/python -m tests.notebooks

browser:
	command -v chromium || { apt-get update -qq && apt-get install -y -qq chromium; }

pretrained: $(INSTALLED)
	$(BIN)/python -W ignore -m tests.pretrained

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks

runs: $(INSTALLED)
	$(BIN)/resval-lens runs all --records resval_lens/data $(if $(CORPUS),--corpus $(CORPUS)) $(if $(MODEL),--model $(MODEL))

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders hooks/ and analyses/ are resval_lens.hooks and resval_lens.analyses: links lay them
# out as they are imported, for a checker that reads folders.
types: $(INSTALLED)
	rm -rf build/types && mkdir -p build/types/resval_lens
	ln -s $(CURDIR)/resval_lens/* $(CURDIR)/hooks $(CURDIR)/analyses build/types/resval_lens/
	MYPYPATH=build/types $(BIN)/mypy -p resval_lens

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv-4/.installed: pyproject.toml constraints-4.txt
	test -x .venv-4/bin/python || $(PYTHON) -m venv .venv-4
	.venv-4/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-4.txt \
		-e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-4 build out site *.egg-info
