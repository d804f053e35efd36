# Everything a newcomer needs. A fresh machine needs Python 3.11, make and a C compiler.
PYTHON ?= python3
BIN := .venv/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" OMP_WAIT_POLICY=PASSIVE $(BIN)/python

# The pins stand in pyproject.toml alone; the project itself, and torch with it, stays out of that environment.
EXTRA_WORLD = $(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['world'])"

# Studies of an hour, or after one, which say how good an analysis is and not how fast a program; and what needs a GPU.
STUDIES := $(patsubst %,benchmarks/%.py,frontier calibration twin suspects habits gpu)

.PHONY: demo test test-slow test-slurm lint bench bench-sampler results clean

demo: .venv/ready .venv-world/ready  ## the whole chain on the sample world, about 18 minutes
	$(RUN) -m data_prep world configs/data_prep/tiny.yaml
	$(RUN) -m data_prep archive configs/data_prep/tiny.yaml
	$(RUN) -m data_prep shards configs/data_prep/tiny.yaml
	$(RUN) -m data_prep observe configs/data_prep/tiny.yaml
	$(RUN) -m train configs/train/tiny_autoencoder.yaml
	$(RUN) -m data_prep encode configs/data_prep/tiny.yaml
	$(RUN) -m train configs/train/tiny_score.yaml
	$(RUN) -m sample configs/sample/tiny.yaml
	$(RUN) -m sample verify configs/sample/tiny.yaml verify.wandb=offline

test: .venv/ready  ## the promises, fast ones, on two cores
	$(RUN) -m pytest -n 2 --dist loadfile

test-slow: .venv/ready .venv-world/ready  ## the promises that take long
	$(RUN) -m pytest -m slow

test-slurm: .venv/ready  ## the chain on a real SLURM of three nodes on this machine, with all that can happen to it
	$(RUN) -m pytest -m slurm

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: .venv/ready  ## speed claims, each with its own program
	set -e; for program in $(filter-out $(STUDIES),$(wildcard benchmarks/*.py)); do $(RUN) $$program; done

bench-sampler: .venv/ready  ## cost and accuracy of the samplers, an hour, after `make demo`
	$(RUN) benchmarks/frontier.py

# torch first and pinned: where there is no GPU a CPU build of that version is taken if pip knows one.
# azula, which tests compare with, without its dependencies: torchvision would bring another build of torch.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps azula
	touch $@

# The general circulation model has an environment of its own: its pins must not rule the training environment.
.venv-world/ready: pyproject.toml
	$(PYTHON) -m venv .venv-world
	.venv-world/bin/pip install --quiet $$($(EXTRA_WORLD))
	touch $@

# By name: a study's trial of minutes (--quick) has a folder beside it, and is no result.
RESULTS := $(wildcard $(patsubst %,runs/studies/%/results.md,fair paper))

results:  ## docs/results.md from the studies that were run
	@test -n "$(RESULTS)" || { echo "make results: no study was run here; docs/results.md stays as it is" >&2; exit 1; }
	(printf '# Results\n\nMade by `make results` from the studies that were run; a dash is a case that has not run yet.\n\n'; \
	cat $(RESULTS)) > docs/results.md.partial
	mv docs/results.md.partial docs/results.md

clean:
	rm -rf runs build *.egg-info
