# make serve   run the server on config.toml (own .venv)
# make demo    run every application on http://127.0.0.1:12345/
# make test    install what the tests need and run everything; PYTEST="tests/unit -x" runs some
# make check   lint, types, import layering

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve demo test check fmt clean bench

$(VENV)/.run: requirements.lock pyproject.toml
	test -x $(BIN)/pip || tools/make_venv.sh $(PYTHON) $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@

serve: $(VENV)/.run
	exec $(BIN)/fastpush serve --config config.toml

demo: $(VENV)/.run
	exec $(BIN)/fastpush serve --config demo.toml

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Whether every behaviour is proven, only a whole run can tell.
test: check
	tests/install_packages.sh
	$(BIN)/pytest --junit-xml=build/tests.xml $(PYTEST)
	$(if $(PYTEST),,$(BIN)/python -m tools.behaviours build/tests.xml)

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
