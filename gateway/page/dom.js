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
