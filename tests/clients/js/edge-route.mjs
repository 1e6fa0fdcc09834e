// examples/edge_proxy.js behind a server of Node: `edge-route.mjs EXAMPLE URL KEY`. A user has the sessions that begin with
// its name, as in examples/fastapi_proxy.py. Prints the port.
import { createServer } from "node:http";
import { Readable } from "node:stream";

const [example, url, key] = process.argv.slice(2);
const { proxy } = await import(example);

const ours = ["message", "messages", "session", "create_session", "parent", "on_busy"];

async function mayUse(request, path) {
  const user = request.headers.get("cookie")?.replace("user=", "");
  const [, , kind, name] = path.split("/").map(decodeURIComponent);
  if (kind === "files" || kind === "blobs") return true;
  if (kind === "sessions") return name.startsWith(`${user}:`);
  if (name !== undefined) {
    const turn = await fetch(`${url}/v1/turns/${name}`, { headers: { authorization: `Bearer ${key}` } });
    return turn.ok && (await turn.json()).session.startsWith(`${user}:`);
  }
  const body = await request.json();
  return Object.keys(body).every((one) => ours.includes(one)) && !!body.session?.startsWith(`${user}:`);
}

const route = proxy({ base: "/api/tailrace", url, key, mayUse });
const server = createServer(async (incoming, outgoing) => {
  const body = incoming.method === "POST" ? Readable.toWeb(incoming) : undefined;
  const gone = new AbortController();
  outgoing.on("close", () => gone.abort());
  const { method, headers } = incoming;
  const request = new Request(`http://app.invalid${incoming.url}`, { method, headers, body, duplex: "half", signal: gone.signal });
  try {
    const response = await route(request);
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    if (response.body !== null) for await (const part of response.body) outgoing.write(part);
    outgoing.end();
  } catch {
    outgoing.destroy();
  }
});
server.listen(Number(process.env.PORT), "127.0.0.1");
