# Every target makes the environment it needs: plain venv and pip, versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test test-spark check serve bench
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed  ## the whole path on MovieLens-100K, into $(DEMO)/
	$(BIN)/recsys demo --out $(DEMO)

test: $(VENV)/.installed  ## all tests, a file a process
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-spark: $(VENV)/.spark  ## the Spark engine in two executor processes; needs a JDK 17
	$(BIN)/python -m pytest -q -m spark tests/pipelines/test_spark.py

$(VENV)/.spark: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[spark]'
	touch $@

check: $(VENV)/.installed  ## format, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

serve: $(VENV)/.installed  ## the demo's bundle on http://127.0.0.1:8000/
	$(BIN)/recsys serve $(DEMO)/bundle

bench: $(VENV)/.installed  ## speed, memory and quality beside RecBole and RecTools, on this machine
	$(BIN)/python -m benchmarks.speed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,serve,text,llm,hpo,report,recbole,dev]'
	touch $@

.PHONY: docs results
docs: $(VENV)/.installed  ## docs/commands.md from the command line itself
	$(BIN)/python -m typer pipelines.cli utils docs --name recsys --title Commands --output docs/commands.md

results: $(VENV)/.installed  ## docs/results.md: runs what is missing (hours)
	$(BIN)/python -m benchmarks.results
