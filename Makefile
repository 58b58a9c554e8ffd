# Each target does its own set-up. All share one target directory and one profile.
CARGO ?= cargo

.PHONY: demo test lint bench bench-control bench-prism

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
