// Opens URLs in Chromium, as a user does with a received link: `navigate.mjs GATEWAY HTML [PATH ...]`.
// The first line is of a control page, which is served as `HTML`, the others of each path; `elsewhere` counts the requests to
// other servers.
import { browse } from "./chromium.mjs";

const [gateway, html, ...paths] = process.argv.slice(2);

await browse("page.mjs", async (open) => {
  const context = await (await open(gateway)).context().browser().newContext();
  await context.route(`${gateway}/obeyed.html`, (route) => route.fulfill({ contentType: "text/html", body: html }));
  let [elsewhere, ran] = [[], []];
  const watched = async () => {
    const page = await context.newPage();
    page.on("request", (request) => request.url().startsWith(`${gateway}/`) || elsewhere.push(request.url()));
    page.on("dialog", (dialog) => (ran.push(dialog.message()), dialog.dismiss()));
    page.on("console", (message) => message.text() === "ran" && ran.push("ran"));
    return page;
  };
  const [obeying, visiting] = [await watched(), await watched()];
  for (const path of ["/obeyed.html", ...paths]) {
    [elsewhere, ran] = [[], []];
    // One page for all links: a new one takes half a second of CPU. That which obeys runs scripts as long as it is open.
    const page = path === "/obeyed.html" ? obeying : visiting;
    // A file to be kept is no page, and is not shown at all.
    const answer = await page.goto(gateway + path).catch((error) => (/Download is starting/.test(error.message) ? null : Promise.reject(error)));
    const links = answer === null ? 0 : await page.evaluate(() => document.links.length + document.images.length + document.scripts.length);
    console.log(JSON.stringify({ path, elsewhere: elsewhere.length, ran: ran.length, links, headers: answer?.headers() ?? null }));
    if (page === obeying) await page.close();
  }
});
