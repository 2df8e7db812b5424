# d2_cityscapes: `make` lists the targets. VENV=DIR uses or creates another environment.
VENV ?= .venv
DOCS_VENV ?= .venv_docs
DEMO ?= demo_output
PYTHON ?= python3
# https://download.pytorch.org/whl/cuXXX for PyTorch of another CUDA, where the NVIDIA driver is older than the wheel asks for
TORCH_INDEX ?=
python := $(VENV)/bin/python
ready := $(VENV)/.d2_cityscapes_ready
# this checkout, whichever one the environment was last used with
export PYTHONPATH := $(CURDIR)
# as many tests at once as there are cores
parallel := -n logical --maxprocesses 8 --dist worksteal
# waiting threads sleep: spinning ones are slow beside any other program on two cores
demo_env = DETECTRON2_DATASETS=$(DEMO)/datasets OMP_WAIT_POLICY=PASSIVE
shards := $(DEMO)/datasets/cityscapes_shards

.PHONY: help install demo test test-all lint docs clean-demo
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(ready)  ## create the environment (5.5 GB), with Detectron2 and this package

# Made again only when what is installed changes; the package itself is installed editable.
$(ready): constraints.txt setup.py tools/install_detectron2.py $(wildcard tools/install_detectron2/*.py)
	test -x $(python) || { $(PYTHON) -m venv $(VENV) && $(python) -m pip install -q 'pip<=25.3'; }
	$(python) -m pip install -q --disable-pip-version-check -c constraints.txt $(addprefix --extra-index-url ,$(TORCH_INDEX)) setuptools wheel torch torchvision
	$(python) tools/install_detectron2.py --constraint constraints.txt
	$(python) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(ready)  ## everything from nothing: synthetic scenes, shards, anchors, stages 0-4, report
	$(python) datasets/make_synthetic.py --output $(DEMO)/cityscapes --train 120 --val 240 --height 256 --width 512 --seed 1 --workers 2
	$(python) datasets/prepare_shards.py --cityscapes $(DEMO)/cityscapes --output $(shards) --verify
	$(demo_env) $(python) tools/run_stages.py --config-dir configs/demo --output-dir $(DEMO)/stages --stages 0 1 2 3 4

test: $(ready)  ## everything from nothing: the environment, then the test suite
	$(python) -m pytest $(parallel)

test-all: $(ready)  ## the tests marked slow too
	$(python) -m pytest $(parallel) -m ''

lint: $(ready)  ## ruff, types (mypy) and which room imports which (import-linter)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(VENV)/bin/lint-imports

docs: $(DOCS_VENV)/.ready  ## the documentation as a site, in site/; needs neither PyTorch nor Detectron2
	$(DOCS_VENV)/bin/python tools/docs_site.py

$(DOCS_VENV)/.ready: constraints.txt docs/requirements.txt
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r docs/requirements.txt
	touch $@

clean-demo:  ## remove what make demo made
	rm -rf $(DEMO)
