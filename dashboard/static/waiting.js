// Waiting: who asks to be let in. Anybody may take any name; what tells one computer from another is its key.

import { busy, confirmed, forbidden, post, say } from "./actions.js";
import { attribute, byId, cut, hidden, keyed, off, stamp, text } from "./dom.js";
import { count, isolated } from "./format.js";

const list = byId("waiting-list");

export function show_waiting(waiting) {
  const here = list.contains(document.activeElement);
  hidden(byId("waiting"), waiting.length === 0);
  text(byId("waiting-count"), count(waiting.length));
  keyed(list, waiting, (one) => one.fingerprint, new_row, update_row);
  // Where the focus was nobody waits any more. It goes to the title, not to the next one's button.
  if (here && !list.contains(document.activeElement)) {
    byId(waiting.length ? "waiting-title" : "main").focus({ preventScroll: true });
  }
}

function new_row(one) {
  const row = stamp("waiting-template");
  row.one = one;
  row.approve.addEventListener("click", () => void approve(row));
  row.refuse.addEventListener("click", () => void judge(row.refuse, row.one, "refuse", "is turned away"));
  return row;
}

function update_row(row, one) {
  row.one = one;
  cut(row.name, one.name);
  text(row.address, one.address);
  text(row.key, one.fingerprint);
  for (const [button, words] of [[row.approve, "Let in"], [row.refuse, "Turn away"]]) {
    attribute(button, "aria-label", `${words} ${isolated(one.name)}, key ${one.fingerprint}`);
    off(button, forbidden());
  }
}

/** A second look: the list may have moved under the pointer. */
async function approve({ approve: button, one }) {
  const words = `${isolated(one.name)} at ${one.address} will be given texts to translate. Does it show this key itself?\n${one.fingerprint}`;
  if (await confirmed("Let this computer in?", words, "Let in")) await judge(button, one, "approve", "is let in, and joins in a moment");
}

async function judge(button, { name, fingerprint }, action, words) {
  await busy(button, async () => {
    if (await post(`api/waiting/${encodeURIComponent(fingerprint)}/${action}`, {})) say(`${isolated(name)} ${words}`);
  });
}
