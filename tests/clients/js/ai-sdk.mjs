// Imports Tailrace's transport and the class behind `useChat`, in Node, with a version of AI SDK.
import { registerHooks } from "node:module";

const PACKAGES = { 5: ["ai-v5", "ai-react-v5"], 6: ["ai-v6", "ai-react-v6"], 7: ["ai", "@ai-sdk/react"] };

/** Returns the transport, `Chat`, and the package `ai`. */
export async function load(version = 7) {
  const [ai, react] = PACKAGES[version];
  // The transport imports `ai`, as the app has it.
  registerHooks({
    resolve: (name, context, next) => (name === "ai" && context.parentURL.includes("/web/") ? next(ai, { parentURL: import.meta.url }) : next(name, context)),
  });
  const { TailraceChatTransport } = await import("../../../web/ai-sdk.js");
  const { Chat } = await import(react);
  return { TailraceChatTransport, Chat, sdk: await import(ai) };
}
