// The routes of examples/nextjs with useChat's class, in a copy of the example with its node_modules: `nextjs.mjs MESSAGE`.
// Next calls the routes with the web's Request and Response, as this does. The stream is cut once. Prints one line.
import { Chat } from "@ai-sdk/react";
import { build } from "esbuild";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { TailraceChatTransport } from "./ai-sdk.js";
import { GET, POST } from "./app/api/chat/[[...path]]/route.js";
import { POST as login } from "./app/login/route.js";

const [message] = process.argv.slice(2);
const origin = "http://app.invalid";

/** Returns the cookie of a user. */
async function cookieOf(user) {
  const response = await login(new Request(`${origin}/login`, { method: "POST", body: new URLSearchParams({ user }) }));
  return response.headers.get("set-cookie").split(";")[0];
}

/** A browser's fetch, at the origin of the app. The first stream breaks off. */
function fetchAs(cookie, cuts) {
  return async (address, init = {}) => {
    const request = new Request(new URL(address, origin), { ...init, headers: { ...init.headers, ...(cookie && { cookie }) } });
    const response = await (request.method === "POST" ? POST : GET)(request);
    if (cuts.length === 0 || !response.body) return response;
    let rest = cuts.pop();
    const cut = new TransformStream({
      transform(chunk, controller) {
        controller.enqueue(chunk.subarray(0, rest));
        rest -= chunk.length;
        if (rest <= 0) controller.error(new TypeError("cut"));
      },
    });
    return new Response(response.body.pipeThrough(cut), response);
  };
}

const cuts = [2000];
const ada = await cookieOf("ada");
const transport = new TailraceChatTransport({ api: "/api/chat", fetch: fetchAs(ada, cuts) });
const chat = new Chat({ id: "my-chat", transport });
await chat.sendMessage({ text: message });
const { parts } = chat.messages.at(-1);
const statusFor = async (cookie) => (await fetchAs(cookie, [])("/api/chat/my-chat/messages")).status;
const statuses = [await statusFor(ada), await statusFor(await cookieOf("eve")), await statusFor("")];

await build({ entryPoints: ["app/page.jsx"], bundle: true, packages: "external", format: "esm", jsx: "automatic", outfile: "page.mjs" });
const { default: Page } = await import(`${process.cwd()}/page.mjs`);
const rendered = renderToString(createElement(Page));

const text = parts.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");
console.log(JSON.stringify({ text, error: chat.error?.message ?? null, cuts, statuses, isRendered: rendered.includes("Send") }));
