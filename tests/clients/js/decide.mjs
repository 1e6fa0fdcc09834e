// Decides about a call with tailrace.js, and prints the result of the next turn: `decide.mjs URL KEY`.
import { ask, decide, request, resume } from "../../../web/tailrace.js";

const [url, key] = process.argv.slice(2);
const options = { url, headers: { authorization: `Bearer ${key}` } };
const tools = [{ name: "look", input_schema: { type: "object" } }];
const { session } = await ask({ message: "#sim words=2 rate=0 tool=look", tools }, options).done;
const { calls } = await request(`/v1/sessions/${session}/calls`, options);
const { next } = await decide(session, calls[0].call, { result: "blue" }, options);
const { outcome } = await resume(next, options).done;
console.log(JSON.stringify({ outcome, isSame: (await decide(session, calls[0].call, { result: "blue" }, options)).next === next }));
