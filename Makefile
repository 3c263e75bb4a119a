.PHONY: install demo test lint format docs

install:
	python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[test]'

demo:
	.venv/bin/xqg demo

test:
	.venv/bin/pytest -n auto

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs:
	.venv/bin/sphinx-build -W docs build/docs

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
