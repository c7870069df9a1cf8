// Translate: try the cluster with a text of one's own.

import { busy, forbidden, post } from "./actions.js";
import { byId, keyed, make, off, text } from "./dom.js";
import { ms } from "./format.js";

const go = byId("translate-go");
const routes = byId("translate-route");

export function start_translate() {
  const form = byId("translate-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void busy(go, translate);
  });
  byId("translate-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(go);
  });
}

/** The routes that are offered now. */
export function routes_now(offered) {
  const names = [...new Set(offered.map(({ route }) => route))];
  const before = routes.value;
  keyed(routes, names, (name) => name, (name) => ({ root: make("option", "", name) }), () => {});
  if (names.includes(before) && routes.value !== before) routes.value = before;
  off(go, forbidden() || (names.length ? "" : "No node offers a route"));
}

async function translate() {
  const note = byId("translation-note");
  note.classList.remove("bad");
  text(note, "translating …");
  const body = { text: byId("translate-text").value, route: routes.value };
  const answer = await post("api/translate", body, (why) => {
    text(byId("translation"), "");
    text(note, why);
    note.classList.add("bad");
  });
  if (answer === null) {
    if (!note.classList.contains("bad")) text(note, "not translated");
    return;
  }
  text(byId("translation"), answer.translation);
  text(note, [ms(answer.took_ms), answer.model, answer.cached ? "from the cache" : ""].filter(Boolean).join(" · "));
}
