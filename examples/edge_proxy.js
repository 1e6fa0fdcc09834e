/**
 * A route of your server that adds the key and passes Tailrace's streams on: for edge runtimes, Next.js, and others with the
 * Request and Response of the web. `mayUse(request, path)` is yours: it decides whose request may pass. A `POST /v1/turns` must
 * name a session of the user in its body.
 */
// What tailrace.js and session.js need: ask, read, steer, cancel; a session's turns, their stream, and decisions about its tool
// calls; to upload a file, and to read the long parts of a question that is asked again. A GET of /v1/turns would list all users'
// turns.
const ROUTES = [
  /^POST \/v1\/(turns|files|turns\/[\w-]+\/(steer|cancel)|sessions\/([\w.:-]|%3A)+\/(cancel|calls\/[\w-]+))$/,
  /^GET \/v1\/(turns\/[\w-]+(\/events)?|sessions\/([\w.:-]|%3A)+\/(events|turns|calls)|blobs\/[0-9a-f]+)$/,
];
const REQUEST_HEADERS = ["accept", "content-type", "idempotency-key", "last-event-id"];
const RESPONSE_HEADERS = ["cache-control", "content-type", "retry-after", "tailrace-turn", "x-accel-buffering"];

/** Returns the route below `base`, which answers GET and POST. */
export function proxy({ base, url, key, mayUse }) {
  return async (request) => {
    const { pathname, search } = new URL(request.url);
    const path = pathname.slice(base.length);
    const { method, signal } = request;
    const isKnown = pathname.startsWith(base) && ROUTES.some((route) => route.test(`${method} ${path}`));
    if (!isKnown || !(await mayUse(request.clone(), path))) return new Response(null, { status: 404 });
    const headers = pick(request.headers, REQUEST_HEADERS);
    headers.set("authorization", `Bearer ${key}`);
    const body = method === "POST" ? await request.arrayBuffer() : undefined;
    const response = await fetch(`${url}${path}${search}`, { method, headers, body, signal, cache: "no-store" });
    return new Response(response.body, { status: response.status, headers: pick(response.headers, RESPONSE_HEADERS) });
  };
}

function pick(headers, names) {
  return new Headers(names.filter((name) => headers.has(name)).map((name) => [name, headers.get(name)]));
}
