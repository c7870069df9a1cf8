// DOM: stamp templates, and change only what differs, so that focus, hover and selected text survive each update.
// Words of the server are put in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const lists = new WeakMap();

export const byId = (id) => document.getElementById(id);

/** The elements below `root` that carry data-part, by that name. */
export function parts(root) {
  const found = {};
  for (const part of root.querySelectorAll("[data-part]")) found[part.dataset.part] = part;
  return found;
}

/** A copy of a template's one element, with its parts and itself as `root`. */
export function stamp(id) {
  const root = byId(id).content.firstElementChild.cloneNode(true);
  return Object.assign(parts(root), { root });
}

/** An element with a class and a text. */
export function make(tag, name = "", words = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (words) made.textContent = words;
  return made;
}

export function svg(tag, attributes = {}, parent = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

/** Put `value` in as text; the text node stays the same one. */
export function text(element, value) {
  const only = element.firstChild;
  if (only && only === element.lastChild && only.nodeType === Node.TEXT_NODE) {
    if (only.nodeValue !== value) only.nodeValue = value;
  } else if (element.textContent !== value || only) {
    element.textContent = value;
  }
}

export function attribute(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, value);
  }
}

/** Text that may be cut on the page, whole in its title. */
export function cut(element, value) {
  text(element, value);
  attribute(element, "title", value || null);
}

export function hidden(element, yes) {
  if (element.hidden !== yes) element.hidden = yes;
}

/** Switch a button off, and say why. */
export function off(button, why) {
  const yes = Boolean(why);
  if (button.disabled !== yes) button.disabled = yes;
  attribute(button, "title", why || null);
}

/**
 * Make `parent` show `items`, in order: one element for each key, made by `make(item)` (an object with `root`) and
 * brought up to date by `update(made, item)`. Elements that stay are not moved unless they must be.
 */
export function keyed(parent, items, key, make, update) {
  const before = lists.get(parent) ?? new Map();
  const now = new Map();
  for (const item of items) {
    const name = key(item);
    if (now.has(name)) continue;
    const made = before.get(name) ?? make(item);
    update(made, item);
    now.set(name, made);
  }
  for (const [name, made] of before) if (!now.has(name)) made.root.remove();
  let place = parent.firstChild;
  for (const { root } of now.values()) {
    if (root === place) place = place.nextSibling;
    else parent.insertBefore(root, place);
  }
  lists.set(parent, now);
  return now;
}
