# Every command a person types. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
URL ?=

# python3 if it will do, else a newer or older one by name.
CANDIDATES := $(PYTHON) $(if $(PYTHON),,python3 python3.13 python3.12 python3.11)
RIGHT_VERSION := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
FIND_PYTHON = for p in $(CANDIDATES); do $$p -c '$(RIGHT_VERSION)' 2>/dev/null && echo $$p && break; done

# TensorFlow has glibc hand freed memory back at once, and arrays of some size have pages of their
# own; much of a training's processor time goes into getting them again. Let it keep 512 MiB, and
# give no array its own pages; elsewhere than on glibc this does nothing.
book test test-own-data tune results: export MALLOC_TOP_PAD_ := 536870912
book test test-own-data tune results: export MALLOC_MMAP_MAX_ := 0

.PHONY: help book test test-own-data serve tune results bench lint clean data requirements set-repository \
        test-colab test-backends scale

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

book: $(INSTALLED) data ## every chapter executed, pages in _build/html
	@# A build that failed leaves pages and an environment that the next one would take for good
	@# (jupyter-book 1.0.4 then reports success). So only a finished build is built upon.
	@test -f _build/finished || rm -rf _build/html _build/.doctrees
	@rm -f _build/finished
	$(BIN)/jupyter-book build . -W -n --keep-going
	@touch _build/finished

test: $(INSTALLED) data ## the tests of the package, the chapters and, once they are built, the pages
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/test_book.py
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/test_book.py

test-own-data: $(INSTALLED) data ## every chapter on logs that are not MovieLens's; half an hour
	$(BIN)/python -m pytest -n 2 tests/chapters_on_own_data.py

serve: $(INSTALLED) data ## a short training, unless there was one, then http://127.0.0.1:8000/docs
	@ls -d _build/versions/[0-9]* >/dev/null 2>&1 || $(BIN)/python -m recsys_helpers.versions _build/versions
	$(BIN)/python -m recsys_helpers.service _build/versions

tune: $(INSTALLED) data ## try other parameters, what isn't tried yet; in several terminals at once, if you like
	$(BIN)/python results/tune.py

results: $(INSTALLED) data ## run what is not recorded in results/, and rewrite the README's table
	$(BIN)/python results/run.py

bench: $(INSTALLED) ## measure speed again, for the chapter on it; keep the machine idle
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/softmax.py
	$(BIN)/python benchmarks/epoch_end.py
	folder=$$(mktemp -d); $(BIN)/python benchmarks/retrieval_vectors.py $$folder/vectors.npz \
	  && for what in build ""; do $(BIN)/python benchmarks/retrieval.py $$folder/vectors.npz $$folder $$what \
	  || break; done; rm -r $$folder
	$(BIN)/python benchmarks/epoch.py
	$(BIN)/python benchmarks/large_log.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/serving_faults.py
	$(BIN)/python benchmarks/serving_filters.py

lint: $(INSTALLED) ## ruff, as CI runs it
	$(BIN)/ruff check
	$(BIN)/ruff format --check

data: $(INSTALLED)
	@$(BIN)/python -c 'from recsys_helpers.datasets import load_dataset; load_dataset("ml-100k")'

set-repository: $(INSTALLED) ## URL=https://github.com/you/it: badges and install cells point there
	$(BIN)/python book/repository.py $(URL)

test-colab: ## package and chapters with Colab's versions, on Python 3.13
	@python="$(or $(PYTHON),python3.13)"; $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' \
	  || { echo "Colab has Python 3.13; '$$python' isn't it. Try: make test-colab PYTHON=/path/to/python3.13"; exit 1; }; \
	  $$python -m venv $(VENV)-colab
	$(VENV)-colab/bin/python -m pip install --quiet -e '.[test,serve]' nbclient ipykernel ipywidgets papermill -c requirements-colab.txt
	$(VENV)-colab/bin/python -m pytest
	cd notebooks && for chapter in *.ipynb; do \
	  echo $$chapter; ../$(VENV)-colab/bin/jupyter execute --timeout=900 $$chapter || exit 1; done

KERAS_TESTS := $(patsubst %,tests/test_%.py,layers towers samples sampled_softmax two_tower callbacks)
test-backends: $(INSTALLED) ## the tests of layers and models on JAX and PyTorch, all three compared
	$(BIN)/python -m venv $(VENV)-backends
	$(VENV)-backends/bin/python -m pip install --quiet -r requirements.txt -r requirements-backends.txt
	for backend in jax torch; do echo "== $$backend"; \
	  KERAS_BACKEND=$$backend $(VENV)-backends/bin/python -m pytest $(KERAS_TESTS) || exit 1; done
	$(VENV)-backends/bin/python -m pytest tests/test_backends.py

SCALE := $(VENV)-scale
scale: ## training, encoding and vectors beyond one process; three minutes
	@python="$$($(FIND_PYTHON))"; "$${python:?Python 3.11, 3.12 or 3.13 is needed}" -m venv $(SCALE)
	$(SCALE)/bin/python -m pip install --quiet -r requirements.txt -r requirements-scale.txt
	$(SCALE)/bin/python -m pytest tests/test_scale.py tests/test_scale_training.py

COMPILE := $(VENV)-uv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
  --no-header --no-emit-index-url --no-emit-find-links pyproject.toml
requirements: $(INSTALLED) ## resolve requirements*.txt anew from pyproject.toml
	$(BIN)/python -m venv $(VENV)-uv && $(VENV)-uv/bin/pip install --quiet uv
	set -eo pipefail; { printf '%s\n' '# Everything the book, its tests and its CI install, on Python 3.11 to 3.13.' \
	  '# Resolved from pyproject.toml by `make requirements`; pip alone installs it.'; \
	  $(COMPILE) --extra book --extra test --extra serve | grep -v pypy; \
	  printf '%s\n' '-e .'; } > requirements.new
	mv requirements.new requirements.txt
	grep -v '^-e' requirements.txt > $(VENV)-uv/everyday.txt
	set -eo pipefail; { printf '%s\n' '# Beside requirements.txt: the extra `scale`. `make scale` installs both.'; \
	  $(COMPILE) --extra scale -c $(VENV)-uv/everyday.txt | grep -v pypy \
	  | grep -vxFf requirements.txt; } > requirements.new
	mv requirements.new requirements-scale.txt; rm -rf $(VENV)-uv

clean: ## remove what was built, not the environment nor the data
	rm -rf _build .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)*' -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt pyproject.toml
	@python="$$($(FIND_PYTHON))"; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11, 3.12 or 3.13 is needed; none found among: $(CANDIDATES)." \
	    "Install one, or say where it is: make PYTHON=/path/to/python3.12"; exit 1; fi; \
	$$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
