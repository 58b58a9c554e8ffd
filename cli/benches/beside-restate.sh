#!/usr/bin/env bash
# The three steps of the bench `control` on Restate, from npm, and then ours, on the same machine in the same minutes. Both
# write every step to disk before the next; a step of ours asks an agent over mTLS, one of theirs is a function of the
# service. Takes what it needs into a folder that it removes. Usage: cli/benches/beside-restate.sh [RUNS]
set -euo pipefail
cd "$(dirname "$0")/../.."
for program in node npm; do
  command -v "$program" >/dev/null || { echo "SKIPPED: there is no $program, which brings Restate"; exit 0; }
done
many=${1:-2000}
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$dir"' EXIT
packages="@restatedev/restate-server@1.7 @restatedev/restate-sdk@1"
(cd "$dir" && SCARF_ANALYTICS=false timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts $packages) ||
  { echo "SKIPPED: npm cannot install $packages"; exit 0; }

cat >"$dir/bench.mjs" <<'JS'
import * as restate from "@restatedev/restate-sdk";
import { spawn } from "node:child_process";
import { createServer } from "node:net";
import { Agent, request } from "node:http";

// Their SDK wants Node 22 for this alone.
Promise.withResolvers ??= () => {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
};
const many = Number(process.argv[2]), alone = 300, inFlight = 64, steps = 3;
const free = () => new Promise((done) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => done(port));
  });
});
const [service, ingress, admin, node] = [await free(), await free(), await free(), await free()];
restate.serve({
  port: service,
  services: [restate.service({
    name: "bench",
    handlers: {
      three: async (ctx) => {
        const first = await ctx.run("one", () => "yes");
        const second = await ctx.run("two", () => first);
        return ctx.run("three", () => second);
      },
    },
  })],
});
const server = spawn("node_modules/.bin/restate-server", ["--no-logo", "--listen-mode", "tcp", "--base-dir", "data"], {
  stdio: "ignore",
  env: {
    ...process.env,
    RESTATE_DISABLE_TELEMETRY: "true",
    RESTATE_BIND_IP: "127.0.0.1",
    RESTATE_BIND_PORT: node,
    RESTATE_INGRESS__BIND_PORT: ingress,
    RESTATE_ADMIN__BIND_PORT: admin,
  },
});
const agent = new Agent({ keepAlive: true, maxSockets: inFlight });
const post = (port, path, body) => new Promise((done, failed) => {
  const headers = { "content-type": "application/json" };
  const asked = request({ host: "127.0.0.1", port, path, method: "POST", agent, headers }, (answer) => {
    let text = "";
    answer.on("data", (data) => (text += data));
    answer.on("end", () => (answer.statusCode < 300 ? done(text) : failed(new Error(`${answer.statusCode}: ${text}`))));
  });
  asked.on("error", failed);
  asked.end(JSON.stringify(body));
});
const until = Date.now() + 60_000;
for (;;) {
  try {
    await post(admin, "/deployments", { uri: `http://127.0.0.1:${service}` });
    break;
  } catch (e) {
    if (Date.now() > until) throw e;
    await new Promise((done) => setTimeout(done, 200));
  }
}
const run = () => post(ingress, "/bench/three", null);
for (let n = 0; n < 50; n++) await run();
const took = [];
let begun = performance.now();
for (let n = 0; n < alone; n++) {
  const at = performance.now();
  await run();
  took.push(performance.now() - at);
}
const one = alone / ((performance.now() - begun) / 1000);
begun = performance.now();
let left = many;
await Promise.all(Array.from({ length: inFlight }, async () => { while (left-- > 0) await run(); }));
const all = many / ((performance.now() - begun) / 1000);
took.sort((a, b) => a - b);
const quantile = (q) => `${took[Math.floor((took.length - 1) * q)].toFixed(1)}ms`;
console.log("store              p50       p99    runs/s  64: runs/s 64: steps/s");
console.log("Restate     " + [quantile(0.5).padStart(10), quantile(0.99).padStart(10), one.toFixed(0).padStart(10),
  all.toFixed(0).padStart(12), (all * steps).toFixed(0).padStart(12)].join(""));
server.on("exit", () => process.exit(0));
server.kill();
JS
(cd "$dir" && NODE_ENV=production RESTATE_LOGGING=ERROR timeout 300 node bench.mjs "$many" 2>"$dir/log") || { cat "$dir/log"; exit 1; }
cargo bench --locked -p parallax-cli --features cluster --bench control -- runs
