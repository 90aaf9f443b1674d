# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
RERUNS =
PYTEST = $(BIN)/pytest $(RERUNS) --durations=10 -n $(WORKERS) --dist loadfile --no-loadscope-reorder
USUAL = not slow and not base
# Triton 2.51 itself dies now and then as pipelines are loaded (docs/upgrades.md); a test in which it did is run again.
TRITON_DIED = --reruns 1 --only-rerun "is the server running"
export PATH := $(CURDIR)/.cmt/prometheus/usr/bin:$(PATH)

.PHONY: demo live help test test-long test-slow coverage check docs house checkov format promtool prometheus test-base model-repository perf-analyzer bench bench-fast bench-releases bench-tune bench-techniques bench-less-work bench-precision bench-real bench-binding bench-interplay bench-upgrade bench-capacity bench-hostile bench-sessions bench-live bench-drain bench-families soak check-gpu bench-engines bench-gpu-pack bench-gpu images fuzz clean

demo: $(firstword $(wildcard $(VENV)/.installed) $(VENV)/.demo)  ## exports the mini preset, starts Triton, asks it, stops it
	@$(BIN)/cmt demo

live: $(VENV)/.live  ## exports the mini preset and serves it with the live page, until Ctrl-C: http://127.0.0.1:8080
	@$(BIN)/cmt demo --live

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 20

test: $(VENV)/.installed  ## the tests, minutes: what needs no Triton, then what does on real ones
	$(PYTEST) -m "not long and not triton and $(USUAL)"
	$(PYTEST) -m "not long and triton and $(USUAL)" $(TRITON_DIED)

test-long: $(VENV)/.installed  ## what CI runs beside `make test`: those that take seconds each, in the same two parts
	$(PYTEST) -m "long and not triton and $(USUAL)"
	$(PYTEST) -m "long and triton and $(USUAL)" $(TRITON_DIED)

test-slow: $(VENV)/.peers .cmt/kserve/bin/python  ## benches, peers, floods and sweeps
	$(PYTEST) --dist worksteal -m "slow and not base and not triton"
	$(BIN)/pytest --durations=10 -m "slow and not base and triton" $(TRITON_DIED)

.cmt/kserve/bin/python:  # its dependencies are pinned to others than ours
	$(PYTHON) -m venv .cmt/kserve
	.cmt/kserve/bin/pip install --quiet --disable-pip-version-check "kserve==0.21.*" || { rm -rf .cmt/kserve; exit 1; }

coverage: $(VENV)/.installed  ## both, with the share of lines that they run: .cmt/coverage/index.html
	rm -f .coverage
	$(PYTEST) -m "not triton and $(USUAL)" --cov --cov-report=
	$(PYTEST) -m "triton and $(USUAL)" $(TRITON_DIED) --cov --cov-append --cov-report=html --cov-report=term:skip-covered

test-base: $(VENV)/.installed  ## the full-size preset too: minutes and 6 GB of memory
	$(BIN)/pytest -m base

check: $(VENV)/.installed  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint server/Dockerfile k8s/images/*.Dockerfile k8s/training/Dockerfile

checkov: $(VENV)/.installed .cmt/checkov/bin/checkov  ## checkov on the rendered manifests
	$(BIN)/pytest tests/k8s/test_manifests.py -k checkov

.cmt/checkov/bin/checkov:  # its dependencies are pinned to others than ours
	$(PYTHON) -m venv .cmt/checkov
	.cmt/checkov/bin/pip install --quiet --disable-pip-version-check "checkov==3.3.*"

docs: $(VENV)/.installed  ## the documentation as a site in .cmt/docs; `python3 -m http.server -d .cmt/docs` shows it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

house: $(VENV)/.installed  ## draws docs/images/house.svg and the table of rooms from the imports
	$(BIN)/python docs/tools/rooms.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model-repository: $(VENV)/.installed  ## writes model_repository/ from the contract
	$(BIN)/python -m cmt_pipeline.reference model_repository

$(VENV)/.demo: pyproject.toml  # what exports and serves, without what tests and measures
	@echo "Installing PyTorch, OpenVINO and Triton into $(VENV); the first time takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[export]"
	@touch $@

$(VENV)/.live: $(firstword $(wildcard $(VENV)/.installed) $(VENV)/.demo)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[export,gateway]"
	@touch $@

$(VENV)/.installed: pyproject.toml
	@echo "Installing everything that tests and measurements need into $(VENV); the first time takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

$(VENV)/.peers: $(VENV)/.installed  # servers that ours is set beside
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[peers]"
	touch $@

promtool: .cmt/prometheus/usr/bin/promtool  ## Debian's promtool, without a service: what the tests of alerts need

.cmt/prometheus/usr/bin/promtool:
	mkdir -p .cmt/prometheus
	cd .cmt/prometheus && apt-get download prometheus && dpkg-deb -x prometheus_*.deb .

MONITORING ?= .cmt/monitoring
PROMETHEUS ?= 127.0.0.1:9090
TRITON ?= 127.0.0.1:8002
GATEWAY ?= 127.0.0.1:8080
EVERY ?= 5s
RULES = sed '1,/^spec:/d; s/^  //'

prometheus: $(if $(shell command -v prometheus),,promtool)  ## Debian's Prometheus on http://127.0.0.1:9090 with our rules, beside a service on this machine, until Ctrl-C
	@mkdir -p $(MONITORING)
	@$(RULES) k8s/components/monitoring/rules.yaml > $(MONITORING)/triton.rules.yaml
	@$(RULES) k8s/components/front-door/monitoring/rules.yaml > $(MONITORING)/gateway.rules.yaml
	@sed 's/127.0.0.1:8002/$(TRITON)/; s/127.0.0.1:8080/$(GATEWAY)/; s/: 5s/: $(EVERY)/' \
		server/prometheus.yaml > $(MONITORING)/prometheus.yaml
	exec prometheus --config.file=$(MONITORING)/prometheus.yaml --storage.tsdb.path=$(MONITORING)/data \
		--web.listen-address=$(PROMETHEUS) --log.level=warn

perf-analyzer: .cmt/perf_analyzer/perf_analyzer  ## the real perf_analyzer, for `make bench` to be checked against

.cmt/perf_analyzer/perf_analyzer: $(VENV)/.installed
	$(BIN)/python -m cmt_perf.bench.fetch_analyzer

ENGINE ?= openvino
TUNED = --peer fastapi:compiled --peer fastapi:torchao --peer fastapi:onnxruntime --peer fastapi:openvino --peer pytriton:openvino

bench: $(VENV)/.peers .cmt/perf_analyzer/perf_analyzer  ## `base` beside the baseline and peers: writes perf/results/bench.*; quiet machine, over an hour; ENGINE=onnxruntime where there is no VNNI
	$(BIN)/cmt export --preset base --random-weights --precision int8 --engine $(ENGINE) --state .cmt/bench
	$(BIN)/cmt bench --precision int8 --state .cmt/bench --rounds 6 --requests 12 --same-model \
		--peer fastapi --peer pytriton --peer bentoml $(TUNED)

bench-fast: $(VENV)/.peers .cmt/perf_analyzer/perf_analyzer  ## the same of `fast`: writes perf/results/fast/bench.*; quiet machine, three quarters of an hour
	$(BIN)/cmt export --preset fast --random-weights --precision int8 --engine $(ENGINE) --state .cmt/bench-fast
	$(BIN)/cmt bench --precision int8 --state .cmt/bench-fast --out perf/results/fast --rounds 5 --requests 8 --same-model \
		--peer fastapi $(TUNED)

bench-releases: $(VENV)/.installed
	for precision in fp32 bf16 int8; do \
		$(BIN)/cmt export --preset base --random-weights --precision $$precision --state .cmt/bench || exit 1; \
	done

bench-tune: bench-releases  ## the best configuration of this machine: writes perf/results/tuning.*; quiet machine
	$(BIN)/cmt tune --state .cmt/bench
	cp .cmt/bench/tuning.json .cmt/bench/tuning.png perf/results/

bench-techniques: bench-releases  ## what each technique is worth: writes perf/results/techniques.*; quiet machine
	$(BIN)/python -m cmt_perf.bench.techniques .cmt/bench

bench-precision: $(VENV)/.installed  ## what bf16 and int8 cost in F1 on the weights that come with it: perf/results/precision.json
	for precision in fp32 bf16 int8; do $(BIN)/cmt export --precision $$precision --state .cmt/precision || exit 1; done
	test -d .cmt/precision/corpus || $(BIN)/cmt corpus .cmt/precision/corpus
	$(BIN)/python -m cmt_perf.precision_trial .cmt/precision .cmt/precision/corpus

bench-real: $(VENV)/.installed  ## frozen Whisper, DINOv2 and MiniLM on real media in DATA: training/results/real.json; hours
	$(BIN)/python -m cmt_perf.real.trial .cmt/real $(or $(DATA),../shared/data)

bench-less-work: $(VENV)/.installed  ## what merged tokens, fewer layers and smaller input save and cost on real media in DATA: perf/results/less_*.json; quiet machine, half an hour
	$(BIN)/python -m cmt_perf.real.less_work .cmt/real $(or $(DATA),../shared/data)
	$(BIN)/python -m cmt_perf.real.less_input .cmt/real $(or $(DATA),../shared/data)

bench-ablation: $(VENV)/.installed  ## what each trick of training is worth, with MELD's words in DATA: training/results/ablation*.json; 4 hours, 2 cores
	$(BIN)/python -m cmt_training.ablation .cmt/ablation
	$(BIN)/python -m cmt_training.ablation .cmt/ablation --tuned $(or $(DATA),../shared/data)/meld

bench-binding: $(VENV)/.installed  ## a ladder of fusions on tokens that must be bound: writes training/results/binding.*; 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m cmt_training.binding

bench-interplay: $(VENV)/.installed  ## that ladder on generated people who are ironic, or not: training/results/generated.json; 2 to 3 hours, 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m cmt_training.interplay

bench-upgrade: $(VENV)/.installed  ## upgrades under load, with faults: writes perf/results/upgrade.json; half an hour, as root
	for seed in 1 2 3; do $(BIN)/cmt export --precision bf16 --seed $$seed --state .cmt/upgrade || exit 1; done
	$(BIN)/python -m cmt_perf.upgrade .cmt/upgrade

bench-capacity: $(VENV)/.installed  ## the capacity model beside the open loop: writes perf/results/capacity.json; 20 minutes
	$(BIN)/cmt export --precision bf16 --state .cmt/capacity
	$(BIN)/python -m cmt_perf.capacity_trial .cmt/capacity

bench-overload: $(VENV)/.installed  ## what a server does at up to 4 times its load: writes perf/results/overload.*; quiet machine, 7 minutes
	$(BIN)/cmt export --precision bf16 --state .cmt/overload
	$(BIN)/python -m cmt_perf.overload .cmt/overload

bench-sessions: $(VENV)/.installed  ## affect over time against known truth: writes perf/results/sessions.*; 5 minutes
	$(BIN)/python -m cmt_perf.session_trial

bench-live: $(VENV)/.installed  ## the gateway from the browser to Triton and back, and at 2x overload: perf/results/live.json; quiet machine
	$(BIN)/cmt export --precision bf16 --state .cmt/live
	$(BIN)/python -m cmt_perf.live_trial .cmt/live

bench-hostile: $(VENV)/.installed  ## 200 of each body that ends a bare Triton 2.51: writes perf/results/hostile.json
	$(BIN)/cmt export --precision bf16 --state .cmt/hostile
	$(BIN)/python -m cmt_perf.hostile .cmt/hostile

bench-families: $(VENV)/.installed  ## every family of encoders on every engine: writes export/results/families.json; half an hour
	PYTHONPATH=tests $(BIN)/python -m family_trial

soak: $(VENV)/.installed  ## half an hour of all that a server meets: writes perf/results/soak.*
	for seed in 1 2 3; do $(BIN)/cmt export --precision bf16 --seed $$seed --state .cmt/upgrade || exit 1; done
	$(BIN)/python -m cmt_perf.soak .cmt/upgrade

bench-drain: $(VENV)/.installed  ## stops under 400 loops, 20 times after 0, 1 and 3 upgrades: writes perf/results/drain.json
	for seed in 1 2 3; do $(BIN)/cmt export --precision bf16 --seed $$seed --state .cmt/upgrade || exit 1; done
	$(BIN)/python -m cmt_perf.drain_trial .cmt/upgrade

CHECK_IMAGE = cmt-triton-gpu-check:0.1.0
bench-engines: $(VENV)/.installed  ## AOTInductor beside OpenVINO on the CPU: writes engines/results/engines.json; quiet machine, 17 minutes
	$(BIN)/python -m cmt_perf.engine_trial .cmt/engines engines/results/engines.json

bench-gpu-pack: $(VENV)/.installed  ## what `make bench-gpu` needs on a machine with a GPU and PyTorch alone: .cmt/bench-gpu/site.tar.xz
	$(BIN)/python -m cmt_perf.gpu.pack .cmt/bench-gpu

bench-gpu:  ## builds, measures and serves `base` on this machine's GPU: .cmt/bench-gpu/gpu.*; 8 minutes; DRY=1 tries it on the CPU
ifdef DRY
	$(BIN)/python -m cmt_perf.gpu.run .cmt/bench-gpu/state $(or $(OUT),.cmt/bench-gpu) --dry
else
	$(PYTHON) perf/cmt_perf/gpu/environments.py .cmt/bench-gpu/site.tar.xz .cmt/bench-gpu/environments
	.cmt/bench-gpu/environments/build/bin/python -m cmt_perf.gpu.run .cmt/bench-gpu/state $(or $(OUT),.cmt/bench-gpu) \
		--serve .cmt/bench-gpu/environments/serve/bin/python
endif

check-gpu: $(if $(DRY),$(VENV)/.installed)  ## all that only a GPU can show, in the Triton image: gpu-check.json to send back; DRY=1 tries it on the CPU
ifdef DRY
	$(BIN)/python -m cmt_perf.gpu.check --dry --out $(or $(OUT),.cmt/gpu/gpu-check.json)
else
	docker build --file k8s/images/gpu.Dockerfile --target check --tag $(CHECK_IMAGE) .
	mkdir -p .cmt/gpu
	docker run --rm --gpus all --shm-size 2g --user $$(id -u):$$(id -g) --volume $(CURDIR)/.cmt/gpu:/check $(CHECK_IMAGE) $(if $(PRESET),--preset $(PRESET))
endif

images: $(VENV)/.installed  ## builds k8s's images without Docker, with SBOMs and budgets, and runs them as their pods: .cmt/images; root, 20 minutes
	$(BIN)/python -m cmt_perf.images .cmt/images
	$(BIN)/pytest -m slow tests/k8s -k built_image

fuzz: $(VENV)/.installed  ## an hour of damaged files to everything that reads them: perf/results/fuzz.json; SECONDS=60 for a minute
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(or $(SECONDS),3600)

clean:
	rm -rf $(VENV) .cmt .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
