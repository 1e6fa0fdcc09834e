// Passes the requests of useChat to Tailrace, with the JWT of the user's login. Each user is a tenant of Tailrace, which
// refuses the chats of all others.
const HEADERS = ["content-type", "idempotency-key", "last-event-id"];

async function pass(request) {
  const token = request.headers.get("cookie")?.match(/(?:^|; )token=([\w.-]+)/)?.[1];
  if (!token) return new Response("log in first", { status: 401 });
  const { pathname, search } = new URL(request.url);
  const headers = new Headers({ authorization: `Bearer ${token}` });
  for (const name of HEADERS) if (request.headers.has(name)) headers.set(name, request.headers.get(name));
  return fetch(`${process.env.TAILRACE_URL}${pathname}${search}`, {
    method: request.method,
    headers,
    body: request.method === "POST" ? await request.text() : undefined,
    signal: request.signal, // a reader that leaves ends its stream, not the answer
    cache: "no-store",
  });
}

export { pass as GET, pass as POST };
