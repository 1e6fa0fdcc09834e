// Starts the browser of a test: Chromium at the path `CHROMIUM`, or Firefox at the path `FIREFOX`.
import { chromium, firefox } from "playwright-core";

const { CHROMIUM, FIREFOX, FIREFOX_PREFS = "{}" } = process.env;

export const isFirefox = Boolean(FIREFOX);
/** How long a page may take to show something. Playwright's own 30 s were too few while other tests ran on two slow cores. */
const WAIT_MS = 90_000;

/** Returns a browser. `args` and `options` are for Chromium. `FIREFOX_PREFS`: values of Firefox's about:config, as JSON. */
export async function launch(args = [], options = {}) {
  const browser = await (isFirefox ? launchFirefox() : launchChromium(args, options));
  browser.on("context", (context) => context.setDefaultTimeout(WAIT_MS));
  return browser;
}

function launchChromium(args, options) {
  // Root cannot have its sandbox, and all that tests open is ours.
  return chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", ...args], ...options });
}

async function launchFirefox() {
  const browser = await firefox.launch({ executablePath: FIREFOX, channel: "moz-firefox", firefoxUserPrefs: JSON.parse(FIREFOX_PREFS) });
  const session = browser._connection.toImpl(browser)._browserSession;
  const send = session.send.bind(session);
  // Playwright sends this command for each page, and Firefox 153 ESR does not know it.
  session.send = (method, given) => (method === "emulation.setMediaFeaturesOverride" ? {} : send(method, given));
  return browser;
}

/**
 * Closes a page that has no network: `setOffline` ends before the scripts of the page, which hear that the network is back
 * and would send what they have kept. In 23 of 60 trials with `close` alone, they did.
 */
export async function closeOffline(page) {
  await page.evaluate(() => (globalThis.fetch = () => new Promise(() => {})));
  await page.close();
}

/** Notes on a page what a policy forbids, what fails, which dialogs open, and what is requested from elsewhere than `origin`. */
export function watch(page, origin) {
  const seen = { complaints: [], elsewhere: [] };
  const isOurs = (url) => /^(blob:|data:)/.test(url) || url.startsWith(`${origin}/`);
  page.on("console", (message) => /security policy|trusted/i.test(message.text()) && seen.complaints.push(message.text()));
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  page.on("dialog", (dialog) => (seen.complaints.push(dialog.message()), dialog.dismiss()));
  page.context().on("request", (request) => isOurs(request.url()) || seen.elsewhere.push(request.url()));
  return seen;
}
