// The text that web/tailrace.js reads of a turn: `content.mjs URL TURN`.
import { resume } from "../../../web/tailrace.js";

const [url, turn] = process.argv.slice(2);
const { text } = await resume(turn, { url, triesMax: 0 }).done;
console.log(JSON.stringify({ text }));
