// Opens pages in installed browsers, headless, each with a profile of its own.

import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ARGUMENTS = {
  chromium: (profile) => ["--headless", "--remote-debugging-port=0", `--user-data-dir=${profile}`, ...(process.getuid() ? [] : ["--no-sandbox"])],
  firefox: (profile) => ["--headless", "--profile", profile],
};

/** Opens the page, and returns a function that ends the browser. Ends the program with 77 if the browser is not there. */
export function openPage(name, url) {
  const profile = mkdtempSync(join(tmpdir(), "profile-"));
  const browser = spawn(name, [...ARGUMENTS[name](profile), url], { stdio: "ignore" });
  const ended = new Promise((resolve) => browser.on("exit", resolve));
  browser.on("error", () => process.exit(77));
  process.on("SIGTERM", () => process.exit(143));
  process.on("exit", () => browser.kill());
  return async () => {
    browser.kill();
    await ended;
  };
}
