// Jobs: where the time of each went, what happened to it, and what to do with the dead. Their text is never here.

import { busy, confirmed, forbidden, post, say } from "./actions.js";
import { attribute, byId, cut, hidden, keyed, make, off, stamp, text } from "./dom.js";
import { count, DASH, ms, moment, plural, share } from "./format.js";
import { there } from "./overview.js";
import { Poll } from "./poll.js";

const STAGES = {
  gateway: "waited at the gateway, before the broker had it",
  queue: "waited in the broker for a node with room",
  wire: "on the way between broker and node",
  batch: "waited at the node for its first batch",
  decode: "was translated",
  reply: "from the result to the gateway’s receipt",
};
const NONE = {
  recent: "No jobs yet.",
  slow: "No jobs yet: the slowest of the last hour will be here.",
  dead: "No dead letters.",
};
const FIRST = 20; // shown until more are asked for
const mouse = matchMedia("(hover: hover)");
const list = byId("job-list");

let kind = "recent";
let shown = ""; // the kind that is shown
let jobs = []; // what is shown
let newer = null; // what came while somebody read what is shown
let edition = null; // of the answer that came last
let asked = null;
let wanted = null; // the edition there is
let all = false;
let visible = false;
let rows = new Map();
let poll;

export function start_jobs() {
  for (const input of byId("kinds").querySelectorAll("input")) {
    input.checked = input.value === kind;
    input.addEventListener("change", () => {
      [kind, all, newer] = [input.value, false, null];
      poll.now();
    });
  }
  byId("more-jobs").addEventListener("click", () => {
    all = true;
    draw();
    [...rows.values()][FIRST]?.toggle.focus();
  });
  byId("requeue-all").addEventListener("click", (event) => void act("requeue", "all", event.currentTarget));
  byId("purge-all").addEventListener("click", (event) => void purge_all(event.currentTarget));
  list.addEventListener("pointerleave", catch_up);
  list.addEventListener("focusout", () => setTimeout(catch_up));
  poll = new Poll({
    url: () => {
      if (!visible || (wanted === edition && shown === kind)) return null;
      asked = wanted;
      return `api/jobs?kind=${kind}`;
    },
    every: () => 1000,
    take: (answer) => {
      if (answer.kind !== kind) return;
      edition = asked;
      if (shown === kind && kind === "recent" && reading()) newer = answer.jobs;
      else take(answer.jobs);
      note();
    },
    same: () => {
      edition = asked;
    },
  });
  new IntersectionObserver((seen) => {
    visible = seen.at(-1).isIntersecting;
    if (visible) poll.now();
  }, { rootMargin: "200px" }).observe(byId("jobs"));
}

/** What the latest /api/cluster says of jobs. */
export function jobs_now(cluster) {
  wanted = cluster.jobs_edition;
  const { dead_letters: dead } = cluster.totals;
  text(byId("dead-count"), dead ? count(dead) : "");
  const why = forbidden() || (dead ? "" : "There are no dead letters");
  off(byId("requeue-all"), why);
  off(byId("purge-all"), why);
  for (const row of rows.values()) allow(row);
}

/** Somebody reads the list: it must not move away below the eyes. */
function reading() {
  return (mouse.matches && list.matches(":hover")) || list.contains(document.activeElement) || list.querySelector(".open");
}

function catch_up() {
  if (newer && !reading()) take(newer);
  note();
}

function note() {
  const known = new Set(jobs.map((job) => job.id));
  const fresh = newer?.filter((job) => !known.has(job.id)).length ?? 0;
  text(byId("jobs-note"), fresh ? `held while you read, ${count(fresh)} newer` : "\u00a0");
}

function take(answer) {
  [jobs, shown, newer] = [answer, kind, null];
  draw();
}

function draw() {
  const at = [...rows.values()].findIndex((row) => row.root.contains(document.activeElement));
  hidden(byId("no-jobs"), jobs.length > 0);
  text(byId("no-jobs"), NONE[shown]);
  hidden(byId("dead-actions"), shown !== "dead");
  const some = all ? jobs : jobs.slice(0, FIRST);
  hidden(byId("more-jobs"), some.length === jobs.length);
  text(byId("more-jobs"), `Show ${count(jobs.length - some.length)} more`);
  rows = keyed(list, some, (job) => `${job.id} ${job.state} ${job.ended_at}`, new_row, update_row);
  if (at >= 0 && !list.contains(document.activeElement)) {
    const left = [...rows.values()];
    (left[Math.min(at, left.length - 1)]?.toggle ?? byId("kinds").querySelector(":checked")).focus();
  }
}

function new_row(job) {
  const row = stamp("job-template");
  row.toggle.addEventListener("click", () => open_row(row, row.more.hidden));
  row.requeue.addEventListener("click", () => void act("requeue", [job.id], row.requeue));
  row.purge.addEventListener("click", () => void act("purge", [job.id], row.purge));
  for (const stage of Object.keys(STAGES)) row.bar.append(make("i", `s-${stage}`));
  return row;
}

function update_row(row, job) {
  if (row.job === job) return;
  row.job = job;
  attribute(row.root, "data-state", job.state);
  text(row.when, moment(job.ended_at, there()));
  text(row.route, job.route);
  text(row.chars, plural(job.chars, "character"));
  cut(row.node, job.cached ? "from the cache" : job.node || "no node");
  const flags = [
    job.state === "dead" ? `dead: ${job.code || "failed"}` : "",
    job.lane === "bulk" ? "bulk" : "",
    job.attempts > 1 ? plural(job.attempts, "attempt") : "",
  ];
  cut(row.flags, flags.filter(Boolean).join(" · "));
  Object.keys(STAGES).forEach((stage, at) => {
    row.bar.children[at].style.flexGrow = job.stages[stage];
  });
  text(row.total, ms(job.total_ms));
  allow(row);
  if (!row.more.hidden) update_more(row);
}

function allow(row) {
  const dead = shown === "dead";
  hidden(row.actions, !dead);
  if (!dead) return;
  off(row.requeue, forbidden());
  off(row.purge, forbidden());
}

function open_row(row, yes) {
  if (yes) update_more(row);
  hidden(row.more, !yes);
  attribute(row.toggle, "aria-expanded", yes);
  row.root.classList.toggle("open", yes);
  if (!yes) catch_up();
}

function update_more(row) {
  const { job } = row;
  if (!row.inside) {
    row.inside = stamp("story-template");
    row.more.append(row.inside.root);
  }
  const { inside } = row;
  text(inside.why, why(job));
  keyed(inside.stages, Object.keys(STAGES), (stage) => stage, () => stamp("stage-template"), (line, stage) => {
    attribute(line.swatch, "class", `swatch s-${stage}`);
    text(line.name, stage);
    text(line.time, ms(job.stages[stage]));
    text(line.what, STAGES[stage]);
  });
  const story = job.story.map((line, at) => ({ ...line, at }));
  keyed(inside.story, story, (line) => line.at, () => stamp("story-line-template"), (line, { at_ms, what }) => {
    text(line.when, `+${ms(at_ms)}`);
    text(line.what, what);
  });
  text(inside.told, job.story.length ? "" : job.cached ? "Its translation was in the cache." : "There is none: it never left the queue.");
  text(inside.id, job.id);
  text(inside.gateway, job.gateway || DASH);
  text(inside.lane, job.lane);
  text(inside.node, job.node || DASH);
  text(inside.attempts, count(job.attempts));
  text(inside.model, job.model || DASH);
}

/** Why it took so long, or why it died, in a sentence. */
function why(job) {
  const died = job.state === "dead" ? `It died (${job.code || "failed"}${job.detail ? `: ${job.detail}` : ""}). ` : "";
  const [stage, most] = Object.entries(job.stages).reduce((one, other) => (other[1] > one[1] ? other : one));
  if (!most) return `${died}It took no time worth telling.`;
  return `${died}${share(most / job.total_ms)} of its ${ms(job.total_ms)} are ${stage}: it ${what_of(stage)}.`;
}

const what_of = (stage) => ({ wire: "was on the way between broker and node", reply: "waited for the gateway to take the result" }[stage] ?? STAGES[stage]);

async function act(action, which, button) {
  await busy(button, async () => {
    const answer = await post(`api/jobs/${action}`, { jobs: which });
    if (!answer) return;
    const did = action === "requeue" ? "queued again" : "purged";
    say(`${plural(answer.count, "dead letter")} ${did}${answer.problem ? `; ${answer.problem}` : ""}`, Boolean(answer.problem));
  });
}

async function purge_all(button) {
  const words = "They are deleted, with their texts, and cannot be brought back. Whoever asked has been told that they failed.";
  if (await confirmed("Purge all dead letters?", words, "Purge all")) await act("purge", "all", button);
}
