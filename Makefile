# make quickstart   distil a small ViT from the packaged teacher, and watch it
# make test         the tests (minutes); make test-slow has the rest of them
# make lint         ruff, mypy, hadolint, shellcheck, and the schemas of .github/ and CITATION.cff
# make format       ruff's formatter
# make bench        speed, as ratios
# make gpu-check    what one CUDA GPU says of this project, in eight minutes; no network, no weights
# make study        the study on Fashion-MNIST, from teachers to tables and text: half a day; it goes on where it was stopped
# make lock         resolve the locked dependencies anew (needs uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: quickstart test test-slow lint format bench gpu-check study lock

quickstart: $(VENV)/installed
	$(BIN)/python -m distill_dynamics fit --config configs/quickstart.yaml

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck .ci/run docker/*.sh docker/*/*.sh docker/*/*.sbatch
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/installed-dev
	$(BIN)/python tests/benchmarks/bench.py
	$(BIN)/python tests/benchmarks/bench_data.py

gpu-check: $(VENV)/installed
	$(BIN)/python tests/gpu/check.py $(GPU_CHECK)

study: $(VENV)/installed-dev
	$(BIN)/python notebooks/study/run.py
	$(BIN)/python notebooks/study/tables.py
	$(BIN)/python notebooks/study/figures.py
	$(BIN)/python notebooks/study/write_up.py
	$(BIN)/python -m distill_dynamics report notebooks/study/results/*-* --out runs/study/report.html

# Locked and hashed: what is installed is what was tested. The project itself is installed editable.
$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar on --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	$(BIN)/python -m pip install --quiet --progress-bar on --require-hashes -r requirements-dev.lock
	touch $@

UV_COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet
# The larger set first: what its extras cannot live with must not be pinned for everyone. Streaming is in both, since
# the image is made of the smaller one: it adds 47 MB to some 5 GB.
lock:
	$(UV_COMPILE) --extra build --extra dashboard --extra export --extra notebooks --extra streaming --extra dev --output-file requirements-dev.lock
	$(UV_COMPILE) --extra build --extra streaming --constraint requirements-dev.lock --output-file requirements.lock
