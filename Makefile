# The directions of this house in one place; `make demo` and `make test` need nothing but Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
# What pip installs as torch. On Linux, PyPI's build carries CUDA (gigabytes); the CPU build is:
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch
PROMPT ?= a red circle moves up and a blue square moves to the right
OUTPUT ?= outputs/demo
WORKERS ?=

PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q
PINS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: demo test test-slow quality format train train-cogvideox evaluate evidence evidence-quick bench \
	comfyui thumbnails figures clean
.DEFAULT_GOAL := demo

# The stamps keep the setup from being repeated; it is done again when the requirements change.
$(VENV)/core.stamp: pyproject.toml $(CONSTRAINTS)
	@echo "Setting up $(VENV); this takes a few minutes, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(PINS) $(TORCH)
	$(PIP) $(PINS) -e ".[core]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	$(PIP) $(PINS) -e ".[dev]"
	touch $@

demo: $(VENV)/core.stamp
	$(BIN)/ttom generate "$(PROMPT)" --out "$(OUTPUT)"

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests -q -rs -m "not slow"

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests -q -rs

quality: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/core.stamp
	$(BIN)/python -m demo.train

# The demo model's sibling, which is shown the way by it: with FAST=1, for CPUs that have bf16, about an hour and a half on 4 cores.
train-cogvideox: $(VENV)/core.stamp
	$(BIN)/python -m demo.train_cogvideox $(if $(FAST),--compile --bfloat16)

evaluate: $(VENV)/core.stamp
	$(BIN)/ttom evaluate --result benchmarks/results/evaluate.json $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/python benchmarks/readme.py

# Every table of evidence and the page of all: 10,500 clips of 4 to 28 s on a core and the memories, 21 hours on 2
# cores, 11 on 4.
# Interrupted, it goes on from there; what other code, settings or another model made is made again.
evidence: $(VENV)/core.stamp
	$(BIN)/python benchmarks/evidence.py $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/python benchmarks/evidence.py cogvideox $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/python benchmarks/ablations.py all $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/python benchmarks/probe.py $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/python benchmarks/memory_quality.py $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/python benchmarks/memory_quality.py paper $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/python benchmarks/memory_quality.py fast --limit 210 $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/readme.py

# The same path but the memory's, in about 13 minutes on 2 cores, with too few prompts and steps to tell
# anything: outputs/evidence/quick.
evidence-quick: QUICK := --results outputs/evidence/quick $(if $(WORKERS),--workers $(WORKERS))
evidence-quick: $(VENV)/core.stamp
	$(BIN)/python benchmarks/evidence.py --limit 7 --steps 8 $(QUICK)
	$(BIN)/python benchmarks/evidence.py cogvideox --limit 7 --steps 8 $(QUICK)
	$(BIN)/python benchmarks/ablations.py all --limit 1 --steps 8 $(QUICK)
	$(BIN)/python benchmarks/probe.py --limit 1 $(QUICK)
	$(BIN)/python benchmarks/report.py --results outputs/evidence/quick --out outputs/evidence/quick/index.html

bench: $(VENV)/core.stamp
	$(BIN)/python benchmarks/single_object.py
	$(BIN)/python benchmarks/tto_cost.py
	$(BIN)/python benchmarks/planning/run.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/memory_quality.py
	$(BIN)/python benchmarks/memory_quality.py paper
	$(BIN)/python benchmarks/memory_quality.py fast --limit 210
	$(BIN)/python benchmarks/full_size.py
	$(BIN)/python benchmarks/readme.py

# These run a ComfyUI that is installed already: make comfyui COMFYUI_DIR=FOLDER [COMFYUI_PYTHON=ITS_PYTHON]
# FRONTENDS: those that are driven in a browser too (installed, or `static` folders); needs PLAYWRIGHT_CORE.
IN_COMFYUI = --comfyui "$(COMFYUI_DIR)" $(if $(COMFYUI_PYTHON),--python "$(COMFYUI_PYTHON)")

comfyui: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.comfyui $(IN_COMFYUI) $(if $(FRONTENDS),--frontends $(FRONTENDS))

thumbnails: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.thumbnails $(IN_COMFYUI)

figures: $(VENV)/core.stamp
	$(BIN)/python benchmarks/readme.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
