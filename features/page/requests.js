// Requests to the API with the key of this tab, which is asked for when it is missing. The pages /, /turns/{turn} and /admin use it.
import { byId, storage } from "./dom.js";

// The page /admin has a key of its own.
const KEY = document.documentElement.dataset.key ?? "tailrace-key";

/** The code of the error of a request without a response, or with a part of it. */
export const UNREACHABLE = "unreachable";

export const headers = () => (storage.getItem(KEY) ? { authorization: `Bearer ${storage.getItem(KEY)}` } : {});

/** `process`: the process id of the gateway that answered last; only a gateway of `tailrace up` names it, to this machine.
 * `isSimulated`: whether the simulated Claude answers. */
export const gateway = { process: null, isSimulated: false };

/** Returns a cost in dollars as text, with `simulated` after it if the simulated Claude answers. */
export function costOf(usd) {
  if ((usd ?? null) === null) return "unknown cost";
  const shown = usd === 0 ? "$0" : `$${usd < 0.01 ? usd.toPrecision(2) : usd.toFixed(2)}`;
  return gateway.isSimulated ? `${shown} simulated` : shown;
}

const SENTENCES = {
  log_full: "The server's log is full: it takes no new question until its operator makes room.",
  budget_exceeded: "The budget of this key is spent: new questions are possible when it renews, or when it is raised.",
  parent_not_found: "This chat, or the answer before the question, was deleted. Begin a new chat, or reload the page.",
  credential_invalid: "This key is not valid: it was revoked, has expired, or is mistyped. Enter another one.",
};

/** Returns one sentence for a person about an error of a request. */
export const sentence = ({ code, message }) => SENTENCES[code] ?? message;

const throwUnreachable = () => {
  throw Object.assign(new Error("The connection is lost: the server cannot be reached."), { code: UNREACHABLE });
};

/** Returns the JSON of a response, or its text if it is CSV. A missing key is asked for. Throws an error with `code`, and with the `status` of the response. */
export async function request(path, { method = "GET", body } = {}) {
  for (;;) {
    const key = headers();
    const given = body ? { body: JSON.stringify(body), headers: { ...key, "content-type": "application/json" } } : { headers: key };
    const response = await fetch(path, { method, cache: "no-store", ...given }).catch(throwUnreachable);
    gateway.process = response.headers.get("tailrace-process") ?? gateway.process;
    if (response.ok) {
      const text = await response.text().catch(throwUnreachable);
      return response.headers.get("content-type")?.startsWith("text/csv") ? text : JSON.parse(text);
    }
    const { error } = await response.json().catch(() => ({}));
    const { status } = response;
    if (status !== 401) throw Object.assign(new Error(error?.message ?? `status ${status}`), { status, code: error?.code });
    await signIn(error, key);
  }
}

let signingIn = null;

/** Asks for a key in the place of the refused one, `used`; returns when one was entered, which may be before. */
export async function signIn(error, used) {
  if (headers().authorization !== used.authorization) return;
  signingIn ??= new Promise((resolve) => {
    if (storage.getItem(KEY) && error) byId("refusal").textContent = sentence(error);
    byId("login").addEventListener("close", () => ((signingIn = null), resolve()), { once: true });
    if (byId("forget")) byId("forget").hidden = true;
    byId("login").showModal();
  });
  await signingIn;
}

/** Closes a dialog when its form is submitted, after `work`. */
export function onSubmit(dialog, work = () => {}) {
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    work();
    dialog.close("yes");
  });
}

byId("login").addEventListener("cancel", (event) => event.preventDefault());
onSubmit(byId("login"), () => {
  storage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  if (byId("forget")) byId("forget").hidden = false;
});
byId("forget")?.addEventListener("click", () => {
  storage.removeItem(KEY);
  location.assign(location.pathname);
});
if (byId("forget")) byId("forget").hidden = !storage.getItem(KEY);
