# Everything a checkout needs, with nothing but Python 3.11 or later, pip, make and git.
#
#   make demo     convert a synthetic LUND-PROBE into .demo and show what can be done with it
#   make test     run the tests            make check   run linters, types, docs
#   make test-fast                         run the fast tier of the tests
#   make clouds   install what the tests of GCS and Azure need; the latter with npm
#   make coverage                          run the tests and report what they cover
#   make mutation                          test the tests of the pure cores by mutants
#   make test-oldest-datasets              run the Hugging Face tests on the oldest datasets
#   make test-nnunet                       have the real nnU-Net read what is exported to it
#   make test-nightly                      run the tests on pre-releases; may fail
#   make check-page                        check the page's modules, where node is there
#   make ome-readers                       read OME-Zarr with zarrita, where node and npm are there
#   make screenshots                       draw the pictures of the page in docs/images
#   make docs     build the site           make tutorials  execute the tutorials
#   make tour     draw the terminal's tour  make changelog  gather fragments under a version
#   make bench    run the benchmarks       make format  format the code
#   make audit-dependencies                ask for known vulnerabilities of what `serve` runs on
#   make clean    remove what these make

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Installed anew only when pyproject.toml changes.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_DOCS := $(VENV)/.installed-docs
# More than two cores' worth of tests at once, since many wait for a server or a pause.
WORKERS ?= 3
# For the tests of torch datasets, on Python 3.11; with others they run if torch is there already.
TORCH ?= torch==2.13.0
MINIMUM := $(VENV)/minimum
NIGHTLY := $(VENV)/nightly
NNUNET := $(VENV)/nnunet
NNUNETV2 ?= nnunetv2==2.8.1
# More options of pip for test-nightly, such as an index of nightly wheels.
NIGHTLY_PIP ?=
PRERELEASES := numpy scipy pandas pyarrow zarr numcodecs xarray dask distributed fsspec s3fs \
  datasets duckdb nibabel pydantic
# The fast tier: tests of pure functions, and one way through each room.
FAST := $(addprefix tests/,test_public_api.py vocabulary geometry schema storage stores dataset sql \
  cohort patches conversion/test_roundtrip.py conversion/test_store_contract.py \
  conversion/test_values_rules.py conversion/test_measure_rules.py labelled/test_labelled_crop.py \
  stream/test_stream.py huggingface/test_hf_rows.py phantom/test_phantom_files.py \
  figures/test_preview.py::test_saves_a_png_and_leaves_nothing_else cli/test_catalog.py \
  anywhere/test_damage.py)
BENCHMARKS := $(filter-out __init__ record,$(basename $(notdir $(wildcard benchmarks/*.py))))

PAGE_TYPESCRIPT ?= typescript@5.9.3
ZARRITA ?= zarrita@0.7.5 @zarrita/storage@0.2.0
AZURITE ?= azurite@3

.PHONY: demo test test-fast clouds test-minimum test-nnunet test-nightly test-oldest-datasets \
  coverage mutation check audit-dependencies bench format clean check-page ome-readers screenshots \
  docs tutorials tour changelog

demo: $(INSTALLED)
	$(BIN)/lundprobe-zarr demo .demo

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

clouds: $(INSTALLED_DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[clouds]'
	@if command -v npm > /dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix build/azurite '$(AZURITE)'; \
	else echo "clouds: without npm there is no emulator of Azure"; fi

test-fast: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(FAST) $(PYTEST_ARGS)

# Branches too, and what subprocesses run; fails below the share that pyproject.toml sets.
coverage: $(INSTALLED_DEV)
	rm -rf build/coverage
	mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# For developers, not for continuous integration: see docs/testing.md.
mutation: $(INSTALLED_DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'cosmic-ray>=8.7'
	$(BIN)/python scripts/mutation.py --jobs $(WORKERS) --at-least 85 $(MUTATION_ARGS)

check: $(INSTALLED_DEV) audit-dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/one_tree.py > /dev/null
	cd build/tree && $(CURDIR)/$(BIN)/mypy --show-traceback \
	  --config-file $(CURDIR)/pyproject.toml
	cd build/tree && $(CURDIR)/$(BIN)/lint-imports $(CURDIR)/pyproject.toml --no-cache
	$(BIN)/python scripts/check_links.py
	$(BIN)/codespell
	$(BIN)/python scripts/generate_docs.py --check

# Types of the page's modules; no part of the package, which needs no node.
check-page:
	@if command -v npx > /dev/null; then \
	  npx --yes --package $(PAGE_TYPESCRIPT) tsc --project scripts/page.tsconfig.json; \
	else echo "check-page: skipped, there is no npx here"; fi

# Other readers of OME-Zarr were tried by hand: see docs/ome-zarr.md.
ome-readers: $(INSTALLED_DEV)
	@if command -v npm > /dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix build/zarrita $(ZARRITA) && \
	  ZARRITA_MODULES=$(CURDIR)/build/zarrita/node_modules \
	    $(BIN)/python -m pytest tests/conversion/test_ome_readers.py; \
	else echo "ome-readers: skipped, there is no npm here"; fi

# Needs Chromium, and `pip install playwright`.
screenshots: $(INSTALLED_DEV)
	$(BIN)/python scripts/page_screenshots.py

# Terminal and page, as README and site show them; tests compare what the terminal shows.
tour: $(INSTALLED_DEV)
	$(BIN)/python scripts/tour.py
	$(BIN)/python scripts/page_screenshots.py

# The site, in build/site: warnings are errors, and nothing is fetched from another host.
docs: build/tutorials/.made $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python scripts/check_site.py

tutorials:
	rm -f build/tutorials/.made
	$(MAKE) build/tutorials/.made

build/tutorials/.made: $(wildcard docs/tutorials/*.py) scripts/run_tutorials.py $(INSTALLED_DOCS)
	$(BIN)/python scripts/run_tutorials.py
	@touch $@

# make changelog VERSION=0.3.0
changelog: $(INSTALLED)
	$(BIN)/python scripts/changelog.py $(VERSION)

# Fails on a known vulnerability of what others reach over the network; says so where it cannot ask.
audit-dependencies: $(INSTALLED_DEV)
	$(BIN)/python scripts/audit_dependencies.py

# The Hugging Face tests on the oldest datasets that pyproject.toml allows, and the oldest
# huggingface_hub that this one allows, which go, with all they need, before what is installed.
test-oldest-datasets: $(INSTALLED_DEV)
	rm -rf $(VENV)/oldest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --target $(VENV)/oldest "datasets==$$(sed -n 's/.*"datasets>=\([0-9.]*\)".*/\1/p' pyproject.toml)" 'huggingface_hub==0.25.0'
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -c "import datasets; print('datasets', datasets.__version__)"
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/huggingface \
	  tests/service/test_hub_clients.py tests/service/test_hub_url.py $(PYTEST_ARGS)

# All tests on the oldest versions that pyproject.toml allows, in an environment beside. That those
# warn of newer companions is no error.
test-minimum:
	$(PYTHON) -m venv --clear $(MINIMUM)
	$(MINIMUM)/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(MINIMUM)/bin/python scripts/minimum_versions.py > $(MINIMUM)/constraints.txt
	$(MINIMUM)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(MINIMUM)/constraints.txt --editable '.[dev]'
	PATH="$(CURDIR)/$(MINIMUM)/bin:$$PATH" $(MINIMUM)/bin/python -m pytest -n $(WORKERS) \
	  --dist worksteal -W default $(PYTEST_ARGS)

# nnU-Net asks for much, so it is installed in an environment beside, and run as a user does.
test-nnunet: $(INSTALLED_DEV)
	$(PYTHON) -m venv --clear $(NNUNET)
	$(NNUNET)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' '$(NNUNETV2)'
	PATH="$(CURDIR)/$(NNUNET)/bin:$$PATH" $(BIN)/python -m pytest tests/exchange/test_nnunet_peer.py \
	  -rs $(PYTEST_ARGS)

# All tests on pre-releases of what we build on, in an environment beside. What fails there is news
# and no error of ours yet: the target succeeds all the same.
test-nightly:
	$(PYTHON) -m venv --clear $(NIGHTLY)
	$(NIGHTLY)/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(NIGHTLY)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	-$(NIGHTLY)/bin/python -m pip install --quiet --disable-pip-version-check --pre --upgrade \
	  $(NIGHTLY_PIP) $(PRERELEASES)
	$(NIGHTLY)/bin/python -m pip list --disable-pip-version-check
	-PATH="$(CURDIR)/$(NIGHTLY)/bin:$$PATH" $(NIGHTLY)/bin/python -m pytest -n $(WORKERS) \
	  --dist worksteal -W default $(PYTEST_ARGS)

bench: $(INSTALLED_DEV)
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/generate_docs.py

clean:
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'  # resolves faster

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[serve]'
	$(BIN)/python scripts/link_types.py
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || exit 0; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,frameworks]'
	$(BIN)/python scripts/link_types.py
	@touch $(INSTALLED) $@

$(INSTALLED_DOCS): $(INSTALLED_DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,frameworks,docs]'
	@touch $(INSTALLED) $(INSTALLED_DEV) $@
