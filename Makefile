# The interpreter that .venv is made with: 3.11 or newer.
PYTHON ?= python3
# For serve: `emulator`, or the path of libascendcl.so.
ACL_LIBRARY ?= emulator
MODELS ?= models
DEVICE ?= 0
# For load: HOST:PORT of a server that runs already; empty starts one on the emulated device for each scenario.
TARGET ?=
# For image: the image to build on, and the name of the result.
BASE_IMAGE ?= python:3.11-slim
IMAGE ?= aclserve
# For demo-video: a video, several in quotes, and a model folder (MODEL/VERSION/model.onnx, config.pbtxt with `video.`).
VIDEO ?=
MODEL ?=
# More arguments for pytest, serve, demo, bench or load.
ARGS ?=

BIN := .venv/bin
PIP_FLAGS := --quiet --disable-pip-version-check
GRPCIO_TOOLS := 1.73.1
PROTO_ENV := .venv-proto/grpcio-tools-$(GRPCIO_TOOLS)

.DEFAULT_GOAL := help
.PHONY: help install proto check fix test test-contract serve demo demo-video bench load image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' Makefile

install: .venv/installed ## make .venv with the service, the client and everything to work on them

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.[dev]'
	touch $@

$(PROTO_ENV):
	$(PYTHON) -m venv --clear .venv-proto
	.venv-proto/bin/python -m pip install $(PIP_FLAGS) grpcio-tools==$(GRPCIO_TOOLS)
	touch $@

proto: $(PROTO_ENV) ## make the stubs anew from the .proto files
	.venv-proto/bin/python tools/stubs.py

check: .venv/installed $(PROTO_ENV) ## find faults without running anything: style, types, stubs, protos, README
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy demo tools bench
	.venv-proto/bin/python tools/stubs.py --check
	$(BIN)/python tools/buf_lint.py
	$(BIN)/python tools/readme.py --check

fix: .venv/installed proto ## repair what check complains about, where a program can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python tools/readme.py

test: .venv/installed ## run all tests
	$(BIN)/python -m pytest $(ARGS)

test-contract: .venv/installed ## run the tests of AscendCL's contract
	$(BIN)/python -m pytest tests/contract $(ARGS)

serve: .venv/installed ## start the server on the emulated device, or on a card with ACL_LIBRARY=PATH
	$(BIN)/aclserve serve --acl-library $(ACL_LIBRARY) --model-repository $(MODELS) --device $(DEVICE) $(ARGS)

demo: .venv/installed ## recognise handwritten digits through the service, and draw out/demo.png
	$(BIN)/python -m demo.run $(ARGS)

demo-video: .venv/installed ## run a model over VIDEO, draw what it finds into out/video.mp4 and out/video-*.png
	$(BIN)/python -m demo.video --video "$(VIDEO)" --model "$(MODEL)" $(ARGS)

bench: .venv/installed ## measure the service against ONNX Runtime alone
	$(BIN)/python -m bench.run $(ARGS)

load: .venv/installed ## put ghz's load on the service, and check what it answers (needs Go)
	$(BIN)/python -m tests.load.run $(if $(TARGET),--target $(TARGET)) $(ARGS)

image: ## build the container image (BASE_IMAGE: a CANN image for the card)
	docker build --build-arg BASE_IMAGE=$(BASE_IMAGE) --tag $(IMAGE) .

clean: ## remove what the other targets made
	rm -rf .venv .venv-proto .tools out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
