# Everything a newcomer needs: `make train`, `make test`. Nothing is downloaded but Python packages.

PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/aa_resnet50_digits

.PHONY: train test test-all test-text docs lint bench reproduce-small reproduce-fashion reproduce-detection reproduce-stability reproduce-sparse compile-32b compile-all compile-papers soak wheel wheel-check nightly fuzz clean

train: $(VENV)/.train
	$(BIN)/python -m launch.train --config=configs/aa_resnet50.py:digits --workdir=$(WORKDIR)

# Two processes share the cores; each test file stays in one of them, so that it compiles once.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# With the tests that take longer than a few seconds each.
test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

# Tests of real seqio tasks and SentencePiece models: TensorFlow, 3 GB, comes into .venv for them.
test-text: $(VENV)/.text
	$(BIN)/python -m pytest tests/moe/text/test_seqio_source.py tests/moe/eval/test_seqio_export.py \
	    tests/moe/text/test_vocabulary.py

# The site, in docs/_build/index.html; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -E -a -W --keep-going -b html docs docs/_build

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# Our time over that of the peers, row by row; all of them run, whichever misses a target.
bench: $(VENV)/.bench
	@missed=; for name in "peers all" vision moe text_data; do \
	    $(BIN)/python -m benchmarks.$$name || missed="$$missed $$name"; \
	done; test -z "$$missed" || { echo "Missed a target:$$missed"; exit 1; }

# CIFAR-100 as well: make reproduce-small CIFAR100=DIR
reproduce-small: $(VENV)/.train
	$(BIN)/python -m benchmarks.reproduce_small $(if $(CIFAR100),--cifar100=$(CIFAR100))

# Fashion-MNIST of Debian's package, or: make reproduce-fashion FASHION=DIR
reproduce-fashion: $(VENV)/.train
	$(BIN)/python -m benchmarks.reproduce_fashion $(if $(FASHION),--fashion="$(FASHION)")

# Blood cells as COCO json: make reproduce-detection BCCD=DIR
reproduce-detection: $(VENV)/.test
	@test -n "$(BCCD)" || { echo "Say where BCCD lies: make reproduce-detection BCCD=DIR"; exit 64; }
	$(BIN)/python -m benchmarks.reproduce_detection --bccd="$(BCCD)"

reproduce-stability: $(VENV)/.train
	$(BIN)/python -m benchmarks.reproduce_stability

# The tagged Brown corpus, as unpacked: make reproduce-sparse BROWN=DIR
reproduce-sparse: $(VENV)/.train
	@test -n "$(BROWN)" || { echo "Say where the Brown corpus lies: make reproduce-sparse BROWN=DIR"; exit 64; }
	@$(BIN)/python -m pip install -q -c constraints.txt sentencepiece
	$(BIN)/python -m benchmarks.reproduce_sparse --brown="$(BROWN)"

# The 269-billion-parameter step for its pods, and every configuration for the pod that it names;
# nothing is run on a device. Minutes to an hour on two cores.
compile-32b: $(VENV)/.test
	$(BIN)/python -m benchmarks.compile_32b

compile-all: $(VENV)/.test
	$(BIN)/python -m launch.compile --all

# A table of each paper at its own scale, compiled for its pods and priced in chip hours.
compile-papers: $(VENV)/.test
	$(BIN)/python -m launch.reproduce --paper=aa --table=2 --scale=full --plan
	$(BIN)/python -m launch.reproduce --paper=sasa --table=6 --scale=full --plan
	$(BIN)/python -m launch.reproduce --paper=st_moe --figure=8 --scale=full --plan

# With the emitter of XLA that users have: tests/compiler.py.
AS_USERS := VITATTN_MOE_TEST_COMPILER=--xla_backend_optimization_level=0

soak: $(VENV)/.docs
	$(AS_USERS) $(BIN)/python -m pytest -n 2 --dist loadfile -m slow
	$(BIN)/python -m benchmarks.soak_resume

# The wheel and the source distribution, in dist/.
wheel: $(VENV)/.test
	rm -rf dist build
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'

# The wheel, installed by each of Python 3.11 to 3.13 that is here, and used from an empty folder.
wheel-check: $(VENV)/.test
	$(BIN)/python -m tests.wheel.check

# And the whole suite in the mode that Flax is moving to, with the emitter of XLA that users have.
nightly: soak wheel-check compile-papers
	NNX_GRAPH_MODE=false NNX_GRAPH_UPDATES=false \
	$(AS_USERS) $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

# Prints how many damaged files were refused and how many could still be read.
fuzz: $(VENV)/.test
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.fuzz.mutate --count=$(or $(COUNT),20000) --seed=$(or $(SEED),0)

# uv where it is installed, venv and pip where it is not.
$(VENV)/bin/python:
	@if command -v uv >/dev/null 2>&1; then uv venv $(VENV) --seed --python $(PYTHON); \
	else $(PYTHON) -m venv $(VENV); fi

comma := ,
# Elsewhere than on a Mac, the plain name would bring several gigabytes of CUDA along.
TORCH := torch==2.13.0$(if $(filter Darwin,$(shell uname)),,+cpu)

define install
	@if command -v uv >/dev/null 2>&1; then uv pip install -q --python $(BIN)/python -c constraints.txt -e '$(1)'; \
	else $(BIN)/python -m pip install -q -c constraints.txt -e '$(1)'; fi
	@touch $@
endef

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(call install,.[plots])

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(call install,.[plots$(comma)test])
	@$(BIN)/python -m pip install -q -c constraints.txt $(TORCH) >/dev/null 2>&1 || echo \
	    "pip finds no CPU build of torch, so tests against transformers are left out: install torch to run them."

$(VENV)/.docs: $(VENV)/.test
	$(call install,.[plots$(comma)test$(comma)docs])

$(VENV)/.bench: $(VENV)/.test
	$(call install,.[plots$(comma)test$(comma)bench])

$(VENV)/.text: $(VENV)/.test
	$(call install,.[plots$(comma)test$(comma)text])

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
