// The modules of the package on an edge runtime: `edge.mjs URL KEY EXAMPLE`, in a folder with the package in node_modules.
// The app asks through the proxy route of EXAMPLE, whose first response is cut. Prints one line.
import { EdgeVM } from "@edge-runtime/vm";
import { build } from "esbuild";

const [url, key, example] = process.argv.slice(2);

/** What runs there. Bundled, as it is deployed: an edge runtime has no modules of Node, and no `process`. */
const APP = `
  import { ask } from "tailrace";
  import { cutOnce } from "./cut-once.mjs";
  import { proxy } from ${JSON.stringify(example)};
  const route = proxy({ base: "/api", url: URL_OF_GATEWAY, key: KEY, mayUse: () => true });
  const cursors = [];
  globalThis.seen = (async () => {
    const { text, turn } = await ask("#sim words=60 rate=100", { url: "https://app.invalid/api", fetch: cutOnce(route, cursors) }).done;
    return { text, turn, resumed: [cursors.length, cursors[1]?.length > 0], node: [typeof process, typeof Buffer] };
  })();
`;
const define = { URL_OF_GATEWAY: JSON.stringify(url), KEY: JSON.stringify(key) };
const stdin = { contents: APP, resolveDir: process.cwd() };
const { outputFiles } = await build({ stdin, define, bundle: true, write: false, format: "iife", platform: "neutral" });
const edge = new EdgeVM();
edge.evaluate(outputFiles[0].text);
console.log(JSON.stringify(await edge.evaluate("globalThis.seen")));
