#!/usr/bin/env bash
# HAProxy 2.6 ends an answer that its server has cut as a complete one, if the client speaks HTTP/2; over HTTP/1.1 the cut shows.
#
# Guessed:  a chunked response without its last chunk becomes a RST_STREAM, as in nginx 1.22 and Caddy 2.11.
# Version:  HAProxy 2.6.12 (Debian 12); Node is the client.
# Seen:     a server sends two events in chunks, and then ends the response (end), closes the connection without the last chunk
#           (fin), resets it (rst), or is silent for longer than `timeout server` (silent):
#               HTTP/1.1: end whole, fin cut, rst cut, silent cut
#               HTTP/2: end whole, fin whole, rst whole, silent whole
# Meets:    browsers, which speak HTTP/2 to a proxy with TLS, and each client that takes the end of the body for the end of
#           the answer: useChat of AI SDK, a plain fetch, a download. HAProxy logs `SD` for such a request.
# Tailrace: Its configuration for HAProxy offers HTTP/1.1 only; the price is a browser's limit of six connections
#           (docs/PROXIES.md#cuts).
# Exits non-zero if this changes, and 77 if HAProxy 2.6.12 or Node is not there.
. "$(dirname "$0")/setup.sh"
haproxy=$(PATH=$PATH:/usr/sbin command -v haproxy) || skip "needs HAProxy"
[[ "$("$haproxy" -v)" == *"version 2.6.12"* ]] || skip "needs HAProxy 2.6.12"
export haproxy
run_node <<'JAVASCRIPT'
import { spawn } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { connect } from "node:http2";
import { createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const ENDS = {
  end: (response) => response.end(),
  fin: (response) => response.socket.end(),
  rst: (response) => response.socket.resetAndDestroy(),
  silent: () => {},
};
const listen = async (server) => {
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server.address().port;
};
const upstream = await listen(
  createServer(async ({ url }, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (const part of ["one", "two"]) {
      response.write(`data: ${part}\n\n`);
      await sleep(50);
    }
    ENDS[url.slice(1)](response);
  }),
);
const freePort = async () => {
  const server = createTcpServer();
  const port = await listen(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
};
const [first, second] = [await freePort(), await freePort()];
const configuration = join(mkdtempSync(join(tmpdir(), "haproxy-")), "haproxy.cfg");
const lines = [
  "defaults",
  "  mode http",
  "  timeout connect 2s",
  "  timeout client 10s",
  "  timeout server 1s",
  "listen clients",
  `  bind 127.0.0.1:${first}`,
  `  bind 127.0.0.1:${second} proto h2`,
  `  server upstream 127.0.0.1:${upstream}`,
];
writeFileSync(configuration, `${lines.join("\n")}\n`);
const proxy = spawn(process.env.haproxy, ["-f", configuration], { stdio: "ignore" });
process.on("exit", () => proxy.kill("SIGKILL"));
process.on("SIGTERM", () => process.exit(143));

const overHttp1 = (path) =>
  new Promise((resolve, reject) => {
    const sent = request({ port: first, host: "127.0.0.1", path }, (response) => {
      response.resume();
      response.on("end", () => resolve(response.complete ? "whole" : "cut"));
      response.on("error", () => resolve("cut"));
    });
    sent.on("error", reject);
    sent.end();
  });
const overHttp2 = (path) =>
  new Promise((resolve, reject) => {
    const session = connect(`http://127.0.0.1:${second}`).on("error", reject);
    const stream = session.request({ ":path": path });
    let isEnded = false;
    stream.on("end", () => (isEnded = true)).on("error", () => {});
    stream.on("close", () => {
      session.destroy();
      resolve(isEnded && !stream.aborted && stream.rstCode === 0 ? "whole" : "cut");
    });
    stream.resume();
  });

const isListening = () => overHttp1("/end").then(() => true, () => false);
while (!(await isListening())) await sleep(100);
const seen = [];
for (const [name, read] of [["HTTP/1.1", overHttp1], ["HTTP/2", overHttp2]]) {
  const found = [];
  for (const end of Object.keys(ENDS)) found.push(`${end} ${await read(`/${end}`)}`);
  seen.push(`${name}: ${found.join(", ")}`);
  console.log(seen.at(-1));
}
const expected = ["HTTP/1.1: end whole, fin cut, rst cut, silent cut", "HTTP/2: end whole, fin whole, rst whole, silent whole"];
process.exit(seen.join() === expected.join() ? 0 : 1);
JAVASCRIPT
