// Actions: what an operator may do, and the small dialogs that go with it. How it went is said in words.

import { byId, hidden, text } from "./dom.js";

const SAID_MS = 8000;
const TOKEN = "dolmetsch-token";

let mode = "off"; // what /api/cluster says: open, token or off
let alive = false;
let quiet = 0;

/** What the latest /api/cluster says about actions. */
export function allow(cluster) {
  mode = cluster.actions;
  alive = cluster.alive;
}

/** Why no action is possible now; "" when one is. */
export function forbidden() {
  if (mode === "off") return "Actions are switched off on this dashboard";
  return alive ? "" : "The broker does not answer";
}

/** Say how something went, to eyes and to screen readers. */
export function say(words, failed = false) {
  clearTimeout(quiet);
  text(byId("said-text"), words);
  byId("said").classList.toggle("failed", failed);
  hidden(byId("said"), false);
  text(byId(failed ? "alert" : "announce"), words);
  if (!failed) quiet = setTimeout(hush, SAID_MS);
}

function hush() {
  hidden(byId("said"), true);
  text(byId("alert"), "");
}

/**
 * POST `body`, with the token if there must be one; the answer. Null when it was called off or went wrong: then `tell`
 * has heard why.
 */
export async function post(path, body, tell = (why) => say(why, true)) {
  for (let again = false; ; again = true) {
    const headers = { "Content-Type": "application/json", "X-Dolmetsch": "1" };
    if (mode === "token") {
      const token = (!again && recall()) || (await ask_token(again));
      if (!token) return null;
      headers.Authorization = `Bearer ${token}`;
    }
    let answer;
    let said = {};
    try {
      answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), cache: "no-store" });
      said = await answer.json();
    } catch {
      if (!answer) {
        tell("The dashboard does not answer");
        return null;
      }
    }
    if (answer.ok) return said;
    if (answer.status === 401 && mode === "token") {
      remember("");
      continue;
    }
    tell(said.error ? capital(String(said.error)) : `That did not work (${answer.status})`);
    return null;
  }
}

export const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

/** While `work` runs the button is busy, and keeps the focus. */
export async function busy(button, work) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    await work();
  } finally {
    button.removeAttribute("aria-busy");
  }
}

/** Ask in the page; true if the answer is yes. */
export async function confirmed(title, words, go) {
  text(byId("confirm-title"), title);
  text(byId("confirm-text"), words);
  text(byId("confirm-go"), go);
  return (await open(byId("confirm-dialog"))) === "ok";
}

async function ask_token(wrong) {
  const input = byId("token-input");
  input.value = "";
  text(byId("token-why"), (wrong ? "That token is not the right one. " : "") +
    "Actions on this dashboard need its token. It is kept until this tab is closed.");
  const token = (await open(byId("token-dialog"))) === "ok" ? input.value.trim() : "";
  input.value = "";
  remember(token);
  return token;
}

/** Show a dialog until it is closed; what it was closed with. */
function open(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

let token = ""; // should there be no storage
function recall() {
  try {
    return sessionStorage.getItem(TOKEN) ?? token;
  } catch {
    return token;
  }
}

function remember(value) {
  token = value;
  try {
    if (value) sessionStorage.setItem(TOKEN, value);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // it is known until the page is left
  }
}

export function start_actions() {
  byId("said-close").addEventListener("click", hush);
  for (const button of document.querySelectorAll("dialog [data-cancel]")) {
    button.addEventListener("click", () => button.closest("dialog").close(""));
  }
}
