// A page of examples/tanstack or examples/copilotkit in tabs of Chromium: `ag-ui-apps.mjs APP URL`.
// Reads commands from stdin, a JSON line each: [TAB, WHAT, ARGUMENT]. Answers each with a JSON line: what the tab shows.
import { createInterface } from "node:readline";
import { launch } from "./browsers.mjs";

const [app, url] = process.argv.slice(2);
const PARTS = {
  tanstack: { input: "[name=message]", ask: "text=Ask", stop: "text=Stop", user: ".user", answer: ".assistant", error: ".error" },
  copilotkit: {
    input: "[data-testid=copilot-chat-textarea]",
    ask: "[data-testid=copilot-send-button]",
    stop: "[data-testid=copilot-send-button]",
    user: "[data-testid=copilot-user-message]",
    answer: "[data-testid=copilot-assistant-message]",
    error: ".error",
  },
}[app];

const browser = await launch();
// All tabs are of one user.
const context = await browser.newContext({ viewport: { width: 500, height: 400 } });
const tabs = [];

const shown = (parts) => {
  const texts = (part) => [...document.querySelectorAll(parts[part])].map((one) => one.textContent.trim()).filter(Boolean);
  return { users: texts("user"), answers: texts("answer"), errors: texts("error"), ...(localStorage.notes && { notes: JSON.parse(localStorage.notes) }) };
};
const until = (tab, test, argument) =>
  tab.waitForFunction(([shown, test, parts, argument]) => eval(`(${test})`)(eval(`(${shown})`)(parts), argument), [`${shown}`, `${test}`, PARTS, argument], { polling: 50 });

const COMMANDS = {
  open: async (tab) => void (await tab.goto(url)),
  reload: async (tab) => void (await tab.reload()),
  ask: async (tab, text) => {
    await tab.fill(PARTS.input, text);
    await tab.click(PARTS.ask);
  },
  // By keyboard: the button moves with each line of the answer, and a click would miss it.
  stop: (tab) => tab.press(PARTS.stop, "Enter"),
  click: (tab, text) => tab.click(`button:text-is("${text}")`),
  visible: async (tab, text) => void (await tab.waitForSelector(`button:text-is("${text}")`)),
  // The last answer has so many characters.
  chars: (tab, count) => until(tab, ({ answers }, count) => answers.at(-1)?.length >= count, count),
  answers: (tab, texts) => until(tab, ({ answers }, texts) => JSON.stringify(answers) === JSON.stringify(texts), texts),
  ends: (tab, text) => until(tab, ({ answers }, text) => answers.at(-1)?.endsWith(text), text),
  error: (tab) => until(tab, ({ errors }) => errors.length > 0),
  shown: () => {},
};

for await (const line of createInterface({ input: process.stdin })) {
  const [number, what, argument] = JSON.parse(line);
  if (!tabs[number]) {
    tabs[number] = await context.newPage();
    tabs[number].on("pageerror", (error) => console.error(error));
    tabs[number].on("console", (message) => message.type() === "error" && console.error(message.text()));
  }
  let failure = null;
  try {
    await COMMANDS[what](tabs[number], argument);
  } catch (error) {
    failure = error.message;
  }
  console.log(JSON.stringify({ ...(await tabs[number].evaluate(shown, PARTS)), failure }));
}
await browser.close();
