// Nodes: a row for each, with what it does now; opened, what it is, and which child is pinned to which core.

import { busy, forbidden, post, say } from "./actions.js";
import { attribute, byId, cut, hidden, keyed, make, off, parts, stamp, text } from "./dom.js";
import { bytes, count, DASH, degrees, percent, plural, span } from "./format.js";

const HOT_C = 80; // a Raspberry Pi begins to throttle here
const FULL_PERCENT = 95;
const MANY_CORES = 16; // more bars would not fit into a row
const MANY_NODES = 12; // rows of more are low

const rows = new Map();

export function show_nodes(nodes) {
  text(byId("node-count"), nodes.length ? count(nodes.length) : "");
  hidden(byId("no-nodes"), nodes.length > 0);
  hidden(byId("node-labels"), nodes.length === 0);
  byId("nodes").classList.toggle("many", nodes.length > MANY_NODES);
  const shown = keyed(byId("node-list"), nodes, (node) => node.name, new_row, update_row);
  rows.clear();
  for (const [name, row] of shown) rows.set(name, row);
}

/** Open a node's row and go there. */
export function go_to_node(name) {
  const row = rows.get(name);
  if (!row) return;
  open_row(row, true);
  row.root.scrollIntoView({ block: "nearest" });
  row.toggle.focus();
}

function new_row(node) {
  const row = stamp("node-template");
  row.node = node;
  row.toggle.addEventListener("click", () => open_row(row, row.more.hidden));
  row.drain.addEventListener("click", () => {
    const draining = row.node.state === "draining";
    void order(row.drain, node.name, draining ? "resume" : "drain", () =>
      draining ? `${node.name} takes jobs again` : `${node.name} drains: it takes no more jobs, and finishes what it has`);
  });
  row.restart.addEventListener("click", () => void order(row.restart, node.name, "restart", ({ count: many }) =>
    typeof many === "number" && many > 1 ? `${node.name} restarts its ${many} children` : `${node.name} restarts its children`));
  attribute(row.restart, "aria-label", `Restart the children of ${node.name}`);
  return row;
}

async function order(button, name, action, words) {
  await busy(button, async () => {
    const answer = await post(`api/nodes/${encodeURIComponent(name)}/${action}`, {});
    if (answer) say(words(answer));
  });
}

function open_row(row, yes) {
  hidden(row.more, !yes);
  attribute(row.toggle, "aria-expanded", yes);
  row.root.classList.toggle("open", yes);
  if (yes) update_more(row, row.node);
}

function update_row(row, node) {
  row.node = node;
  const away = node.state === "lost" || node.state === "left";
  attribute(row.root, "data-state", node.state);
  attribute(row.mark, "data-state", node.state);
  cut(row.name, node.name);
  cut(row.about, [node.state + (node.why ? `: ${node.why}` : ""), node.board].filter(Boolean).join(" · "));
  figure(row.cpu, away ? DASH : percent(node.cpu_percent));
  update_bars(row.cores, away ? [] : node.core_percent, node.children);
  figure(row.ram, away ? DASH : percent(node.ram_percent), node.ram_percent >= FULL_PERCENT && !away);
  scale(row.ram_bar, "scaleX", away ? 0 : node.ram_percent);
  const hot = !away && (node.throttled || node.temperature_c >= HOT_C);
  figure(row.temp, away ? DASH : node.temperature_c === null && node.throttled ? "throttled" : degrees(node.temperature_c), hot);
  attribute(row.temp, "title", !away && node.throttled ? "throttled" : null);
  text(row.queued, away ? DASH : count(node.queued));
  text(row.in_flight, away ? DASH : count(node.in_flight));
  text(row.chars, away ? DASH : count(node.chars_per_s));
  text(row.seen, span(node.seen_s_ago));
  update_buttons(row, node, away);
  if (!row.more.hidden) update_more(row, node);
}

function update_buttons(row, node, away) {
  const why = forbidden() || (away ? `${node.name} is not here` : "");
  const draining = node.state === "draining";
  text(row.drain, draining ? "Resume" : "Drain");
  attribute(row.drain, "aria-label", `${draining ? "Resume" : "Drain"} ${node.name}`);
  off(row.drain, why);
  off(row.restart, why);
}

function figure(element, words, alarm = false) {
  text(element, words);
  element.classList.toggle("warn", alarm);
}

/** How full a bar is, by CSSOM: the page's policy allows no style attributes. */
function scale(element, how, value) {
  const transform = `${how}(${Math.max(0, Math.min(100, value || 0)) / 100})`;
  if (element.style.transform !== transform) element.style.transform = transform;
}

/** A bar for each core, underlined where a child is pinned. */
function update_bars(box, cores, children) {
  const pinned = new Set(children.map((child) => child.core));
  const bars = cores.length > MANY_CORES ? [] : cores.map((value, core) => ({ value, core }));
  keyed(box, bars, (bar) => bar.core, () => {
    const root = make("span", "core-bar");
    root.append(make("i"));
    return { root };
  }, ({ root }, bar) => {
    scale(root.firstChild, "scaleY", bar.value);
    root.classList.toggle("pinned", pinned.has(bar.core));
  });
  const words = bars.map((bar) => `core ${bar.core} ${percent(bar.value)}${pinned.has(bar.core) ? " with a child" : ""}`);
  attribute(box, "aria-label", words.join(", ") || "no cores to show");
  attribute(box, "title", words.join("\n") || null);
}

function update_more(row, node) {
  cut(row.host, node.host || DASH);
  text(row.board, node.board || DASH);
  text(row.system, node.system || DASH);
  text(row.version, [node.version || DASH, node.engine].filter(Boolean).join(", engine "));
  text(row.up, span(Math.floor(node.up_s)));
  text(row.joined, `${span(Math.floor(node.joined_s_ago))} ago`);
  text(row.memory, `${bytes(node.ram_used_bytes)} of ${bytes(node.ram_bytes)}`);
  figure(row.throttling, node.throttled ? "throttled now" : node.temperature_c === null ? "none seen, no sensor" : "none", node.throttled);
  text(row.held, `${count(node.leased)} of at most ${count(node.capacity)}`);
  text(row.done, count(node.jobs_done));
  text(row.routes, node.routes.map(({ route, model }) => `${route} (${model})`).join(", ") || "none");
  keyed(row.children, cores_and_children(node), (line) => line.key, () => stamp("child-template"), update_child);
}

/** A line for each core, with its child if it has one; then the children that are pinned to none. */
function cores_and_children({ cores, core_percent, children }) {
  const lines = [];
  const last = Math.max(cores, core_percent.length, ...children.map((child) => child.core + 1));
  for (let core = 0; core < last; core++) {
    const here = children.filter((child) => child.core === core);
    if (here.length) here.forEach((child, at) => lines.push({ key: `${core}/${at}`, core, child }));
    else if (last <= MANY_CORES) lines.push({ key: `${core}/0`, core, child: null });
  }
  children.filter((child) => child.core < 0).forEach((child, at) => lines.push({ key: `-/${at}`, core: null, child }));
  return lines.map((line) => ({ ...line, percent: core_percent[line.core] }));
}

function update_child(made, { core, child, percent: value }) {
  text(made.core, core === null ? DASH : String(core));
  text(made.percent, percent(value));
  text(made.pid, child ? String(child.pid) : "none");
  text(made.state, child ? child.state : "");
  text(made.in_flight, child ? count(child.in_flight) : "");
  text(made.jobs, child ? count(child.jobs_done) : "");
  text(made.rss, child ? bytes(child.rss_bytes) : "");
  text(made.restarts, child ? count(child.restarts) : "");
}
