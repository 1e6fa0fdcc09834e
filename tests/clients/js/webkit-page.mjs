// The page at / in WebKit: `webkit-page.mjs GATEWAY QUESTION`. Asks, reloads in the middle of the answer, and shares it.
import { browseWebKit } from "./webkit.mjs";

const [gateway, question] = process.argv.slice(2);
// Keys of the WebDriver protocol.
const [ENTER, CONTROL] = ["\ue007", "\ue009"];

const seen = await browseWebKit(async (page) => {
  await page.goto(gateway);
  await page.until(() => document.activeElement.id === "question");
  const isWhole = await page.evaluate((question) => {
    const field = document.querySelector("#question");
    field.value = question;
    return field.scrollHeight <= field.clientHeight;
  }, question);
  await page.type("#question", ENTER);
  await page.until(() => document.querySelector(".answer .text")?.textContent.length > 80);
  await page.reload();
  const { outcome: afterReload } = await page.evaluate(async () => (await (await fetch(`/v1/sessions/${location.hash.slice(1)}/turns`)).json()).turns[0]);
  await page.until(() => document.querySelector(".meta"));
  const [text, answers] = await page.evaluate(() => [document.querySelector(".answer .text").textContent.trim(), document.querySelectorAll(".answer").length]);
  await page.click("//button[.='Share']");
  await page.until(() => !document.querySelector("#notice").hidden);
  await page.type("#question", `${CONTROL}v`);
  const pasted = await page.evaluate(() => document.querySelector("#question").value);
  return { isWhole, afterReload, answers, text, pasted };
});
console.log(JSON.stringify(seen));
