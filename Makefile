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
CONFOUNDED := segmentor_confounded regressor_confounded regcft_confounded segcft_confounded
STAGES := attributes segmentor evaluator regressor pretrain nocft regcft segcft $(CONFOUNDED)
# X_confounded.yaml says only in what it differs from X.yaml, which is read before it.
FIT = $(CLI) fit $(foreach name,data $(@:_confounded=) $(filter $(CONFOUNDED),$@),--config $(CONFIGS)/$(name).yaml) $(ARGS)
# $(call needs,stage): stop with the command that makes a missing checkpoint
needs = @test -f $(RUNS)/$(1)/last.ckpt || { echo "$(RUNS)/$(1)/last.ckpt is missing: run 'make $(1) EXPERIMENT=$(EXPERIMENT)' first" >&2; exit 2; }

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-slow docs all demo evaluate bench benchmark tensorboard app clean $(STAGES)

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

attributes: $(READY)  ## Fit how parents cause each other
	$(FIT)

segmentor: $(READY)  ## Train the judge of Seg-CFT
	$(FIT)

evaluator: $(READY)  ## Train the independent judge of the results
	$(FIT)

regressor: $(READY)  ## Train the judge of Reg-CFT
	$(FIT)

pretrain: $(READY)  ## Train the HVAE
	$(FIT)

nocft: $(READY)  ## Baseline without guidance
	$(call needs,pretrain)
	$(FIT)

regcft: $(READY)  ## Fine-tune under the regressor
	$(call needs,pretrain)
	$(call needs,regressor)
	$(FIT)

segcft: $(READY)  ## Fine-tune under the segmentor
	$(call needs,pretrain)
	$(call needs,segmentor)
	$(FIT)

segmentor_confounded: $(READY)  ## Train a judge of Seg-CFT on correlated areas (chest phantom)
	$(FIT)

regressor_confounded: $(READY)  ## Train a judge of Reg-CFT on correlated areas (chest phantom)
	$(FIT)

regcft_confounded: $(READY)  ## Fine-tune under regressor_confounded
	$(call needs,pretrain)
	$(call needs,regressor_confounded)
	$(FIT)

segcft_confounded: $(READY)  ## Fine-tune under segmentor_confounded
	$(call needs,pretrain)
	$(call needs,segmentor_confounded)
	$(FIT)

evaluate: $(READY)  ## Compare the methods: metrics.json, table.md, figure.png under results/EXPERIMENT
	$(call needs,evaluator)
	$(call needs,nocft)
	$(call needs,regcft)
	$(call needs,segcft)
	$(CLI) evaluate --config $(CONFIGS)/data.yaml --config $(CONFIGS)/evaluate.yaml $(ARGS)

# One thread a stage and two stages at once use two cores better than two threads; TERM=dumb: lines, no moving bars.
all: $(READY)  ## Every stage of EXPERIMENT, two at a time, then evaluate
	@OMP_NUM_THREADS=1 TERM=dumb $(BIN)/python -m benchmarks.pipeline $(EXPERIMENT)

demo: $(READY)  ## All of the chest phantom: about 12 minutes on 2 cores
	@$(MAKE) --no-print-directory all EXPERIMENT=chest_phantom

benchmark: $(READY)  ## Every method with several SEEDS="0 1 2", two stages at a time; goes on where it stopped; docs/results.md
	$(BIN)/python -m benchmarks.study $(EXPERIMENT) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

bench: $(READY)  ## Speed of training, fine-tuning and answering, on this machine; ARGS="--against PATH --device cuda"
	$(BIN)/python -m benchmarks.speed $(ARGS)

tensorboard: $(READY)  ## Watch the experiment's runs
	$(BIN)/tensorboard --logdir logs/$(EXPERIMENT) --host 127.0.0.1

app: $(READY)  ## Pull test images of EXPERIMENT by sliders, in a browser at http://127.0.0.1:7860
	$(call needs,segcft)
	$(CLI) serve $(RUNS)/segcft/last.ckpt --config $(CONFIGS)/data.yaml $(ARGS)

clean:  ## Remove caches; checkpoints, logs and results stay
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
