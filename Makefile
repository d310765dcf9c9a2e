# make            configure with the defaults if nobody has yet, and make build/venv
# make demo       see processes message each other
# make check      the checkers and the tests
# make bench      measure messaging beside its peers; tables here, JSON and pictures in build/bench (a few minutes)
# make benchmarks the same at length and everything else msgbench measures, into docs/benchmarks.md (a quarter of an hour)
# make install    into the configured prefix, or DESTDIR= and prefix=; make uninstall takes the same away

PYTHON = build/venv/bin/python
ENVIRONMENT = build/venv/requirements.txt
PEERS = build/venv/bench.txt
MSGBENCH = $(PYTHON) -m msgd.bench
RESULTS = build/bench
INSTALL = python3 -B -m build_support.install

.PHONY: all demo check bench benchmarks install uninstall clean distclean

all: $(ENVIRONMENT)

# Never over the user's options: a tree that has been configured is configured again as it was.
build/config.status: configure.py $(wildcard build_support/*.py) pyproject.toml
	@if test -x $@; then $@ --quiet; else ./configure.py --bootstrap; fi

$(ENVIRONMENT): configure.py pyproject.toml | build/config.status
	@build/config.status --bootstrap --quiet

demo: all
	@$(PYTHON) -m msgd.tools.demo

check: all
	build/config.status --bootstrap=check --quiet
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	build/venv/bin/lint-imports
	$(PYTHON) -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# What pyproject.toml's extra `bench` names: the peers that come from PyPI, and what draws.
$(PEERS): pyproject.toml | all
	@$(PYTHON) -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*extras["optional-dependencies"]["bench"], sep="\n")' >$@.new
	@$(PYTHON) -m pip --disable-pip-version-check --quiet install --no-input -r $@.new
	@mv $@.new $@

bench: $(PEERS)
	@mkdir -p $(RESULTS)
	@$(MSGBENCH) ping --peers --seconds 1 --json $(RESULTS)/ping.json --plot $(RESULTS)/ping.png
	@$(MSGBENCH) dbench --seconds 1 --json $(RESULTS)/dbench.json --plot $(RESULTS)/dbench.png
	@$(MSGBENCH) torture --seconds 3 --json $(RESULTS)/torture.json --plot $(RESULTS)/torture.png

benchmarks: $(PEERS)
	@mkdir -p $(RESULTS)
	@$(MSGBENCH) ping --peers --runs 7 --json $(RESULTS)/ping.json
	@$(MSGBENCH) flood --runs 5 --json $(RESULTS)/flood.json
	@$(MSGBENCH) size --peers --json $(RESULTS)/size.json
	@$(MSGBENCH) latency --runs 5 --json $(RESULTS)/latency.json
	@$(MSGBENCH) fanout --json $(RESULTS)/fanout.json
	@$(MSGBENCH) mesh --runs 5 --json $(RESULTS)/mesh.json
	@$(MSGBENCH) scale --json $(RESULTS)/scale.json
	@$(MSGBENCH) dbench --seconds 4 --runs 5 --json $(RESULTS)/dbench.json
	@$(MSGBENCH) torture --seconds 20 --json $(RESULTS)/torture.json
	@$(MSGBENCH) page docs/benchmarks.md \
	    $(foreach name,ping flood size latency fanout mesh scale dbench torture,$(RESULTS)/$(name).json)

install: build/config.status
	@$(INSTALL) install --destdir='$(DESTDIR)' --prefix='$(prefix)'

uninstall: build/config.status
	@$(INSTALL) uninstall --destdir='$(DESTDIR)' --prefix='$(prefix)'

# What work in the tree leaves behind; the configuration stays.
clean:
	rm -rf build/bench build/demo build/pip dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./build -prune -o -name __pycache__ -exec rm -rf {} +

distclean: clean
	rm -rf build msgd/_registry.py
