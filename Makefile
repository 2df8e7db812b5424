# d2_cityscapes: `make` lists the targets. VENV=DIR uses or creates another environment.
VENV ?= .venv
DOCS_VENV ?= .venv_docs
DEMO ?= demo_output
DEMO_FULL ?= demo_full_output
# of the demos' training: make demo SEED=2
SEED ?= 1
PYTHON ?= python3
# https://download.pytorch.org/whl/cuXXX for PyTorch of another CUDA, where the NVIDIA driver is older than the wheel asks for
TORCH_INDEX ?=
python := $(VENV)/bin/python
ready := $(VENV)/.d2_cityscapes_ready
# this checkout, whichever one the environment was last used with
export PYTHONPATH := $(CURDIR)
# errors of pip are shown (-qq), its warnings and advice are not
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# as many tests at once as there are cores
parallel := -n logical --maxprocesses 8 --dist worksteal
# waiting threads sleep: spinning ones are slow beside any other program on two cores
demo_env = DETECTRON2_DATASETS=$(1)/datasets OMP_WAIT_POLICY=PASSIVE

.PHONY: help install demo demo-full test test-all lint docs clean-demo
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(ready)  ## create the environment (6.5 GB), with Detectron2 and this package

# Made again only when what is installed changes; the package itself is installed editable.
$(ready): constraints.txt setup.py tools/install_detectron2.py $(wildcard tools/install_detectron2/*.py)
	@echo '1/4 environment: $(VENV)'
	@test -x $(python) || { $(PYTHON) -m venv $(VENV) && $(python) -m pip install -qq 'pip<=25.3'; }
	@echo '2/4 PyTorch: 3 GB to download, 5.2 GB on disk; minutes without a word'
	@$(python) -m pip install -qq -c constraints.txt $(addprefix --extra-index-url ,$(TORCH_INDEX)) setuptools wheel torch torchvision
	@echo '3/4 Detectron2: its source archive, made into a wheel of 6 MB'
	@$(python) tools/install_detectron2.py --constraint constraints.txt
	@echo '4/4 this package, what it needs and the tools of its developers: 1 GB on disk'
	@$(python) -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@
	@echo 'installed: . $(VENV)/bin/activate'

# (folder, train scenes, val scenes, folder of configs)
define run_demo
$(python) datasets/make_synthetic.py --output $(1)/cityscapes --train $(2) --val $(3) --height 256 --width 512 --seed 1 --workers 2
$(python) datasets/prepare_shards.py --cityscapes $(1)/cityscapes --output $(1)/datasets/cityscapes_shards --verify
$(call demo_env,$(1)) $(python) tools/run_stages.py --config-dir $(4) --output-dir $(1)/stages --stages 0 1 2 3 4 SEED $(SEED)
@printf '%s\n' '' 'Open $(1)/stages/report.html in a browser: the pictures beside the truth first, then how the' \
  'scores and the losses went from stage to stage. $(1)/stages/stage*/log.txt has every line.'
endef

demo: $(ready)  ## everything from nothing: synthetic scenes, shards, anchors, stages 0-4, report; 7 minutes
	@echo 'Scenes, shards and five stages of training with their report: about 7 minutes on two CPU cores that do nothing else.'
	$(call run_demo,$(DEMO),100,160,configs/demo)
	@echo "make demo-full trains the same stages longer, on larger pictures: the README's figures, in 20 minutes."

demo-full: $(ready)  ## the same on larger pictures, longer: the README's figures; 20 minutes
	@echo 'Scenes, shards and five stages of training with their report: about 20 minutes on two CPU cores that do nothing else.'
	$(call run_demo,$(DEMO_FULL),120,240,configs/demo_full)

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
	$(DOCS_VENV)/bin/python -m pip install -qq -c constraints.txt -r docs/requirements.txt
	touch $@

clean-demo:  ## remove what make demo and make demo-full made
	rm -rf $(DEMO) $(DEMO_FULL)
