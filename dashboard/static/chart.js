// Chart: lines and bands over time as plain SVG. It is built once; an update changes the attributes that differ.
// A crosshair follows the pointer and the arrow keys; what stands there is read in the legend.

import { attribute, cut, hidden, keyed, stamp, svg, text } from "./dom.js";
import { clock } from "./format.js";

const LEFT = 46;
const RIGHT = 6;
const TOP = 8;
const BOTTOM = 20;
const LABEL_PX = 46; // room for a time on the axis
const STEPS_S = [60, 300, 600, 900, 1800, 3600, 7200, 10_800, 14_400, 21_600, 43_200];
const number = (value) => Math.round(value * 10) / 10;

/** Round steps, at most four, from 0 to `top` or a little beyond. */
function round_ticks(top) {
  const power = 10 ** Math.floor(Math.log10(top / 4));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= (top / 4) * 0.999);
  return Array.from({ length: Math.ceil(top / step - 0.001) + 1 }, (_, at) => Number((at * step).toPrecision(6)));
}

export class Chart {
  #points = { times: [], start: 0, end: 1, step: 1 };
  #lines = [];
  #ticks = [0, 1];
  #size = [0, 0];
  #cursor = null;

  /**
   * `title` and `unit`; `format` for values, `axis` for those on the axis if that is another; `ticks` if they are always the same, else `least`, which the
   * axis always reaches; `limit`, where trouble begins; `look(unix or null)` hears where the reader looks.
   */
  constructor(parent, options) {
    this.options = { axis: options.format, ...options };
    this.at = stamp("chart-template");
    text(this.at.title, options.title);
    text(this.at.unit, options.unit);
    attribute(this.at.plot, "aria-label", options.title);
    const { svg: root } = this.at;
    this.grid = svg("g", { class: "grid" }, root);
    this.bands = svg("g", {}, root);
    this.paths = svg("g", {}, root);
    this.limit = svg("path", { class: "limit" }, root);
    this.cross = svg("path", { class: "cross" }, root);
    this.dots = svg("g", {}, root);
    this.#listen();
    parent.append(this.at.root);
    new ResizeObserver(() => this.#resize()).observe(this.at.plot);
  }

  /**
   * Show `lines` ({name, values, look}) over `times`, from `start` to `end`, a value each `step` seconds. A line may
   * have a `band` down to other values, and be drawn `only` where that is true of a value.
   */
  show({ times, start, end, step, lines }) {
    this.#points = { times, start, end, step };
    this.#lines = lines.map((line) => ({ ...line, good: (at) => has(line.values[at]) && (!line.only || line.only(line.values[at])) }));
    this.#scale();
    this.#draw();
    this.look(this.#cursor);
  }

  /** Put the crosshair at a time, or take it away. */
  look(unix) {
    this.#cursor = unix;
    const { times, step } = this.#points;
    const index = unix === null ? -1 : nearest(times, unix);
    const there = index >= 0 && Math.abs(times[index] - (unix ?? 0)) <= Math.max(step, 1) * 3;
    const x = there ? number(this.#x(times[index])) : 0;
    attribute(this.cross, "d", there ? `M${x} ${TOP}V${this.#size[1] - BOTTOM}` : null);
    const marked = there ? this.#lines.filter((line) => line.good(index)) : [];
    keyed(this.dots, marked, (line) => line.name, () => ({ root: svg("circle", { r: 3 }) }), ({ root }, line) => {
      attribute(root, "class", `dot ${line.look}`);
      attribute(root, "cx", x);
      attribute(root, "cy", number(this.#y(line.values[index])));
    });
    this.#read(there ? index : -1);
  }

  #listen() {
    const { plot } = this.at;
    const tell = this.options.look;
    plot.addEventListener("pointermove", (event) => {
      const left = event.clientX - plot.getBoundingClientRect().left;
      const { times, start, end } = this.#points;
      const at = nearest(times, start + ((left - LEFT) / this.#width()) * (end - start));
      tell(at < 0 ? null : times[at]);
    });
    plot.addEventListener("pointerleave", () => tell(null));
    plot.addEventListener("blur", () => tell(null));
    plot.addEventListener("keydown", (event) => {
      const { times } = this.#points;
      const last = times.length - 1;
      const now = this.#cursor === null ? last : nearest(times, this.#cursor);
      const leap = Math.max(1, Math.round(times.length / 10));
      const to = {
        ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1,
        PageDown: now - leap, PageUp: now + leap, Home: 0, End: last,
      }[event.key];
      if (event.key === "Escape") tell(null);
      if (to === undefined || last < 0) return;
      event.preventDefault();
      tell(times[Math.max(0, Math.min(last, to))]);
    });
  }

  /** Values in the legend: those at `index`, or the latest. */
  #read(index) {
    const { times } = this.#points;
    const at = index >= 0 ? index : times.length - 1;
    const { format } = this.options;
    const shown = this.#lines;
    keyed(this.at.legend, shown, (line) => line.name, () => stamp("legend-template"), (item, line) => {
      attribute(item.swatch, "class", `swatch ${line.look}`);
      cut(item.name, line.name);
      text(item.value, format(at < 0 ? null : line.values[at]));
    });
    text(this.at.time, index >= 0 ? clock(times[at]) : "now");
    const { plot } = this.at;
    attribute(plot, "aria-valuemax", Math.max(0, times.length - 1));
    attribute(plot, "aria-valuenow", Math.max(0, at));
    // Only while it is read: else a screen reader might say each new value.
    if (index >= 0 || !plot.hasAttribute("aria-valuetext")) {
      const words = shown.map((line) => `${line.name} ${format(at < 0 ? null : line.values[at])}`);
      attribute(plot, "aria-valuetext", `${at < 0 ? "no data" : clock(times[at])}: ${words.join(", ")}`);
    }
    if (index < 0) this.#summary(shown);
  }

  /** The same in words, for those who cannot see it. */
  #summary(shown) {
    const { times, start, end } = this.#points;
    const { format } = this.options;
    const words = shown.map(({ name, values }) => {
      const known = values.filter(has);
      if (!known.length) return `${name}: no data`;
      const top = Math.max(...known);
      const when = clock(times[values.indexOf(top)], true);
      return `${name}: now ${format(values.at(-1))}, lowest ${format(Math.min(...known))}, highest ${format(top)} at ${when}`;
    });
    text(this.at.summary, `From ${clock(start, true)} to ${clock(end, true)}. ${words.join("; ")}.`);
  }

  #width() {
    return Math.max(1, this.#size[0] - LEFT - RIGHT);
  }

  #x(unix) {
    const { start, end } = this.#points;
    return LEFT + ((unix - start) / (end - start)) * this.#width();
  }

  #y(value) {
    const [low, high] = [this.#ticks[0], this.#ticks.at(-1)];
    const height = this.#size[1] - TOP - BOTTOM;
    return TOP + height * (1 - (Math.max(low, Math.min(high, value)) - low) / (high - low));
  }

  #resize() {
    const { plot, svg: root } = this.at;
    const size = [plot.clientWidth, plot.clientHeight];
    if (size[0] === this.#size[0] && size[1] === this.#size[1]) return;
    this.#size = size;
    attribute(root, "viewBox", `0 0 ${size[0]} ${size[1]}`);
    this.#draw();
    this.look(this.#cursor);
  }

  #scale() {
    const { ticks, least } = this.options;
    this.#ticks = ticks ?? round_ticks(Math.max(least, ...this.#lines.flatMap((line) => line.values).filter(has)));
  }

  #draw() {
    if (!this.#size[0]) return;
    this.#draw_grid();
    const lines = this.#lines;
    keyed(this.bands, lines.filter((line) => line.band), (line) => line.name, () => ({ root: svg("path") }), ({ root }, line) => {
      attribute(root, "class", `band ${line.look}`);
      attribute(root, "d", this.#band(line.values, line.band));
    });
    keyed(this.paths, lines, (line) => line.name, () => ({ root: svg("path") }), ({ root }, line) => {
      attribute(root, "class", `line ${line.look}`);
      attribute(root, "d", this.#line(line));
    });
    const { limit } = this.options;
    attribute(this.limit, "d", limit ? `M${LEFT} ${number(this.#y(limit))}h${this.#width()}` : null);
    hidden(this.at.nothing, lines.some((line) => line.values.some(has)));
  }

  #draw_grid() {
    const [width, height] = this.#size;
    const marks = this.#ticks.map((value) => ({ key: `y${value}`, y: number(this.#y(value)), words: this.options.axis(value) }));
    for (const time of this.#times()) marks.push({ key: `x${time}`, x: number(this.#x(time)), words: clock(time, true) });
    keyed(this.grid, marks, (mark) => mark.key, () => {
      const root = svg("g");
      return { root, line: svg("path", {}, root), label: svg("text", {}, root) };
    }, ({ line, label }, mark) => {
      const upright = mark.x !== undefined;
      attribute(line, "d", upright ? `M${mark.x} ${height - BOTTOM}v4` : `M${LEFT} ${mark.y}H${width - RIGHT}`);
      attribute(label, "x", upright ? mark.x : LEFT - 6);
      attribute(label, "y", upright ? height - 4 : mark.y + 4);
      attribute(label, "text-anchor", upright ? "middle" : "end");
      text(label, mark.words);
    });
  }

  /** Round times of the reader's day, as many as have room. */
  #times() {
    const { start, end } = this.#points;
    const room = Math.max(1, Math.floor(this.#width() / LABEL_PX));
    const step = STEPS_S.find((one) => (end - start) / one <= room) ?? 86_400;
    const zone = new Date(end * 1000).getTimezoneOffset() * 60;
    const times = [];
    for (let at = Math.ceil((start - zone) / step) * step + zone; at <= end; at += step) {
      const x = this.#x(at);
      if (x > LEFT + 8 && x < this.#size[0] - 16) times.push(at);
    }
    return times;
  }

  /** Stretches without a gap: pairs of first and last index. */
  *#stretches(good) {
    const { times, step } = this.#points;
    let from = -1;
    for (let at = 0; at <= times.length; at++) {
      const on = at < times.length && good(at);
      const torn = on && from >= 0 && times[at] - times[at - 1] > step * 2.5;
      if (from >= 0 && (!on || torn)) yield [from, at - 1];
      if (!on) from = -1;
      else if (from < 0 || torn) from = at;
    }
  }

  #spot(index, values) {
    return `${number(this.#x(this.#points.times[index]))} ${number(this.#y(values[index]))}`;
  }

  #line({ values, good }) {
    let path = "";
    for (const [first, last] of this.#stretches(good)) {
      path += `M${this.#spot(first, values)}`;
      for (let at = first + 1; at <= last; at++) path += `L${this.#spot(at, values)}`;
      if (first === last) path += "h.01"; // a dot, by its round ends
    }
    return path || null;
  }

  #band(upper, lower) {
    let path = "";
    for (const [first, last] of this.#stretches((at) => has(upper[at]) && has(lower[at]))) {
      path += `M${this.#spot(first, upper)}`;
      for (let at = first + 1; at <= last; at++) path += `L${this.#spot(at, upper)}`;
      for (let at = last; at >= first; at--) path += `L${this.#spot(at, lower)}`;
      path += "Z";
    }
    return path || null;
  }
}

export const has = (value) => value !== null && value !== undefined;

/** The index of the time that is nearest; -1 if there is none. */
function nearest(times, unix) {
  if (!times.length) return -1;
  let [low, high] = [0, times.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (times[middle] < unix) low = middle;
    else high = middle;
  }
  return unix - times[low] < times[high] - unix ? low : high;
}
