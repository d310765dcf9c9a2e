# make            configure with the defaults if nobody has yet, and make build/venv
# make demo       see processes message each other
# make check      the checkers and the tests
# make install    into the configured prefix, or DESTDIR= and prefix=; make uninstall takes the same away

PYTHON = build/venv/bin/python
ENVIRONMENT = build/venv/requirements.txt
INSTALL = python3 -B -m build_support.install

.PHONY: all demo check install uninstall clean distclean

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

install: build/config.status
	@$(INSTALL) install --destdir='$(DESTDIR)' --prefix='$(prefix)'

uninstall: build/config.status
	@$(INSTALL) uninstall --destdir='$(DESTDIR)' --prefix='$(prefix)'

# What work in the tree leaves behind; the configuration stays.
clean:
	rm -rf build/demo build/pip dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./build -prune -o -name __pycache__ -exec rm -rf {} +

distclean: clean
	rm -rf build msgd/_registry.py
