PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo test lint clean

help:
	@echo "make install  set up $(VENV) from requirements.txt, with the command $(BIN)/metaprompt"
	@echo "make demo     compare four methods on drawn pictures with the CLIP that comes along; nothing is downloaded"
	@echo "make test     install, check style and types, run the tests (TEST_DATA=folder adds those on real images)"
	@echo "make lint     check the style and the types"
	@echo "make clean    remove $(VENV) and caches"

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

demo: install
	@bash scripts/demo.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

# In the files' order: by the number of their tests, as otherwise, the longest ones come last, and a core has nothing to do.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
