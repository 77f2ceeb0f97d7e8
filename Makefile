.PHONY: help setup test test-fast lint format demo fashion-mnist evidence gpu-check clean

VENV = .venv
PYTHON = $(VENV)/bin/python

help:  ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## make .venv with everything needed for development
	python3 scripts/setup.py

test: setup lint  ## lint, types and tests
	$(VENV)/bin/python -m pytest

test-fast: setup  ## the tests that take no whole command and no long fit
	$(VENV)/bin/python -m pytest -m 'not slow'

lint: setup  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup  ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

demo: setup  ## distil resnet50 into a MobileNet on handwritten digits
	$(VENV)/bin/distill train experiment=resnet50_to_mobilenet

fashion-mnist:  ## fetch Fashion-MNIST, Debian's package, into data/fashion_mnist (31 MB, no root needed)
	mkdir -p build data/fashion_mnist
	cd build && apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion-mnist
	cp build/fashion-mnist/usr/share/datasets/fashion-mnist/*.gz data/fashion_mnist/

evidence: setup  ## run docs/evidence/plan.yaml, or go on with it, and write docs/evidence/results.md
	$(VENV)/bin/python scripts/run_evidence.py
	$(VENV)/bin/python scripts/document_evidence.py

gpu-check:  ## check everything on a GPU and measure it against its peers (under 10 minutes); writes docs/gpu.md
	PYTHONPATH=. $(PYTHON) scripts/gpu_check.py --limit 280 --output docs/gpu/checks.json || true
	PYTHONPATH=. $(PYTHON) scripts/benchmark_peers.py --device cuda --px 224 --batch 256 --teacher resnet50 \
		--student mobilenetv3_large_100 --threads 8 --seconds 50 --output docs/gpu/peers.json
	PYTHONPATH=.:scripts $(PYTHON) scripts/document_gpu.py

clean:  ## remove the environment and build products
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
