# make run    the bot (and, without an account, the sandbox with one real photo)
# make test   the whole test suite
# make coverage  the same with branch coverage
# make check  format, lint, types, structure
# make test-all  the suite on each Python 3.11 to 3.14 that is found
# make fuzz, make bench, make bench-scale  broken inputs; speed beside others; large ledgers
# make release VERSION=x.y.z  checks, dates the change log, commits and tags
# make try-deploy  runs docs/deploy.md for real: systemd, containers, an upgrade, a PaaS; about 10 minutes, needs root
# make faults  kills processes and databases, and cuts the power: at most 20 minutes
# Needs Python 3.11 or newer and nothing else; with node 18 or newer and npm, make bench measures one server more.
# PIP_INDEX_URL chooses a package mirror.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXPRESS = $(VENV)/express/node_modules/.package-lock.json
unexport PYTHONDONTWRITEBYTECODE # or each process of the tests would compile the libraries and all tests anew
unexport PYTHONHOME # another Python's: with it none of ours starts
unexport PYTHONSAFEPATH # with it Python would not look for our modules in this folder

.PHONY: run test test-all coverage faults fuzz bench bench-scale try-deploy check release format freeze clean

run: $(VENV)/.run
	@$(BIN)/python run.py

test: $(VENV)/.dev
	@$(BIN)/python -m pytest $(ARGS)

coverage: $(VENV)/.dev
	@$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

faults: $(VENV)/.dev
	@echo "The fault suite: at most 20 minutes, on 127.0.0.1 only, in temporary folders. Its table of figures comes last."
	@timeout -s INT -k 30 1170 $(BIN)/python -m pytest -n 0 --full -vv tests/test_power.py tests/test_faults.py tests/test_many.py tests/test_deferred.py tests/test_memory.py

fuzz: $(VENV)/.dev
	@$(BIN)/python -m fuzz $(ARGS)

bench: $(VENV)/.bench $(EXPRESS)
	@timeout -s INT -k 30 600 $(BIN)/python -m bench $(ARGS)

bench-scale: $(VENV)/.bench
	@timeout -s INT -k 30 1800 $(BIN)/python -m bench.scale $(ARGS)

# Root, systemd-nspawn, mmdebstrap and podman; it says what is missing, and tries the rest.
try-deploy: $(VENV)/.dev
	@failed=0; for name in deploy containers upgrade platform; do $(BIN)/python -m scripts.try_$$name || failed=1; done; exit $$failed

test-all:
	@bash scripts/test-all.sh

release:
	@bash scripts/release.sh "$(VERSION)" --check
	@$(MAKE) --no-print-directory check test-all
	@bash scripts/release.sh "$(VERSION)"

check: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -n 0 tests/test_layers.py

format: $(VENV)/.dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# The frozen files must install on every supported Python, so freeze with the oldest. Pins stay where the .in files allow
# them; newer versions: make freeze ARGS=--upgrade
# What the server runs on has hashes: pip refuses a file that is not the one that was frozen.
COMPILE = $(BIN)/pip-compile -q $(ARGS) --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
freeze: $(VENV)/.dev
	@$(COMPILE) --generate-hashes -o requirements.txt requirements.in
	@$(COMPILE) -o requirements-dev.txt requirements-dev.in
	@$(COMPILE) -o requirements-bench.txt requirements-bench.in

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage .hypothesis

# A .venv that was left half made, whose Python is gone or was replaced by another version (its packages lie in a folder of
# the old one), or that was made in another folder (its scripts hold the path) is made anew. One that is a link is somebody
# else's. `make PYTHON=...` makes one of another Python anew too.
PACKAGES = $$($(BIN)/python -E -c 'import os, sysconfig; os.write(1, os.fsencode(sysconfig.get_path("purelib")))')
USABLE := $(shell [ -L $(VENV) ] || { [ -x $(BIN)/python ] && [ -d "$(PACKAGES)" ] && { \
  { [ ! -e $(VENV)/.folder ] && [ -e $(VENV)/.run ]; } || [ "$$(cat $(VENV)/.folder 2>/dev/null)" = "$(CURDIR)" ]; }; } && echo yes)
ifeq ($(origin PYTHON)$(USABLE),command lineyes)
USABLE := $(shell [ -L $(VENV) ] || [ "$$($(PYTHON) -VV 2>&1)" = "$$($(BIN)/python -VV 2>&1)" ] && echo yes)
endif
ifneq ($(USABLE),yes)
# Its python is a link to an old file: that it was made anew does not make it newer than .no-dotenv was.
$(VENV)/bin/python $(VENV)/.no-dotenv: MADE_ANEW
MADE_ANEW:
endif

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed: install it, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv and pip are needed. On Debian or Ubuntu: apt-get install python3-venv python3-pip" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "$(CURDIR)" > $(VENV)/.folder

# Flask's command line would read .flaskenv and .env of every folder above this one, and run the program named there.
$(VENV)/.no-dotenv: $(VENV)/bin/python
	@echo "import os; os.environ.setdefault('FLASK_SKIP_DOTENV', '1')" \
	  > "$(PACKAGES)/flask_skip_dotenv.pth"
	@touch $@

$(VENV)/.run: requirements.txt $(VENV)/.no-dotenv
	@echo "Installing packages (PIP_INDEX_URL chooses a mirror) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt $(VENV)/.no-dotenv
	@echo "Installing packages (PIP_INDEX_URL chooses a mirror) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -r requirements.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -r requirements-dev.txt
	@touch $@ $(VENV)/.run

# Without node, npm or the network the measurement goes on, and says what it leaves out. After a new version in package.json:
# cd bench/apps/express && npm install --package-lock-only --omit-lockfile-registry-resolved
$(EXPRESS): bench/apps/express/package-lock.json bench/apps/express/package.json | $(VENV)/bin/python
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
	  echo "Installing express ..."; mkdir -p $(VENV)/express && cp $^ $(VENV)/express && cd $(VENV)/express && \
	  npm ci --engine-strict --ignore-scripts --no-audit --no-fund --loglevel=error && touch node_modules/.package-lock.json || true; fi

$(VENV)/.bench: requirements-bench.txt $(VENV)/.dev
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -r requirements-bench.txt
	@touch $@
