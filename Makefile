# The menu.
.PHONY: help run cluster test fuzz lint bench bench-micro instructions instructions-accept helm helm-golden compose image image-check programs format packages

# Programs of a cluster, and all backends.
ALL := --workspace --all-features
# As the tests build them (tests/src/binaries.rs), and with the features that all tests have: nothing is compiled twice.
PROGRAMS := $(addprefix -p ,$(shell cat image/programs) penstock-tests) --bins \
	--features penstock-gateway/bench,penstock-gateway/cluster,penstock-router/cluster

help: ## This menu
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 21

run: ## Start penstock here: MQTT on 127.0.0.1:1883, data in ./penstock-data
	cargo run --bin penstock --

cluster: packages programs ## Start etcd, Redis, 2 routers, 2 gateways and tenant demo on loopback; Ctrl-C stops them
	$${CARGO_TARGET_DIR:-target}/debug/penstock-cluster $(ARGS)

test: packages ## Run every test, with real etcd, Redis and MQTT clients
	cargo build --locked $(PROGRAMS)
	cargo test --locked $(ALL)
	@echo "make test: all tests passed"

fuzz: ## Drive MQTT sessions with random programs: 10 million steps, or STEPS=, from SEED= (docs/conformance.md)
	cargo run --locked --release --manifest-path mqtt/fuzz/Cargo.toml --bin soak -- $(or $(STEPS),10000000) $(or $(SEED),1)

lint: ## Formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --locked $(ALL) --all-targets -- -D warnings
	@echo "make lint: clean"

bench: packages ## Measure what a message and a connection cost, beside other brokers; some 30 minutes (ONLY=--help: parts of it)
	cargo bench --locked -p penstock-loadtest --bench measure -- $(ONLY)

bench-micro: ## Time the hot paths: decoder, encoder, trie, session, batcher, lane
	cargo bench --locked --profile guard -p penstock-mqtt -p penstock-gateway -p penstock-router --features penstock-gateway/bench --bench hot

instructions: ## Count the instructions of the hot paths and compare with .ci/instructions.txt (needs valgrind)
	.ci/instructions

instructions-accept: ## Take the present counts as the new baseline
	.ci/instructions --accept

helm: programs ## Check the chart: Helm 3 and 4, schemas of Kubernetes, checkov, golden output, table of values
	.ci/helm
	@echo "make helm: the chart holds"

helm-golden: programs ## Bring the chart's golden output and table of values up to date
	.ci/helm --write

compose: programs ## Check compose.yaml without Docker
	.ci/compose

image: ## Build the container image with Debian's buildah (release build, some minutes): target/container
	@.ci/packages buildah podman runc
	image/build

image-check: ## Start the image that make image built, and use it
	image/check

programs: ## Build every program, debug
	@cargo build --locked --quiet $(PROGRAMS)

format: ## Format the sources
	cargo fmt --all

packages: ## Install the Debian packages that tests and the cluster build need
	@.ci/packages
