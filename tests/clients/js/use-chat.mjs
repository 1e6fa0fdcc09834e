// The class behind `useChat`, with Tailrace's transport, in Node: `use-chat.mjs VERSION KEY URL JSON [URL JSON ...]`, all at
// once. It prints what each page shows.
import { load } from "./ai-sdk.mjs";

const [version, key, ...rest] = process.argv.slice(2);
const { TailraceChatTransport, Chat } = await load(version);

const headers = { authorization: `Bearer ${key}` };
const textOf = (message) => (message?.parts ?? []).flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");

/** Asks, and reloads or stops, and then asks `next`. `busy`: so many requests of a reloaded page are refused, as by a proxy whose gateway is
 * restarted. `lost`: so many answers are replaced by the status of Next.js for a gateway that was killed, the first one by
 * that of a gateway that stops. `history`: where a reloaded page reads its messages. */
async function show(url, { id, text, body, sent, history, reloads = 0, chars = 0, stops = false, next, busy = 0, lost = 0 }) {
  const errors = [];
  const isRefused = (address) => String(address).endsWith("/stream") && busy-- > 0;

  async function send(address, init) {
    if (isRefused(address)) return new Response("busy", { status: busy ? 502 : 500 });
    const response = await fetch(address, init);
    if (init.method !== "POST" || lost-- <= 0) return response;
    await response.body.cancel();
    return lost ? Response.json({ error: { code: "draining" } }, { status: 503 }) : new Response("Internal Server Error", { status: 500 });
  }

  /** A page with its messages. When the transport reports that an answer has begun anew, the page reads it again. */
  function page(messages) {
    const leaving = new AbortController();
    const transport = new TailraceChatTransport({
      api: `${url}/api/chat`,
      headers,
      body,
      fetch: (url, init) => send(url, { ...init, signal: AbortSignal.any([leaving.signal, ...(init.signal ? [init.signal] : [])]) }),
    });
    let again = Promise.resolve();
    const chat = new Chat({
      id,
      messages,
      transport,
      onError(error) {
        errors.push(error.name === "Error" ? error.message : error.name);
        if (error.name !== "AnswerRestarted") return;
        again = new Promise((resolve) => setTimeout(resolve)).then(() => {
          chat.messages = chat.messages.slice(0, -1);
          return chat.resumeStream();
        });
      },
    });
    return { chat, leave: () => leaving.abort(new DOMException("the page is gone", "AbortError")), settle: () => again };
  }

  let { chat, leave, settle } = page([]);
  const shown = () => chat.messages.findLast((message) => message.role === "assistant");
  const says = async (chars) => {
    while (textOf(shown()).length < chars) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  let asking = chat.sendMessage({ text }, { body: sent });
  if (stops) await says(chars).then(() => chat.stop());
  if (next) asking = chat.sendMessage({ text: next });
  for (let n = 1; n <= reloads; n += 1) {
    await says(n * chars);
    leave();
    await asking;
    const messages = await fetch(`${history}/api/chat/${id}/messages`, { headers });
    ({ chat, leave, settle } = page(await messages.json()));
    asking = chat.resumeStream();
  }
  await asking;
  await settle();
  const message = shown();
  return { status: chat.status, error: chat.error?.message ?? null, errors, text: textOf(message), turn: message?.metadata?.turn, count: chat.messages.length };
}

const cases = [];
for (let n = 0; n < rest.length; n += 2) cases.push(show(rest[n], JSON.parse(rest[n + 1])));
for (const seen of await Promise.all(cases)) console.log(JSON.stringify(seen));
// Of a reader that was cut, nothing must keep Node alive.
process.exit(0);
