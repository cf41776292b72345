# Short names for the checks, inside an environment made by the README's second line. .ci/run does all of it anew.
PYTHON ?= python

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

ci:
	.ci/run

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	$(MAKE) -C targets/engine clean

.PHONY: check lint format types test ci clean
