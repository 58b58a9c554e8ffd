# Each target does its own set-up. All share one target directory and one profile.
CARGO ?= cargo

.PHONY: demo test lint bench bench-control bench-prism fuzz

# Both planes in one process, three real agents, real sentences. Nothing to configure.
demo:
	$(CARGO) build --locked -p parallax-cli
	./target/debug/parallax demo

# Every test of the workspace. The tests need nothing but what cargo brings.
test:
	$(CARGO) test --locked --workspace --quiet

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --quiet -- -D warnings

# Side by side in one run: the same agents asked directly and through the planes.
bench:
	$(CARGO) bench --locked -p parallax-cli --bench overhead

# Durable runs on each store, and ten thousand agents.
bench-control:
	$(CARGO) bench --locked -p parallax-cli --bench control

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
