# Needs Python (3.10 or later) and make, and nothing else.
#
## make demo      distil the embedded digits and train classifiers on the result (minutes on two cores)
## make space     open a page on the pipelines in distilled/: draw a digit, generate, train
## make test      quality checks and all tests
## make style     format the code and fix what can be fixed
## make quality   check format, lint and types
## make clean     remove all that make has made, the virtual environment and the demo's run too
#
# The first of them makes .venv, which takes minutes and some 5 GB. PYTHON=python3.12 names another interpreter.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# One process on what there is, a GPU or every core that it may use: accelerate would leave a CPU with a single thread.
LAUNCH := $(BIN)/accelerate launch --quiet --num_machines 1 --num_processes 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $$($(BIN)/python -c "from dim_hf.machine import usable_cores; print(usable_cores())")

.PHONY: help demo space test pytest style quality clean chromium

help:
	@sed -n 's/^## //p' Makefile

$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev,privacy]"
	touch $@

# An interrupted demo goes on where it was.
demo: $(INSTALLED)
	$(LAUNCH) training/train_dim.py --output_dir out/demo --max_train_steps 1500 --validation_steps 500 \
		--resume_from_checkpoint latest
	$(LAUNCH) training/evaluate_dim.py --pipeline out/demo --classifiers convnet3 --ipc 10 --seeds 0 1 --epochs 300 --controls streamed random
	@echo 'pipeline out/demo, to be loaded with DiMPipeline.from_pretrained("out/demo")'

# DIM_PIPELINE=out/flowers DIM_DATASET=path/to/flowers make space shows another pipeline beside them.
space: $(INSTALLED)
	$(BIN)/python space/app.py

# The page is tested in Debian's chromium. Where this cannot install it, that test is skipped and says so.
chromium:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; fi || true

# Both at once: the types are checked by one core, and browser and tests begin where that leaves another idle.
test: $(INSTALLED)
	$(MAKE) --jobs 2 quality pytest

pytest: $(INSTALLED) chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv out/demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
