// The banner of a chat whose last turn waits for decisions about calls of tools.
import { byId, element } from "./dom.js";
import { request, sentence } from "./requests.js";

/** The turn whose calls are shown. */
let shown = null;

/** Shows the calls for which `record`, the last turn on the page, waits; no banner if there are none. `goOn` reads newer turns. */
export async function drawCalls(record, goOn) {
  const turn = record?.stop_reason === "tool_use" && record.session ? record.turn : null;
  if (turn === shown) return;
  shown = turn;
  byId("calls").hidden = true;
  if (!turn) return;
  const path = `/v1/sessions/${encodeURIComponent(record.session)}/calls`;
  const found = await request(path).catch(() => ({ calls: [] }));
  if (turn !== shown || found.turn !== turn) return;
  const asks = "The answer waits for you: send the result of each tool call, or deny it.";
  const say = element("p", { textContent: found.waits_because ?? asks });
  const decide = async (call, item, body) => {
    try {
      const { next, waits_because: why } = await request(`${path}/${encodeURIComponent(call)}`, { method: "POST", body });
      item.remove();
      if (why) say.textContent = `All calls are decided. The answer goes on later: ${why}`;
      if (next) goOn();
    } catch (error) {
      say.textContent = sentence(error);
    }
  };
  const itemOf = ({ call, name, input }) => {
    const item = element("form", { className: "call" });
    const result = element("textarea", { rows: 1, dir: "auto", required: true, ariaLabel: `Result of ${name}`, placeholder: "Result" });
    const deny = element("button", { type: "button", className: "plain", textContent: "Deny", ariaLabel: `Deny ${name}` });
    deny.addEventListener("click", () => decide(call, item, { decision: "denied", ...(result.value && { reason: result.value }) }));
    item.addEventListener("submit", (event) => {
      event.preventDefault();
      decide(call, item, { result: result.value });
    });
    const send = element("button", { className: "plain", textContent: "Send result", ariaLabel: `Send result of ${name}` });
    item.append(element("code", { textContent: `${name} ${JSON.stringify(input)}` }), result, deny, send);
    return item;
  };
  byId("calls").replaceChildren(say, ...found.calls.filter(({ decision }) => !decision).map(itemOf));
  byId("calls").hidden = false;
}
