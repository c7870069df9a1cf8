// Format: numbers as a person reads them, always with their unit. null is a dash.

export const DASH = "–";
const NARROW = "\u202f"; // between thousands
const SPACE = "\u00a0"; // between a number and its unit; no line breaks there
const UNITS = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

const unknown = (value) => value === null || value === undefined || Number.isNaN(value);
const with_unit = (number, unit) => number + SPACE + unit;

/** 1234 is "1 234". */
export function count(value) {
  if (unknown(value)) return DASH;
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, NARROW);
}

/** A rate: "0", "0.04", "3.2", "1 234". */
export function rate(value) {
  if (unknown(value)) return DASH;
  if (value === 0 || value >= 9.95) return count(value);
  return value.toFixed(value < 0.095 ? 2 : 1);
}

/** "85 ms", "2.4 s", "24 s", "3 min 20 s". */
export function ms(value) {
  if (unknown(value)) return DASH;
  if (value < 999.5) return with_unit(Math.round(value), "ms");
  if (value < 9950) return with_unit((value / 1000).toFixed(1), "s");
  return span(value / 1000);
}

/** "0.4 s", "12 s", "3 min 20 s", "2 h 5 min", "3 d 4 h". */
export function span(seconds) {
  if (unknown(seconds)) return DASH;
  if (seconds < 9.95) return with_unit(Math.max(0, seconds).toFixed(1), "s");
  const whole = Math.round(seconds);
  const at = UNITS.findIndex(([length]) => whole >= length);
  const [length, unit] = UNITS[at];
  const first = with_unit(Math.floor(whole / length), unit);
  const next = UNITS[at + 1];
  const rest = next ? Math.floor((whole % length) / next[0]) : 0;
  return rest ? `${first} ${with_unit(rest, next[1])}` : first;
}

/** A span that is only told to the second, for words that should not change more often. */
export const seconds = (value) => (value < 9.95 ? with_unit(Math.max(0, Math.floor(value)), "s") : span(value));

/** "640 kB", "1.2 GB". */
export function bytes(value) {
  if (unknown(value)) return DASH;
  let number = value;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (number < 999.5) return with_unit(unit !== "B" && number < 9.95 ? number.toFixed(1) : Math.round(number), unit);
    number /= 1000;
  }
  return with_unit(number < 9.95 ? number.toFixed(1) : count(number), "TB");
}

/** "43 %". */
export const percent = (value) => (unknown(value) ? DASH : with_unit(Math.round(value), "%"));

/** A share from 0 to 1: "0 %", "0.3 %", "12 %". */
export const share = (value) => (unknown(value) ? DASH : with_unit(value === 0 ? "0" : rate(value * 100), "%"));

/** "82 °C". */
export const degrees = (value) => (unknown(value) ? DASH : with_unit(Math.round(value), "°C"));

/** "1 node", "4 nodes". */
export const plural = (value, word) => `${count(value)}${SPACE}${word}${value === 1 ? "" : "s"}`;

/** A name that a stranger chose, for the middle of a sentence: the words beside it keep their order. */
export const isolated = (name) => `\u2068${name}\u2069`;

const two = (value) => String(value).padStart(2, "0");

/** The time of day of a Unix time, "14:03:22"; with `minutes` "14:03". */
export function clock(unix, minutes = false) {
  if (unknown(unix)) return DASH;
  const date = new Date(unix * 1000);
  const short = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return minutes ? short : `${short}:${two(date.getSeconds())}`;
}

/** The time of day, and the day if that is not the one of `now`. */
export function moment(unix, now) {
  if (unknown(unix)) return DASH;
  const [then, today] = [new Date(unix * 1000), new Date(now * 1000)];
  const day = `${then.getFullYear()}-${two(then.getMonth() + 1)}-${two(then.getDate())} `;
  return (then.toDateString() === today.toDateString() ? "" : day) + clock(unix);
}
