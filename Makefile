# `make help` lists the targets. Needs Python 3.11 or newer and make.

SHELL := /bin/sh
PYTHON := .venv/bin/python
# Written when the packages of requirements.lock are installed: what the product needs to run.
RUNTIME := .venv/installed
# Written when the packages of requirements-test.lock are installed as well: what one test needs.
TESTING := .venv/installed-test
# Written when the packages of requirements-dev.lock are installed as well: tests, linters, client libraries.
INSTALLED := .venv/installed-dev
# The `tailrace` command of this checkout, callable from any folder and through a link. It finds the checkout when it
# runs, because a checkout may be moved. -P: it imports nothing from the current folder.
# Beside it a folder with nothing but `tailrace`, from which .venv/bin/python imports: the checkout would add `proto`
# and other names (docs/adr/0025-five-packages-under-one-import-name.md).
LAUNCHER := .venv/bin/tailrace

# Written when the JavaScript clients of package-lock.json are installed.
CLIENTS := tests/clients/js/node_modules/installed

LOCK := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command 'make lock' --generate-hashes

.DEFAULT_GOAL := help
.PHONY: no-copy test-core test-all conformance findings frames roll docs audit types style tests-compiled schedules kills wear fuzz help setup setup-test clients run test coverage check litellm lock chaos rules mutation wheel release bench schema clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: no-copy $(INSTALLED) $(LAUNCHER) ## install the product and the development tools into .venv

setup-test: no-copy $(TESTING) $(LAUNCHER) ## install only what most tests need, in under a minute; then `.venv/bin/python -m pytest FILE`

run: no-copy $(RUNTIME) $(LAUNCHER) ## start the whole system, with its data in .tailrace; ARGS='--help' lists the options
	@exec $(LAUNCHER) up --data .tailrace $(ARGS)

# `pip install .` puts a copy of the checkout into .venv, which `tailrace` then runs, whatever changes in the checkout.
no-copy:
	@for copy in .venv/lib/python*/site-packages/tailrace; do \
		! test -e "$$copy" || { \
			echo "$$copy is a copy of this checkout, and would run in its place. Remove it, then repeat this command:" >&2; \
			echo "  .venv/bin/python -m pip uninstall --yes tailrace; rm -f $(LAUNCHER)" >&2; \
			exit 1; }; \
	done

wheel: setup ## build the wheel and the source archive into dist/
	.venv/bin/uv build --quiet --out-dir dist .

release: setup ## build wheel, source archive, image context and lists of packages into dist/, and check them; needs the network
	$(PYTHON) -m tools.release
	CONTAINER_FROM_INDEX=1 $(PYTHON) -m pytest --timeout 600 tests/integration/test_container.py

clients: $(CLIENTS) ## install the clients that the dialects are tested with; `test-all` does it too

# Tests wait for most of their time, so each core has three workers.
RUN_TESTS := $(PYTHON) -m tests.run --numprocesses 6 --dist worksteal

test: setup ## run `check` and the quick tests, while you work: under ten minutes on two cores
	@$(MAKE) --no-print-directory --jobs 2 $(CHECKS) tests-compiled
	$(RUN_TESTS) --quick
	@echo "Left to \`make test-all\`: tests/clients, long integration tests, and tests with servers that hold no numbered rule."

test-core: setup ## run the core as processes without any feature: POST, stream, cut, kill, resume, record, metrics
	$(PYTHON) -m pytest tests/core

test-all: setup $(CLIENTS) ## run `check` and every test, as CI does: also real clients in browsers, images, clusters
	@$(MAKE) --no-print-directory --jobs 2 $(CHECKS) tests-compiled
	$(RUN_TESTS) --durations 25
	@test -x .venv-litellm/bin/python || echo "SKIPPED: tests of the backend litellm. To run them: make litellm."
	@test "$$(id -u)" = 0 || echo "SKIPPED: tests of power cuts and full disks, because they need root to mount a disk."
	@command -v ntfs-3g > /dev/null || echo "SKIPPED: the test of a file system without permissions, because ntfs-3g is not on the PATH."
	@command -v curl > /dev/null || echo "SKIPPED: tests of examples/ask.sh, because curl is not on the PATH."
	@command -v chromium > /dev/null || echo "SKIPPED: tests in a browser, because chromium is not on the PATH."
	@command -v firefox-esr > /dev/null || echo "SKIPPED: tests in Firefox, because firefox-esr is not on the PATH."
	@command -v WebKitWebDriver > /dev/null && command -v Xvfb > /dev/null || echo "SKIPPED: tests in WebKit, because WebKitWebDriver or Xvfb is not on the PATH."
	@command -v nginx > /dev/null && command -v haproxy > /dev/null || echo "SKIPPED: tests of proxies and of the container image, because nginx or haproxy is not on the PATH."
	@ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || command -v initdb > /dev/null || echo "SKIPPED: tests of PostgreSQL, because its server is not installed."
	@command -v promtool > /dev/null || echo "SKIPPED: tests of dashboards, rules and alerts, because promtool and prometheus are not on the PATH."

coverage: setup $(CLIENTS) ## run every test with coverage and list uncovered lines; 50 % slower than `test-all`
	$(PYTHON) -m pytest --numprocesses 3 --cov --cov-report term-missing:skip-covered

# The types take as long as all else together: they are checked beside it.
CHECKS := types style
check: setup ## format, lint, types, imports, spelling
	@$(MAKE) --no-print-directory --jobs 2 $(CHECKS)

types:
	$(PYTHON) -m mypy

style:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	.venv/bin/lint-imports
	.venv/bin/codespell
	$(PYTHON) -m tools.api_surface
	$(PYTHON) -m tests.rules > /dev/null

# Once, while the types are checked: otherwise each worker compiles every test, which takes 10 s. `tests.run` reports what
# fails here.
tests-compiled:
	@-env -u PYTHONDONTWRITEBYTECODE $(PYTHON) -m pytest --collect-only tests > /dev/null 2>&1

litellm: setup ## install LiteLLM for the backend `litellm` into its own venv, .venv-litellm
	test -x .venv-litellm/bin/python || $(PYTHON) -m venv .venv-litellm
	$(call install,.venv-litellm) -r requirements-litellm.lock

docs: setup .venv-docs/installed ## build the documentation as a site into dist/docs/site, and check its links; REPOSITORY=https://…/blob/main
	$(PYTHON) -m tools.generated_pages
	.venv-docs/bin/python -m tools.docs_site --repository '$(REPOSITORY)'

.venv-docs/installed: requirements-docs.lock | .venv/bin/python
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	$(call install,.venv-docs) -r requirements-docs.lock
	@touch $@

lock: setup ## write the lock files from pyproject.toml
	$(LOCK) -o requirements.lock pyproject.toml
	$(LOCK) --extra dev --constraint requirements.lock -o requirements-dev.lock pyproject.toml
	$(LOCK) --extra test --constraint requirements-dev.lock -o requirements-test.lock pyproject.toml
	$(LOCK) --extra otlp --extra postgres --extra bedrock --extra vertex --constraint requirements-dev.lock -o requirements-container.lock pyproject.toml
	echo pip==26.3 | $(LOCK) -o requirements-pip.lock -
	$(LOCK) -o requirements-docs.lock tools/requirements.txt
	$(LOCK) --extra litellm -o requirements-litellm.lock pyproject.toml
	$(LOCK) -o requirements-clients.lock tests/clients/python/requirements.txt
	$(LOCK) -o requirements-bench.lock benchmarks/compare/requirements.txt

# Not part of `test-all`, which needs no network. Strict: a package that cannot be looked up is a failure.
audit: setup ## look up known vulnerabilities of the locked packages; needs the network
	for lock in requirements-pip.lock requirements-dev.lock requirements-docs.lock requirements-container.lock requirements-litellm.lock requirements-clients.lock requirements-bench.lock; do \
		.venv/bin/uv tool run pip-audit@2.10.1 --strict --disable-pip --require-hashes --progress-spinner off -r $$lock || exit 1; \
	done

chaos: setup ## inject faults at random and check the result; SEED= MINUTES= FAULTS=, ARGS='--help'
	@exec $(PYTHON) -m tests.chaos.run $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(FAULTS),--faults $(FAULTS)) $(ARGS)

wear: setup ## kill generators one after the other while they write long answers; ARGS='--help'
	@exec $(PYTHON) -m tests.kills.wear $(ARGS)

kills: setup ## kill each process at each entry of a turn, and keep the result; ARGS='--processes gateway' for one process
	@exec $(PYTHON) -m tests.kills $(ARGS)

conformance: setup ## kill real generators at each event of each conformance case; ARGS='--every 4' for some of them
	@exec $(PYTHON) -m tests.conformance.real_kills $(ARGS)

schedules: setup ## simulate schedules of faults; ARGS='--seed 7 --trace' prints one, '--without fence' disables a rule
	@exec $(PYTHON) -m tests.schedules $(ARGS)

roll: setup ## replace an older version by this one while turns run, and go back: make roll BEFORE=COMMIT
	@[ -n "$(BEFORE)" ] || { echo "name the older version: make roll BEFORE=COMMIT"; exit 1; }; \
		folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
		git archive $(BEFORE) | tar x -C "$$folder" && \
		$(PYTHON) -m tests.upgrade.roll "$$folder"

rules: setup ## list the rules of the protocol, the faults and the attacks with their tests
	@exec $(PYTHON) -m tests.rules

mutation: setup ## change the pure core line by line, and count the changes that its unit tests find; takes 10 minutes
	@.venv/bin/mutmut run --max-children 2 > mutants.log 2>&1 || { tail -20 mutants.log; exit 1; }
	@.venv/bin/mutmut export-cicd-stats > /dev/null
	@$(PYTHON) -m tools.mutation_score

frames: setup ## count the functions that a POST, a delta and a resume run through
	@exec $(PYTHON) -m tools.count_frames $(ARGS)

fuzz: setup ## send generated requests to every route, more than `test-all` does; CASES=500, SEED=
	SCHEMATHESIS_CASES=$(or $(CASES),150) FUZZ_VALUES=$(or $(CASES),150) FUZZ_BYTES=$(or $(CASES),150)0 FUZZ_REQUESTS=10000 FUZZ_SEED=$(or $(SEED),7) \
		$(PYTHON) -m pytest --timeout 3600 tests/clients/test_schemathesis.py tests/fuzz tests/integration/test_logging.py

# Not part of `test-all`: it installs packages, and describes other projects.
findings: setup ## run the facts about other libraries and tools (docs/FINDINGS.md); needs the network; ARGS='nats' for some
	@exec $(PYTHON) -m tools.run_findings $(ARGS)

bench: setup $(CLIENTS) ## compare Tailrace with what people use instead, and keep the result; ARGS=--quick
	$(PYTHON) -m benchmarks.compare.install
	@exec $(PYTHON) -m benchmarks.compare --write $(ARGS)

schema: setup ## generate schemas, dashboards and alert rules
	$(PYTHON) -m tools.generate_docs

clean: ## remove .venv and the caches; keep .tailrace
	rm -rf .venv .venv-docs .venv-litellm .venv-clients .venv-bench benchmarks/compare/servers/node_modules tests/clients/js/node_modules web/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* mutants mutants.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv with the newest Python that is found. The pip of Python 3.11 compares each file of an index with each tag of the
# machine, for which it needs more than twice the CPU time of a newer one.
.venv/bin/python:
	@test -d tailrace/proto || { \
		echo "tailrace/proto is no link to a folder: clone again on Linux or macOS, with git config core.symlinks true." >&2; exit 1; }
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$python && break; \
	done; \
	test -n "$$found" || { echo "Tailrace needs Python 3.11 or newer: install one and try again." >&2; exit 1; }; \
	$$found -m venv .venv || { rm -rf .venv; \
		echo "$$found cannot make a venv: install its venv package (Debian: apt install python3-venv)." >&2; exit 1; }
	@$(call install,.venv) --no-compile -r requirements-pip.lock || echo "The venv keeps Python's own pip, which is slower." >&2

# --no-deps: a lock file names every package. pip would look for the newest release of a package with extras
# (pytest-cov needs coverage[toml]), and refuse it for want of a hash.
# --no-user, --target=, --prefix: pip's configuration may name another folder for packages, the user's (which pip refuses
# in a venv) or one from which the venv would not import.
install = $(1)/bin/python tools/install_packages.py --no-user --target= --prefix="$$PWD/$(1)" --disable-pip-version-check --no-deps --require-hashes

$(RUNTIME): requirements.lock | .venv/bin/python
	@echo "Installing what Tailrace needs to run into .venv (about 160 MB, once; 1 to 3 minutes)." >&2
	@$(call install,.venv) -r requirements.lock
	@touch $@

# --no-compile: Python compiles the modules that a test imports.
$(TESTING): requirements-test.lock requirements.lock | .venv/bin/python
	@echo "Installing what most tests need into .venv (about 150 MB, once)." >&2
	@$(call install,.venv) --no-compile -r requirements-test.lock
	@touch $(RUNTIME) $@

$(INSTALLED): requirements-dev.lock requirements.lock | .venv/bin/python
	@echo "Installing the development tools into .venv (about 1,100 MB, once)." >&2
	@$(call install,.venv) -r requirements-dev.lock
	@touch $(RUNTIME) $(TESTING) $@

$(LAUNCHER): Makefile | .venv/bin/python
	@printf '%s\n' '#!/bin/sh' 'bin=$$(dirname "$$(readlink -f "$$0")")' \
		'PYTHONPATH=$$(dirname "$$(dirname "$$bin")") exec "$$bin/python" -P -m tailrace "$$@"' > $@
	@chmod +x $@
	@mkdir -p .venv/checkout && ln -sfn ../../tailrace .venv/checkout/tailrace
	@$(PYTHON) -c 'import os, pathlib, sysconfig; folder = sysconfig.get_path("purelib"); pathlib.Path(folder, "checkout.pth").write_text(os.path.relpath(".venv/checkout", folder))'

# Reinstalled only when a lock file changes: it takes half a minute.
$(CLIENTS): tests/clients/js/package-lock.json web/package-lock.json requirements-clients.lock tests/clients/install.py | $(INSTALLED)
	$(PYTHON) -m tests.clients.install
	@touch $@
