// What the scripts of the pages / and /ops share.

export const byId = (id) => document.getElementById(id);

/** Returns a new element. Text among `children` enters the page as text, never as markup. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Decodes a part of an address; "" if it is malformed, such as `%`. */
export function decodePart(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

/** The session storage of this tab. Where the browser blocks it, values last until the page is reloaded. */
export const storage = findStorage();

function findStorage() {
  const values = new Map();
  const own = { getItem: (name) => values.get(name) ?? null, setItem: (name, value) => values.set(name, value), removeItem: (name) => values.delete(name) };
  try {
    // Firefox has null there if its setting dom.storage.enabled is false.
    return globalThis.sessionStorage ?? own;
  } catch {
    return own;
  }
}
