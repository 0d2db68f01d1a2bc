.PHONY: demo test test-browser test-lowest docs lint check format hub fuzz kills clean
PYTHON ?= python3
BIN = .venv/bin

# made again when the project's requirements change
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/atomhub demo

test: .venv/installed
	$(BIN)/python -m pytest

# pages of the gallery in Debian's Chromium; skipped where that cannot be installed
test-browser: .venv/installed
	-command -v chromium > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium > /dev/null; }
	$(BIN)/python -m pip install --quiet playwright
	$(BIN)/python -m pytest -n 0 tests/browser

# with the lowest versions that pyproject.toml allows, in an environment of its own
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/python -m pytest

# pages in docs/_build/html; the notebooks are run, as are Lightning and fastai, and a warning is an error
docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	$(BIN)/python -m pytest -n 0 tests/test_docs.py -k lightning

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint test

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

PORT ?= 8000
ROOT ?= /tmp/atomhub-hub

hub: .venv/installed
	PYTHONPATH=tests $(BIN)/python -m hub_server $(PORT) $(ROOT)

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info docs/_build

# longer than in CI: mutated files, and kills at random moments
fuzz: .venv/installed
	$(BIN)/python tests/trust/fuzz.py $(or $(CASES),20000)

kills: .venv/installed
	ATOMHUB_KILLS=10 $(BIN)/python -m pytest tests/trust/test_kills.py
