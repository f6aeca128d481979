# make demo | test | test-slow | test-nightly | test-slurm | lint | docs: each makes .venv when missing; test-lowest: .venv-lowest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests start hundreds of processes, and each would compile the project's modules again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-nightly test-slurm test-lowest lint docs install install-all clean

demo: $(VENV)/.installed
	$(BIN)/python -m fer_lightning -m experiment=demo imbalance=none,undersample,weighted,focal

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m 'slow and not nightly' -n 2 --dist worksteal --timeout 1500

test-nightly: $(VENV)/.installed
	$(BIN)/python -m pytest -m nightly -n 2 --dist worksteal --timeout 1500

test-slurm: $(VENV)/.installed
	.ci/slurm $(BIN)/python -m pytest -m slurm --timeout 1500

# With the oldest versions that pyproject.toml allows, which constraints.txt knows nothing of.
test-lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install -q --resolution lowest-direct -e '.[dev]'
	.venv-lowest/bin/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in site/: a link to a page or a heading that does not exist is an error.
docs: $(VENV)/.docs
	$(BIN)/zensical build --strict --clean

install: $(VENV)/.installed

# For the tests and the site together: one resolution by pip instead of two.
install-all: pyproject.toml constraints.txt
	$(call install,dev$(,)docs)
	touch $(VENV)/.installed $(VENV)/.docs

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,dev)
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt
	$(call install,docs)
	touch $@

# torch first: pip keeps every wheel until the last one is installed, and torch's take 2.5 GB of disk.
# pip compiles on one core, and the packages' own tests too. A file that cannot be compiled is no error, as for pip.
, := ,
define install
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[$(1)]'
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
endef

clean:
	rm -rf $(VENV) .venv-lowest .cache build dist site
