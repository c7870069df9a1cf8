// History: the charts, all over the same time and with one crosshair. 5 minutes, 1 hour or 24 hours.

import { Chart, has } from "./chart.js";
import { attribute, byId, hidden, keyed, make, text } from "./dom.js";
import { count, degrees, ms, percent, rate } from "./format.js";
import { Poll } from "./poll.js";

const SPANS_S = { "5m": 300, "1h": 3600, "24h": 86_400 };
const FEW = 6; // so many nodes get a line each; of more, the highest, the middle and the lowest are drawn
const MANY_NODES_MS = 5000; // between two questions about many nodes: the answers are long
const PERCENT = [0, 25, 50, 75, 100];
const HOT_C = 80; // a Raspberry Pi begins to throttle here

const charts = {};
const grid = byId("chart-grid");
const picker = byId("chart-node");
let span = "5m";
let step_s = 1;
let nodes = []; // names
let visible = false;
let poll;

const plain = (value) => (value < 10 ? String(value) : count(value));

export function start_history() {
  const look = (unix) => Object.values(charts).forEach((chart) => chart.look(unix));
  const add = (key, options) => (charts[key] = new Chart(grid, { look, ...options }));
  add("throughput", { title: "Throughput", unit: "translations/s", format: rate, axis: plain, least: 1 });
  add("latency", { title: "Latency", unit: "accepted to done", format: ms, least: 40 });
  add("queue", { title: "Queue depth", unit: "jobs", format: count, least: 4 });
  add("cpu", { title: "CPU", unit: "by node", format: percent, ticks: PERCENT });
  add("ram", { title: "RAM", unit: "by node", format: percent, ticks: PERCENT });
  add("heat", { title: "Temperature", unit: "by node", format: degrees, ticks: [20, 40, 60, 80, 100], limit: HOT_C });
  add("chars", { title: "Characters/s", unit: "by node", format: count, least: 4 });
  hidden(charts.heat.at.root, true);
  const kept = recall();
  if (kept in SPANS_S) span = kept;
  for (const input of byId("spans").querySelectorAll("input")) {
    input.checked = input.value === span;
    input.addEventListener("change", () => {
      span = input.value;
      keep(span);
      poll.now();
    });
  }
  picker.addEventListener("change", () => poll.now());
  poll = new Poll({
    url: () => (visible ? `api/history?span=${span}${picker.value ? `&node=${encodeURIComponent(picker.value)}` : ""}` : null),
    every: () => Math.max(step_s * 1000, nodes.length > FEW && !picker.value ? MANY_NODES_MS : 1000),
    take: show,
    fail: () => grid.classList.add("old"),
  });
  new IntersectionObserver((seen) => {
    visible = seen.at(-1).isIntersecting;
    if (visible) poll.now();
  }, { rootMargin: "200px" }).observe(byId("charts"));
}

/** The nodes there are, for the choice of one. */
export function nodes_to_choose(names) {
  if (names.join("\n") === nodes.join("\n")) return;
  nodes = names;
  const gone = picker.value && !names.includes(picker.value);
  keyed(picker, ["", ...names], (name) => name, (name) => {
    const root = make("option", "", name || "all");
    root.value = name;
    return { root };
  }, () => {});
  if (gone) {
    picker.value = "";
    poll?.now();
  }
}

function show(answer) {
  if (answer.span !== span) return;
  grid.classList.remove("old");
  step_s = answer.step_s;
  const { times, cluster } = answer;
  const end = times.at(-1) ?? Date.now() / 1000;
  const draw = (key, lines) => charts[key].show({ times, start: end - SPANS_S[span], end, step: step_s, lines });
  draw("throughput", [
    { name: "done", values: cluster.translations_per_s, look: "c1" },
    { name: "failed", values: cluster.failed_per_s, look: "bad", only: (value) => value > 0 },
  ]);
  draw("latency", [
    { name: "p50", values: cluster.p50_ms, look: "c1" },
    { name: "p95", values: cluster.p95_ms, look: "c1 middle", band: cluster.p50_ms },
    { name: "p99", values: cluster.p99_ms, look: "c1 outer", band: cluster.p95_ms },
  ]);
  draw("queue", [
    { name: "queued", values: cluster.queued, look: "c1" },
    { name: "in flight", values: cluster.in_flight, look: "c6" },
  ]);
  const series = Object.entries(answer.nodes);
  const by_node = (what) => lines_of(series.map(([name, values]) => [name, values[what]]));
  draw("cpu", by_node("cpu_percent"));
  draw("ram", by_node("ram_percent"));
  const warm = series.some(([, values]) => values.temperature_c.some(has));
  hidden(charts.heat.at.root, !warm);
  hidden(charts.chars.at.root, warm);
  if (warm) draw("heat", by_node("temperature_c"));
  else draw("chars", by_node("chars_per_s"));
}

/** A line for each of a few nodes; for many, how far they lie apart. */
function lines_of(series) {
  if (series.length <= FEW) return series.map(([name, values], at) => ({ name, values, look: `c${at + 1}` }));
  const sorted = series[0][1].map((_, at) => series.map(([, values]) => values[at]).filter(has).sort((one, other) => one - other));
  const [highest, middle, lowest] = [1, 0.5, 0].map((place) =>
    sorted.map((values) => (values.length ? values[Math.round(place * (values.length - 1))] : null)));
  return [
    { name: "highest", values: highest, look: "c1 outer", band: lowest },
    { name: "median", values: middle, look: "c1" },
    { name: "lowest", values: lowest, look: "c1 outer" },
  ];
}

function recall() {
  try {
    return localStorage.getItem("span");
  } catch {
    return null;
  }
}

function keep(value) {
  try {
    localStorage.setItem("span", value);
  } catch {
    // it holds for this page, then
  }
}
