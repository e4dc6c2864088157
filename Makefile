# make install | demo | test | test-slow | sanitize | lint | docs | pictures | bench | campaign | clean
#
# Needs Python 3.11 or later, a C++20 compiler, make, and a pip that reaches a package registry. All else,
# CMake and Ninja included, is installed into .venv at the versions that constraints.txt pins.
#
#   PYTHON=python3.12       the interpreter that .venv is made with
#   PIP_ARGS="…"            options for every `pip install`, for example another registry
#   PYTEST_ARGS="-k raster" options for pytest
#   HOURS=1                 how long `make campaign` kills runs and damages files

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
PYTEST_ARGS ?=
HOURS ?= 1

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

# Folders are listed too: their time changes when a file in them goes away.
SOURCES := $(wildcard CMakeLists.txt) $(shell find src native \( -name __pycache__ -o -name '*.pyc' \) -prune -o -print 2>/dev/null)

.PHONY: install demo test test-slow sanitize lint docs pictures bench campaign clean

install: $(VENV)/.installed

# Three stamps: the interpreter with the build tools, the dependencies, the package. A change in a source file
# repeats the last alone, and the kept build folder compiles only what changed.
$(VENV)/.build-tools: constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python3 found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: $(PYTHON) is older than Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || \
	    { echo "make: no C++ compiler found; install g++ or set CXX" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing the build tools"
	@$(PIP_INSTALL) scikit-build-core nanobind cmake ninja
	@touch $@

$(VENV)/.dependencies: pyproject.toml $(VENV)/.build-tools
	@echo "installing the dependencies (about a minute)"
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	@$(PIP_INSTALL) -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.installed: $(SOURCES) $(VENV)/.dependencies
	@echo "building and installing splatopt"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP_INSTALL) --no-build-isolation --no-deps --force-reinstall .
	@touch $@

demo: install
	@$(BIN)/splatopt demo

test: install
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: install
	@$(BIN)/python -m pytest -m slow $(PYTEST_ARGS) || test $$? -eq 5 # 5: none is marked slow

# The native module's tests under AddressSanitizer and UndefinedBehaviorSanitizer; one of the slow tests.
sanitize: install
	@$(BIN)/python -m pytest tests/test_sanitizers.py $(PYTEST_ARGS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m benchmarks.figures

# The site, in build/site; a broken link or anchor fails (--quiet would hide it). Nothing is asked of the network.
docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "built: build/site/index.html"

# Those of README and site; an idle machine is not needed.
pictures: install
	@$(BIN)/python -m benchmarks.pictures

bench: install
	@$(BIN)/python -m benchmarks

campaign: install
	@$(BIN)/python tests/faults/campaign.py --hours $(HOURS)

clean:
	rm -rf build $(VENV)
