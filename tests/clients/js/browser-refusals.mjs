// A page that reads with a function of the docs: `browser-refusals.mjs URL PATH FUNCTION`. Prints what it showed.
import { browse } from "./chromium.mjs";

const [gateway, path, source] = process.argv.slice(2);

await browse("page.mjs", async (open) => {
  const page = await open(gateway);
  const shown = await page.evaluate(
    ([source, path]) =>
      new Promise((resolve) => {
        const read = new Function(`${source}; return read;`)();
        let text = "";
        read(path, (event) => {
          if (event.type === "delta") text += event.text;
          if (event.type === "done") resolve({ text, outcome: event.outcome });
          return event.type === "done";
        });
      }),
    [source, path],
  );
  console.log(JSON.stringify(shown));
});
