# `make help` lists the targets. Needs Python 3.11 or newer and make.
PYTHON := .venv/bin/python
# Written when the packages are installed: of locks/product.lock, with test.lock, with dev.lock; the JavaScript clients.
RUNTIME := .venv/installed
TESTING := .venv/installed-test
INSTALLED := .venv/installed-dev
CLIENTS := tests/clients/js/node_modules/installed
LAUNCHER := .venv/bin/tailrace

.DEFAULT_GOAL := help
.PHONY: no-copy test-core test-all conformance findings frames shipped roll docs audit types style tests-compiled schedules kills wear fuzz help setup setup-test clients run test coverage check litellm lock chaos histories sdks rules mutation wheel release bench schema clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: no-copy $(INSTALLED) $(LAUNCHER) ## install the product and the development tools into .venv

setup-test: no-copy $(TESTING) $(LAUNCHER) ## install only what most tests need, in under a minute; then `.venv/bin/python -m pytest FILE`

run: no-copy $(RUNTIME) $(LAUNCHER) ## start the whole system, with its data in .tailrace; ARGS='--help' lists the options
	@exec $(LAUNCHER) up --data .tailrace $(ARGS)

# `pip install .` puts a copy of the checkout into .venv, which `tailrace` then runs, whatever changes in the checkout.
no-copy:
	@! test -e .venv/lib/python*/site-packages/tailrace || { \
		echo "site-packages/tailrace is a copy of this checkout, and would run in its place. Remove it, then repeat this command:" >&2; \
		echo "  .venv/bin/python -m pip uninstall --yes tailrace; rm -f $(LAUNCHER)" >&2; exit 1; }

wheel: setup ## build the wheel and the source archive into dist/
	.venv/bin/uv build --quiet --out-dir dist .

release: setup ## build wheel, source archive, image context and lists of packages into dist/, and check them; needs the network
	$(PYTHON) -m tools.release
	CONTAINER_FROM_INDEX=1 $(PYTHON) -m pytest --timeout 600 tests/integration/test_container.py

clients: $(CLIENTS) ## install the clients that the dialects are tested with; `test-all` does it too

# Workers for two cores: quick tests wait for most of their time, browsers and clusters do not.
RUN_TESTS := $(PYTHON) -m tests.run --dist worksteal

test: setup ## run `check` and the quick tests, while you work: under ten minutes on two cores
	@$(MAKE) --no-print-directory --jobs 2 $(CHECKS) tests-compiled
	$(RUN_TESTS) --numprocesses 6 --quick
	@echo "Left to \`make test-all\`: tests/clients, long integration tests, and tests with servers that hold no numbered rule."

test-core: setup ## run the core as processes without any feature: POST, stream, cut, kill, resume, record, metrics
	$(PYTHON) -m pytest tests/core

test-all: setup $(CLIENTS) ## run `check` and every test, as CI does: also real clients in browsers, images, clusters
	@$(MAKE) --no-print-directory --jobs 2 $(CHECKS) tests-compiled
	$(RUN_TESTS) --numprocesses 4 --durations 25 -r sfE

coverage: setup $(CLIENTS) ## run every test with coverage and list uncovered lines; 50 % slower than `test-all`
	$(PYTHON) -m pytest --numprocesses 3 --cov --cov-report term-missing:skip-covered

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
	$(PYTHON) -m tests.positions

# Once, while the types are checked: otherwise each worker takes 10 s to do it. `tests.run` reports what fails here.
tests-compiled:
	@-env -u PYTHONDONTWRITEBYTECODE $(PYTHON) -m pytest --collect-only tests > /dev/null 2>&1

litellm: setup .venv-litellm/installed ## install LiteLLM for the backend `litellm` into its own venv, .venv-litellm

docs: setup .venv-docs/installed ## build the documentation as a site into dist/docs/site, and check its links; REPOSITORY=https://…/blob/main
	$(PYTHON) -m tools.generated_pages
	.venv-docs/bin/python -m tools.docs_site --repository '$(REPOSITORY)'

# Programs with options of their own. `test-all` has a short version of most.
lock: PROGRAM = tools.lock ## write the lock files from pyproject.toml; needs the network
audit: PROGRAM = tools.lock --audit ## look up known vulnerabilities of the locked packages; needs the network
chaos: PROGRAM = tests.chaos.run $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(FAULTS),--faults $(FAULTS)) ## inject faults at random and check the result; SEED= MINUTES= FAULTS=, ARGS='--help'
wear: PROGRAM = tests.kills.wear ## kill generators one after the other while they write long answers; ARGS='--help'
kills: PROGRAM = tests.kills ## kill each process at each entry of a turn, and keep the result; ARGS='--processes gateway' for one process
conformance: PROGRAM = tests.conformance.real_kills ## kill real generators at each event of each conformance case; ARGS='--every 4' for some of them
histories: PROGRAM = tests.conformance.random_histories ## send random odd histories in each protocol, and compare what the model gets; ARGS='--count 10000'
sdks: PROGRAM = tests.clients.sdk_versions ## run older and newer SDKs while gateways and generators are killed, and keep the result; needs the network
schedules: PROGRAM = tests.schedules ## simulate schedules of faults; ARGS='--seed 7 --trace' prints one, '--without fence' disables a rule
rules: PROGRAM = tests.rules ## list the rules of the protocol, the faults and the attacks with their tests
frames: PROGRAM = tools.count_frames ## count the functions that a POST, a delta and a resume run through
findings: PROGRAM = tools.run_findings ## run the facts about other libraries and tools (docs/FINDINGS.md); needs the network; ARGS='nats' for some
mutation: PROGRAM = tools.mutation_score ## change the pure core line by line, and count the changes that its unit tests find; takes 10 minutes
shipped: PROGRAM = tests.shipped ## run the units and the image in their real homes, systemd and Docker; needs root and mmdebstrap; ARGS='--help'
roll: PROGRAM = tests.upgrade.roll $(or $(BEFORE),HEAD~1) ## replace an older version by this one while turns run, and go back: make roll BEFORE=COMMIT
lock audit chaos wear kills conformance histories sdks schedules rules frames findings mutation shipped roll: setup
	@exec $(PYTHON) -m $(PROGRAM) $(ARGS)

schema: setup-test ## generate schemas and tables; after `make setup` also dashboards, alert rules, results of tests
	$(PYTHON) -m tools.generate_docs

fuzz: setup ## send generated requests to every route, more than `test-all` does; CASES=500, SEED=
	SCHEMATHESIS_CASES=$(or $(CASES),150) FUZZ_VALUES=$(or $(CASES),150) FUZZ_BYTES=$(or $(CASES),150)0 FUZZ_REQUESTS=10000 FUZZ_ALL=1 FUZZ_SEED=$(or $(SEED),7) \
		$(PYTHON) -m pytest --timeout 3600 tests/clients/test_schemathesis.py tests/fuzz tests/integration/test_logging.py

bench: setup $(CLIENTS) ## compare Tailrace with what people use instead, and keep the result; ARGS=--quick
	$(PYTHON) -m benchmarks.compare.install
	@exec $(PYTHON) -m benchmarks.compare --write $(ARGS)

clean: ## remove .venv and the caches; keep .tailrace
	rm -rf .venv .venv-docs .venv-litellm .venv-clients .venv-bench benchmarks/compare/servers/node_modules tests/clients/js/node_modules web/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* mutants mutants.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@sh tools/new_venv.sh
	@$(call install,.venv) --no-compile -r locks/pip.lock || echo "The venv keeps Python's own pip, which is slower." >&2

# --no-deps: a lock file names every package. pip would look for the newest release of a package with extras
# (pytest-cov needs coverage[toml]), and refuse it for want of a hash.
# --no-user, --target=, --prefix: pip's configuration may name another folder for packages, the user's (which pip refuses
# in a venv) or one from which the venv would not import.
install = $(1)/bin/python tools/install_packages.py --no-user --target= --prefix="$$PWD/$(1)" --disable-pip-version-check --no-deps --require-hashes

.venv-%/installed: locks/%.lock | .venv/bin/python
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	$(call install,.venv-$*) -r locks/$*.lock
	@touch $@

$(RUNTIME): locks/product.lock | .venv/bin/python
	@echo "Installing what Tailrace needs to run into .venv (about 160 MB, once; 1 to 3 minutes)." >&2
	@$(call install,.venv) -r locks/product.lock
	@touch $@

# --no-compile: Python compiles the modules that a test imports.
$(TESTING): locks/test.lock locks/product.lock | .venv/bin/python
	@echo "Installing what most tests need into .venv (about 150 MB, once)." >&2
	@$(call install,.venv) --no-compile -r locks/test.lock
	@touch $(RUNTIME) $@

$(INSTALLED): locks/dev.lock locks/product.lock | .venv/bin/python
	@echo "Installing the development tools into .venv (about 1,200 MB, once)." >&2
	@$(call install,.venv) -r locks/dev.lock
	@touch $(RUNTIME) $(TESTING) $@

$(LAUNCHER): tools/write_launcher.py | .venv/bin/python
	@$(PYTHON) tools/write_launcher.py

# Reinstalled only when a lock file changes: it takes half a minute.
$(CLIENTS): tests/clients/js/package-lock.json web/package-lock.json locks/clients.lock tests/clients/install.py | $(INSTALLED)
	$(PYTHON) -m tests.clients.install
	@touch $@
