# The menu.
.PHONY: help run test lint bench bench-micro instructions instructions-accept format packages

# Programs of a cluster, and all backends.
ALL := --workspace --all-features
# As the tests build them: so they find them ready.
PROGRAMS := -p penstock -p penstock-gateway -p penstock-router -p penstockctl -p penstock-loadtest --bins \
	--features penstock-gateway/cluster,penstock-router/cluster

help: ## This menu
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 21

run: ## Start penstock here: MQTT on 127.0.0.1:1883, data in ./penstock-data
	cargo run --bin penstock --

test: packages ## Run every test, with real etcd, Redis and MQTT clients
	cargo build --locked $(PROGRAMS)
	cargo test --locked $(ALL)
	@echo "make test: all tests passed"

lint: ## Formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --locked $(ALL) --all-targets -- -D warnings
	@echo "make lint: clean"

bench: packages ## Measure what a message and a connection cost, beside other brokers; some 25 minutes (ONLY=--help: parts of it)
	cargo bench --locked -p penstock-loadtest --bench measure -- $(ONLY)

bench-micro: ## Time the hot paths: decoder, encoder, trie, session, batcher, lane
	cargo bench --locked -p penstock-mqtt -p penstock-gateway -p penstock-router --features penstock-gateway/bench --bench hot

instructions: ## Count the instructions of the hot paths and compare with .ci/instructions.txt (needs valgrind)
	.ci/instructions

instructions-accept: ## Take the present counts as the new baseline
	.ci/instructions --accept

format: ## Format the sources
	cargo fmt --all

packages: ## Install the Debian packages that tests and the cluster build need
	@.ci/packages
