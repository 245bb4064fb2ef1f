# The front door. `make` lists what there is; every job is one line that calls `python -m jobs NAME …`.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
MODEL ?= 8b
ARGS ?=

READY := .venv/.ready
JOBS := .venv/bin/python -m jobs

# RUN is a name below runs/, or a path.
run = $(if $(filter runs/% ./% /%,$(RUN)),$(RUN),runs/$(RUN))

# Where: on a cluster NODES nodes for TIME, SITE being a profile of sbatch/clusters; without Slurm, here.
place = $(NODES:%=nodes=%) $(TIME:%=time=%) $(SITE:%=site=%)

# $(call recipe,NAME): RECIPE where it is given, else the recipe NAME of MODEL; then RUN and ARGS as overrides.
recipe = $(or $(RECIPE),jobs/recipes/$(MODEL)/$(1).yaml) $(if $(RUN),name=$(notdir $(RUN:%/=%)) output=$(run)) $(place) $(ARGS)

# What the data steps read and how: SOURCE in the layout FORMAT, packs of SEQ tokens, shared by RANKS processes; with
# TOPK concepts a sample.
data = $(SOURCE:%=data.source=%) $(FORMAT:%=data.format=%) $(SEQ:%=data.sequence_length=%) $(RANKS:%=ranks=%) \
  $(TOPK:%=concepts.top_k=%)

# A stage-0 checkpoint is made of LANGUAGE=dir (Qwen3) and VISION=dir (RICE-ViT), or of EXPORTED=dir.
weights = $(LANGUAGE:%=language=%) $(VISION:%=vision=%) $(EXPORTED:%=exported=%)

comma := ,
space := $(subst ,, )

# The Python of gpu-check: the one that is named, else that of .venv, else python3. A machine with a GPU has its PyTorch
# already; nothing is installed for it.
gpu_python = $(if $(filter file default undefined,$(origin PYTHON)),$(or $(wildcard .venv/bin/python),$(PYTHON)),$(PYTHON))

ifneq ($(filter resume eval chat report export release logs samples cancel,$(MAKECMDGOALS)),)
ifndef RUN
$(error $(MAKECMDGOALS) needs RUN=name; runs/ holds: $(or $(filter-out log,$(notdir $(patsubst %/,%,$(wildcard runs/*/)))),nothing))
endif
endif

##@ Start here

help:  ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n\033[1m%s\033[0m\n", substr($$0, 5); next } \
	  /^[a-z0-9_-]+:.*## / { printf "  \033[36m%-16s\033[0m %s\n", $$1, $$2 } \
	  /^#\? / { print substr($$0, 4) }' $(MAKEFILE_LIST) | \
	  if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9;]*m//g'; fi

setup: $(READY)  ## make .venv from envs/cpu.lock (the other targets do it when it is needed)
	@echo ".venv is ready"

demo: $(READY)  ## the whole pipeline on this machine, ending in runs/demo/report.html
	@$(JOBS) demo $(ARGS)

test: $(READY)  ## all tests
	@.venv/bin/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadscope --no-loadscope-reorder --durations=15 $(PYTEST_ARGS)

##@ Data

corpus: $(READY)  ## records and images -> shards and corpus.h5
	@$(JOBS) corpus $(call recipe,stage1_5) $(data)

vocabulary: $(READY)  ## names of concepts -> concepts.txt and their embeddings
	@$(JOBS) vocabulary $(call recipe,stage1_5) $(data)

concepts: $(READY)  ## the TOPK concepts of every sample -> concepts.h5
	@$(JOBS) concepts $(call recipe,stage1_5) $(data)

balance: $(READY)  ## weights and a seeded draw of SAMPLES (85M) -> a new corpus index over the same shards
	@$(JOBS) balance $(call recipe,stage1_5) $(data) $(SAMPLES:%=samples=%)

concepts-report: $(READY)  ## text and report.html: coverage before and after, the tail, per source
	@$(JOBS) concepts-report $(call recipe,stage1_5) $(data)

pack: $(READY)  ## corpus, or what was drawn of it -> packs.h5
	@$(JOBS) pack $(call recipe,stage1_5) $(data)

pack-report: $(READY)  ## text and packs' report.html: histograms, fill, compression, cost balance
	@$(JOBS) pack-report $(call recipe,stage1_5) $(data)

##@ Training

plan: $(READY)  ## predicted memory and step time of every layout on GPUS=128 GPU=a800|h100|h200
	@$(JOBS) plan $(call recipe,stage1_5) $(GPUS:%=gpus=%) $(GPU:%=gpu=%) $(CALIBRATION:%=calibration=%)

init: $(READY)  ## stage-0 checkpoint with random weights
	@$(JOBS) init $(call recipe,stage0)

import: $(READY)  ## stage-0 checkpoint of Hugging Face directories: LANGUAGE=dir VISION=dir, or EXPORTED=dir
	@$(JOBS) import $(call recipe,stage0) $(weights)

stage1: $(READY)  ## stage 1: the adapter learns to join vision and language
	@$(JOBS) train $(call recipe,stage1)

stage1_5: $(READY)  ## stage 1.5: all parts learn from the concept-balanced corpus
	@$(JOBS) train $(call recipe,stage1_5)

stage2: $(READY)  ## stage 2: all parts learn to follow instructions
	@$(JOBS) train $(call recipe,stage2)

resume: $(READY)  ## continue the run RUN from its last complete checkpoint, on any NODES
	@$(JOBS) resume $(run) $(place) $(ARGS)

pipeline: $(READY)  ## all steps, each a job that waits for those before it: records -> exported model
	@$(JOBS) pipeline $(or $(RECIPE),jobs/recipes/$(MODEL)) $(weights) $(place) $(RANKS:%=ranks=%) $(ARGS)

status: $(READY)  ## every run, or RUN: state, nodes, step, loss, tokens/s, ETA, restarts, why it waits
	@$(JOBS) status $(if $(RUN),$(run)) $(ARGS)

logs: $(READY)  ## what RUN prints
	@$(JOBS) logs $(run) $(ARGS)

samples: $(READY)  ## samples of STEP of RUN; without STEP: did every step have those planned?
	@$(JOBS) samples $(run) $(STEP:%=step=%) $(ARGS)

cancel: $(READY)  ## end the job of RUN, saved
	@$(JOBS) cancel $(run) $(ARGS)

parallel-check: $(READY)  ## every parallel layout against one process, and runs that go on in another layout
	@.venv/bin/python -m benchmarks.parallel $(ARGS)

fault-check: $(READY)  ## kill, freeze, damage and fill up real training runs on this machine: nothing may be lost
	@.venv/bin/python -m benchmarks.faults $(ARGS)

##@ Results

eval: $(READY)  ## RUN on its held-out questions, or on TASKS=a,b of lmms-eval: STEP=n, MODEL_CLASS=onevision_exported
	@$(JOBS) evaluate $(run) $(if $(TASKS),tasks=$(subst $(space),$(comma),$(strip $(TASKS)))) $(STEP:%=step=%) $(MODEL_CLASS:%=model=%) $(place) $(ARGS)

chat: $(READY)  ## ask RUN about images, in the terminal; WEB=1: on a page at 127.0.0.1
	@$(JOBS) chat $(run) $(STEP:%=step=%) $(if $(WEB),web=true) $(ARGS)

report: $(READY)  ## report.html of RUN
	@$(JOBS) report $(run) $(place) $(ARGS)

export: $(READY)  ## Hugging Face directory of RUN (STEP): TO=dir, and its logits in other loaders: PARITY=yes|no
	@$(JOBS) export $(run) $(STEP:%=step=%) $(TO:%=to=%) $(PARITY:%=parity=%) $(place) $(ARGS)

release: $(READY)  ## bundle of RUN (STEP) for others: weights, recipes, lineage, data manifests, logs, model card: TO=dir
	@$(JOBS) release $(run) $(STEP:%=step=%) $(TO:%=to=%) $(place) $(ARGS)

verify-release: $(READY)  ## is the bundle DIR what its manifest says? A line for each file that is not; exit code 3
	@$(JOBS) verify-release $(or $(DIR),$(error verify-release needs DIR=folder of a bundle))

consumers: $(READY)  ## make .venv-consumers: other loaders of exported folders, from envs/consumers-*.lock
	@bash envs/consumers.sh

export-check: consumers  ## every loader against the checkpoint, memory and bandwidth of export and import: FOLDER=dir
	@.venv/bin/python -m benchmarks.export $(FOLDER:%=folder=%) $(ARGS)

eval-check: $(READY)  ## three ways of asking the same questions agree; kill -9 keeps answers; exceptions are counted
	@.venv/bin/python -m benchmarks.evaluation $(ARGS)

##@ Slurm

slurm-up:  ## a real Slurm of 16 nodes x 8 GPUs (fake devices) on this machine; needs root
	@bash sbatch/localcluster/cluster.sh up

slurm-down:  ## end it
	@bash sbatch/localcluster/cluster.sh down

slurm-check: $(READY)  ## disturb real jobs in every way there is, and show that nothing is lost
	@.venv/bin/python -m benchmarks.slurm $(ARGS)

scripts: $(READY)  ## write the plain sbatch scripts of sbatch/ anew
	@$(JOBS) scripts

##@ GPU

cuda: $(READY)  ## build the ops of cuda/ for this machine's GPU, or their CPU twins, into cuda/build
	@$(JOBS) cuda

cuda-check: $(READY)  ## without a GPU: compile for A800 and H100, run the kernels' source on the CPU
	@$(JOBS) cuda-check

gpu-check:  ## on any GPU: correctness of every op, training parity, benchmarks, and a report; goes on where it was ended: OUT=dir SECONDS=n ONLY=a,b AGAIN=a,b
	@PYTHONPATH="src:.$${PYTHONPATH:+:$$PYTHONPATH}" $(gpu_python) -m jobs gpu-check $(OUT:%=out=%) $(SECONDS:%=seconds=%) \
	  $(ONLY:%=only=%) $(AGAIN:%=again=%) $(ARGS)

##@ Benchmarks

bench: $(READY)  ## throughput of stage 1, 1.5 and 2 of MODEL on NODES, beside peers: table, JSON, plot
	@$(JOBS) bench model=$(MODEL) $(place) $(OUT:%=out=%) $(ARGS)

bench-packing: $(READY)  ## the solver and its packs at 85M samples, beside peers
	@.venv/bin/python -m benchmarks.packing $(ARGS)

bench-concepts: $(READY)  ## concept search, and the balance of 85M samples, beside peers
	@.venv/bin/python -m benchmarks.concepts $(ARGS)

bench-data: $(READY)  ## images, lengths and the loader, beside peers
	@.venv/bin/python -m benchmarks.data $(ARGS)

bench-generation: $(READY)  ## tokens/s of answers, with a KV cache and without
	@.venv/bin/python -m benchmarks.generation $(ARGS)

bench-ops: $(READY)  ## the ops of cuda/ on this machine's GPU, beside its bandwidth
	@.venv/bin/python -m benchmarks.ops $(ARGS)

##@ Development

test-fast: $(READY)  ## the tests that take a moment, until the first failure
	@.venv/bin/python -m pytest -m "not slow" --exitfirst $(PYTEST_ARGS)

lint: $(READY)  ## ruff and mypy
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m mypy

clean-demo:  ## remove what the demo made
	rm -rf runs/demo

#? 
#? Settings   MODEL=8b|4b|tiny   RECIPE=file.yaml   RUN=name   ARGS="key=value ..."   PYTHON=python3.11
#? Slurm      NODES=16   TIME=1-00:00:00   SITE=a profile in sbatch/clusters (found by itself where it knows the cluster)
#? Example    make stage1_5 MODEL=4b RUN=first NODES=16 ARGS="optimizer.lr=2e-5"

# An environment that was copied along with the folder still points to the old place: make it anew.
ifneq ($(wildcard $(READY)),)
ifneq ($(shell cat $(READY)),$(CURDIR))
.PHONY: $(READY)
endif
endif

$(READY): envs/cpu.lock envs/setup.sh pyproject.toml
	@bash envs/setup.sh "$(PYTHON)"

.PHONY: help setup demo test corpus vocabulary concepts balance concepts-report pack pack-report plan init import \
  stage1 stage1_5 stage2 resume pipeline status logs samples cancel eval eval-check chat report export release verify-release consumers export-check slurm-up slurm-down slurm-check scripts \
  parallel-check fault-check cuda cuda-check gpu-check \
  bench bench-packing bench-concepts bench-data bench-generation bench-ops test-fast lint clean-demo
