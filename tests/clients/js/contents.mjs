// What Chromium's EventSource makes of streams: `contents.mjs NAMES URL [URL ...]`, its events' names joined by commas. One line for each.
import { browse } from "./chromium.mjs";

const [names, ...urls] = process.argv.slice(2);

await browse("page.mjs", async (open) => {
  const page = await open(new URL(urls[0]).origin);
  for (const url of urls) {
    const events = await page.evaluate(
      ([names, url]) =>
        new Promise((resolve) => {
          const source = new EventSource(url);
          const events = [];
          for (const name of names) source.addEventListener(name, ({ type, data }) => data !== undefined && events.push([type, data]));
          // A clean end is one, too: it would come back.
          source.addEventListener("error", ({ data }) => {
            if (data !== undefined) return;
            source.close();
            resolve(events);
          });
        }),
      [names.split(","), url],
    );
    console.log(JSON.stringify({ events }));
  }
});
