# make demo   build vgg, serve it, measure it through the running server, write build/vgg/report.html
# make test   the whole test suite, as CI runs it; JOBS=4 runs four tests at a time
# make lint   ruff and mypy
# make campaign BUDGET=600   damaged inputs, killed builds, attacks and faults for so many seconds (docs/reliability.md)
# make docs   the guide as a site, in build/site
# make zoo    pretrained networks from packages: built, validated, served, measured and judged by their tasks
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RB     := $(BIN)/repo-builder
MINOR  := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PINS   := deploy/constraints/python$(MINOR).txt
STAMP  := $(VENV)/.installed-$(MINOR)

.PHONY: demo test lint docs campaign zoo install clean

demo: install
	$(RB) build vgg
	$(RB) serve --runtime embedded --detach
	status=0; $(RB) perf vgg --window-ms 400 --max-windows 6 --report build/vgg/report.html || status=$$?; $(RB) serve --stop; exit $$status

# What shares a server runs in one worker (tests/conftest.py), and what takes longest starts first. Three on two cores:
# one of them mostly waits for a server. Bytecode is kept: tests start the command line a hundred times.
JOBS   ?= 3
test: install
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -n $(JOBS) --dist loadscope --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --strict

BUDGET ?= 600
PARTS  ?=
campaign: install
	$(BIN)/python tests/campaigns $(PARTS) --seconds $(BUDGET)

# The packages bring models and photos alone: what they would require stays out, and they stay out of the environment.
zoo: install
	$(BIN)/python -c 'import sys; toml = __import__("tomllib" if sys.version_info > (3, 11) else "tomli"); print("\n".join(toml.load(open("pyproject.toml", "rb"))["dependency-groups"]["zoo"]))' > $(VENV)/zoo.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/zoo -r $(VENV)/zoo.txt
	PYTHONPATH=$(VENV)/zoo $(BIN)/python examples/zoo/make_data.py
	$(BIN)/python examples/zoo/run.py

install: $(STAMP)

$(STAMP): pyproject.toml $(wildcard deploy/constraints/*.txt)
	@test -f $(PINS) || { echo "make: repo-builder runs on Python 3.10 to 3.12, $(PYTHON) is $(MINOR); set PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check pip==26.3
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(PINS) -e '.[all]' --group dev
	@touch $@

clean:
	rm -rf $(VENV) build model_repository
