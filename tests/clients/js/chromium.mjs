// A browser, and pages of ours on the origin of the server under test. Contains no test.
import { build } from "esbuild";
import { launch } from "./browsers.mjs";

/** Returns a script of the module `entry`, built as for development: React's StrictMode does nothing otherwise. */
export async function bundle(entry) {
  const define = { "process.env.NODE_ENV": '"development"' };
  const built = await build({ entryPoints: [entry], bundle: true, write: false, jsx: "automatic", define, nodePaths: ["node_modules"] });
  return built.outputFiles[0].text;
}

/**
 * Runs `work(open)`, where `open(origin)` is a page of that origin which has run the module `entry`; with a context of
 * another page, a second tab. `setUp(page)` runs before.
 *
 * `options`: those of Playwright for Chromium. The page comes from here and all its other requests go out, so the server under test need not know of it.
 */
export async function browse(entry, work, options) {
  const script = await bundle(entry);
  // A page that is made here has no address, which Chromium takes for one on the internet, and such a page may not ask
  // this machine unless its user says so.
  const browser = await launch(["--disable-features=LocalNetworkAccessChecks"], options);
  const open = async (origin, context = null, setUp = () => {}) => {
    // Small, because Chromium draws each frame of an answer with the CPU.
    const page = await (context ?? (await browser.newContext({ viewport: { width: 400, height: 200 } }))).newPage();
    await setUp(page);
    page.on("pageerror", (error) => console.error(error));
    await page.route(`${origin}/client.html`, (route) =>
      route.fulfill({ contentType: "text/html", body: '<!doctype html><div id="root"></div><script src="client.js"></script>' }),
    );
    await page.route(`${origin}/client.js`, (route) => route.fulfill({ contentType: "text/javascript", body: script }));
    await page.goto(`${origin}/client.html`);
    return page;
  };
  try {
    return await work(open);
  } finally {
    await browser.close();
  }
}
