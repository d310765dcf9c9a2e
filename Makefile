# `make help` lists the targets. `make` alone configures the tree with the defaults, unless it has been configured, and
# makes build/venv and build/bin. V=1 shows the commands.

PYTHON = build/venv/bin/python
ENVIRONMENT = build/venv/requirements.txt
PEERS = build/venv/bench.txt
MSGBENCH = $(PYTHON) -m msgd.bench
RESULTS = build/bench
INSTALLER = python3 -B -m build_support.install
.SHELLFLAGS = $(if $(filter 1,$(V)),-xc,-c)

# The tests run make themselves, and the jobs of this make are none of theirs.
unexport MAKEFLAGS MFLAGS MAKELEVEL

SECONDS = 60
MINUTES = 5
PROCESSES = 72

.PHONY: all help compiled demo sanitize check fuzz storm docs bench benchmarks install uninstall dist deb deb-check clean distclean

all: $(ENVIRONMENT) compiled  ## set up the tree, so that the programs run as build/bin/msgd, build/bin/msgcontrol ...

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1:\2/p' Makefile | awk -F: '{ printf "%-18s %s\n", $$1, $$2 }'

# A tree that has been configured is configured again with the same options, never with the defaults.
build/config.status: configure.py $(wildcard build_support/*.py) pyproject.toml
	@if test -x $@; then $@ --quiet; else ./configure.py --bootstrap; fi

$(ENVIRONMENT): configure.py $(wildcard build_support/*.py) pyproject.toml | build/config.status
	@build/config.status --bootstrap --quiet

# Nothing needs the extension; the tree runs without it where there is no compiler.
compiled: build/compiled  ## compile the hot path, if the tree is configured so

build/compiled: build/config.status $(wildcard native/*)
	@python3 -B -m build_support.compiled
	@touch $@

demo: all  ## watch processes message each other
	@$(PYTHON) -m msgd.tools.demo

sanitize: all  ## run the tests of the compiled hot path with its memory and arithmetic checked
	$(PYTHON) -m pytest tests/native/test_sanitized.py

check: all  ## run the linters, the type checker and the tests (PYTEST_ARGS= for pytest)
	build/config.status --bootstrap=check --quiet
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	build/venv/bin/lint-imports
	$(PYTHON) -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

fuzz: all  ## give any bytes to each parser, a minute each (SECONDS=60)
	build/config.status --bootstrap=check --quiet
	MSGD_FUZZ_SECONDS=$(SECONDS) $(PYTHON) -m pytest -n auto $(PYTEST_ARGS) tests/fuzz

storm: all  ## kill, stop and starve processes that message each other, and check all that arrives (MINUTES=5 PROCESSES=72)
	build/config.status --bootstrap=check --quiet
	$(PYTHON) -m tests.storm --minutes $(MINUTES) --processes $(PROCESSES)

docs: all  ## write docs/parameters.md from the table of parameters
	@$(PYTHON) -m msgd.tools.manual.markdown >docs/parameters.md.new
	@mv docs/parameters.md.new docs/parameters.md

# The packages that pyproject.toml's extra `bench` names: other messaging systems to compare with, and what draws.
$(PEERS): pyproject.toml | all
	@$(PYTHON) -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*extras["optional-dependencies"]["bench"], sep="\n")' >$@.new
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip --upgrade
	@$(PYTHON) -m pip --disable-pip-version-check --quiet install --no-input -r $@.new
	@mv $@.new $@

bench: $(PEERS)  ## measure messaging beside other systems; JSON and pictures go to build/bench (a few minutes)
	@mkdir -p $(RESULTS)
	@$(MSGBENCH) ping --peers --seconds 1 --json $(RESULTS)/ping.json --plot $(RESULTS)/ping.png
	@$(MSGBENCH) dbench --seconds 1 --json $(RESULTS)/dbench.json --plot $(RESULTS)/dbench.png
	@$(MSGBENCH) torture --seconds 3 --json $(RESULTS)/torture.json --plot $(RESULTS)/torture.png

benchmarks: $(PEERS)  ## measure everything at length and write docs/benchmarks.md (a quarter of an hour)
	@mkdir -p $(RESULTS)
	@$(MSGBENCH) ping --peers --runs 7 --json $(RESULTS)/ping.json
	@$(MSGBENCH) flood --runs 5 --json $(RESULTS)/flood.json
	@$(MSGBENCH) size --peers --json $(RESULTS)/size.json
	@$(MSGBENCH) latency --peers --runs 5 --json $(RESULTS)/latency.json
	@$(MSGBENCH) fanout --peers --json $(RESULTS)/fanout.json
	@$(MSGBENCH) pubsub --peers --json $(RESULTS)/pubsub.json
	@$(MSGBENCH) mesh --runs 5 --json $(RESULTS)/mesh.json
	@$(MSGBENCH) scale --json $(RESULTS)/scale.json
	@$(MSGBENCH) dbench --seconds 4 --runs 5 --json $(RESULTS)/dbench.json
	@$(MSGBENCH) torture --seconds 20 --json $(RESULTS)/torture.json
	@$(MSGBENCH) page docs/benchmarks.md \
	    $(foreach name,ping flood size latency fanout pubsub mesh scale dbench torture,$(RESULTS)/$(name).json)

install: build/config.status compiled  ## install into the configured prefix (DESTDIR= and prefix= work)
	@$(INSTALLER) install --destdir='$(DESTDIR)' --prefix='$(prefix)'

uninstall: build/config.status  ## remove what `make install` installed
	@$(INSTALLER) uninstall --destdir='$(DESTDIR)' --prefix='$(prefix)'

dist:  ## write the source archive of a release, dist/msgd-VERSION.tar.gz
	@python3 -B -m build_support.dist dist

deb:  ## build Debian's packages in build/deb, on Debian's packages alone
	@mkdir -p build/deb
	@/usr/bin/python3 -B -m build_support.deb build/deb

deb-check:  ## check the packages in build/deb with lintian and in a booted container
	@/usr/bin/python3 -B -m tests.packages.check build/deb

clean:  ## remove what work in the tree leaves behind, but keep the configuration
	rm -rf build/bench build/deb build/demo build/pip dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./build -prune -o -name __pycache__ -exec rm -rf {} +

distclean: clean  ## remove the configuration and build/venv as well
	rm -rf build msgd/_registry.py msgd/_native.*.so
