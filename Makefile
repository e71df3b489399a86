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
# For fuzz, chaos and overload: how long each part runs.
SECONDS ?= 20
# For replicas-chaos: how often a replica is killed.
KILLS ?= 200
# More arguments for pytest, serve, demo, bench, load or fuzz.
ARGS ?=

BIN := .venv/bin
PIP_FLAGS := --quiet --disable-pip-version-check
GRPCIO_TOOLS := 1.73.1
PROTO_ENV := .venv-proto/grpcio-tools-$(GRPCIO_TOOLS)
KITS := client-go client-node client-java client-rust client-cpp

.DEFAULT_GOAL := help
.PHONY: help install proto protoset release-protos check fix test test-clients $(KITS)
.PHONY: test-contract compat-tools serve demo demo-video bench bench-peers bench-standing load perf-analyzer fuzz chaos
.PHONY: chaos-devices soak overload plan-docs plan-validate deploy-tools manifests replicas-chaos image clean

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
	.venv-proto/bin/python tools/stubs_go.py

protoset: $(PROTO_ENV) ## write out/aclserve.protoset, all services for `grpcurl -protoset` and ghz
	.venv-proto/bin/python tools/protoset.py

release-protos: .venv/installed ## keep the protos as those of a release, which `make check` holds later ones to
	$(BIN)/python tools/buf.py --release

check: .venv/installed $(PROTO_ENV) ## find faults without running anything: style, types, stubs, protos, README
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy demo tools bench
	.venv-proto/bin/python tools/stubs.py --check
	.venv-proto/bin/python tools/stubs_go.py --check
	$(BIN)/python tools/buf.py
	$(BIN)/python tools/readme.py --check

fix: .venv/installed proto ## repair what check complains about, where a program can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python tools/readme.py

test: .venv/installed ## run all tests
	$(BIN)/python -m pytest $(ARGS)

test-clients: .venv/installed ## run the client kits of other languages against a live server, as far as their toolchains are there
	$(BIN)/python tools/clients.py $(ARGS)

client-go: ## install what the Go kit needs, run its tests and its example
client-node: ## the same in JavaScript
client-java: ## the same in Java
client-rust: ## the same in Rust
client-cpp: ## the same in C++
$(KITS): .venv/installed
	$(BIN)/python tools/clients.py $(@:client-%=%)

compat-tools: .venv/installed ## install the clients of other projects that tests/compat runs, as the tests do themselves
	$(BIN)/python tools/compat.py $(ARGS)

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

bench-peers: .venv/installed ## measure the service beside other servers (needs g++, an hour, and a harness that this repository lacks)
	$(BIN)/python -m bench.peers $(ARGS)

bench-standing: .venv/installed ## measure start, memory and CPU at rest, and growth over a million items
	$(BIN)/python -m bench.standing $(ARGS)

load: .venv/installed ## put ghz's load on the service, and check what it answers (needs Go)
	$(BIN)/python -m tests.load.run $(if $(TARGET),--target $(TARGET)) $(ARGS)

perf-analyzer: .venv/installed ## fetch Triton's perf_analyzer into .tools, and print the command to run it with
	$(BIN)/python tools/perf_analyzer.py

fuzz: .venv/installed ## feed the readers of messages and files with bytes that break them, each for SECONDS
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) $(ARGS)

chaos: .venv/installed ## fail the device everywhere, kill and hang servers under load, each part for SECONDS (ARGS: soak, overload)
	$(BIN)/python -m tests.chaos.run --seconds $(SECONDS) $(ARGS)

chaos-devices: .venv/installed ## kill, hang and break the workers of several devices under load, for SECONDS
	$(BIN)/python -m tests.chaos.run devices --seconds $(SECONDS) $(ARGS)

soak: .venv/installed ## a million items through one server on a device that fails now and then: nothing grows
	$(BIN)/python -m tests.chaos.run soak $(ARGS)

overload: .venv/installed ## three times as many calls as the server can serve
	$(BIN)/python -m tests.chaos.run overload --seconds $(SECONDS) $(ARGS)

plan-docs: .venv/installed ## make the tables of docs/planning.md anew from its plans
	$(BIN)/python tools/planning.py

plan-validate: .venv/installed ## compare `aclserve plan` with the service on the emulated device, for some minutes
	$(BIN)/python -m tests.plan.validate $(ARGS)

deploy-tools: .venv/installed ## install Envoy, kustomize and the schemas of Kubernetes, as tests/deploy does itself
	$(BIN)/python -m tools.deploy $(ARGS)

manifests: .venv/installed ## build deploy/kubernetes and deploy/kserve, and hold them against their schemas
	$(BIN)/python -m tools.manifests

replicas-chaos: .venv/installed ## kill one of three replicas behind Envoy KILLS times, under streams that lose nothing
	$(BIN)/python -m tests.deploy.run --kills $(KILLS) $(ARGS)

image: ## build the container image (BASE_IMAGE: a CANN image for the card)
	docker build --build-arg BASE_IMAGE=$(BASE_IMAGE) --tag $(IMAGE) .

clean: ## remove what the other targets made
	rm -rf .venv .venv-proto .tools out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	cd client && rm -rf node/node_modules node/generated node/types rust/target java/target cpp/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
