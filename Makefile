# segcft: `make help` lists the targets; EXPERIMENT=chest_phantom by default, ARGS="--trainer.max_steps=100" overrides.
EXPERIMENT ?= chest_phantom
ARGS ?=
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CONFIGS := experiments/$(EXPERIMENT)
RUNS := checkpoints/$(EXPERIMENT)
CLI := $(BIN)/segcft
export NO_ALBUMENTATIONS_UPDATE := 1
# Without cached bytecode every command spends half a minute importing.
export PYTHONDONTWRITEBYTECODE :=
# Steps are up to a sixth shorter where Debian's libtcmalloc-minimal4 is installed; `make LD_PRELOAD= ...` leaves it out.
export LD_PRELOAD ?= $(lastword $(wildcard $(addsuffix /libtcmalloc_minimal.so.4,/usr/lib/*-linux-gnu /usr/lib64)))

SEEDS ?=
STAGES := attributes segmentor evaluator regressor pretrain nocft regcft segcft evaluate
CONFOUNDED := segmentor_confounded regressor_confounded regcft_confounded segcft_confounded
STUDY = $(CLI) study $(EXPERIMENT)

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-slow docs all demo bench benchmark tensorboard app clean $(STAGES) $(CONFOUNDED)

help:  ## List the targets
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 22
	@echo; echo "EXPERIMENT=$(EXPERIMENT); others: $(filter-out slurm,$(notdir $(wildcard experiments/*)))"

setup: $(READY)  ## Create .venv with pinned packages and the project, editable; nothing to do when done

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segcft needs Python 3.11 or newer, not " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

lint: $(READY)  ## ruff (lint and format), mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY)  ## Fast suite
	$(BIN)/pytest

test-slow: $(READY)  ## The rest: training and end-to-end runs
	$(BIN)/pytest -m slow

docs: $(READY)  ## The site, in build/site; every link is checked
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# A stage that another one needs is trained before it if it is missing; segcft study --help says more.
attributes: $(READY)  ## Fit how the variables cause each other
segmentor: $(READY)  ## Train the judge of Seg-CFT
evaluator: $(READY)  ## Train the independent judge of the results
regressor: $(READY)  ## Train the judge of Reg-CFT
pretrain: $(READY)  ## Train the HVAE
nocft: $(READY)  ## Baseline without guidance
regcft: $(READY)  ## Fine-tune under the regressor
segcft: $(READY)  ## Fine-tune under the segmentor
evaluate: $(READY)  ## Compare the methods: metrics.json, table.md, figure.png under results/EXPERIMENT
segmentor_confounded: $(READY)  ## Train a judge of Seg-CFT on correlated areas (chest phantom)
regressor_confounded: $(READY)  ## Train a judge of Reg-CFT on correlated areas (chest phantom)
regcft_confounded: $(READY)  ## Fine-tune under regressor_confounded
segcft_confounded: $(READY)  ## Fine-tune under segmentor_confounded
$(STAGES) $(CONFOUNDED):
	$(STUDY) --stages $@ $(ARGS)

all: $(READY)  ## Every stage of EXPERIMENT, two at a time, then evaluate
	@$(STUDY) $(ARGS)

demo: $(READY)  ## All of the chest phantom: about 12 minutes on 2 cores
	@$(MAKE) --no-print-directory all EXPERIMENT=chest_phantom

benchmark: $(READY)  ## Every method with several SEEDS="0 1 2", two stages at a time; goes on where it stopped; docs/results/
	$(STUDY) --seeds $(SEEDS) $(ARGS)

bench: $(READY)  ## Speed of training, fine-tuning and answering, on this machine; ARGS="--against PATH --device cuda"
	$(BIN)/python -m benchmarks.speed $(ARGS)

tensorboard: $(READY)  ## Watch the experiment's runs
	$(BIN)/tensorboard --logdir logs/$(EXPERIMENT) --host 127.0.0.1

app: $(READY)  ## Change test images of EXPERIMENT by sliders, in a browser at http://127.0.0.1:7860
	$(CLI) serve $(RUNS)/segcft/last.ckpt --config $(CONFIGS)/data.yaml $(ARGS)

clean:  ## Remove caches; checkpoints, logs and results stay
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
