// WebKit, the engine of Safari: the browser of WebKitGTK on a display without a screen, over the W3C WebDriver protocol.
// Playwright drives only a WebKit of its own. `WEBKIT` is the path of WebKitWebDriver.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { setTimeout } from "node:timers/promises";

const SCRIPT_MS = 120_000;
const ELEMENT = "element-6066-11e4-a52e-4f735466cecf";

/** Returns what `work(page)` returns. `args`: options of the browser, which are properties of WebKitSettings. */
export async function browseWebKit(work, args = []) {
  const display = spawn("Xvfb", ["-displayfd", "3", "-nolisten", "tcp"], { stdio: ["ignore", "ignore", "ignore", "pipe"] });
  const [number] = await once(display.stdio[3], "data");
  const free = createServer().listen(0, "127.0.0.1");
  await once(free, "listening");
  const { port } = free.address();
  await new Promise((closed) => free.close(closed));
  const driver = spawn(process.env.WEBKIT, [`--port=${port}`], { stdio: "inherit", env: { ...process.env, DISPLAY: `:${`${number}`.trim()}` } });
  try {
    const send = async (method, path, body) => {
      const response = await fetch(`http://127.0.0.1:${port}${path}`, { method, body: body && JSON.stringify(body) });
      const { value } = await response.json();
      if (!response.ok) throw new Error(`${method} ${path}: ${value.error} ${value.message}`);
      return value;
    };
    while (!(await send("GET", "/status").catch(() => false))) await setTimeout(50);
    const options = { "webkitgtk:browserOptions": { args: ["--automation", ...args] }, timeouts: { script: SCRIPT_MS } };
    const { sessionId } = await send("POST", "/session", { capabilities: { alwaysMatch: options } });
    const page = new Page((path, body = {}) => send("POST", `/session/${sessionId}${path}`, body));
    const result = await work(page);
    await send("DELETE", `/session/${sessionId}`);
    return result;
  } finally {
    driver.kill();
    display.kill();
  }
}

class Page {
  constructor(post) {
    this.post = post;
  }

  goto = (url) => this.post("/url", { url });
  reload = () => this.post("/refresh");
  run = (script) => this.post("/execute/sync", { script, args: [] });

  async evaluate(work, ...args) {
    const script = `const done = [...arguments].at(-1); (async () => (${work})(...arguments))().then((value) => done({ value }), (error) => done({ error: String(error) }));`;
    const { value, error } = await this.post("/execute/async", { script, args });
    if (error) throw new Error(error);
    return value;
  }

  async until(isTrue, ...args) {
    while (!(await this.evaluate(isTrue, ...args))) await setTimeout(50);
  }

  click = async (xpath) => this.post(`/element/${await this.#find("xpath", xpath)}/click`);
  type = async (css, text) => this.post(`/element/${await this.#find("css selector", css)}/value`, { text });
  #find = async (using, value) => (await this.post("/element", { using, value }))[ELEMENT];
}
