# make sweep   install into .venv and run the whole laptop experiment
# make test    install into .venv and run the tests
#
# PYTHON=python3.12 chooses the interpreter; ARGS="--profile laptop --dry-run" goes to the launcher.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
INSTALLED := $(VENV)/.installed

.PHONY: sweep test install clean

sweep: install
	$(VENV)/bin/python sweeps/launch.py --grid chinchilla $(ARGS)

test: install
	$(VENV)/bin/python -m pytest

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "PYTHON=$(PYTHON): Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,hf,notebooks]' -c constraints.txt
	touch $(INSTALLED)

clean:
	rm -rf $(VENV)
