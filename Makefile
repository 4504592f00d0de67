# What people type. `make` alone lists it; CONTRIBUTING.md says more.

CARGO ?= cargo
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup build demo test bench bench-learn bench-revocation lab model fmt lint check-rust check-collector check-tidy check-licences check-deploy check-demo check-e2e check-failover

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## install what build and tests need and this machine lacks
	@scripts/setup test

build: ## the release binary, target/release/gaitway
	@scripts/setup build
	$(CARGO) build --release --locked -p gaitway

demo: ## a shop, Gaitway before it, people and bots inside; Ctrl-C ends everything
	@scripts/setup demo
	@$(CARGO) build --locked -p gaitway -p gaitway-demo
	@exec target/debug/gaitway-demo $(DEMO)

test: setup lint check-rust check-collector check-licences check-deploy check-e2e ## everything a change must pass

bench: ## figures beside nginx doing the same work, on this machine: some minutes
	@scripts/setup bench
	$(CARGO) build --release --locked -p gaitway
	/usr/bin/python3 benches/proxy/run.py $(BENCH)

bench-learn: ## our forest beside scikit-learn, onnxruntime and compiled C, from PyPI: some minutes
	$(CARGO) build --release --locked -p gaitway-benches --example forest
	python3 benches/learn/run.py $(BENCH)

bench-revocation: ## from a decision to its refusal on the last of three replicas
	@scripts/setup test
	REVOCATIONS=2000 $(CARGO) test --locked -p gaitway --test it propagation -- --nocapture

lab: ## bots, and people's movements of DATA, recorded through Gaitway: make lab DATA=folder-of-recordings
	@scripts/setup lab
	$(CARGO) build --locked -p gaitway
	node lab/record.mjs --out target/lab/recordings $(if $(DATA),--people $(DATA)) $(LAB)

RECORDINGS ?= $(firstword $(wildcard target/lab/recordings/index.csv) lab/recordings/index.csv)

model: ## the shipped model and its card anew: make model DATA=folder-of-recordings
	@test -n "$(DATA)" || { echo "usage: make model DATA=FOLDER (with index.csv and the session files it names)" >&2; exit 2; }
	node lab/join.mjs target/lab/joined $(DATA) $(dir $(RECORDINGS))
	$(CARGO) build --release --locked -p gaitway
	target/release/gaitway train target/lab/joined --output models/artifacts/default.model
	target/release/gaitway evaluate models/artifacts/default.model target/lab/joined --card models/artifacts/default.card.md --report target/report

fmt: ## format Rust sources
	$(CARGO) fmt --all

# The parts of `make test`, each usable alone.

check-tidy: # layout, fences between the rooms, licences, lock files: quick, run it often
	$(CARGO) test --locked -p gaitway-benches --test tidy

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

check-rust:
	$(CARGO) test --locked --workspace

check-collector:
	cd collector-js && npm ci --no-fund --no-audit && npm test

# Licences, bans and sources are also held by the tidy test; cargo-deny adds its own reading where it
# is installed. Its advisory check needs the advisory database from the network, so it is a release
# step (CONTRIBUTING.md).
check-licences:
	@if command -v cargo-deny >/dev/null 2>&1; then $(CARGO) deny --offline check bans licenses sources; \
	else echo "cargo-deny is not installed: the tidy test has checked licences, bans and sources"; fi

# The key file is made by the shop when the containers start; any file stands in for it here.
check-deploy:
	target/venv/bin/hadolint deploy/Dockerfile
	target/venv/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	GAITWAY_IDENTITY_JWT_KEY_FILE=Makefile target/debug/gaitway config check deploy/compose.gaitway.yaml
	@if command -v systemd-analyze >/dev/null 2>&1; then scripts/check-unit deploy/gaitway.service; fi

# The demo as its own test, as `make check-rust` runs it too: within a minute a bot is logged out by
# mail and every person stays.
check-demo:
	$(CARGO) build --locked -p gaitway -p gaitway-demo
	target/debug/gaitway-demo --seconds 60 --assert --plain

# Twenty failovers of Redis under load, about five minutes; `make check-rust` has three.
check-failover:
	@scripts/setup test
	FAILOVERS=20 $(CARGO) test --locked -p gaitway --test it failovers -- --nocapture

# The whole loop in a real Chromium through the real binaries, with Redis and a mail server. Prints
# where it left screenshots of what people are shown.
check-e2e:
	$(CARGO) build --locked -p gaitway -p gaitway-demo
	cd e2e && npm ci --no-fund --no-audit && npm test
