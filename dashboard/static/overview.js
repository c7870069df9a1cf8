// Overview: whether anything is heard, the numbers that matter, and what is wrong, in words.

import { attribute, byId, hidden, keyed, parts, stamp, text } from "./dom.js";
import { capital } from "./actions.js";
import { bytes, clock, count, DASH, ms, percent, plural, rate, seconds, share, span } from "./format.js";

const vitals = parts(byId("vitals"));
const broker = parts(byId("broker-facts"));

let ahead_s = 0; // the dashboard's clock less this computer's
let link = "";
let gone_since = null; // by the dashboard's clock
let trouble = new Set();

/** What time it is where the dashboard runs. */
export const there = () => Date.now() / 1000 + ahead_s;

/** Put a number in: as a person reads it, and as it came. */
function number(element, value, words) {
  text(element, words);
  attribute(element, "value", value ?? "");
}

/** The dashboard has answered; `go_to(name)` shows a node. */
export function show_overview(cluster, go_to) {
  ahead_s = cluster.now - Date.now() / 1000;
  show_link(cluster);
  show_vitals(cluster);
  show_broker(cluster);
  show_problems(cluster.problems, go_to);
}

function show_vitals({ alive, totals, broker: health, gateways, nodes }) {
  const figure = (name, format) => number(vitals[name], totals[name], format(totals[name]));
  const more = (name, words, alarm = "") => {
    text(vitals[name], words || "\u00a0");
    attribute(vitals[name], "class", alarm || null);
  };
  figure("nodes_up", count);
  const absent = [[totals.nodes_draining, "draining"], [totals.nodes_lost, "lost"]];
  more("nodes_more", absent.map(([many, word]) => `${count(many)} ${word}`).join(" · "),
    totals.nodes_lost ? "bad" : totals.nodes_draining ? "warn" : "");
  figure("workers", count);
  const cores = nodes.reduce((sum, node) => sum + (node.state === "lost" || node.state === "left" ? 0 : node.cores), 0);
  more("workers_more", cores ? `on ${plural(cores, "core")}` : "");
  figure("queued", count);
  more("queued_more", `${count(totals.queued_interactive)} interactive · ${count(totals.queued_bulk)} bulk`);
  figure("in_flight", count);
  more("in_flight_more", `${count(totals.undelivered)} undelivered`);
  figure("translations_per_s", rate);
  more("chars_more", `${count(totals.chars_per_s)} characters/s`);
  figure("error_rate", share);
  more("error_more", `last minute · ${count(totals.failed)} in all`);
  for (const name of ["p50_ms", "p95_ms", "p99_ms"]) figure(name, ms);
  more("latency_more", !alive ? "" : totals.p95_ms === null ? "nothing done in the last minute"
    : `last minute${totals.bulk_p95_ms == null ? "" : ` · bulk p95 ${ms(totals.bulk_p95_ms)}`}`);
  figure("dead_letters", count);
  more("dead_more", totals.dead_letters ? "to requeue or purge" : "none waits", totals.dead_letters ? "warn" : "");
  figure("servers", count);
  const silent = gateways.filter((gateway) => gateway.state !== "up").length;
  number(vitals.gateways_up, gateways.length - silent, count(gateways.length - silent));
  more("gateways_more", silent ? `${count(silent)} silent` : gateways.length ? "up" : "none yet", silent ? "warn" : "");
  number(vitals.broker_up, health?.up_s, health ? span(Math.floor(health.up_s)) : DASH);
  more("broker_more", health ? (health.draining ? "stopping" : `up · CPU ${percent(health.cpu_percent)}`) : "not heard yet",
    health && !health.draining ? "" : "warn");
}

function show_broker({ broker: health, totals, routes }) {
  hidden(byId("no-broker"), health !== null);
  hidden(byId("broker-facts"), health === null);
  if (health === null) return;
  text(broker.host, health.host || DASH);
  text(broker.address, health.address || DASH);
  text(broker.version, health.version || DASH);
  text(broker.pid, String(health.pid));
  text(broker.up, span(Math.floor(health.up_s)));
  text(broker.cpu, percent(health.cpu_percent));
  text(broker.rss, bytes(health.rss_bytes));
  text(broker.ledger, bytes(health.ledger_bytes));
  text(broker.disk, bytes(health.disk_free_bytes));
  text(broker.routes, routes.map(({ route, model }) => `${route} (${model})`).join(", ") || "none offered");
  for (const name of ["accepted", "rejected", "done", "cache_hits", "failed", "bad_frames"]) {
    text(broker[name], count(totals[name]));
  }
}

/** The same problem, though the numbers in its words may be others each second. */
const stem = (problem) => `${problem.level} ${problem.node ?? ""} ${problem.text.replace(/\d+([.,]\d+)?/g, "#")}`;

function show_problems(problems, go_to) {
  text(byId("problem-count"), problems.length ? count(problems.length) : "");
  hidden(byId("no-problems"), problems.length > 0);
  text(byId("no-problems"), "Nothing is wrong.");
  keyed(byId("problems"), problems, stem, (problem) => {
    const made = stamp("problem-template");
    made.show.addEventListener("click", () => go_to(problem.node));
    return made;
  }, (made, problem) => {
    attribute(made.root, "class", `problem ${problem.level}`);
    text(made.level, problem.level === "error" ? "Error" : "Warning");
    text(made.text, problem.text);
    hidden(made.show, !problem.node);
    attribute(made.show, "aria-label", problem.node ? `Show ${problem.node}` : null);
  });
  const now = new Map(problems.map((problem) => [stem(problem), problem]));
  const fresh = [...now].filter(([key]) => !trouble.has(key)).map(([, problem]) => problem.text);
  if (fresh.length) text(byId("announce"), `${capital(fresh.slice(0, 3).join("; "))}${fresh.length > 3 ? "; and more" : ""}`);
  else if (trouble.size && !now.size) text(byId("announce"), "Nothing is wrong any more.");
  trouble = new Set(now.keys());
  document.title = problems.length ? `(${problems.length}) dolmetsch` : "dolmetsch";
}

/** Whether the broker is heard, by the latest answer; told again when that is still the same. */
export function show_link(cluster) {
  gone_since = null;
  if (cluster.alive) {
    link_is("live", `live, ${clock(cluster.at)}`);
  } else if (cluster.at === null && cluster.since === null) {
    link_is("stale", "No word from the broker yet");
  } else {
    const since = cluster.since ?? cluster.at;
    link_is("stale", `No word from the broker since ${clock(since)} (${seconds(there() - since)})`);
  }
}

/** The dashboard has not answered; it is asked again in `wait_ms`. */
export function show_gone(wait_ms) {
  gone_since ??= there();
  link_is("gone", `No dashboard since ${clock(gone_since)}; next try in ${seconds(wait_ms / 1000)}`);
}

function link_is(state, words) {
  text(byId("link-text"), words);
  if (state === link) return;
  if (state !== "live") text(byId("alert"), words);
  else if (link) text(byId("announce"), "Live again.");
  link = state;
  document.body.dataset.link = state;
}
