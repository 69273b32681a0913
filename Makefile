# The usual commands: make help
.DEFAULT_GOAL := help
.PHONY: help install lint format test fast quickstart main tutorial figures wheel ci clean

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install:  ## this package and what its tests need, into the active environment
	pip install -c constraints.txt -e ".[test,dev]"

lint:  ## ruff, its formatter and mypy, changing nothing
	ruff check . && ruff format --check . && mypy

format:  ## let ruff format and mend what it can
	ruff check --fix . ; ruff format .

test:  ## all tests, about 20 minutes on two cores
	python -m pytest -n 2

fast:  ## the tests that failed last, then stop at the first failure
	python -m pytest -x --last-failed -n 2

quickstart:  ## a look around, under a minute
	fedsvd run +experiment=quickstart

main:  ## the main job, epsilon 1
	fedsvd run +experiment=dp_eps1

tutorial:  ## run the tutorial's notebook and render its page
	python scripts/tutorial.py

figures:  ## what is made from the code: the architecture's figure, the table of pairs
	python scripts/architecture.py && python scripts/pairs.py

wheel:  ## build the wheel and run from it in an empty folder
	bash scripts/check_wheel.sh

ci:  ## what CI runs, in a new .venv
	bash .ci/run

clean:  ## caches and builds; runs (outputs/, multirun/) stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
