# The two commands of the README, and what a person who changes Backstay needs beside them.
# Each installs what it needs and this machine lacks (scripts/prepare says what that is).

# The profile of the demo's binary: `make demo PROFILE=dev` builds faster and runs slower.
PROFILE ?= release
# Further words for the program or the tests: make test ARGS='-p backstay-repo'
ARGS ?=

SHELL := /bin/bash
# A toolchain that scripts/prepare has just installed is not yet in the caller's path.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help demo test servers format clippy deny lint soak soakservers bench

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## watch a disaster and the recovery from it, on throw-away data
	@scripts/prepare demo
	cargo build --quiet --locked --package backstay --profile $(PROFILE)
	@"$${CARGO_TARGET_DIR:-target}/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/backstay" demo $(ARGS)

test: servers ## run all tests, against real servers
	cargo test --locked $(if $(ARGS),$(ARGS),--workspace --no-fail-fast)

servers: ## install the servers that the tests run against, in a folder of their own
	@scripts/prepare test
	@scripts/test-postgres
	@scripts/test-servers

format: ## check that everything is formatted
	cargo fmt --all --check

clippy: ## check all code, tests and benchmarks included
	cargo clippy --locked --workspace --all-targets -- --deny warnings

deny: ## check the licences and origins of all dependencies
	@scripts/prepare deny
	PATH="$$(scripts/prepare --tools)/bin:$$PATH" cargo deny --locked check --hide-inclusion-graph bans licenses sources

lint: format clippy deny ## format, clippy and deny

soak: ## simulate a million orders of events in the repository (SEEDS=N for another number)
	BACKSTAY_SEEDS=$(or $(SEEDS),1000000) cargo test --locked --release -p backstay-repo --test simulation -- --nocapture

soakservers: servers ## restore real servers after a hundred orders of events (SEEDS=N for another number)
	BACKSTAY_SEEDS=$(or $(SEEDS),100) cargo test --locked --release --package backstay --test soak -- --nocapture

bench: ## measure Backstay beside its peers, on the same data (a small set; bench/compare, month, postgres --help)
	@scripts/prepare bench
	bench/compare --scale small $(ARGS)
